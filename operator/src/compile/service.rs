//! Services and the pods behind them.
//!
//! EndpointSlices say who belongs to a Service. Pods say which subsets an endpoint is in, and whether it may take traffic:
//! what they say is a second or so newer than the slice that is derived from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weft_config::{self as wire, ClusterSettings, Endpoint};

use super::cluster::{Governed, prefers_same_zone, subsets_of};
use crate::world::{Namespace, Pod, Readiness, Service, ServicePort, Slice, SliceEndpoint};

/// One Service with an address, without routes.
pub(super) fn compile(
    namespace: &Namespace,
    service: &Service,
    slices: &[&Slice],
    governed: Option<&Governed<'_>>,
    left_out: &mut BTreeSet<(String, IpAddr)>,
) -> wire::Service {
    let mut settings = governed.map_or_else(ClusterSettings::default, |governed| governed.settings.clone());
    settings.prefer_same_zone = prefers_same_zone(service, governed.map(|governed| governed.spec));
    let ports = service.ports.iter().map(|port| {
        let mut endpoints = endpoints(namespace, slices, service, port, governed, left_out);
        if !settings.prefer_same_zone {
            endpoints.iter_mut().for_each(|endpoint| endpoint.zone = None);
        }
        wire::ServicePort { port: port.port, protocol: port.protocol, routes: None, endpoints }
    });
    let mut ports: Vec<wire::ServicePort> = ports.collect();
    ports.dedup_by_key(|port| port.port);
    let mut addresses = service.addresses.clone();
    addresses.sort_unstable();
    wire::Service { name: service.key.name.clone(), addresses, settings, ports }
}

/// What stands behind an endpoint that may be used.
pub(super) struct Behind<'a> {
    /// The pod, if it is one.
    pub(super) pod: Option<&'a Pod>,
    /// Its node is silent: it is there for when nothing else is.
    pub(super) lost: bool,
}

/// What stands behind an endpoint; `None` if it must not be used.
pub(super) fn behind<'a>(namespace: &'a Namespace, service: &Service, endpoint: &SliceEndpoint) -> Option<Behind<'a>> {
    let Some((name, uid)) = &endpoint.pod else {
        return endpoint.ready.then_some(Behind { pod: None, lost: false });
    };
    // A pod that is not known yet comes in a moment; one that is not known any more must not be used.
    let pod = namespace.pod(name, uid).filter(|pod| !pod.deleting)?;
    // Kubernetes derives the slices of a Service with a selector from the pods; others are somebody's own word.
    let derived = !service.selector.is_empty();
    let lost = match pod.readiness {
        _ if service.publish_not_ready => false,
        Readiness::Ready if derived || endpoint.ready => false,
        Readiness::Lost if derived => true,
        Readiness::Ready | Readiness::Lost | Readiness::NotReady => return None,
    };
    Some(Behind { pod: Some(pod), lost })
}

fn endpoints(
    namespace: &Namespace,
    slices: &[&Slice],
    service: &Service,
    port: &ServicePort,
    governed: Option<&Governed<'_>>,
    left_out: &mut BTreeSet<(String, IpAddr)>,
) -> Vec<Endpoint> {
    let mut endpoints: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        let Some(number) = slice.ports.iter().find(|candidate| candidate.name == port.name).map(|found| found.port)
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(Behind { pod, lost }) = behind(namespace, service, endpoint) else { continue };
            for address in &endpoint.addresses {
                if !is_allowed(*address) {
                    left_out.insert((service.key.name.clone(), *address));
                    continue;
                }
                let address = SocketAddr::new(*address, number);
                let known = endpoints.entry(address).or_insert_with(|| Endpoint {
                    address,
                    subsets: Vec::new(),
                    zone: endpoint.zone.clone(),
                    lost,
                });
                known.lost &= lost;
                if let (Some(pod), Some(governed)) = (pod, governed) {
                    known.subsets.extend(subsets_of(governed.spec, &pod.labels).map(str::to_owned));
                    known.subsets.sort_unstable();
                    known.subsets.dedup();
                }
            }
        }
    }
    endpoints.into_values().collect()
}

/// Whoever may write an EndpointSlice must not be able to aim proxies at themselves, at their node's own services or at a
/// cloud's metadata server.
fn is_allowed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_aim_at_the_proxy_or_its_node_are_left_out() {
        for (address, allowed) in [
            ("10.0.0.1", true),
            ("192.168.1.1", true),
            ("fd00::1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
        ] {
            assert_eq!(is_allowed(address.parse().unwrap()), allowed, "{address}");
        }
    }
}
