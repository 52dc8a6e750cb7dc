//! The exported document of a namespace, compiled: the ports of its Services by address, and their clusters by name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hashbrown::HashMap;
use weft_config as wire;

use super::cluster::Cluster;
use super::route::Routes;
use crate::bootstrap::Pod;
use crate::clock::uptime_seconds;
use crate::value::CompileError;

/// The exported document of a namespace, compiled.
#[derive(Debug, Default)]
pub(crate) struct Namespace {
    pub(super) ports: HashMap<SocketAddr, Arc<Port>>,
    pub(super) clusters: HashMap<(Arc<str>, u16), Arc<Cluster>>,
    pub(super) addresses: Vec<IpAddr>,
    /// The ports on which this pod is an endpoint.
    pub(super) own_ports: HashMap<u16, OwnPort>,
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

/// A port on which this pod is an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnPort {
    /// The name of the cluster, for metrics and logs. If several Services have the port, the first by name.
    pub(crate) cluster: Arc<str>,
    /// All of these Services declare TCP.
    pub(crate) is_tcp: bool,
}

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
                let wire::ServicePort { port: number, protocol, mtls, routes, endpoints } = port;
                let cluster = Cluster::compile(namespace, &name, number, protocol, &settings, pod, endpoints)?;
                let address = address.map(|ip| SocketAddr::new(*ip, number));
                let cluster = Arc::new(Cluster { address, mtls, ..cluster });
                if *namespace == *pod.namespace {
                    for own in cluster.endpoints.iter().filter(|endpoint| pod.ips.contains(&endpoint.ip())) {
                        let is_tcp = protocol == wire::Protocol::Tcp;
                        let first = || OwnPort { cluster: cluster.name.clone(), is_tcp };
                        compiled.own_ports.entry(own.port()).or_insert_with(first).is_tcp &= is_tcp;
                    }
                }
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

#[cfg(test)]
impl Namespace {
    pub(crate) fn only_cluster(&self) -> Arc<Cluster> {
        self.clusters.values().next().expect("a cluster").clone()
    }
}
