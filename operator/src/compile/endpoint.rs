//! Whether an endpoint of an EndpointSlice may receive traffic, from its pod and its address.
//!
//! The pod's status is about a second newer than the slice that Kubernetes derives from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_crds::cluster::Subset;
use weft_crds::suggest::did_you_mean;

use crate::world::{Namespace, Pod, Readiness, Service, ServicePort, SliceEndpoint};

/// How many values of a label a message lists.
const VALUES_MAX: usize = 5;

/// The pod of a usable endpoint, and its state.
#[derive(Clone, Copy, Default)]
pub(super) struct EndpointPod<'a> {
    /// The pod, if the endpoint has one.
    pub(super) pod: Option<&'a Pod>,
    /// It is terminating and still serves: used only if no other endpoint is available.
    pub(super) terminating: bool,
    /// Its node is unreachable: used only if no other endpoint is available, terminating ones included.
    pub(super) lost: bool,
}

/// The endpoints of a Service that may receive traffic, with their pods.
pub(super) struct Endpoints<'a>(Vec<(&'a SliceEndpoint, Option<&'a Pod>)>);

// === impl Endpoints ===

impl<'a> Endpoints<'a> {
    pub(super) fn of(namespace: &'a Namespace, service: &Service) -> Self {
        let endpoints = namespace.slices_of(&service.key.name).flat_map(|slice| &slice.endpoints);
        let usable = |endpoint| Some((endpoint, endpoint_pod(namespace, service, endpoint)?.pod));
        Self(endpoints.filter_map(usable).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is in a zone.
    pub(super) fn has_zones(&self) -> bool {
        self.0.iter().any(|(endpoint, _)| endpoint.zone.is_some())
    }

    /// Whether a pod is in the subset.
    pub(super) fn populate(&self, subset: &Subset) -> bool {
        self.pods().any(|pod| subset.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
    }

    /// The end of a message about labels that no pod has: the values that pods have.
    pub(super) fn values_instead(&self, labels: &BTreeMap<String, String>) -> String {
        let hints = labels.iter().filter_map(|(key, value)| {
            let values: BTreeSet<&str> =
                self.pods().filter_map(|pod| pod.labels.get(key)).map(String::as_str).collect();
            if values.is_empty() {
                let keys: BTreeSet<&str> = self.pods().flat_map(|pod| pod.labels.keys()).map(String::as_str).collect();
                return Some(format!("no pod has a label {key}{}", did_you_mean(key, keys)));
            }
            let listed: Vec<String> = values.iter().take(VALUES_MAX).map(|value| format!("{key}={value}")).collect();
            (!values.contains(value.as_str())).then(|| format!("its pods have {}", listed.join(", ")))
        });
        let hints: Vec<String> = hints.collect();
        if hints.is_empty() { String::new() } else { format!(" ({})", hints.join("; ")) }
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.0.iter().filter_map(|(_, pod)| *pod)
    }
}

/// The pod of an endpoint; `None` if the endpoint must not be used.
pub(super) fn endpoint_pod<'a>(
    namespace: &'a Namespace,
    service: &Service,
    endpoint: &SliceEndpoint,
) -> Option<EndpointPod<'a>> {
    let SliceEndpoint { ready, terminating, .. } = *endpoint;
    let Some((name, uid)) = &endpoint.pod else {
        return (ready || terminating).then_some(EndpointPod { terminating, ..EndpointPod::default() });
    };
    // A pod that is not known was created a moment ago (its event follows) or is gone: do not use it.
    let pod = namespace.pod(name, uid)?;
    let endpoint_pod = EndpointPod { pod: Some(pod), ..EndpointPod::default() };
    // Kubernetes derives the slices of a Service with a selector from its pods; for other slices the conditions in
    // the slice apply.
    let from_selector = !service.selector.is_empty();
    match pod.readiness {
        _ if service.publish_not_ready => Some(EndpointPod { terminating: pod.deleting, ..endpoint_pod }),
        Readiness::Ready if from_selector || ready || terminating => {
            Some(EndpointPod { terminating: pod.deleting || !from_selector && terminating, ..endpoint_pod })
        }
        Readiness::Lost if from_selector && !pod.deleting => Some(EndpointPod { lost: true, ..endpoint_pod }),
        Readiness::Ready | Readiness::Lost | Readiness::NotReady => None,
    }
}

/// Whether a Service port has an endpoint that may receive traffic.
pub(super) fn has_endpoints(namespace: &Namespace, service: &Service, port: &ServicePort) -> bool {
    let slices = namespace.slices_of(&service.key.name);
    let slices = slices.filter(|slice| slice.ports.iter().any(|candidate| candidate.name == port.name));
    slices.flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint_pod(namespace, service, endpoint).is_some())
}

/// Whether endpoints may have this address. Loopback, link-local, multicast and unspecified addresses are rejected: a
/// user who may write EndpointSlices must not be able to direct proxies to themselves, to services of their node or
/// to a cloud's metadata server.
pub(super) fn is_allowed(address: IpAddr) -> bool {
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

    /// CP-13: EndpointSlices of a user cannot point to the node or its metadata.
    #[test]
    fn loopback_and_link_local_addresses_are_rejected() {
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
