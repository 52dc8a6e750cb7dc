//! An API server with what the certificate authority uses: objects with versions, lists and watches of one name, Events
//! that are only counted, and reviews of tokens that the test has prepared.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) const SECRETS: &str = "/api/v1/namespaces/weft-system/secrets";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/weft-config/configmaps";
pub(crate) const MESHES: &str = "/apis/weft.dev/v1alpha1/meshes";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/weft-system/events";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The server. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    content: Arc<Mutex<Content>>,
    version: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Content {
    /// By collection and name.
    objects: BTreeMap<(String, String), Value>,
    /// What happened to objects, with its version.
    changes: Vec<(u64, String, Value)>,
    /// Notes of Events.
    events: Vec<String>,
    /// The status of the review of each token; the others are not authenticated.
    reviews: HashMap<String, Value>,
    reviewed: usize,
    is_down: bool,
    is_read_only: bool,
    refused_writes: usize,
}

// === impl Api ===

impl Api {
    pub(crate) async fn start() -> (Self, Client) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let api = Self { content: Arc::default(), version: Arc::new(watch::Sender::new(1)) };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = Router::new().fallback(handle).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (api, Client::try_from(Config::new(url.parse().expect("a URL"))).expect("a client"))
    }

    /// Creates or replaces an object, or deletes it.
    pub(crate) fn put(&self, collection: &str, name: &str, object: Option<Value>) {
        let mut content = self.content.lock().expect("not poisoned");
        let version = *self.version.borrow() + 1;
        let key = (collection.to_owned(), name.to_owned());
        let before = content.objects.remove(&key);
        let kind = match (&before, &object) {
            (Some(_), Some(_)) => "MODIFIED",
            (None, Some(_)) => "ADDED",
            (_, None) => "DELETED",
        };
        let Some(mut changed) = object.clone().or(before.clone()) else { return };
        changed["metadata"]["resourceVersion"] = json!(version.to_string());
        let uid = before.map_or_else(|| json!(format!("uid-{version}")), |before| before["metadata"]["uid"].clone());
        changed["metadata"]["uid"] = uid;
        if object.is_some() {
            content.objects.insert(key, changed.clone());
        }
        content.changes.push((version, collection.to_owned(), json!({"type": kind, "object": changed})));
        drop(content);
        self.version.send_replace(version);
    }

    pub(crate) fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.content.lock().expect("not poisoned").objects.get(&(collection.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.content.lock().expect("not poisoned").events.clone()
    }

    /// Prepares the status of the review of a token.
    pub(crate) fn review(&self, token: &str, status: Value) {
        self.content.lock().expect("not poisoned").reviews.insert(token.to_owned(), status);
    }

    pub(crate) fn reviewed(&self) -> usize {
        self.content.lock().expect("not poisoned").reviewed
    }

    /// From now on every review fails, or none.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.content.lock().expect("not poisoned").is_down = is_down;
    }

    /// From now on every write of an object fails, or none.
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        self.content.lock().expect("not poisoned").is_read_only = is_read_only;
    }

    pub(crate) fn refused_writes(&self) -> usize {
        self.content.lock().expect("not poisoned").refused_writes
    }

    /// The changes of a collection and name after a version, as a stream without end.
    fn changes(&self, collection: String, name: String, from: u64) -> Body {
        let start = (self.clone(), self.version.subscribe(), from);
        Body::from_stream(stream::unfold(start, move |(api, mut version, from)| {
            let (collection, name) = (collection.clone(), name.clone());
            async move {
                loop {
                    let next = {
                        let content = api.content.lock().expect("not poisoned");
                        let is_next = |(at, of, change): &&(u64, String, Value)| {
                            *at > from && *of == collection && change["object"]["metadata"]["name"] == name
                        };
                        content.changes.iter().find(is_next).map(|(at, _, change)| (*at, format!("{change}\n")))
                    };
                    if let Some((at, line)) = next {
                        return Some((Ok::<_, Infallible>(line), (api, version, at)));
                    }
                    version.changed().await.ok()?;
                }
            }
        }))
    }
}

async fn handle(State(api): State<Api>, method: Method, uri: Uri, body: Bytes) -> Response {
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    let parameter = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let selected = parameter("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name%3D"));
    let is_collection =
        [SECRETS, CONFIG_MAPS, MESHES, EVENTS, REVIEWS].contains(&path) || path.ends_with("webhookconfigurations");
    let (collection, name) = if is_collection { (path, "") } else { path.rsplit_once('/').unwrap_or((path, "")) };
    let object: Value = serde_json::from_slice(&body).unwrap_or_default();
    match method {
        Method::GET if is_collection && query.contains("watch=") => {
            let from = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            api.changes(collection.to_owned(), selected.unwrap_or_default().to_owned(), from).into_response()
        }
        Method::GET if is_collection => {
            let items: Vec<Value> = api.get(collection, selected.unwrap_or_default()).into_iter().collect();
            let version = api.version.borrow().to_string();
            let metadata = json!({"resourceVersion": version});
            axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
                .into_response()
        }
        Method::GET => api.get(collection, name).map_or_else(|| failure(404, "NotFound"), success),
        Method::POST if path == REVIEWS => {
            let mut content = api.content.lock().expect("not poisoned");
            content.reviewed += 1;
            if content.is_down {
                return failure(500, "InternalError");
            }
            let token = object["spec"]["token"].as_str().unwrap_or_default();
            let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
            let status = content.reviews.get(token).cloned().unwrap_or(unknown);
            success(json!({"metadata": {}, "spec": object["spec"], "status": status}))
        }
        Method::POST if path == EVENTS => {
            let note =
                format!("{}: {}", object["reason"].as_str().unwrap_or(""), object["note"].as_str().unwrap_or(""));
            api.content.lock().expect("not poisoned").events.push(note);
            success(object)
        }
        Method::POST | Method::PUT if api.content.lock().expect("not poisoned").is_read_only => {
            api.content.lock().expect("not poisoned").refused_writes += 1;
            failure(500, "InternalError")
        }
        Method::POST => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if api.get(collection, &name).is_some() {
                return failure(409, "AlreadyExists");
            }
            api.put(collection, &name, Some(object));
            api.get(collection, &name).map_or_else(|| failure(404, "NotFound"), success)
        }
        Method::PUT => match api.get(collection, name) {
            None => failure(404, "NotFound"),
            Some(found) if found["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                failure(409, "Conflict")
            }
            Some(_) => {
                api.put(collection, name, Some(object));
                api.get(collection, name).map_or_else(|| failure(404, "NotFound"), success)
            }
        },
        _ => failure(404, "NotFound"),
    }
}

fn success(object: Value) -> Response {
    axum::Json(object).into_response()
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    (StatusCode::from_u16(code).expect("a status"), axum::Json(status)).into_response()
}
