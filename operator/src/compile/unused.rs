//! Fields of a MeshCluster that have no effect, because of the Service, its pods or other fields.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::{ClusterSettings, HashOn, Protocol};
use weft_crds::MeshClusterSpec;
use weft_crds::cluster::{OutlierDetection, Subset, TrafficDistribution};
use weft_crds::status::Reason;
use weft_crds::suggest::did_you_mean;

use super::diagnostic::Diagnostic;
use super::endpoint::endpoint_pod;
use crate::world::{Namespace, Pod, Service, SliceEndpoint};

/// The usable endpoints of a Service, with their pods.
pub(super) struct Endpoints<'a>(Vec<(&'a SliceEndpoint, Option<&'a Pod>)>);

// === impl Endpoints ===

impl<'a> Endpoints<'a> {
    pub(super) fn of(namespace: &'a Namespace, service: &Service) -> Self {
        let endpoints = namespace.slices_of(&service.key.name).flat_map(|slice| &slice.endpoints);
        Self(
            endpoints
                .filter_map(|endpoint| Some((endpoint, endpoint_pod(namespace, service, endpoint)?.pod)))
                .collect(),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
            if values.contains(value.as_str()) {
                return None;
            }
            if values.is_empty() {
                let keys: BTreeSet<&str> = self.pods().flat_map(|pod| pod.labels.keys()).map(String::as_str).collect();
                return Some(format!("no pod has a label {key}{}", did_you_mean(key, keys)));
            }
            let values: Vec<String> =
                values.into_iter().take(VALUES_MAX).map(|value| format!("{key}={value}")).collect();
            Some(format!("its pods have {}", values.join(", ")))
        });
        let hints: Vec<String> = hints.collect();
        if hints.is_empty() { String::new() } else { format!(" ({})", hints.join("; ")) }
    }

    fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.0.iter().filter_map(|(_, pod)| *pod)
    }
}

/// How many values of a label a message lists.
const VALUES_MAX: usize = 5;

/// Reports fields of the Service or the MeshCluster that have no effect.
pub(super) fn check(
    service: &Service,
    endpoints: &Endpoints<'_>,
    spec: &MeshClusterSpec,
    settings: &ClusterSettings,
) -> Vec<Diagnostic> {
    let mut found = overruled(service, spec, settings);
    found.extend(opaque(service, spec, settings));
    found.extend(disabled(spec));
    found.extend(check_port(service, endpoints, spec));
    let distribution = spec.load_balancer.as_ref().and_then(|choice| choice.traffic_distribution);
    let in_no_zone = !endpoints.is_empty() && endpoints.0.iter().all(|(endpoint, _)| endpoint.zone.is_none());
    if distribution == Some(TrafficDistribution::PreferSameZone) && in_no_zone {
        found.push(Diagnostic::note(format!(
            "loadBalancer.trafficDistribution has no effect at present: no pod of Service {} is on a node with a zone",
            service.key.name
        )));
    }
    found
}

/// Fields of the Service or the MeshCluster that have no effect because of a field of the other.
fn overruled(service: &Service, spec: &MeshClusterSpec, settings: &ClusterSettings) -> Vec<Diagnostic> {
    let name = &service.key.name;
    let distribution = spec.load_balancer.as_ref().and_then(|choice| choice.traffic_distribution);
    let mut notes = Vec::new();
    if service.client_ip_seconds.is_some() && (settings.hash_on.is_some() || settings.sticky.is_some()) {
        notes.push(Diagnostic::note(format!(
            "sessionAffinity ClientIP of Service {name} has no effect: hashOn or stickySession ties clients to pods"
        )));
    }
    if service.local_only && distribution.is_some() {
        notes.push(Diagnostic::note(format!(
            "loadBalancer.trafficDistribution has no effect: internalTrafficPolicy of Service {name} is Local"
        )));
    }
    notes
}

/// Fields about requests, where the proxy sees none.
fn opaque(service: &Service, spec: &MeshClusterSpec, settings: &ClusterSettings) -> Option<Diagnostic> {
    if service.ports.iter().any(|port| port.protocol != Protocol::Tcp) {
        return None;
    }
    let outliers = spec.outlier_detection.as_ref();
    let fields = [
        ("loadBalancer.hashOn", settings.hash_on.as_ref().is_some_and(|key| *key != HashOn::SourceAddress)),
        ("loadBalancer.stickySession", settings.sticky.is_some()),
        ("retryBudget", spec.retry_budget.is_some()),
        ("outlierDetection.consecutive5xx", outliers.is_some_and(|outliers| outliers.consecutive_5xx.is_some())),
        (
            "outlierDetection.consecutiveGatewayErrors",
            outliers.is_some_and(|outliers| outliers.consecutive_gateway_errors.is_some()),
        ),
    ];
    let fields: Vec<&str> = fields.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field).collect();
    let message = format!(
        "no effect on opaque TCP, as which every port of Service {} is declared (by appProtocol or port name): {}",
        service.key.name,
        fields.join(", ")
    );
    (!fields.is_empty()).then(|| Diagnostic::partial(message))
}

/// Fields of outlier detection that is off.
fn disabled(spec: &MeshClusterSpec) -> Option<Diagnostic> {
    let detection = spec.outlier_detection.as_ref().filter(|detection| detection.enabled == Some(false))?;
    let only_off = OutlierDetection { enabled: detection.enabled, ..OutlierDetection::default() };
    let message = "outlierDetection.enabled is false: the other fields of outlierDetection have no effect";
    (*detection != only_off).then(|| Diagnostic::partial(message))
}

/// A port of health checks that no pod declares. Pods may listen on ports that they do not declare.
fn check_port(service: &Service, endpoints: &Endpoints<'_>, spec: &MeshClusterSpec) -> Option<Diagnostic> {
    let port = spec.health_check.as_ref()?.port?;
    let declared: BTreeSet<u16> = endpoints.pods().flat_map(|pod| &pod.ports).map(|port| port.port).collect();
    let numbers: Vec<String> = declared.iter().map(u16::to_string).collect();
    let message = format!(
        "healthCheck.port: no pod of Service {} declares port {port}, only {}: if none listens on it, all pods become \
         unhealthy",
        service.key.name,
        numbers.join(", ")
    );
    (!declared.is_empty() && !declared.contains(&port)).then(|| Diagnostic::limited(Reason::PortNotFound, message))
}
