//! Fields of a MeshCluster that have no effect, because of the Service, its pods or other fields.

use std::collections::BTreeSet;

use weft_config::{ClusterSettings, HashOn, Protocol};
use weft_crds::MeshClusterSpec;
use weft_crds::cluster::{OutlierDetection, TrafficDistribution};
use weft_crds::status::Reason;

use super::diagnostic::Diagnostic;
use super::endpoint::Endpoints;
use crate::world::Service;

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
    let in_no_zone = !endpoints.is_empty() && !endpoints.has_zones();
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
    let mut found = Vec::new();
    if service.client_ip_seconds.is_some() && (settings.hash_on.is_some() || settings.sticky.is_some()) {
        found.push(Diagnostic::note(format!(
            "sessionAffinity ClientIP of Service {name} has no effect: hashOn or stickySession ties clients to pods"
        )));
    }
    if service.local_only && distribution.is_some() {
        found.push(Diagnostic::partial(format!(
            "loadBalancer.trafficDistribution has no effect: internalTrafficPolicy of Service {name} is Local; remove one \
             of the two"
        )));
    }
    found
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
    let message = "outlierDetection.enabled is false: the other fields of outlierDetection have no effect; remove them";
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
