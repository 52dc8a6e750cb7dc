//! Configuration in the form that requests use: documents compiled into tables, one immutable snapshot at a time.
//!
//! ```text
//! Table
//! ├── addresses      ClusterIP -> namespace, for namespaces that are open or only in the index
//! ├── namespaces     namespace -> Namespace { ports by (ClusterIP, port), clusters by (service, port) }
//! └── inbound        Inbound { policies of this pod, consumer routes of its namespace }
//! ```
//!
//! Compilation is pure and happens once for each document; a request only looks up. A document with an error is
//! refused as a whole, because leaving out a condition would widen its rule.

mod index;
#[cfg(test)]
mod properties;
pub(crate) mod route;
pub(crate) mod source;
pub(crate) mod store;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use weft_config as wire;

use self::route::Routes;
use crate::balance::affinity::{HashOn, Sticky};
use crate::balance::outlier;
use crate::balance::slow_start::SlowStart;
use crate::bootstrap::Pod;
use crate::clock::uptime_seconds;
use crate::policy::Policies;
use crate::value::{CompileError, Target};

/// Connect timeout of a Service without a setting. Source: Linkerd's outbound default.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

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

/// The exported document of a namespace, compiled.
#[derive(Debug, Default)]
pub(crate) struct Namespace {
    ports: HashMap<SocketAddr, Arc<Port>>,
    clusters: HashMap<(Arc<str>, u16), Arc<Cluster>>,
    addresses: Vec<IpAddr>,
    /// When it was last used, as [`uptime_seconds`].
    pub(crate) last_used: AtomicU64,
}

/// A port of a Service.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) protocol: wire::Protocol,
    pub(crate) routes: Option<Arc<Routes>>,
    pub(crate) cluster: Arc<Cluster>,
}

/// The upstream of a Service port.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `namespace/service:port`; unique.
    pub(crate) name: Arc<str>,
    pub(crate) http2: bool,
    pub(crate) balancer: wire::Balancer,
    pub(crate) hash_on: Option<HashOn>,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) connect_timeout: Duration,
    pub(crate) limits: wire::Limits,
    pub(crate) outliers: outlier::Settings,
    /// Boxed, because few Services have one.
    pub(crate) health_check: Option<Box<wire::HealthCheck>>,
    /// Panic threshold: below this percentage of healthy candidates, health and ejection are ignored.
    pub(crate) panic_percent: u32,
    pub(crate) retry_budget: wire::RetryBudget,
    /// Client IP affinity: how long a client's address stays with the endpoint that it was sent to last.
    pub(crate) client_ip: Option<Duration>,
    /// The Service's own address, for which the kernel (kube-proxy) picks the endpoint.
    pub(crate) address: Option<SocketAddr>,
    /// Ready endpoints first, then terminating ones, then those whose node is unreachable.
    pub(crate) endpoints: Box<[SocketAddr]>,
    /// There are endpoints on other nodes, but only those on this node may be used.
    pub(crate) has_endpoints_elsewhere: bool,
    /// Priority of each endpoint for this proxy: 0 own node, 1 own zone, 2 elsewhere. Empty: not configured, or node
    /// and zone are unknown.
    pub(crate) priorities: Box<[u8]>,
    /// Which endpoints are pods with a proxy.
    pub(crate) with_proxy: Box<[bool]>,
    /// Length of the prefix of `endpoints` for requests without a subset.
    pub(crate) usable: usize,
    /// Positions in `endpoints` of each subset's members.
    pub(crate) subsets: HashMap<String, Vec<usize>>,
}

/// The inbound document of this pod's namespace, compiled.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    pub(crate) policies: Policies,
    /// By namespace, service and port.
    pub(crate) routes: HashMap<(Arc<str>, Arc<str>, u16), Arc<Routes>>,
    pub(crate) dependencies: Vec<Arc<str>>,
    /// The zone of this pod's node, if the document has it.
    pub(crate) zone: Option<String>,
}

// === impl Table ===

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

// === impl Namespace ===

impl Namespace {
    /// Compiles an exported document for this pod.
    pub(crate) fn compile(pod: &Pod, namespace: &str, export: wire::Export) -> Result<Self, CompileError> {
        let wire::Export { services } = export;
        let mut compiled = Self { last_used: AtomicU64::new(uptime_seconds()), ..Self::default() };
        for service in services {
            let wire::Service { name, addresses, settings, ports } = service;
            let service: Arc<str> = name.as_str().into();
            let same_family = |ip: &&IpAddr| pod.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
            let address = addresses.iter().find(same_family).or(addresses.first());
            for port in ports {
                let wire::ServicePort { port: number, protocol, routes, endpoints } = port;
                let cluster = Cluster::compile(namespace, &name, number, protocol, &settings, pod, endpoints)?;
                let cluster = Arc::new(Cluster { address: address.map(|ip| SocketAddr::new(*ip, number)), ..cluster });
                compiled.clusters.insert((service.clone(), number), cluster.clone());
                let routes = routes.map(Routes::compile).transpose()?.map(Arc::new);
                let port = Arc::new(Port { protocol, routes, cluster });
                compiled.ports.extend(addresses.iter().map(|ip| (SocketAddr::new(*ip, number), port.clone())));
            }
            compiled.addresses.extend(addresses);
        }
        Ok(compiled)
    }
}

// === impl Cluster ===

impl Cluster {
    fn compile(
        namespace: &str,
        service: &str,
        port: u16,
        protocol: wire::Protocol,
        settings: &wire::ClusterSettings,
        pod: &Pod,
        mut endpoints: Vec<wire::Endpoint>,
    ) -> Result<Self, CompileError> {
        let wire::ClusterSettings {
            balancer,
            hash_on,
            sticky,
            slow_start,
            prefer_same_zone,
            prefer_same_node,
            local_only,
            client_ip_seconds,
            connect_timeout_ms,
            limits,
            outliers,
            health_check,
            panic_percent,
            retry_budget,
            subsets,
        } = settings;
        let node = Some(pod.node.as_str()).filter(|node| !node.is_empty());
        let zone = pod.zone.as_deref();
        let all = endpoints.len();
        if *local_only {
            endpoints.retain(|endpoint| {
                let own = endpoint.locality.as_ref().and_then(|at| at.node.as_deref());
                own.is_some() && own == node
            });
        }
        let has_endpoints_elsewhere = endpoints.len() < all;
        // A terminating endpoint is better than none, as in kube-proxy. So is an unreachable one: after an outage of
        // the API server, all nodes look unreachable for a while.
        let rank = |endpoint: &wire::Endpoint| (endpoint.lost, endpoint.terminating);
        endpoints.sort_by_key(rank);
        let mut members: HashMap<String, Vec<usize>> = subsets.iter().map(|name| (name.clone(), Vec::new())).collect();
        for (at, endpoint) in endpoints.iter().enumerate() {
            for subset in &endpoint.subsets {
                members.entry_ref(subset.as_str()).or_default().push(at);
            }
        }
        for members in members.values_mut() {
            let best = members.first().map(|at| rank(&endpoints[*at]));
            members.truncate(members.partition_point(|at| Some(rank(&endpoints[*at])) == best));
        }
        let best = endpoints.first().map(rank);
        let priority = |endpoint: &wire::Endpoint| {
            let is_preferred = |own: Option<&str>, one: &Option<String>, several: &[String]| {
                own.is_some_and(|own| one.as_deref() == Some(own) || several.iter().any(|name| name == own))
            };
            match &endpoint.locality {
                Some(at) if *prefer_same_node && is_preferred(node, &at.node, &at.for_nodes) => 0,
                Some(at) if *prefer_same_zone && is_preferred(zone, &at.zone, &at.for_zones) => 1,
                _ => 2,
            }
        };
        let has_priorities = *prefer_same_node && node.is_some() || *prefer_same_zone && zone.is_some();
        let hash_on = match hash_on {
            None => None,
            Some(on) => Some(HashOn::compile(on).ok_or_else(|| CompileError::Header(format!("{on:?}")))?),
        };
        Ok(Self {
            name: format!("{namespace}/{service}:{port}").into(),
            http2: protocol == wire::Protocol::Http2,
            balancer: *balancer,
            hash_on,
            sticky: sticky.as_ref().map(Sticky::compile),
            slow_start: slow_start.as_ref().map(SlowStart::compile),
            connect_timeout: connect_timeout_ms.map_or(CONNECT_TIMEOUT_DEFAULT, Duration::from_millis),
            limits: *limits,
            outliers: outlier::Settings::compile(outliers),
            health_check: health_check.clone().map(Box::new),
            panic_percent: *panic_percent,
            retry_budget: *retry_budget,
            client_ip: client_ip_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            // Set by the caller, which knows the Service.
            address: None,
            has_endpoints_elsewhere,
            usable: endpoints.partition_point(|endpoint| Some(rank(endpoint)) == best),
            priorities: if has_priorities { endpoints.iter().map(priority).collect() } else { Box::default() },
            with_proxy: endpoints.iter().map(|endpoint| endpoint.has_proxy).collect(),
            endpoints: endpoints.into_iter().map(|endpoint| endpoint.address).collect(),
            subsets: members,
        })
    }
}

impl Cluster {
    /// Whether the subset, or the cluster, has endpoints.
    pub(crate) fn has_endpoints(&self, subset: Option<&str>) -> bool {
        match subset {
            None => self.usable > 0,
            Some(name) => self.subsets.get(name).is_some_and(|members| !members.is_empty()),
        }
    }
}

/// Namespace, service and port of a cluster's name.
fn split(name: &str) -> Option<(&str, &str, u16)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.rsplit_once(':')?;
    Some((namespace, service, port.parse().ok()?))
}

// === impl Inbound ===

impl Inbound {
    /// Compiles an inbound document, with the policies that target this pod.
    pub(crate) fn compile(pod: &Pod, inbound: wire::Inbound) -> Result<Self, CompileError> {
        let wire::Inbound { policies, routes, dependencies, zones, relabelled } = inbound;
        let mut by_port = HashMap::new();
        for wire::ConsumerRoutes { service, port, table } in routes {
            let key = (service.namespace.as_str().into(), service.name.as_str().into(), port);
            by_port.insert(key, Arc::new(Routes::compile(table)?));
        }
        Ok(Self {
            policies: Policies::compile(pod, relabelled.get(&pod.uid).unwrap_or(&pod.labels), policies)?,
            routes: by_port,
            dependencies: dependencies.iter().map(|name| name.as_str().into()).collect(),
            zone: zones.into_iter().find(|(_, nodes)| nodes.contains(&pod.node)).map(|(zone, _)| zone),
        })
    }
}

#[cfg(test)]
impl Namespace {
    pub(crate) fn only_cluster(&self) -> Arc<Cluster> {
        self.clusters.values().next().expect("a cluster").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(port.cluster.subsets["v1"], [0]);
        assert!(port.cluster.subsets["v9"].is_empty(), "declared without members");
        assert!(table.port("198.19.0.7:80".parse().expect("address")).is_none(), "another port");
        assert!(table.cluster_named("shop/reviews:9080").is_some());
        assert!(table.cluster_named("shop/reviews:80").is_none());
    }

    #[test]
    fn lost_endpoints_are_used_only_without_others() {
        let cluster = |endpoints: serde_json::Value| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": {"subsets": ["a", "b"]}, "ports": [{"port": 80, "endpoints": endpoints}]
            }]});
            Namespace::compile(&Pod::default(), "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
        };
        let addresses = ["198.18.128.2:80", "198.18.128.3:80", "198.18.128.4:80"];
        let [one, two, three] = addresses;
        let mixed = cluster(serde_json::json!([
            {"address": one, "subsets": ["a"], "lost": true},
            {"address": two, "subsets": ["b"], "lost": true},
            {"address": three, "subsets": ["b"]},
        ]));
        assert_eq!(*mixed.endpoints, [three, one, two].map(|text| text.parse().expect("an address")));
        assert_eq!(mixed.usable, 1, "the reachable one");
        assert_eq!((&*mixed.subsets["a"], &*mixed.subsets["b"]), (&[1][..], &[0][..]), "a has only a lost member");
        let all =
            cluster(serde_json::json!(addresses.map(|address| serde_json::json!({"address": address, "lost": true}))));
        assert_eq!(all.usable, 3);
    }

    #[test]
    fn terminating_endpoints_rank_between_ready_and_lost_ones() {
        let cluster = |endpoints: serde_json::Value, settings: serde_json::Value| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": settings, "ports": [{"port": 80, "endpoints": endpoints}]
            }]});
            let pod = Pod { node: "node-1".into(), ..Pod::default() };
            Namespace::compile(&pod, "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
        };
        let [one, two, three] = ["198.18.128.2:80", "198.18.128.3:80", "198.18.128.4:80"];
        let endpoints = || {
            serde_json::json!([
                {"address": one, "subsets": ["a"], "lost": true, "node": "node-1"},
                {"address": two, "subsets": ["a", "b"], "terminating": true, "node": "node-1"},
                {"address": three, "subsets": ["b"], "node": "node-2"},
            ])
        };
        let addresses = |expected: &[&str]| -> Vec<SocketAddr> {
            expected.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let mixed = cluster(endpoints(), serde_json::json!({"subsets": ["a", "b"]}));
        assert_eq!(*mixed.endpoints, addresses(&[three, two, one]));
        assert_eq!(mixed.usable, 1);
        assert_eq!((&*mixed.subsets["a"], &*mixed.subsets["b"]), (&[1][..], &[0][..]));
        assert!(!mixed.has_endpoints_elsewhere && mixed.has_endpoints(Some("a")) && !mixed.has_endpoints(Some("c")));
        let local = cluster(endpoints(), serde_json::json!({"subsets": ["a", "b"], "localOnly": true}));
        assert_eq!(*local.endpoints, addresses(&[two, one]));
        assert_eq!((local.usable, local.has_endpoints_elsewhere), (1, true));
        assert_eq!((&*local.subsets["a"], &*local.subsets["b"]), (&[0][..], &[0][..]));
    }

    #[test]
    fn endpoints_in_the_same_zone_come_first() {
        let priorities = |zone: Option<&str>, prefer: bool| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": {"preferSameZone": prefer}, "ports": [{"port": 80, "endpoints": [
                    {"address": "198.18.128.2:80", "zone": "a"}, {"address": "198.18.128.3:80", "zone": "b"}
                ]}]
            }]});
            let pod = Pod { zone: zone.map(str::to_owned), ..Pod::default() };
            Namespace::compile(&pod, "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
                .priorities
                .clone()
        };
        assert_eq!(*priorities(Some("b"), true), [2, 1]);
        assert!(priorities(Some("b"), false).is_empty(), "not configured");
        assert!(priorities(None, true).is_empty(), "own zone unknown");
    }

    #[test]
    fn zone_is_taken_from_the_inbound_document() {
        let zone = |node: &str| {
            let inbound = serde_json::json!({"zones": {"a": ["node-1"], "b": ["node-2", "node-3"]}});
            let pod = Pod { node: node.to_owned(), ..Pod::default() };
            Inbound::compile(&pod, serde_json::from_value(inbound).expect("a document")).expect("compiles").zone
        };
        assert_eq!((zone("node-1").as_deref(), zone("node-3").as_deref()), (Some("a"), Some("b")));
        assert_eq!((zone("node-4"), zone("")), (None, None), "unknown");
    }

    #[test]
    fn policies_follow_relabelling() {
        let document = |relabelled: serde_json::Value| {
            serde_json::from_value(serde_json::json!({
                "policies": [{
                    "name": "guard",
                    "target": {"service": {"selector": {"role": "private"}, "ports": [8080]}},
                    "rules": [{"action": "deny"}],
                }],
                "relabelled": relabelled,
            }))
            .expect("a document")
        };
        let denied = |role: Option<&str>, relabelled: serde_json::Value| {
            let labels = role.map(|role| ("role".to_owned(), role.to_owned())).into_iter().collect();
            let pod = Pod { uid: "u-1".into(), labels, ..Pod::default() };
            let inbound = Inbound::compile(&pod, document(relabelled)).expect("compiles");
            matches!(inbound.policies.check_tcp(8080), crate::policy::Verdict::Denied(_))
        };
        for (desc, role, relabelled, expected) in [
            ("never changed", None, serde_json::json!({}), false),
            ("created with it", Some("private"), serde_json::json!({}), true),
            ("added", None, serde_json::json!({"u-1": {"role": "private"}}), true),
            ("changed to it", Some("public"), serde_json::json!({"u-1": {"role": "private"}}), true),
            ("changed to another", Some("private"), serde_json::json!({"u-1": {"role": "public"}}), false),
            ("removed", Some("private"), serde_json::json!({"u-1": {}}), false),
            ("added to another pod", None, serde_json::json!({"u-2": {"role": "private"}}), false),
            ("removed from another pod", Some("private"), serde_json::json!({"u-2": {}}), true),
        ] {
            assert_eq!(denied(role, relabelled), expected, "{desc}");
        }
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
