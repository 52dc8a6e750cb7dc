//! The settings of a pod's proxy: the installation's defaults, overridden by annotations on the namespace, overridden
//! by annotations on the pod. Each annotation has a type. A value of the wrong type refuses the pod, with key, value
//! and remedy; there is no silent fallback to a default. An unknown key only warns and suggests the most similar
//! known key.
//!
//! Image, user, capabilities, commands and volumes are not settings: only the installation chooses them.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use weft_config::bootstrap::{AccessLog, PortRange};
use weft_crds::names::CONFIG_PREFIX;

use crate::namespace::Namespace;

/// Every known key, without its prefix.
pub const KEYS: [&str; 13] = [
    PROXY_CPU_REQUEST,
    PROXY_CPU_LIMIT,
    PROXY_MEMORY_REQUEST,
    PROXY_MEMORY_LIMIT,
    PROXY_LOG_LEVEL,
    ACCESS_LOG,
    WORKERS,
    DRAIN_SECONDS,
    NATIVE_SIDECAR,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_IPS,
    OPAQUE_PORTS,
];

const PROXY_CPU_REQUEST: &str = "proxy-cpu-request";
const PROXY_CPU_LIMIT: &str = "proxy-cpu-limit";
const PROXY_MEMORY_REQUEST: &str = "proxy-memory-request";
const PROXY_MEMORY_LIMIT: &str = "proxy-memory-limit";
const PROXY_LOG_LEVEL: &str = "proxy-log-level";
const ACCESS_LOG: &str = "access-log";
const WORKERS: &str = "workers";
const DRAIN_SECONDS: &str = "drain-seconds";
const NATIVE_SIDECAR: &str = "native-sidecar";
const EXCLUDE_INBOUND_PORTS: &str = "exclude-inbound-ports";
const EXCLUDE_OUTBOUND_PORTS: &str = "exclude-outbound-ports";
const EXCLUDE_OUTBOUND_IPS: &str = "exclude-outbound-ips";
const OPAQUE_PORTS: &str = "opaque-ports";

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
/// Maximum of entries in a list. Each excluded entry is an iptables rule that every new connection traverses.
const LIST_MAX: usize = 100;
/// Maximum of bytes in a value. The longest sensible list is shorter.
const VALUE_MAX: usize = 4096;
/// Maximum of bytes of a value that a message quotes.
const QUOTED_VALUE_MAX: usize = 64;
/// With less memory the proxy is OOM-killed before it serves. A smaller value is almost always a wrong unit ("100m"
/// is a tenth of a byte).
const MEMORY_MIN: Quantity = Quantity { nano: 1_048_576 * NANO };
/// Minimum similarity (normalized Levenshtein, 0 to 1) to suggest a known key for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.6;

const NANO: i128 = 1_000_000_000;

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
    /// Secret path segment of the pod's lifecycle hooks, different for each pod.
    pub hook_secret: String,
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
}

/// All invalid annotations of a pod and its namespace, reported at once.
#[derive(Debug, PartialEq, Eq)]
pub struct AnnotationErrors(Vec<AnnotationError>);

#[derive(Debug, PartialEq, Eq)]
struct AnnotationError {
    key: String,
    value: String,
    source: AnnotationSource,
    remedy: String,
}

/// The object that carries an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnnotationSource {
    Pod,
    Namespace,
}

/// A Kubernetes quantity of cores or bytes, in 10^-9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Quantity {
    nano: i128,
}

/// The annotations of a pod and its namespace, and the errors found so far.
struct Annotations<'a> {
    pod: BTreeMap<&'a str, &'a str>,
    namespace: BTreeMap<&'a str, &'a str>,
    errors: Vec<AnnotationError>,
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
            hook_secret: _,
        } = installation;
        let mut annotations = Annotations::new(namespace, pod);
        let mut warnings = annotations.unknown_key_warnings();

        let resources = annotations.resources(resources);
        let cpu_limit = resources.cpu_limit.as_deref().and_then(Quantity::parse);
        let workers = annotations.parse(WORKERS, "use a number of threads from 1 to 64", |value| {
            number(value).filter(|workers| (1..=WORKERS_MAX).contains(workers))
        });
        let drain = annotations.parse(DRAIN_SECONDS, "use a number of seconds from 1 to 86400", |value| {
            number(value).filter(|seconds| (1..=DRAIN_SECONDS_MAX).contains(seconds))
        });
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let (drain_seconds, warning) = limit_drain_seconds(drain, grace.unwrap_or(GRACE_SECONDS_DEFAULT));
        warnings.extend(warning);

        let settings = Self {
            proxy_image: proxy_image.clone(),
            init_image: init_image.clone(),
            image_pull_policy: image_pull_policy.clone(),
            proxy_version: proxy_version.clone(),
            native: annotations.native(*server),
            resources,
            log: annotations.parse(
                PROXY_LOG_LEVEL,
                "use off, error, warn, info, debug or trace, or a list as in info,weft_proxy=debug",
                log_filter,
            ),
            access_log: annotations
                .parse(ACCESS_LOG, "use \"on\", \"failures\" or \"off\"", |value| value.parse().ok()),
            workers: workers.unwrap_or_else(|| cpu_limit.map_or(1, Quantity::whole_cores)),
            drain_seconds,
            exclude_inbound_ports: annotations
                .parse_list(EXCLUDE_INBOUND_PORTS, PORTS_REMEDY, |item| item.parse().ok()),
            exclude_outbound_ports: annotations
                .parse_list(EXCLUDE_OUTBOUND_PORTS, PORTS_REMEDY, |item| item.parse().ok()),
            exclude_outbound_ips: annotations.parse_list(EXCLUDE_OUTBOUND_IPS, IPS_REMEDY, network),
            opaque_ports: annotations.parse(
                OPAQUE_PORTS,
                "use ports with commas between them, as in 3306,5432; empty for none",
                |value| items(value, |item| number(item).filter(|port| *port != 0u16)),
            ),
        };
        let Annotations { errors, .. } = annotations;
        if errors.is_empty() { Ok((settings, warnings)) } else { Err(AnnotationErrors(errors)) }
    }
}

const PORTS_REMEDY: &str = "use at most 100 ports and ranges with commas between them, as in 22,8000-8010";
const IPS_REMEDY: &str = "use at most 100 addresses and networks with commas between them, as in 10.0.0.0/8,fd00::/8";

// === impl Annotations ===

impl<'a> Annotations<'a> {
    fn new(namespace: &'a Namespace, pod: &'a Pod) -> Self {
        let ours = |map: &'a BTreeMap<String, String>| {
            let pairs = map.iter();
            pairs.filter_map(|(key, value)| Some((key.strip_prefix(CONFIG_PREFIX)?, value.trim()))).collect()
        };
        Self {
            pod: pod.metadata.annotations.as_ref().map(ours).unwrap_or_default(),
            namespace: ours(&namespace.annotations),
            errors: Vec::new(),
        }
    }

    /// A warning for each unknown key.
    fn unknown_key_warnings(&self) -> Vec<String> {
        let keys = self.pod.keys().map(|key| (*key, AnnotationSource::Pod));
        let keys = keys.chain(self.namespace.keys().map(|key| (*key, AnnotationSource::Namespace)));
        keys.filter(|(key, _)| !KEYS.contains(key))
            .map(|(key, source)| {
                let nearest = KEYS
                    .iter()
                    .map(|known| (strsim::normalized_levenshtein(key, known), known))
                    .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN)
                    .max_by(|(a, _), (b, _)| a.total_cmp(b));
                let hint = nearest.map(|(_, known)| format!("; did you mean {CONFIG_PREFIX}{known}?"));
                format!(
                    "annotation {CONFIG_PREFIX}{} on the {source} is unknown and has no effect{}",
                    truncate(key),
                    hint.unwrap_or_default()
                )
            })
            .collect()
    }

    /// The parsed value, `None` where the annotation is absent or invalid; an invalid one is recorded as an error.
    fn parse<T>(&mut self, key: &'static str, remedy: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let (value, source) = self.find(key)?;
        let parsed = if value.len() > VALUE_MAX { None } else { parse(value) };
        if parsed.is_none() {
            self.add_error(key, value, source, remedy);
        }
        parsed
    }

    fn parse_list<T>(&mut self, key: &'static str, remedy: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        self.parse(key, remedy, |value| items(value, parse)).unwrap_or_default()
    }

    /// The pod's value, else the namespace's.
    fn find(&self, key: &str) -> Option<(&'a str, AnnotationSource)> {
        let pod = self.pod.get(key).map(|value| (*value, AnnotationSource::Pod));
        pod.or_else(|| self.namespace.get(key).map(|value| (*value, AnnotationSource::Namespace)))
    }

    fn add_error(&mut self, key: &str, value: &str, source: AnnotationSource, remedy: &str) {
        let (key, value, remedy) = (key.to_owned(), truncate(value), remedy.to_owned());
        self.errors.push(AnnotationError { key, value, source, remedy });
    }

    fn native(&mut self, server: ServerVersion) -> bool {
        let native = self.parse(NATIVE_SIDECAR, "use \"auto\", \"true\" or \"false\"", |value| match value {
            "auto" => Some(server >= NATIVE_SINCE),
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        });
        let native = native.unwrap_or(server >= NATIVE_SINCE);
        if let (true, Some((value, source))) = (native && server < NATIVE_SINCE, self.find(NATIVE_SIDECAR)) {
            let remedy =
                format!("use \"auto\": the API server is {server}, and native sidecars came with {NATIVE_SINCE}");
            self.add_error(NATIVE_SIDECAR, value, source, &remedy);
        }
        native
    }

    /// Where annotations give only one of request and limit, the default of the other is adjusted to it.
    fn resources(&mut self, defaults: &Resources) -> Resources {
        let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = defaults;
        let (cpu_request, cpu_limit) =
            self.request_and_limit((PROXY_CPU_REQUEST, cpu_request), (PROXY_CPU_LIMIT, cpu_limit), |value| {
                Quantity::parse(value).filter(|quantity| quantity.nano > 0)
            });
        let (memory_request, memory_limit) = self.request_and_limit(
            (PROXY_MEMORY_REQUEST, memory_request),
            (PROXY_MEMORY_LIMIT, memory_limit),
            |value| Quantity::parse(value).filter(|quantity| *quantity >= MEMORY_MIN),
        );
        Resources { cpu_request, cpu_limit, memory_request, memory_limit }
    }

    fn request_and_limit(
        &mut self,
        request: (&'static str, &Option<String>),
        limit: (&'static str, &Option<String>),
        parse: impl Fn(&str) -> Option<Quantity>,
    ) -> (Option<String>, Option<String>) {
        let remedy = match request.0 {
            PROXY_CPU_REQUEST => "use a number of cores, as in 100m or 2",
            _ => "use a number of bytes from 1Mi, as in 64Mi",
        };
        let mut annotated = |key| self.parse(key, remedy, |value| Some((value.to_owned(), parse(value)?)));
        let (annotated_request, annotated_limit) = (annotated(request.0), annotated(limit.0));
        let default = |text: &Option<String>| text.clone().and_then(|text| Some((text.clone(), parse(&text)?)));
        let mut low = annotated_request.clone().or_else(|| default(request.1));
        let mut high = annotated_limit.clone().or_else(|| default(limit.1));
        if let (Some((low_text, low_value)), Some((high_text, high_value))) = (&low, &high)
            && low_value > high_value
        {
            match (&annotated_request, &annotated_limit) {
                (Some(_), Some(_)) => {
                    let remedy = format!("make it at most {CONFIG_PREFIX}{}, which is {high_text:?}", limit.0);
                    let source = self.find(request.0).map_or(AnnotationSource::Pod, |(_, source)| source);
                    let value = low_text.clone();
                    self.add_error(request.0, &value, source, &remedy);
                }
                (Some(_), None) => high = low.clone(),
                (None, _) => low = high.clone(),
            }
        }
        (low.map(|(text, _)| text), high.map(|(text, _)| text))
    }
}

/// Limits the drain time to the grace period less [`DRAIN_MARGIN_SECONDS`]; warns where that shortens an annotated one.
fn limit_drain_seconds(annotated: Option<u32>, grace_seconds: i64) -> (u32, Option<String>) {
    let most = (grace_seconds - DRAIN_MARGIN_SECONDS).clamp(1, i64::from(DRAIN_SECONDS_MAX));
    let most = u32::try_from(most).unwrap_or(1);
    match annotated {
        Some(seconds) if i64::from(seconds) > i64::from(most) => {
            let warning = format!(
                "annotation {CONFIG_PREFIX}{DRAIN_SECONDS} is {seconds}, but the pod is killed {grace_seconds} seconds \
                 after SIGTERM (terminationGracePeriodSeconds); {most} is used"
            );
            (most, Some(warning))
        }
        Some(seconds) => (seconds, None),
        None => (most, None),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Parses a comma-separated list. An empty text is an empty list; an empty item is an error.
fn items<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let items: Option<Vec<T>> = text.split(',').map(|item| parse(item.trim())).collect();
    items.filter(|items| items.len() <= LIST_MAX)
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

/// The first [`QUOTED_VALUE_MAX`] bytes of a value, for messages.
fn truncate(value: &str) -> String {
    match value.char_indices().map(|(at, _)| at).find(|at| *at >= QUOTED_VALUE_MAX) {
        Some(end) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
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

// === impl Quantity ===

impl Quantity {
    /// Parses the Kubernetes grammar: a decimal number, then a unit or an exponent.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // Enough digits for any machine, and too few to overflow an i128 below.
        if number.is_empty() || number == "." || whole.len() > 12 || fraction.len() > 9 || fraction.contains('.') {
            return None;
        }
        let digits: i128 = format!("0{whole}{fraction:0<9}").parse().ok()?;
        let (multiplier, divisor) = match unit {
            "n" => (1, NANO),
            "u" => (1, 1_000_000),
            "m" => (1, 1_000),
            "" => (1, 1),
            "k" => (1_000, 1),
            "M" => (1_000_000, 1),
            "G" => (NANO, 1),
            "T" => (NANO * 1_000, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            _ => (10i128.checked_pow(exponent(unit)?)?, 1),
        };
        Some(Self { nano: digits.checked_mul(multiplier)? / divisor })
    }

    /// Cores rounded up: the number of worker threads that can use all of them.
    fn whole_cores(self) -> u16 {
        let cores = (self.nano + NANO - 1) / NANO;
        u16::try_from(cores).unwrap_or(WORKERS_MAX).clamp(1, WORKERS_MAX)
    }
}

/// The exponent in `e3`, at most 12.
fn exponent(unit: &str) -> Option<u32> {
    let digits = unit.strip_prefix(['e', 'E'])?;
    number(digits).filter(|exponent| *exponent <= 12)
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

// === impl AnnotationErrors ===

impl std::error::Error for AnnotationErrors {}

impl fmt::Display for AnnotationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, AnnotationError { key, value, source, remedy }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ". Also: " };
            write!(f, "{separator}annotation {CONFIG_PREFIX}{key} on the {source} is {value:?}; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for AnnotationSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse_as_in_kubernetes() {
        for (text, nano) in [
            ("100m", Some(NANO / 10)),
            ("1", Some(NANO)),
            ("1.5", Some(NANO * 3 / 2)),
            (".5", Some(NANO / 2)),
            ("64Mi", Some((64 << 20) * NANO)),
            ("1e3", Some(1000 * NANO)),
            ("1k", Some(1000 * NANO)),
            ("2u", Some(2000)),
            ("", None),
            (".", None),
            ("-1", None),
            ("+1", None),
            ("1.2.3", None),
            ("1MB", None),
            ("1 Gi", None),
            ("1e99", None),
            ("9999999999999", None),
            ("NaN", None),
        ] {
            assert_eq!(Quantity::parse(text).map(|quantity| quantity.nano), nano, "{text:?}");
        }
    }

    #[test]
    fn default_workers_are_the_cores_rounded_up() {
        for (text, workers) in [("100m", 1), ("1", 1), ("1001m", 2), ("2", 2), ("1000", WORKERS_MAX)] {
            assert_eq!(Quantity::parse(text).unwrap().whole_cores(), workers, "{text}");
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
