//! Services and their endpoints.
//!
//! EndpointSlices say which endpoints a Service has. Pods say which subsets an endpoint is in, and whether it may
//! receive traffic (`endpoint`). docs/services.md lists all fields of both and their meaning here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weft_config::{self as wire, ClusterSettings, Endpoint, Locality};

use super::cluster::{Governed, distribution, subsets_of};
use super::endpoint::{EndpointPod, endpoint_pod, is_allowed};
use crate::world::{Distribution, Namespace, Service, ServicePort, Slice, SliceEndpoint};

/// Compiles one Service that has a ClusterIP, without routes.
pub(super) fn compile(
    namespace: &Namespace,
    service: &Service,
    slices: &[&Slice],
    governed: Option<&Governed<'_>>,
    rejected_addresses: &mut BTreeSet<(String, IpAddr)>,
) -> wire::Service {
    let mut settings = governed.map_or_else(ClusterSettings::default, |governed| governed.settings.clone());
    settings.local_only = service.local_only;
    // The MeshCluster's hash key or session cookie replaces affinity by client address.
    let is_tied = settings.hash_on.is_some() || settings.sticky.is_some();
    settings.client_ip_seconds = service.client_ip_seconds.filter(|_| !is_tied);
    let distribution = distribution(service, governed.map(|governed| governed.spec));
    (settings.prefer_same_node, settings.prefer_same_zone) = match distribution {
        _ if service.local_only => (false, false),
        Distribution::Any => (false, false),
        Distribution::SameZone => (false, true),
        Distribution::SameNode => (true, true),
        Distribution::Hints => (
            all_have(slices, |endpoint| !endpoint.for_nodes.is_empty()),
            all_have(slices, |endpoint| !endpoint.for_zones.is_empty()),
        ),
    };
    let by_hints = distribution == Distribution::Hints;
    let topology = TopologyFields {
        zone: settings.prefer_same_zone && !by_hints,
        node: settings.local_only || settings.prefer_same_node && !by_hints,
        for_zones: settings.prefer_same_zone && by_hints,
        for_nodes: settings.prefer_same_node && by_hints,
    };
    let ports = service.ports.iter().map(|port| {
        let endpoints = endpoints(namespace, slices, service, port, governed, &topology, rejected_addresses);
        wire::ServicePort { port: port.port, protocol: port.protocol, mtls: None, routes: None, endpoints }
    });
    let mut ports: Vec<wire::ServicePort> = ports.collect();
    ports.dedup_by_key(|port| port.port);
    let mut addresses = service.addresses.clone();
    addresses.sort_unstable();
    wire::Service { name: service.key.name.clone(), addresses, settings, ports }
}

/// Whether every ready endpoint has a hint of a kind. As in kube-proxy, hints are ignored if any endpoint lacks them.
fn all_have(slices: &[&Slice], hint: impl Fn(&SliceEndpoint) -> bool) -> bool {
    let mut ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready).peekable();
    ready.peek().is_some() && ready.all(hint)
}

/// Which topology fields of endpoints proxies need. The others are not exported, to keep documents small.
struct TopologyFields {
    zone: bool,
    node: bool,
    for_zones: bool,
    for_nodes: bool,
}

fn endpoints(
    namespace: &Namespace,
    slices: &[&Slice],
    service: &Service,
    port: &ServicePort,
    governed: Option<&Governed<'_>>,
    topology: &TopologyFields,
    rejected_addresses: &mut BTreeSet<(String, IpAddr)>,
) -> Vec<Endpoint> {
    let mut endpoints: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        let Some(number) = slice.ports.iter().find(|candidate| candidate.name == port.name).map(|found| found.port)
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(EndpointPod { pod, terminating, lost }) = endpoint_pod(namespace, service, endpoint) else {
                continue;
            };
            let Some(ip) = endpoint.address.filter(|ip| service.addresses.iter().any(|own| same_family(*own, *ip)))
            else {
                continue;
            };
            if !is_allowed(ip) {
                rejected_addresses.insert((service.key.name.clone(), ip));
                continue;
            }
            let address = SocketAddr::new(ip, number);
            let locality = Locality {
                zone: endpoint.zone.as_ref().filter(|_| topology.zone).cloned(),
                node: endpoint.node.as_ref().filter(|_| topology.node).cloned(),
                for_zones: if topology.for_zones { endpoint.for_zones.clone() } else { Vec::new() },
                for_nodes: if topology.for_nodes { endpoint.for_nodes.clone() } else { Vec::new() },
            };
            let known = endpoints.entry(address).or_insert_with(|| Endpoint {
                address,
                subsets: Vec::new(),
                locality: locality.boxed(),
                terminating,
                lost,
                has_proxy: pod.is_some_and(|pod| pod.has_proxy_at(number)),
                excluded: pod.is_some_and(|pod| pod.has_identity && pod.excludes(number)),
                service_account: pod.and_then(|pod| pod.identity_at(number)).map(Box::from),
            });
            known.terminating &= terminating;
            known.lost &= lost;
            if let (Some(pod), Some(governed)) = (pod, governed) {
                known.subsets.extend(subsets_of(governed.spec, &pod.labels).map(str::to_owned));
                known.subsets.sort_unstable();
                known.subsets.dedup();
            }
        }
    }
    // A dual-stack pod is one endpoint: use its address of the Service's primary family.
    if let [primary, _, ..] = &service.addresses[..]
        && endpoints.keys().any(|address| same_family(*primary, address.ip()))
    {
        endpoints.retain(|address, _| same_family(*primary, address.ip()));
    }
    endpoints.into_values().collect()
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}
