//! Configuration in the form that requests use: documents compiled into tables, one immutable snapshot at a time.
//!
//! ```text
//! Table
//! ├── addresses      ClusterIP -> namespace, for namespaces that are open or only in the index
//! ├── namespaces     namespace -> Namespace { ports by (ClusterIP, port), clusters by (service, port) }
//! ├── prefixes       prefixes of addresses with a document of pods
//! ├── pods           prefix -> Pods { accounts by address }, for those that are open
//! ├── own_ports      port of this pod -> its Service port
//! └── inbound        Inbound { policies of this pod, consumer routes of its namespace }
//! ```
//!
//! [`source`] delivers documents, `document` compiles them, [`updater`] decides which are in use, and [`store`] holds
//! the snapshot.
//!
//! Compilation is pure and happens once for each document; a request only looks up. A document with an error is
//! refused as a whole, because leaving out a condition would widen its rule.

pub(crate) mod backend;
mod cache;
mod cluster;
mod document;
pub(crate) mod edit;
mod inbound;
mod index;
mod namespace;
pub(crate) mod pods;
#[cfg(test)]
mod properties;
pub(crate) mod route;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod updater;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::{HashMap, HashSet};
use weft_config::{self as wire, Prefix};

pub(crate) use self::cluster::Cluster;
pub(crate) use self::inbound::Inbound;
pub(crate) use self::namespace::{Namespace, OwnPort, Port};
pub(crate) use self::pods::{Occupant, Pods};
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
    /// Prefixes of addresses with a document of pods.
    pub(crate) prefixes: Arc<HashSet<Prefix>>,
    /// Those of them that are open.
    pub(crate) pods: HashMap<Prefix, Arc<Pods>>,
    /// The ports of this pod that Services have.
    pub(crate) own_ports: Arc<HashMap<u16, OwnPort>>,
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
            table.own_ports = Arc::new(self.own_ports_with(name, part));
        }
        table.addresses = Arc::new(addresses);
        match part {
            Some(part) => table.namespaces.insert(name.clone(), part),
            None => table.namespaces.remove(name),
        };
        table
    }

    /// The ports of this pod after a change of one namespace. A pod that is not ready is in no list of endpoints and
    /// still serves its Service, so a port keeps its Service until that is deleted.
    fn own_ports_with(&self, name: &Arc<str>, part: &Namespace) -> HashMap<u16, OwnPort> {
        let mut own = HashMap::clone(&self.own_ports);
        own.retain(|_, port| {
            split(&port.cluster).is_none_or(|(namespace, service, number)| {
                *namespace != **name || part.clusters.contains_key(&(Arc::from(service), number))
            })
        });
        for (number, port) in &part.own_ports {
            // An equal name is kept, because metrics are cached by its address.
            match own.get_mut(number) {
                Some(known) if known.cluster == port.cluster => known.is_tcp = port.is_tcp,
                _ => drop(own.insert(*number, port.clone())),
            }
        }
        own
    }

    /// Whether connections to a port of this pod are TCP without detection: its Services declare that, and no policy
    /// has conditions on requests for it.
    pub(crate) fn is_declared_tcp(&self, port: u16) -> bool {
        self.own_ports.get(&port).is_some_and(|own| own.is_tcp) && !self.inbound.policies.has_http_conditions(port)
    }

    /// Replaces or removes the pods with a prefix.
    pub(crate) fn with_pods(&self, prefix: Prefix, part: Option<Arc<Pods>>) -> Self {
        let mut table = self.clone();
        match part {
            Some(part) => table.pods.insert(prefix, part),
            None => table.pods.remove(&prefix),
        };
        table
    }

    /// Replaces the addresses of namespaces that are not open, and the prefixes.
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
        let prefixes = Arc::new(index.prefixes.iter().copied().collect());
        Self { addresses: Arc::new(addresses), prefixes, ..self.clone() }
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

    /// Who is at an address that is not a Service's.
    pub(crate) fn occupant(&self, address: SocketAddr) -> Occupant {
        let prefix = Prefix::of(address.ip());
        if !self.prefixes.contains(&prefix) {
            return Occupant::Stranger;
        }
        let Some(pods) = self.pods.get(&prefix) else { return Occupant::Unknown(prefix) };
        pods.last_used.store(uptime_seconds(), Ordering::Relaxed);
        pods.at(address)
    }

    /// Who is at an address that is not a Service's, if that is known.
    pub(crate) fn known_occupant(&self, address: SocketAddr) -> Option<Occupant> {
        Some(self.occupant(address)).filter(|occupant| !matches!(occupant, Occupant::Unknown(_)))
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

    /// The names of all rules of routes and policies.
    pub(crate) fn rule_names(&self) -> impl Iterator<Item = &str> {
        let of_services = self.namespaces.values().flat_map(|namespace| namespace.ports.values());
        let routes = of_services.filter_map(|port| port.routes.as_ref()).chain(self.inbound.routes.values());
        routes.flat_map(|routes| routes.rule_names()).chain(self.inbound.policies.rule_names())
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
    fn rule_names_are_those_of_routes_and_policies() {
        let name = |name: &str| serde_json::json!({"namespace": "shop", "name": name});
        let rule = |route: &str| serde_json::json!({"route": name(route), "name": "0", "action": {"respond": {"status": 200}}});
        let stream = serde_json::json!({
            "route": name("tcp"), "name": "0", "backends": [{"weight": 1, "target": {"invalid": "no such Service"}}]
        });
        let export = serde_json::json!({"services": [{"name": "reviews", "addresses": ["198.19.0.7"], "ports": [{
            "port": 80, "routes": {"matches": [{"rule": 0}], "rules": [rule("http")], "tcp": 0, "streams": [stream]}
        }]}]});
        let inbound = serde_json::json!({
            "policies": [{"name": "guard", "target": "namespace", "rules": [{"action": "deny"}]}],
            "routes": [{
                "service": {"namespace": "bank", "name": "rates"}, "port": 80,
                "table": {"matches": [{"rule": 0}], "rules": [rule("consumer")]}
            }]
        });
        let pod = Pod { namespace: "shop".into(), ..Pod::default() };
        let export = serde_json::from_value(export).expect("a document");
        let part = Namespace::compile(&pod, "shop", export).expect("compiles");
        let inbound = Inbound::compile(&pod, serde_json::from_value(inbound).expect("a document")).expect("compiles");
        let table = Table::default().with_namespace(&"shop".into(), Some(Arc::new(part)));
        let table = Table { inbound: Arc::new(inbound), ..table };
        let mut names: Vec<&str> = table.rule_names().collect();
        names.sort_unstable();
        let expected =
            ["MeshPolicy/shop/guard/0", "MeshRoute/shop/consumer/0", "MeshRoute/shop/http/0", "MeshRoute/shop/tcp/0"];
        assert_eq!(names, expected);
    }

    #[test]
    fn ports_of_the_pod_have_the_name_of_their_service() {
        let pod = Pod { namespace: "shop".into(), ips: vec![[198, 18, 128, 2].into()], ..Pod::default() };
        let compile = |namespace: &str, services: serde_json::Value| {
            let export = serde_json::from_value(serde_json::json!({"services": services})).expect("a document");
            Some(Arc::new(Namespace::compile(&pod, namespace, export).expect("compiles")))
        };
        let service = |name: &str, endpoints: &[&str]| {
            let endpoints: Vec<_> = endpoints.iter().map(|at| serde_json::json!({"address": at})).collect();
            serde_json::json!({"name": name, "ports": [{"port": 80, "endpoints": endpoints}]})
        };
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        let (own, elsewhere) = ("198.18.128.2:8080", "198.18.128.3:8080");
        let name_of = |table: &Table| table.own_ports.get(&8080).map(|own| own.cluster.to_string());
        let both = compile(
            "shop",
            serde_json::json!([service("a", &[elsewhere]), service("b", &[own]), service("c", &[own])]),
        );
        let table = Table::default().with_namespace(&shop, both);
        assert_eq!(name_of(&table).as_deref(), Some("shop/b:80"), "the first by name");
        let before = table.own_ports[&8080].cluster.clone();
        let table = table.with_namespace(&other, compile("other", serde_json::json!([service("a", &[own])])));
        let table = table.with_namespace(&shop, compile("shop", serde_json::json!([service("b", &[])])));
        assert!(Arc::ptr_eq(&table.own_ports[&8080].cluster, &before), "the pod is not ready: the name is kept");
        let table = table.with_namespace(&shop, compile("shop", serde_json::json!([service("c", &[elsewhere])])));
        assert_eq!(name_of(&table), None, "the Service is deleted");
    }

    #[test]
    fn port_is_declared_tcp_if_all_its_services_say_so_and_no_policy_reads_requests() {
        let pod = Pod { namespace: "shop".into(), ips: vec![[198, 18, 128, 2].into()], ..Pod::default() };
        let is_declared = |protocols: &[&str], rule: serde_json::Value| {
            let services = protocols.iter().enumerate().map(|(number, protocol)| {
                let port = serde_json::json!({"port": 80, "protocol": protocol, "endpoints": [{"address": "198.18.128.2:3306"}]});
                serde_json::json!({"name": format!("s{number}"), "ports": [port]})
            });
            let export = serde_json::json!({"services": services.collect::<Vec<_>>()});
            let export = serde_json::from_value(export).expect("a document");
            let part = Namespace::compile(&pod, "shop", export).expect("compiles");
            let inbound = serde_json::json!({"policies": [{"name": "p", "target": "namespace", "rules": [rule]}]});
            let inbound =
                Inbound::compile(&pod, serde_json::from_value(inbound).expect("a document")).expect("compiles");
            let table = Table::default().with_namespace(&"shop".into(), Some(Arc::new(part)));
            Table { inbound: Arc::new(inbound), ..table }.is_declared_tcp(3306)
        };
        let allow = || serde_json::json!({"action": "allow"});
        assert!(is_declared(&["tcp"], allow()) && is_declared(&["tcp", "tcp"], allow()));
        assert!(!is_declared(&["detect"], allow()) && !is_declared(&["tcp", "http"], allow()));
        assert!(!is_declared(&[], allow()), "no Service has the port");
        assert!(!is_declared(&["tcp"], serde_json::json!({"action": "deny", "methods": ["POST"]})));
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
    fn occupants_are_known_once_the_document_of_their_prefix_is_open() {
        let address = "198.18.3.7:5432".parse().expect("address");
        assert_eq!(Table::default().occupant(address), Occupant::Stranger, "the prefix is not listed");
        let prefix = Prefix::of("198.18.3.7".parse().expect("ip"));
        let table = Table::default().with_index(&wire::Index { prefixes: [prefix].into(), ..wire::Index::default() });
        assert_eq!(table.occupant(address), Occupant::Unknown(prefix));
        assert_eq!(table.occupant("198.18.4.7:80".parse().expect("address")), Occupant::Stranger);
        let document = serde_json::json!({"pods": {"198.18.3.7": {"namespace": "shop", "serviceAccount": "db"}}});
        let pods = Pods::compile(prefix, serde_json::from_value(document).expect("a document")).expect("compiles");
        let table = table.with_pods(prefix, Some(Arc::new(pods)));
        assert!(matches!(table.occupant(address), Occupant::Pod(_)));
        assert_eq!(table.with_index(&wire::Index::default()).occupant(address), Occupant::Stranger, "no longer listed");
        let table = table.with_pods(prefix, None);
        assert_eq!((table.occupant(address), table.known_occupant(address)), (Occupant::Unknown(prefix), None));
    }

    #[test]
    fn index_names_namespaces_to_open() {
        let index = wire::Index {
            namespaces: [("bank".to_owned(), vec!["198.19.0.9".parse().expect("ip")])].into(),
            ..wire::Index::default()
        };
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
