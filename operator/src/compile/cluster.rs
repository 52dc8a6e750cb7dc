//! MeshClusters: which one applies to a Service, and its settings in the proxies' format.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_config::{
    Balancer, ClusterSettings, HashOn, HealthCheck, HealthCheckKind, Limits, Outliers, RetryBudget, SlowStart, Sticky,
    SuccessRate,
};
use weft_crds::MeshClusterSpec;
use weft_crds::cluster::{self, BalancerPolicy, HashOnType, HealthCheckType, TrafficDistribution};
use weft_crds::status::Reason;

use super::compiled::Outcome;
use super::diagnostic::{Diagnostic, Severity};
use super::endpoint::Endpoints;
use super::precedence::age;
use super::{missing, unused, value};
use crate::world::{Cluster, Distribution, DocumentKind, Kind, Namespace, ObjectId, Service};

/// Default of limits.maxPending if limits.maxConnections is set.
const MAX_PENDING_DEFAULT: u32 = 1024;

const CONNECT_TIMEOUT_MIN: Duration = Duration::from_millis(1);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);

/// Bounds of the durations of outlier detection and slow start.
const OUTLIER_TIME_MIN: Duration = Duration::from_secs(1);
const OUTLIER_TIME_MAX: Duration = Duration::from_secs(60 * 60);
const EJECTION_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Health checks: bounds and defaults.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(500);
const CHECK_TIMEOUT_MIN: Duration = Duration::from_millis(1);
const CHECK_INTERVAL_MS: u64 = 10_000;
const CHECK_TIMEOUT_MS: u64 = 1_000;
const UNHEALTHY_AFTER: u32 = 3;
const HEALTHY_AFTER: u32 = 2;

/// Bounds of stickySession.ttl.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Defaults of slow start. Source: Envoy.
const SLOW_START_MIN_PERCENT: u32 = 10;
const SLOW_START_AGGRESSION_PERMILLE: u32 = 1_000;

/// The MeshCluster that applies to a Service.
pub(super) struct Governed<'a> {
    pub(super) spec: &'a MeshClusterSpec,
    pub(super) settings: ClusterSettings,
}

/// Accepted MeshClusters, by Service.
pub(super) fn compile<'a>(
    namespace: &'a Namespace,
    objects: &mut BTreeMap<ObjectId, Outcome>,
) -> BTreeMap<String, Governed<'a>> {
    let mut governed: BTreeMap<String, (Governed<'a>, &'a Cluster)> = BTreeMap::new();
    for cluster in by_age(namespace) {
        let id = ObjectId { kind: Kind::Cluster, key: cluster.meta.key.clone() };
        let mut diagnostics = Vec::new();
        if let Some((spec, settings)) = check(namespace, cluster, &mut diagnostics) {
            let target = &spec.target_ref.name;
            if let Some((_, winner)) = governed.get(target) {
                diagnostics.push(Diagnostic::refused(
                    Reason::Conflicted,
                    format!(
                        "Service {target} already has MeshCluster {}, which is older and takes precedence: merge them",
                        winner.meta.key.name
                    ),
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

/// The accepted MeshCluster of a Service, for references from any namespace.
pub(super) fn governing<'a>(namespace: &'a Namespace, service: &str) -> Option<&'a MeshClusterSpec> {
    let mut clusters: Vec<&Cluster> = namespace
        .clusters
        .values()
        .filter(|cluster| cluster.spec.as_ref().is_ok_and(|spec| spec.target_ref.name == service))
        .collect();
    clusters.sort_by_key(|cluster| age(&cluster.meta));
    clusters.into_iter().find_map(|cluster| check(namespace, cluster, &mut Vec::new()).map(|(spec, _)| spec))
}

/// Which pods clients prefer: as in the MeshCluster if set there, else as in the Service.
pub(super) fn distribution(service: &Service, spec: Option<&MeshClusterSpec>) -> Distribution {
    let choice = spec.and_then(|spec| spec.load_balancer.as_ref()).and_then(|choice| choice.traffic_distribution);
    match choice {
        Some(TrafficDistribution::PreferSameZone) => Distribution::SameZone,
        Some(TrafficDistribution::Any) => Distribution::Any,
        None => service.distribution,
    }
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

fn by_age(namespace: &Namespace) -> Vec<&Cluster> {
    let mut clusters: Vec<&Cluster> = namespace.clusters.values().collect();
    clusters.sort_by_key(|cluster| age(&cluster.meta));
    clusters
}

/// Validates a MeshCluster; `None`: rejected, with the reason in `diagnostics`.
fn check<'a>(
    namespace: &Namespace,
    cluster: &'a Cluster,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<(&'a MeshClusterSpec, ClusterSettings)> {
    let spec = match &cluster.spec {
        Ok(spec) => spec,
        Err(error) => {
            diagnostics.push(Diagnostic::refused(Reason::Invalid, format!("the object cannot be parsed: {error}")));
            return None;
        }
    };
    let MeshClusterSpec { target_ref, subsets, .. } = spec;
    let target = &target_ref.name;
    let Some(service) = namespace.services.get(target) else {
        diagnostics.push(Diagnostic::refused(Reason::TargetNotFound, missing::own_service(namespace, target)));
        return None;
    };
    if !service.has_address() {
        diagnostics.push(Diagnostic::refused(Reason::UnsupportedTarget, value::no_address(service)));
        return None;
    }
    if service.ports.is_empty() {
        diagnostics.push(Diagnostic::refused(Reason::UnsupportedTarget, value::no_port(service)));
        return None;
    }
    let settings = match settings(spec, diagnostics) {
        Ok(settings) => settings,
        Err(message) => {
            diagnostics.push(Diagnostic::refused(Reason::UnsupportedValue, message));
            return None;
        }
    };
    let endpoints = Endpoints::of(namespace, service);
    diagnostics.extend(unused::check(service, &endpoints, spec, &settings));
    if endpoints.is_empty() && !subsets.is_empty() {
        let message = format!("Service {target} has no ready pod: requests to its subsets are answered 503");
        diagnostics.push(Diagnostic::limited(Reason::NoEndpoints, message));
        return Some((spec, settings));
    }
    for subset in subsets.iter().filter(|subset| !endpoints.populate(subset)) {
        diagnostics.push(Diagnostic::unresolved(
            Reason::SubsetNotFound,
            format!(
                "subset {} selects no ready pod of Service {target}{}: requests to it are answered 503",
                subset.name,
                endpoints.values_instead(&subset.labels)
            ),
        ));
    }
    Some((spec, settings))
}

/// The settings in the proxies' format. The error is an unsupported value.
fn settings(spec: &MeshClusterSpec, diagnostics: &mut Vec<Diagnostic>) -> Result<ClusterSettings, String> {
    let MeshClusterSpec {
        target_ref: _,
        subsets,
        load_balancer,
        connect,
        limits,
        outlier_detection,
        health_check,
        retry_budget,
    } = spec;
    let mut names: Vec<String> = subsets.iter().map(|subset| subset.name.clone()).collect();
    names.sort();
    names.dedup();
    let timeout = connect.as_ref().and_then(|cluster::Connect { timeout }| timeout.as_ref());
    let settings = ClusterSettings {
        connect_timeout_ms: timeout
            .map(|timeout| value::duration(timeout, "connect.timeout", CONNECT_TIMEOUT_MIN, CONNECT_TIMEOUT_MAX))
            .transpose()?,
        limits: limits.as_ref().map(|limits| self::limits(limits, diagnostics)).unwrap_or_default(),
        outliers: outlier_detection.as_ref().map(outliers).transpose()?.unwrap_or_default(),
        health_check: health_check.as_ref().map(self::health_check).transpose()?,
        retry_budget: retry_budget.as_ref().map(self::retry_budget).unwrap_or_default(),
        subsets: names,
        ..ClusterSettings::default()
    };
    match load_balancer {
        None => Ok(settings),
        Some(choice) => self::load_balancer(choice, settings),
    }
}

/// Adds the load balancer's settings.
fn load_balancer(choice: &cluster::LoadBalancer, settings: ClusterSettings) -> Result<ClusterSettings, String> {
    let cluster::LoadBalancer {
        policy,
        hash_on,
        sticky_session,
        slow_start,
        // See `distribution`: it depends on the Service too.
        traffic_distribution: _,
        panic_threshold,
    } = choice;
    let hashes = matches!(policy, BalancerPolicy::RingHash | BalancerPolicy::Maglev);
    if hashes != hash_on.is_some() {
        return Err("policies RingHash and Maglev require hashOn; remove hashOn for other policies".to_owned());
    }
    if hashes && slow_start.is_some() {
        return Err("slowStart has no effect with policies RingHash and Maglev: remove it".to_owned());
    }
    Ok(ClusterSettings {
        balancer: balancer(*policy),
        hash_on: hash_on.as_ref().map(self::hash_on).transpose()?,
        sticky: sticky_session.as_ref().map(sticky).transpose()?,
        slow_start: slow_start.as_ref().map(self::slow_start).transpose()?,
        panic_percent: panic_threshold.unwrap_or(settings.panic_percent),
        ..settings
    })
}

fn hash_on(key: &cluster::HashOn) -> Result<HashOn, String> {
    let cluster::HashOn { kind, name } = key;
    let name = || name.as_deref().ok_or("hashOn.name is missing");
    Ok(match kind {
        HashOnType::Header => HashOn::Header(value::header_name(name()?)?),
        HashOnType::Cookie => HashOn::Cookie(value::cookie_name(name()?)?),
        HashOnType::QueryParam => HashOn::QueryParam(name()?.to_owned()),
        HashOnType::SourceAddress => HashOn::SourceAddress,
    })
}

fn sticky(session: &cluster::StickySession) -> Result<Sticky, String> {
    let cluster::StickySession { name, path, ttl } = session;
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && !b",;".contains(&byte)) {
        return Err(format!("stickySession.path: {path:?} is not a valid cookie path"));
    }
    let ttl = ttl.as_ref().map(|ttl| value::duration(ttl, "stickySession.ttl", TTL_MIN, TTL_MAX)).transpose()?;
    Ok(Sticky { cookie: value::cookie_name(name)?, path: path.clone(), ttl_seconds: ttl.map(|millis| millis / 1000) })
}

fn slow_start(start: &cluster::SlowStart) -> Result<SlowStart, String> {
    let cluster::SlowStart { window, min_percent, aggression_permille } = start;
    Ok(SlowStart {
        window_ms: value::duration(window, "slowStart.window", OUTLIER_TIME_MIN, OUTLIER_TIME_MAX)?,
        min_percent: min_percent.unwrap_or(SLOW_START_MIN_PERCENT),
        aggression_permille: aggression_permille.unwrap_or(SLOW_START_AGGRESSION_PERMILLE),
    })
}

fn limits(limits: &cluster::Limits, diagnostics: &mut Vec<Diagnostic>) -> Limits {
    let cluster::Limits { max_connections, max_requests, max_pending } = *limits;
    if max_pending.is_some() && max_connections.is_none() {
        diagnostics.push(Diagnostic::partial("limits.maxPending has no effect without limits.maxConnections"));
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
        BalancerPolicy::RingHash => Balancer::RingHash,
        BalancerPolicy::Maglev => Balancer::Maglev,
    }
}

fn outliers(detection: &cluster::OutlierDetection) -> Result<Outliers, String> {
    let cluster::OutlierDetection {
        enabled,
        consecutive_5xx,
        consecutive_gateway_errors,
        consecutive_local_failures,
        interval,
        base_ejection_time,
        max_ejection_time,
        max_ejection_percent,
        success_rate,
    } = detection;
    let default = Outliers::default();
    let time = |given: &Option<weft_crds::Duration>, field: &str, max, default| match given {
        None => Ok(default),
        Some(text) => value::duration(text, &format!("outlierDetection.{field}"), OUTLIER_TIME_MIN, max),
    };
    let base_ejection_ms = time(base_ejection_time, "baseEjectionTime", OUTLIER_TIME_MAX, default.base_ejection_ms)?;
    let max_ejection_ms =
        time(max_ejection_time, "maxEjectionTime", EJECTION_TIME_MAX, default.max_ejection_ms.max(base_ejection_ms))?;
    if max_ejection_ms < base_ejection_ms {
        return Err("outlierDetection.maxEjectionTime must not be shorter than baseEjectionTime".to_owned());
    }
    Ok(Outliers {
        consecutive_5xx: consecutive_5xx.unwrap_or(default.consecutive_5xx),
        consecutive_gateway_errors: consecutive_gateway_errors.unwrap_or(default.consecutive_gateway_errors),
        consecutive_local_failures: consecutive_local_failures.unwrap_or(default.consecutive_local_failures),
        interval_ms: time(interval, "interval", OUTLIER_TIME_MAX, default.interval_ms)?,
        base_ejection_ms,
        max_ejection_ms,
        max_ejection_percent: match enabled {
            Some(false) => 0,
            Some(true) | None => max_ejection_percent.unwrap_or(default.max_ejection_percent),
        },
        success_rate: success_rate.as_ref().map(self::success_rate).unwrap_or_default(),
    })
}

fn success_rate(rate: &cluster::SuccessRate) -> SuccessRate {
    let cluster::SuccessRate { min_pods, min_requests, deviations_permille } = *rate;
    let default = SuccessRate::default();
    SuccessRate {
        min_endpoints: min_pods.unwrap_or(default.min_endpoints),
        min_requests: min_requests.unwrap_or(default.min_requests),
        deviations_permille: deviations_permille.unwrap_or(default.deviations_permille),
    }
}

fn health_check(check: &cluster::HealthCheck) -> Result<HealthCheck, String> {
    let cluster::HealthCheck {
        kind,
        path,
        host,
        service,
        port,
        interval,
        timeout,
        unhealthy_threshold,
        healthy_threshold,
    } = check;
    let time = |given: &Option<weft_crds::Duration>, field: &str, min, default| match given {
        None => Ok(default),
        Some(text) => value::duration(text, &format!("healthCheck.{field}"), min, OUTLIER_TIME_MAX),
    };
    let visible = |text: &&String| text.bytes().all(|byte| byte.is_ascii_graphic());
    let kind = match kind {
        HealthCheckType::Http => HealthCheckKind::Http {
            path: path
                .clone()
                .filter(|path| path.starts_with('/') && visible(&path))
                .ok_or("healthCheck.path must be a path that starts with /")?,
            host: host.as_ref().filter(visible).cloned(),
        },
        HealthCheckType::Tcp => HealthCheckKind::Tcp,
        HealthCheckType::Grpc => HealthCheckKind::Grpc { service: service.clone().unwrap_or_default() },
    };
    let interval_ms = time(interval, "interval", CHECK_INTERVAL_MIN, CHECK_INTERVAL_MS)?;
    let timeout_ms = time(timeout, "timeout", CHECK_TIMEOUT_MIN, CHECK_TIMEOUT_MS)?;
    if timeout_ms > interval_ms {
        return Err("healthCheck.timeout must not be longer than the interval".to_owned());
    }
    Ok(HealthCheck {
        kind,
        port: *port,
        interval_ms,
        timeout_ms,
        unhealthy_after: unhealthy_threshold.unwrap_or(UNHEALTHY_AFTER),
        healthy_after: healthy_threshold.unwrap_or(HEALTHY_AFTER),
    })
}

fn retry_budget(budget: &cluster::RetryBudget) -> RetryBudget {
    let cluster::RetryBudget { percent, min_per_second } = *budget;
    let default = RetryBudget::default();
    RetryBudget {
        percent: percent.unwrap_or(default.percent),
        min_per_second: min_per_second.unwrap_or(default.min_per_second),
    }
}
