//! The settings of a pod's proxy: the installation's defaults, overridden by annotations on the namespace, overridden
//! by annotations on the pod. Each annotation has a type. A value of the wrong type refuses the pod, with key, value
//! and remedy; there is no silent fallback to a default. [`crate::annotations`] reads them.
//!
//! Image, user, capabilities, commands and volumes are not settings: only the installation chooses them.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use weft_config::bootstrap::{AccessLog, PortRange};
use weft_identity::{Fingerprint, SpiffeId, TrustDomain};

use crate::annotation::{
    ACCESS_LOG, Annotation, DRAIN_SECONDS, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_IPS, EXCLUDE_OUTBOUND_PORTS,
    NATIVE_SIDECAR, OPAQUE_PORTS, PROXY_CPU_LIMIT, PROXY_CPU_REQUEST, PROXY_LOG_LEVEL, PROXY_MEMORY_LIMIT,
    PROXY_MEMORY_REQUEST, WORKERS,
};
use crate::annotations::{AnnotationErrors, AnnotationSource, Annotations, items, number};
use crate::namespace::Namespace;
use crate::quantity::Quantity;

/// The first server on which `restartPolicy: Always` makes an init container a native sidecar by default.
const NATIVE_SINCE: ServerVersion = ServerVersion { major: 1, minor: 29 };

/// Default of `terminationGracePeriodSeconds`: seconds from SIGTERM to SIGKILL.
const GRACE_SECONDS_DEFAULT: i64 = 30;
/// Part of the grace period that is kept for the proxy to exit after draining.
const DRAIN_MARGIN_SECONDS: i64 = 5;
/// One day. A longer value is taken for an error.
const DRAIN_SECONDS_MAX: u32 = 86_400;

/// Maximum of worker threads; a sidecar has no use for more.
const WORKERS_MAX: u16 = 64;
/// With less memory the proxy is OOM-killed before it serves. A smaller value is almost always a wrong unit ("100m"
/// is a tenth of a byte).
const MEMORY_MIN: Quantity = Quantity::whole(1 << 20);

/// The injector's own configuration, the same for every pod but for `hook_secret`.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Image of the proxy.
    pub proxy_image: String,
    /// Image of the init container.
    pub init_image: String,
    /// `imagePullPolicy` of both images.
    pub image_pull_policy: String,
    /// Version of the proxy, for label and annotation.
    pub proxy_version: String,
    /// Default resources of the proxy.
    pub resources: Resources,
    /// Version of the API server.
    pub server: ServerVersion,
    /// Namespaces for whose pods the API server does not call the injector.
    pub excluded_namespaces: Vec<String>,
    /// Secret path segment of the pod's lifecycle hooks, different for each pod.
    pub hook_secret: String,
    /// How pods get an identity. None: they have none.
    pub identity: Option<Identity>,
}

/// How a pod gets its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// URL of the certificate authority.
    pub url: String,
    /// Whom the pod trusts at first. None: that is not known yet, and no pod is created.
    pub trust: Option<Trust>,
}

/// Whom a pod trusts at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Trust domain of the cluster.
    pub domain: TrustDomain,
    /// Who the certificate authority is.
    pub authority: SpiffeId,
    /// Fingerprints of the roots that are trusted now: at least one.
    pub roots: BTreeSet<Fingerprint>,
}

/// Resources of the proxy, as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `requests.cpu`.
    pub cpu_request: Option<String>,
    /// `limits.cpu`.
    pub cpu_limit: Option<String>,
    /// `requests.memory`.
    pub memory_request: Option<String>,
    /// `limits.memory`.
    pub memory_limit: Option<String>,
}

/// Major and minor version of an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// 1 in 1.33.
    pub major: u32,
    /// 33 in 1.33.
    pub minor: u32,
}

/// The settings of one pod's proxy, parsed and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the proxy.
    pub proxy_image: String,
    /// Image of the init container.
    pub init_image: String,
    /// `imagePullPolicy` of both images.
    pub image_pull_policy: String,
    /// Version of the proxy.
    pub proxy_version: String,
    /// Whether the proxy is a native sidecar: an init container with `restartPolicy: Always`.
    pub native: bool,
    /// Resources of the proxy.
    pub resources: Resources,
    /// Log filter; `None` for the proxy's default.
    pub log: Option<String>,
    /// Which requests the access log has; `None` for the proxy's default.
    pub access_log: Option<AccessLog>,
    /// Worker threads.
    pub workers: u16,
    /// Seconds that in-flight requests may take after SIGTERM.
    pub drain_seconds: u32,
    /// Inbound ports of the pod that are not redirected.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that are not redirected.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Destination networks that are not redirected.
    pub exclude_outbound_ips: Vec<IpNet>,
    /// Ports without protocol detection; `None` for the proxy's default.
    pub opaque_ports: Option<Vec<u16>>,
    /// How the pod gets its identity; `None` for none.
    pub identity: Option<Identity>,
}

// === impl Settings ===

impl Settings {
    /// Parses the annotations. The strings are warnings: annotations without effect, or with a reduced value.
    pub fn resolve(
        namespace: &Namespace,
        pod: &Pod,
        installation: &Installation,
    ) -> Result<(Self, Vec<String>), AnnotationErrors> {
        let Installation {
            proxy_image,
            init_image,
            image_pull_policy,
            proxy_version,
            resources,
            server,
            excluded_namespaces: _,
            hook_secret: _,
            identity,
        } = installation;
        let mut annotations = Annotations::new(namespace, pod);
        let mut warnings = annotations.unknown_key_warnings();

        let resources = resolve_resources(&mut annotations, resources);
        let cpu_limit = resources.cpu_limit.as_deref().and_then(Quantity::parse);
        let workers =
            annotations.parse(&WORKERS, |value| number(value).filter(|workers| (1..=WORKERS_MAX).contains(workers)));
        let drain = annotations
            .parse(&DRAIN_SECONDS, |value| number(value).filter(|seconds| (1..=DRAIN_SECONDS_MAX).contains(seconds)));
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let (drain_seconds, warning) = limit_drain_seconds(drain, grace.unwrap_or(GRACE_SECONDS_DEFAULT));
        warnings.extend(warning);

        let settings = Self {
            proxy_image: proxy_image.clone(),
            init_image: init_image.clone(),
            image_pull_policy: image_pull_policy.clone(),
            proxy_version: proxy_version.clone(),
            native: native(&mut annotations, *server),
            resources,
            log: annotations.parse(&PROXY_LOG_LEVEL, log_filter),
            access_log: annotations.parse(&ACCESS_LOG, |value| value.parse().ok()),
            workers: workers.unwrap_or_else(|| default_workers(cpu_limit)),
            drain_seconds,
            exclude_inbound_ports: annotations.parse_list(&EXCLUDE_INBOUND_PORTS, |item| item.parse().ok()),
            exclude_outbound_ports: annotations.parse_list(&EXCLUDE_OUTBOUND_PORTS, |item| item.parse().ok()),
            exclude_outbound_ips: annotations.parse_list(&EXCLUDE_OUTBOUND_IPS, network),
            opaque_ports: annotations
                .parse(&OPAQUE_PORTS, |value| items(value, |item| number(item).filter(|port| *port != 0u16))),
            identity: identity.clone(),
        };
        annotations.finish()?;
        Ok((settings, warnings))
    }
}

/// Whether the proxy is a native sidecar: as annotated, else if the server has them.
fn native(annotations: &mut Annotations<'_>, server: ServerVersion) -> bool {
    let native = annotations.parse(&NATIVE_SIDECAR, |value| match value {
        "auto" => Some(server >= NATIVE_SINCE),
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    });
    let native = native.unwrap_or(server >= NATIVE_SINCE);
    if let (true, Some((value, source))) = (native && server < NATIVE_SINCE, annotations.find(&NATIVE_SIDECAR)) {
        let remedy = format!("use \"auto\": the API server is {server}, and native sidecars came with {NATIVE_SINCE}");
        annotations.add_error(&NATIVE_SIDECAR, value, source, &remedy);
    }
    native
}

/// Where annotations give only one of request and limit, the default of the other is adjusted to it.
fn resolve_resources(annotations: &mut Annotations<'_>, defaults: &Resources) -> Resources {
    let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = defaults;
    let (cpu_request, cpu_limit) =
        request_and_limit(annotations, (&PROXY_CPU_REQUEST, cpu_request), (&PROXY_CPU_LIMIT, cpu_limit), |value| {
            Quantity::parse(value).filter(|quantity| *quantity > Quantity::whole(0))
        });
    let (memory_request, memory_limit) = request_and_limit(
        annotations,
        (&PROXY_MEMORY_REQUEST, memory_request),
        (&PROXY_MEMORY_LIMIT, memory_limit),
        |value| Quantity::parse(value).filter(|quantity| *quantity >= MEMORY_MIN),
    );
    Resources { cpu_request, cpu_limit, memory_request, memory_limit }
}

fn request_and_limit(
    annotations: &mut Annotations<'_>,
    request: (&'static Annotation, &Option<String>),
    limit: (&'static Annotation, &Option<String>),
    parse: impl Fn(&str) -> Option<Quantity>,
) -> (Option<String>, Option<String>) {
    let mut annotated = |annotation| annotations.parse(annotation, |value| Some((value.to_owned(), parse(value)?)));
    let (annotated_request, annotated_limit) = (annotated(request.0), annotated(limit.0));
    let default = |text: &Option<String>| text.clone().and_then(|text| Some((text.clone(), parse(&text)?)));
    let mut low = annotated_request.clone().or_else(|| default(request.1));
    let mut high = annotated_limit.clone().or_else(|| default(limit.1));
    if let (Some((low_text, low_value)), Some((high_text, high_value))) = (&low, &high)
        && low_value > high_value
    {
        match (&annotated_request, &annotated_limit) {
            (Some(_), Some(_)) => {
                let remedy = format!("make it at most {}, which is {high_text:?}", limit.0.name());
                let source = annotations.find(request.0).map_or(AnnotationSource::Pod, |(_, source)| source);
                let value = low_text.clone();
                annotations.add_error(request.0, &value, source, &remedy);
            }
            (Some(_), None) => high = low.clone(),
            (None, _) => low = high.clone(),
        }
    }
    (low.map(|(text, _)| text), high.map(|(text, _)| text))
}

/// One worker thread for each core of the limit, rounded up; one without a limit.
fn default_workers(cpu_limit: Option<Quantity>) -> u16 {
    let cores = cpu_limit.map_or(1, Quantity::round_up);
    u16::try_from(cores).unwrap_or(WORKERS_MAX).clamp(1, WORKERS_MAX)
}

/// Limits the drain time to the grace period less [`DRAIN_MARGIN_SECONDS`]; warns where that shortens an annotated one.
fn limit_drain_seconds(annotated: Option<u32>, grace_seconds: i64) -> (u32, Option<String>) {
    let most = (grace_seconds - DRAIN_MARGIN_SECONDS).clamp(1, i64::from(DRAIN_SECONDS_MAX));
    let most = u32::try_from(most).unwrap_or(1);
    match annotated {
        Some(seconds) if i64::from(seconds) > i64::from(most) => {
            let warning = format!(
                "annotation {} is {seconds}, but the pod is killed {grace_seconds} seconds after SIGTERM \
                 (terminationGracePeriodSeconds): {most} is used; make terminationGracePeriodSeconds at least {}",
                DRAIN_SECONDS.name(),
                i64::from(seconds) + DRAIN_MARGIN_SECONDS
            );
            (most, Some(warning))
        }
        Some(seconds) => (seconds, None),
        None => (most, None),
    }
}

fn network(text: &str) -> Option<IpNet> {
    let network: Option<IpNet> = text.parse().ok();
    network.or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip))).map(|network| network.trunc())
}

/// A level, or a list of levels with targets, in the common part of the syntax of `tracing_subscriber::EnvFilter`.
fn log_filter(text: &str) -> Option<String> {
    let level = |text: &str| matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let target = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'))
    };
    let directive = |text: &str| text.split_once('=').map_or(level(text), |(name, value)| target(name) && level(value));
    text.split(',').all(|item| directive(item.trim())).then(|| text.to_owned())
}

// === impl Resources ===

impl Resources {
    /// Fails with the flag and value of the first invalid quantity, or of a request above its limit.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { cpu_request, cpu_limit, memory_request, memory_limit } = self;
        let read = |flag, text: &Option<String>| match text.as_deref().map(Quantity::parse) {
            Some(None) => Err((flag, text.clone().unwrap_or_default())),
            Some(Some(quantity)) => Ok(Some(quantity)),
            None => Ok(None),
        };
        for (flag, request, limit_flag, limit) in [
            ("--proxy-cpu-request", cpu_request, "--proxy-cpu-limit", cpu_limit),
            ("--proxy-memory-request", memory_request, "--proxy-memory-limit", memory_limit),
        ] {
            if let (Some(low), Some(high)) = (read(flag, request)?, read(limit_flag, limit)?)
                && low > high
            {
                return Err((flag, request.clone().unwrap_or_default()));
            }
        }
        Ok(())
    }
}

// === impl ServerVersion ===

impl ServerVersion {
    /// Older than any supported server; used until the real version is known.
    pub const OLDEST: Self = Self { major: 1, minor: 0 };

    /// Parses the fields of `/version`. Providers append to the minor version, as in `29+`.
    pub fn parse(major: &str, minor: &str) -> Option<Self> {
        let leading = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse().ok()
        };
        Some(Self { major: leading(major)?, minor: leading(minor)? })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor } = self;
        write!(f, "{major}.{minor}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_workers_are_the_cores_rounded_up() {
        for (text, workers) in [("100m", 1), ("1", 1), ("1001m", 2), ("2", 2), ("1000", WORKERS_MAX)] {
            assert_eq!(default_workers(Quantity::parse(text)), workers, "{text}");
        }
    }

    #[test]
    fn server_versions_ignore_provider_suffixes() {
        for (major, minor, expected) in [
            ("1", "33", Some("1.33")),
            ("1", "29+", Some("1.29")),
            ("1", "30-gke.1", Some("1.30")),
            ("", "", None),
            ("v1", "2", None),
        ] {
            assert_eq!(
                ServerVersion::parse(major, minor).map(|it| it.to_string()).as_deref(),
                expected,
                "{major}.{minor}"
            );
        }
    }

    #[test]
    fn drain_seconds_end_before_the_grace_period() {
        for (annotated, grace, expected, warns) in [
            (None, 30, 25, false),
            (None, 3, 1, false),
            (None, 0, 1, false),
            (None, -1, 1, false),
            (None, i64::MAX, DRAIN_SECONDS_MAX, false),
            (Some(10), 30, 10, false),
            (Some(60), 30, 25, true),
        ] {
            let (seconds, warning) = limit_drain_seconds(annotated, grace);
            assert_eq!((seconds, warning.is_some()), (expected, warns), "annotated {annotated:?}, grace {grace}");
        }
    }

    #[test]
    fn log_filters_are_levels_with_optional_targets() {
        for (text, good) in [
            ("info", true),
            ("info,weft_proxy=debug", true),
            ("weft_proxy::inbound=trace, warn", true),
            ("", false),
            ("loud", false),
            ("info,", false),
            ("[span]=info", false),
            ("$(HOME)=info", false),
        ] {
            assert_eq!(log_filter(text).is_some(), good, "{text:?}");
        }
    }
}
