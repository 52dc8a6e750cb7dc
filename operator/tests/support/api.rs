//! An API server that only keeps what it gets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Objects by path, and the requests: method and path.
#[derive(Default)]
pub(crate) struct Api {
    pub(crate) objects: HashMap<String, Value>,
    pub(crate) requests: Vec<String>,
    /// The path to which writes fail.
    pub(crate) broken: Option<String>,
}

impl Api {
    /// Status and object; `None`: nothing until the object is removed.
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Option<(u16, Value)> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let path = path.to_owned();
        self.requests.push(format!("{method} {path}"));
        let status = |code: u16, reason: &str| {
            Some((
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            ))
        };
        if method != "GET" && self.broken.as_ref() == Some(&path) {
            return status(500, "InternalError");
        }
        match method {
            "PUT" => {
                let object: Value = serde_json::from_slice(body).expect("an object");
                self.objects.insert(path, object.clone());
                Some((200, object))
            }
            "DELETE" => match self.objects.remove(&path) {
                Some(object) => Some((200, object)),
                None => status(404, "NotFound"),
            },
            "POST" => {
                let object: Value = serde_json::from_slice(body).expect("an object");
                let key = format!("{path}/{}", object["metadata"]["name"].as_str().expect("a name"));
                if self.objects.contains_key(&key) {
                    return status(409, "AlreadyExists");
                }
                self.objects.insert(key, object.clone());
                Some((201, object))
            }
            "PATCH" => {
                let patch: Value = serde_json::from_slice(body).expect("a patch");
                let object = self.objects.get_mut(&path).expect("an object to patch");
                if path.ends_with("/status") {
                    let version = &mut object["metadata"]["resourceVersion"];
                    if *version != patch["metadata"]["resourceVersion"] {
                        return status(409, "Conflict");
                    }
                    let next = version.as_str().and_then(|version| version.parse::<u64>().ok()).expect("a number") + 1;
                    *version = json!(next.to_string());
                    object["status"] = patch["status"].clone();
                } else {
                    object["series"] = patch["series"].clone();
                }
                Some((200, object.clone()))
            }
            _ => match self.objects.get(&path) {
                Some(_) if query.contains("watch=") => None,
                Some(object) => Some((200, object.clone())),
                // As for a path of an unknown group: text instead of a Status.
                None if path.starts_with("/apis/gateway.") => Some((404, json!("404 page not found"))),
                None => status(404, "NotFound"),
            },
        }
    }
}

async fn serve(stream: TcpStream, api: Arc<Mutex<Api>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((_, value)) =
                line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = api.lock().expect("not poisoned").answer(method, path, &body);
        let Some((code, answer)) = answer else {
            let path = path.split('?').next().unwrap_or_default();
            while api.lock().expect("not poisoned").objects.contains_key(path) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            return Ok(());
        };
        let answer = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
        let head = format!(
            "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        );
        stream.write_all(head.as_bytes()).await?;
    }
}

/// Starts a server with these objects, and a client for it.
pub(crate) async fn start(objects: HashMap<String, Value>) -> (Arc<Mutex<Api>>, Client) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let api = Arc::new(Mutex::new(Api { objects, ..Api::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let served = api.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, served.clone()));
        }
    });
    (api, Client::try_from(Config::new(url.parse().expect("a URL"))).expect("a client"))
}
