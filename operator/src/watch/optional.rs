//! Watches of the Gateway API's kinds, which may be installed, changed and removed at any time.
//!
//! The CustomResourceDefinition says which versions are served. Without an established definition the kind counts as
//! listed and empty. If it serves no version that Weft reads, its routes are watched nevertheless, so that their status says so.

use std::time::Duration;

use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client};

use super::Sink;
use crate::world::{Availability, Definition, Event, GatewayRoute, Grant, Kind, WatchedKind};

/// Versions of ReferenceGrant, the preferred one first: the Gateway API before 1.5 has only the second one.
const GRANT_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// Versions of routes.
const ROUTE_VERSIONS: [&str; 1] = [weft_gateway_api::VERSION];

/// Interval in which the definition of a kind is read that is not installed, or not in a version that Weft reads.
const POLL: Duration = Duration::from_secs(5);
/// Interval of attempts to list a kind whose definition is there: it is served soon after it was created.
const RETRY: Duration = Duration::from_secs(1);

/// A kind of the Gateway API.
#[derive(Clone, Copy)]
enum Optional {
    Grants,
    Routes(Kind),
}

// === impl Sink ===

impl Sink {
    /// Watches all kinds of the Gateway API.
    pub(super) fn run_gateway_api(&self, client: &Client) {
        for optional in Kind::GATEWAY.map(Optional::Routes).into_iter().chain([Optional::Grants]) {
            let (sink, client) = (self.clone(), client.clone());
            self.spawn(async move { sink.watch_optional(&client, optional).await });
        }
    }

    /// Returns when nobody receives.
    async fn watch_optional(&self, client: &Client, optional: Optional) {
        let kind = optional.watched();
        let mut last = None;
        loop {
            match definition(client, kind).await {
                Ok(Some(definition)) => match optional.readable(&definition) {
                    // While there is a definition, an API server that does not serve it yet changes nothing.
                    Some(version) => {
                        if !self.watch_version(client, optional, version, &mut last).await {
                            return;
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                    None => {
                        if !self.tell(kind, Availability::Unsupported(definition.clone()), &mut last).await {
                            return;
                        }
                        tokio::select! {
                            is_open = self.watch_unsupported(client, optional, &definition) => if !is_open { return },
                            () = until_changed(client, kind, &definition) => {}
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Ok(None) => {
                    if !self.tell(kind, Availability::Missing, &mut last).await {
                        return;
                    }
                    tokio::time::sleep(POLL).await;
                }
                // Without the right to read definitions, only attempts tell.
                Err(kube::Error::Api(status)) if status.is_forbidden() => {
                    for version in optional.versions() {
                        if !self.watch_version(client, optional, version, &mut last).await {
                            return;
                        }
                    }
                    if !self.tell(kind, Availability::Missing, &mut last).await {
                        return;
                    }
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    tracing::warn!(kind = kind.as_str(), %error, "cannot read the definition, retrying");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    /// Watches a version until the API server does not have it (true) or nobody receives (false).
    async fn watch_version(
        &self,
        client: &Client,
        optional: Optional,
        version: &str,
        last: &mut Option<Availability>,
    ) -> bool {
        if !self.tell(optional.watched(), Availability::Served, last).await {
            return false;
        }
        let api = Api::<DynamicObject>::all_with(client.clone(), &optional.resource(version));
        match optional {
            Optional::Grants => self.forward(api, |grant| Some(grant.into()), Event::Grant, is_not_found).await,
            Optional::Routes(kind) => {
                let read = move |route| GatewayRoute::read(kind, route);
                self.forward(api, read, move |change| Event::GatewayRoute(kind, change), is_not_found).await
            }
        }
    }

    /// Watches the routes of a version that Weft does not read.
    async fn watch_unsupported(&self, client: &Client, optional: Optional, definition: &Definition) -> bool {
        let (Optional::Routes(kind), Some(version)) = (optional, definition.versions.first()) else {
            return std::future::pending().await;
        };
        let api = Api::<DynamicObject>::all_with(client.clone(), &optional.resource(version));
        let read = |route| GatewayRoute::read_unsupported(kind, version, definition.message(), route);
        self.forward(api, read, move |change| Event::GatewayRoute(kind, change), is_not_found).await
    }

    /// Sends the availability if it changed; false if nobody receives.
    async fn tell(&self, kind: WatchedKind, availability: Availability, last: &mut Option<Availability>) -> bool {
        if last.as_ref() == Some(&availability) {
            return true;
        }
        match &availability {
            Availability::Unsupported(definition) => {
                tracing::warn!(kind = kind.as_str(), "{}", definition.message());
            }
            _ => tracing::info!(kind = kind.as_str(), state = availability.as_str(), "kind of the Gateway API"),
        }
        *last = Some(availability.clone());
        self.events.send(Event::Availability(kind, availability)).await.is_ok()
    }
}

// === impl Optional ===

impl Optional {
    fn watched(self) -> WatchedKind {
        match self {
            Self::Grants => WatchedKind::ReferenceGrants,
            Self::Routes(kind) => kind.watched(),
        }
    }

    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Grants => &GRANT_VERSIONS,
            Self::Routes(_) => &ROUTE_VERSIONS,
        }
    }

    /// The first served version that Weft reads.
    fn readable(self, definition: &Definition) -> Option<&'static str> {
        let is_served = |version: &&str| definition.versions.iter().any(|served| served == version);
        self.versions().iter().copied().find(is_served)
    }

    fn resource(self, version: &str) -> ApiResource {
        match self {
            Self::Grants => Grant::resource(version),
            Self::Routes(kind) => kind.resource_in(version),
        }
    }
}

/// The definition of a kind of the Gateway API, if it is installed, established and serves a version.
async fn definition(client: &Client, kind: WatchedKind) -> kube::Result<Option<Definition>> {
    let name = format!("{}.{}", kind.as_str(), weft_gateway_api::GROUP);
    let api = Api::<DynamicObject>::all_with(client.clone(), &definitions());
    Ok(api.get_opt(&name).await?.filter(is_established).map(read).filter(|definition| !definition.versions.is_empty()))
}

fn read(object: DynamicObject) -> Definition {
    let spec = &object.data["spec"];
    let versions = spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
    Definition {
        kind: spec["names"]["kind"].as_str().unwrap_or_default().to_owned(),
        uid: object.metadata.uid.unwrap_or_default(),
        versions: versions.filter_map(|version| version["name"].as_str()).map(str::to_owned).collect(),
    }
}

fn is_established(definition: &DynamicObject) -> bool {
    let conditions = definition.data["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

fn definitions() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}

/// Waits until the definition is gone or serves other versions.
async fn until_changed(client: &Client, kind: WatchedKind, known: &Definition) {
    loop {
        tokio::time::sleep(POLL).await;
        match definition(client, kind).await {
            Ok(Some(definition)) if definition == *known => {}
            Ok(_) => return,
            Err(error) => tracing::warn!(kind = kind.as_str(), %error, "cannot read the definition, retrying"),
        }
    }
}

/// The API server does not have the kind. It answers a path of an unknown group with plain text, so only the code tells.
fn is_not_found(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
