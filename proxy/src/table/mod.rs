//! Configuration in the form that requests use: documents compiled into tables, one immutable snapshot at a time.
//!
//! ```text
//! Table
//! ├── addresses      ClusterIP -> namespace, for namespaces that are open or only in the index
//! ├── namespaces     namespace -> Namespace { ports by (ClusterIP, port), clusters by (service, port) }
//! └── inbound        Inbound { policies of this pod, consumer routes of its namespace }
//! ```
//!
//! [`source`] delivers documents, `document` compiles them, [`updater`] decides which are in use, and [`store`] holds
//! the snapshot.
//!
//! Compilation is pure and happens once for each document; a request only looks up. A document with an error is
//! refused as a whole, because leaving out a condition would widen its rule.

mod cache;
mod cluster;
mod document;
mod inbound;
mod index;
mod namespace;
#[cfg(test)]
mod properties;
pub(crate) mod route;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod updater;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use weft_config as wire;

pub(crate) use self::cluster::Cluster;
pub(crate) use self::inbound::Inbound;
pub(crate) use self::namespace::{Namespace, Port};
use self::route::Routes;
use crate::clock::uptime_seconds;
use crate::value::Target;

/// A snapshot of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// The namespace of each known ClusterIP.
    pub(crate) addresses: Arc<HashMap<IpAddr, Arc<str>>>,
    /// Open namespaces: those whose documents are watched.
    pub(crate) namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    /// Policies and consumer routes of this pod.
    pub(crate) inbound: Arc<Inbound>,
}

impl Table {
    /// Replaces or removes the exported part of one namespace.
    pub(crate) fn with_namespace(&self, name: &Arc<str>, part: Option<Arc<Namespace>>) -> Self {
        let mut table = self.clone();
        let mut addresses = HashMap::clone(&table.addresses);
        if let Some(part) = &part {
            addresses.retain(|_, namespace| namespace != name);
            addresses.extend(part.addresses.iter().map(|ip| (*ip, name.clone())));
        }
        table.addresses = Arc::new(addresses);
        match part {
            Some(part) => table.namespaces.insert(name.clone(), part),
            None => table.namespaces.remove(name),
        };
        table
    }

    /// Replaces the addresses of namespaces that are not open.
    pub(crate) fn with_index(&self, index: &wire::Index) -> Self {
        let mut addresses = HashMap::new();
        for (namespace, ips) in &index.namespaces {
            let namespace: Arc<str> = namespace.as_str().into();
            addresses.extend(ips.iter().map(|ip| (*ip, namespace.clone())));
        }
        // The document of an open namespace is newer than the index may be.
        for (name, namespace) in &self.namespaces {
            addresses.extend(namespace.addresses.iter().map(|ip| (*ip, name.clone())));
        }
        Self { addresses: Arc::new(addresses), ..self.clone() }
    }

    /// The Service port at an address, if its namespace is open.
    pub(crate) fn port(&self, address: SocketAddr) -> Option<&Arc<Port>> {
        let namespace = self.namespaces.get(self.addresses.get(&address.ip())?)?;
        namespace.last_used.store(uptime_seconds(), Ordering::Relaxed);
        namespace.ports.get(&address)
    }

    /// The namespace that has to be opened to know an address. None: it is open, or the address is unknown.
    pub(crate) fn unopened(&self, address: IpAddr) -> Option<&Arc<str>> {
        let namespace = self.addresses.get(&address)?;
        (!self.namespaces.contains_key(namespace)).then_some(namespace)
    }

    /// The routes of a port for clients in this pod: consumer routes of their own namespace, else those of the
    /// Service.
    pub(crate) fn routes<'a>(&'a self, port: &'a Port) -> Option<&'a Arc<Routes>> {
        if !self.inbound.routes.is_empty() {
            let routes = split(&port.cluster.name).and_then(|(namespace, service, port)| {
                self.inbound.routes.get(&(namespace.into(), service.into(), port))
            });
            if routes.is_some() {
                return routes;
            }
        }
        port.routes.as_ref()
    }

    /// The cluster of this name, if it still exists.
    pub(crate) fn cluster_named(&self, name: &str) -> Option<&Arc<Cluster>> {
        let (namespace, service, port) = split(name)?;
        self.namespaces.get(namespace)?.clusters.get(&(Arc::from(service), port))
    }

    /// The cluster that a route names.
    pub(crate) fn cluster(&self, target: &Target) -> Option<&Arc<Cluster>> {
        let namespace = self.namespaces.get(&target.namespace)?;
        namespace.last_used.store(uptime_seconds(), Ordering::Relaxed);
        namespace.clusters.get(&target.service)
    }
}

/// Namespace, service and port of a cluster's name.
fn split(name: &str) -> Option<(&str, &str, u16)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.rsplit_once(':')?;
    Some((namespace, service, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Pod;
    use std::time::Duration;

    fn export() -> wire::Export {
        serde_json::from_value(serde_json::json!({"services": [{
            "name": "reviews",
            "addresses": ["198.19.0.7"],
            "settings": {"subsets": ["v1", "v9"], "connectTimeoutMs": 250},
            "ports": [{"port": 9080, "endpoints": [
                {"address": "198.18.128.2:8080", "subsets": ["v1"]},
                {"address": "198.18.128.3:8080"}
            ]}]
        }]}))
        .expect("a document")
    }

    #[test]
    fn port_is_found_by_address() {
        let name: Arc<str> = "shop".into();
        let part = Namespace::compile(&Pod::default(), "shop", export()).expect("compiles");
        let table = Table::default().with_namespace(&name, Some(Arc::new(part)));
        let port = table.port("198.19.0.7:9080".parse().expect("address")).expect("known");
        assert_eq!(&*port.cluster.name, "shop/reviews:9080");
        assert_eq!(port.cluster.connect_timeout, Duration::from_millis(250));
        assert_eq!(port.cluster.members.subsets["v1"], [0]);
        assert!(port.cluster.members.subsets["v9"].is_empty(), "declared without members");
        assert!(table.port("198.19.0.7:80".parse().expect("address")).is_none(), "another port");
        assert!(table.cluster_named("shop/reviews:9080").is_some());
        assert!(table.cluster_named("shop/reviews:80").is_none());
    }

    #[test]
    fn index_names_namespaces_to_open() {
        let index = wire::Index { namespaces: [("bank".to_owned(), vec!["198.19.0.9".parse().expect("ip")])].into() };
        let table = Table::default().with_index(&index);
        assert_eq!(table.unopened("198.19.0.9".parse().expect("ip")).map(|name| &**name), Some("bank"));
        let name: Arc<str> = "bank".into();
        let table = table.with_namespace(&name, Some(Arc::default()));
        assert_eq!(
            table.unopened("198.19.0.9".parse().expect("ip")),
            None,
            "the open namespace does not have the address"
        );
    }
}
