//! MeshClusters: which one governs a Service, and what it says.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_config::{Balancer, ClusterSettings, Limits};
use weft_crds::MeshClusterSpec;
use weft_crds::cluster::{self, BalancerPolicy};
use weft_crds::status::Reason;

use super::diagnostic::{Diagnostic, Kind, ObjectId, Severity};
use super::precedence::seniority;
use super::{Outcome, service, value};
use crate::world::{Cluster, DocumentKind, Namespace, Service};

/// Requests that wait for a connection where connections are limited and nothing else is said.
const MAX_PENDING_DEFAULT: u32 = 1024;

const CONNECT_TIMEOUT_MIN: Duration = Duration::from_millis(1);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);

/// The MeshCluster that governs a Service.
pub(super) struct Governed<'a> {
    pub(super) spec: &'a MeshClusterSpec,
    pub(super) settings: ClusterSettings,
}

/// MeshClusters in force, by Service.
pub(super) fn compile<'a>(
    namespace: &'a Namespace,
    objects: &mut BTreeMap<ObjectId, Outcome>,
) -> BTreeMap<String, Governed<'a>> {
    let mut governed: BTreeMap<String, (Governed<'a>, &'a Cluster)> = BTreeMap::new();
    for cluster in by_seniority(namespace) {
        let id = ObjectId { kind: Kind::Cluster, key: cluster.meta.key.clone() };
        let mut diagnostics = Vec::new();
        if let Some((spec, settings)) = check(namespace, cluster, &mut diagnostics) {
            let target = &spec.target_ref.name;
            if let Some((_, winner)) = governed.get(target) {
                diagnostics.push(Diagnostic::refused(
                    Reason::Conflicted,
                    format!("Service {target} is governed by MeshCluster {}, which came first", winner.meta.key.name),
                ));
            } else {
                governed.insert(target.clone(), (Governed { spec, settings }, cluster));
            }
        }
        let in_force = !diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Refused);
        let outcome = objects.entry(id).or_default();
        outcome.documents.extend(in_force.then_some(DocumentKind::Export));
        outcome.diagnostics = diagnostics;
    }
    governed.into_iter().map(|(service, (governed, _))| (service, governed)).collect()
}

/// The MeshCluster in force for a Service, seen from anywhere.
pub(super) fn governing<'a>(namespace: &'a Namespace, service: &str) -> Option<&'a MeshClusterSpec> {
    let mut clusters: Vec<&Cluster> = namespace
        .clusters
        .values()
        .filter(|cluster| cluster.spec.as_ref().is_ok_and(|spec| spec.target_ref.name == service))
        .collect();
    clusters.sort_by_key(|cluster| seniority(&cluster.meta));
    clusters.into_iter().find_map(|cluster| check(namespace, cluster, &mut Vec::new()).map(|(spec, _)| spec))
}

/// Names of the subsets that a pod with these labels is in.
pub(super) fn subsets_of<'a>(
    spec: &'a MeshClusterSpec,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a str> {
    spec.subsets
        .iter()
        .filter(|subset| subset.labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
        .map(|s| s.name.as_str())
}

/// Whether a pod that may take traffic of the Service is in the subset.
pub(super) fn is_populated(namespace: &Namespace, service: &Service, spec: &MeshClusterSpec, subset: &str) -> bool {
    let slices = namespace.slices.values().filter(|slice| slice.service == service.key.name);
    slices
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| service::behind(namespace, service, endpoint)?.pod)
        .any(|pod| subsets_of(spec, &pod.labels).any(|name| name == subset))
}

fn by_seniority(namespace: &Namespace) -> Vec<&Cluster> {
    let mut clusters: Vec<&Cluster> = namespace.clusters.values().collect();
    clusters.sort_by_key(|cluster| seniority(&cluster.meta));
    clusters
}

/// What the object says, if it can be in force.
fn check<'a>(
    namespace: &Namespace,
    cluster: &'a Cluster,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<(&'a MeshClusterSpec, ClusterSettings)> {
    let spec = match &cluster.spec {
        Ok(spec) => spec,
        Err(error) => {
            diagnostics.push(Diagnostic::refused(Reason::Invalid, format!("the object cannot be read: {error}")));
            return None;
        }
    };
    let MeshClusterSpec { target_ref, subsets, load_balancer, connect, limits } = spec;
    let target = &target_ref.name;
    let Some(service) = namespace.services.get(target) else {
        diagnostics.push(Diagnostic::refused(Reason::TargetNotFound, format!("Service {target} does not exist")));
        return None;
    };
    if !service.has_address() {
        diagnostics.push(Diagnostic::refused(Reason::UnsupportedTarget, value::no_address(service)));
        return None;
    }
    let timeout = connect.as_ref().and_then(|cluster::Connect { timeout }| timeout.as_ref());
    let timeout =
        timeout.map(|timeout| value::duration(timeout, "connect.timeout", CONNECT_TIMEOUT_MIN, CONNECT_TIMEOUT_MAX));
    let connect_timeout_ms = match timeout.transpose() {
        Ok(timeout) => timeout,
        Err(message) => {
            diagnostics.push(Diagnostic::refused(Reason::UnsupportedValue, message));
            return None;
        }
    };
    for subset in subsets {
        if !is_populated(namespace, service, spec, &subset.name) {
            diagnostics.push(Diagnostic::unresolved(
                Reason::SubsetNotFound,
                format!("subset {} selects no ready pod of Service {target}: its share is answered 503", subset.name),
            ));
        }
    }
    let limits = limits.as_ref().map(|limits| self::limits(limits, diagnostics)).unwrap_or_default();
    let mut names: Vec<String> = subsets.iter().map(|subset| subset.name.clone()).collect();
    names.sort();
    names.dedup();
    let balancer = balancer(load_balancer.as_ref().map(|cluster::LoadBalancer { policy }| *policy).unwrap_or_default());
    Some((spec, ClusterSettings { balancer, connect_timeout_ms, limits, subsets: names }))
}

fn limits(limits: &cluster::Limits, diagnostics: &mut Vec<Diagnostic>) -> Limits {
    let cluster::Limits { max_connections, max_requests, max_pending } = *limits;
    if max_pending.is_some() && max_connections.is_none() {
        diagnostics
            .push(Diagnostic::partial("limits.maxPending has no effect without limits.maxConnections: nothing waits"));
    }
    let max_pending = max_connections.map(|_| max_pending.unwrap_or(MAX_PENDING_DEFAULT));
    Limits { max_connections, max_requests, max_pending }
}

fn balancer(policy: BalancerPolicy) -> Balancer {
    match policy {
        BalancerPolicy::PeakEwma => Balancer::PeakEwma,
        BalancerPolicy::LeastRequest => Balancer::LeastRequest,
        BalancerPolicy::RoundRobin => Balancer::RoundRobin,
        BalancerPolicy::Random => Balancer::Random,
    }
}
