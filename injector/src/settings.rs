//! What configures a pod's proxy: the installation's choices, then annotations on the namespace, then annotations on the
//! pod. Each annotation has a type; one that is not of its type refuses the pod, with key, value and remedy, and never
//! falls back to a default. An unknown key is no setting that could be wrong, so it warns and names the nearest known one.
//!
//! Image, user, capabilities, commands and volumes are not among the settings: they are the installation's alone.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use weft_config::bootstrap::{AccessLog, PortRange};
use weft_crds::names::CONFIG_PREFIX;

use crate::decide::Namespace;

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

/// Seconds from SIGTERM to SIGKILL in a pod that does not say.
const GRACE_SECONDS_DEFAULT: i64 = 30;
/// What is left of the grace period after draining, for the proxy to end by itself.
const DRAIN_MARGIN_SECONDS: i64 = 5;
/// A day. Longer is a mistake.
const DRAIN_SECONDS_MAX: u32 = 86_400;

/// More worker threads than any proxy beside an application has use for.
const WORKERS_MAX: u16 = 64;
/// Entries in a list. Each excluded one is a rule that every new connection is held against.
const LIST_MAX: usize = 100;
/// Bytes of a value. The longest sensible list is shorter.
const VALUE_MAX: usize = 4096;
/// Bytes of a value that a message repeats.
const QUOTE_MAX: usize = 64;
/// Less memory than that and the proxy is killed before it serves; almost always a wrong unit ("100m" is a tenth of a byte).
const MEMORY_MIN: Quantity = Quantity { nano: 1_048_576 * NANO };
/// How unlike a known key an unknown one may be and still be taken for a slip of the pen.
const NEAREST_MIN: f64 = 0.6;

const NANO: i128 = 1_000_000_000;

/// What the installation chose, for every pod.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Image of the proxy.
    pub proxy_image: String,
    /// Image of the init container.
    pub init_image: String,
    /// When the images are pulled.
    pub image_pull_policy: String,
    /// Version of the proxy, for label and annotation.
    pub proxy_version: String,
    /// Resources of a proxy whose pod does not say.
    pub resources: Resources,
    /// Version of the API server.
    pub server: ServerVersion,
    /// Stands in the paths of the pod's hooks; another for each pod.
    pub hook_secret: String,
}

/// Resources of the proxy, as Kubernetes writes quantities.
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
    /// Of 1.33, 1.
    pub major: u32,
    /// Of 1.33, 33.
    pub minor: u32,
}

/// What configures one pod's proxy, parsed and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the proxy.
    pub proxy_image: String,
    /// Image of the init container.
    pub init_image: String,
    /// When the images are pulled.
    pub image_pull_policy: String,
    /// Version of the proxy.
    pub proxy_version: String,
    /// Whether the proxy is an init container that keeps running.
    pub native: bool,
    /// Resources of the proxy.
    pub resources: Resources,
    /// Log filter, where the proxy's default is not meant.
    pub log: Option<String>,
    /// Which requests are logged, where the proxy's default is not meant.
    pub access_log: Option<AccessLog>,
    /// Worker threads.
    pub workers: u16,
    /// How long open requests may take after SIGTERM.
    pub drain_seconds: u32,
    /// Ports of the pod that are not redirected.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that are not redirected.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Destinations that are not redirected.
    pub exclude_outbound_ips: Vec<IpNet>,
    /// Ports that are never looked into, where the proxy's default is not meant.
    pub opaque_ports: Option<Vec<u16>>,
}

/// Everything that is wrong with the annotations of a pod, so that nobody has to try again for each.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    key: String,
    value: String,
    on: On,
    remedy: String,
}

/// Which object an annotation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Pod,
    Namespace,
}

/// A number of cores or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Quantity {
    nano: i128,
}

/// The annotations of a pod and its namespace, and what was found wrong with them so far.
struct Annotations<'a> {
    pod: BTreeMap<&'a str, &'a str>,
    namespace: BTreeMap<&'a str, &'a str>,
    mistakes: Vec<Mistake>,
}

// === impl Settings ===

impl Settings {
    /// Reads the annotations. The strings are for people: what has no effect, or another than it says.
    pub fn resolve(
        namespace: &Namespace,
        pod: &Pod,
        installation: &Installation,
    ) -> Result<(Self, Vec<String>), Mistakes> {
        let Installation {
            proxy_image,
            init_image,
            image_pull_policy,
            proxy_version,
            resources,
            server,
            hook_secret: _,
        } = installation;
        let mut found = Annotations::new(namespace, pod);
        let mut warnings = found.unknown();

        let resources = found.resources(resources);
        let cpu_limit = resources.cpu_limit.as_deref().and_then(Quantity::parse);
        let workers = found.take(WORKERS, "use a number of threads from 1 to 64", |value| {
            number(value).filter(|workers| (1..=WORKERS_MAX).contains(workers))
        });
        let drain = found.take(DRAIN_SECONDS, "use a number of seconds from 1 to 86400", |value| {
            number(value).filter(|seconds| (1..=DRAIN_SECONDS_MAX).contains(seconds))
        });
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let (drain_seconds, warning) = fit_drain(drain, grace.unwrap_or(GRACE_SECONDS_DEFAULT));
        warnings.extend(warning);

        let settings = Self {
            proxy_image: proxy_image.clone(),
            init_image: init_image.clone(),
            image_pull_policy: image_pull_policy.clone(),
            proxy_version: proxy_version.clone(),
            native: found.native(*server),
            resources,
            log: found.take(
                PROXY_LOG_LEVEL,
                "use off, error, warn, info, debug or trace, or a list as in info,weft_proxy=debug",
                log_filter,
            ),
            access_log: found.take(ACCESS_LOG, "use \"on\", \"failures\" or \"off\"", |value| value.parse().ok()),
            workers: workers.unwrap_or_else(|| cpu_limit.map_or(1, Quantity::whole_cores)),
            drain_seconds,
            exclude_inbound_ports: found.list(EXCLUDE_INBOUND_PORTS, PORTS_REMEDY, |item| item.parse().ok()),
            exclude_outbound_ports: found.list(EXCLUDE_OUTBOUND_PORTS, PORTS_REMEDY, |item| item.parse().ok()),
            exclude_outbound_ips: found.list(EXCLUDE_OUTBOUND_IPS, IPS_REMEDY, network),
            opaque_ports: found.take(
                OPAQUE_PORTS,
                "use ports with commas between them, as in 3306,5432; empty for none",
                |value| items(value, |item| number(item).filter(|port| *port != 0u16)),
            ),
        };
        let Annotations { mistakes, .. } = found;
        if mistakes.is_empty() { Ok((settings, warnings)) } else { Err(Mistakes(mistakes)) }
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
            mistakes: Vec::new(),
        }
    }

    /// A warning for each key that means nothing.
    fn unknown(&self) -> Vec<String> {
        let keys = self.pod.keys().map(|key| (*key, On::Pod));
        let keys = keys.chain(self.namespace.keys().map(|key| (*key, On::Namespace)));
        keys.filter(|(key, _)| !KEYS.contains(key))
            .map(|(key, on)| {
                let nearest = KEYS
                    .iter()
                    .map(|known| (strsim::normalized_levenshtein(key, known), known))
                    .filter(|(likeness, _)| *likeness >= NEAREST_MIN)
                    .max_by(|(a, _), (b, _)| a.total_cmp(b));
                let hint = nearest.map(|(_, known)| format!("; did you mean {CONFIG_PREFIX}{known}?"));
                format!(
                    "annotation {CONFIG_PREFIX}{} on the {on} means nothing{}",
                    quote(key),
                    hint.unwrap_or_default()
                )
            })
            .collect()
    }

    fn take<T>(&mut self, key: &'static str, remedy: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let (value, on) = self.find(key)?;
        let parsed = if value.len() > VALUE_MAX { None } else { parse(value) };
        if parsed.is_none() {
            self.mistake(key, value, on, remedy);
        }
        parsed
    }

    fn list<T>(&mut self, key: &'static str, remedy: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        self.take(key, remedy, |value| items(value, parse)).unwrap_or_default()
    }

    /// The pod's value, else the namespace's.
    fn find(&self, key: &str) -> Option<(&'a str, On)> {
        let pod = self.pod.get(key).map(|value| (*value, On::Pod));
        pod.or_else(|| self.namespace.get(key).map(|value| (*value, On::Namespace)))
    }

    fn mistake(&mut self, key: &str, value: &str, on: On, remedy: &str) {
        let (key, value, remedy) = (key.to_owned(), quote(value), remedy.to_owned());
        self.mistakes.push(Mistake { key, value, on, remedy });
    }

    fn native(&mut self, server: ServerVersion) -> bool {
        let native = self.take(NATIVE_SIDECAR, "use \"auto\", \"true\" or \"false\"", |value| match value {
            "auto" => Some(server >= NATIVE_SINCE),
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        });
        let native = native.unwrap_or(server >= NATIVE_SINCE);
        if let (true, Some((value, on))) = (native && server < NATIVE_SINCE, self.find(NATIVE_SIDECAR)) {
            let remedy =
                format!("use \"auto\": the API server is {server}, and native sidecars came with {NATIVE_SINCE}");
            self.mistake(NATIVE_SIDECAR, value, on, &remedy);
        }
        native
    }

    /// Where a pod gives only one of request and limit, the installation's other one gives way to it.
    fn resources(&mut self, defaults: &Resources) -> Resources {
        let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = defaults;
        let (cpu_request, cpu_limit) =
            self.pair((PROXY_CPU_REQUEST, cpu_request), (PROXY_CPU_LIMIT, cpu_limit), |value| {
                Quantity::parse(value).filter(|quantity| quantity.nano > 0)
            });
        let (memory_request, memory_limit) =
            self.pair((PROXY_MEMORY_REQUEST, memory_request), (PROXY_MEMORY_LIMIT, memory_limit), |value| {
                Quantity::parse(value).filter(|quantity| *quantity >= MEMORY_MIN)
            });
        Resources { cpu_request, cpu_limit, memory_request, memory_limit }
    }

    fn pair(
        &mut self,
        request: (&'static str, &Option<String>),
        limit: (&'static str, &Option<String>),
        parse: impl Fn(&str) -> Option<Quantity>,
    ) -> (Option<String>, Option<String>) {
        let remedy = match request.0 {
            PROXY_CPU_REQUEST => "use a number of cores, as in 100m or 2",
            _ => "use a number of bytes from 1Mi, as in 64Mi",
        };
        let mut one = |key| self.take(key, remedy, |value| Some((value.to_owned(), parse(value)?)));
        let (asked_request, asked_limit) = (one(request.0), one(limit.0));
        let default = |text: &Option<String>| text.clone().and_then(|text| Some((text.clone(), parse(&text)?)));
        let (mut low, mut high) =
            (asked_request.clone().or_else(|| default(request.1)), asked_limit.clone().or_else(|| default(limit.1)));
        if let (Some((low_text, low_value)), Some((high_text, high_value))) = (&low, &high)
            && low_value > high_value
        {
            match (&asked_request, &asked_limit) {
                (Some(_), Some(_)) => {
                    let remedy = format!("make it at most {CONFIG_PREFIX}{}, which is {high_text:?}", limit.0);
                    let (value, on) = (low_text.clone(), self.find(request.0).map_or(On::Pod, |(_, on)| on));
                    self.mistake(request.0, &value, on, &remedy);
                }
                (Some(_), None) => high = low.clone(),
                (None, _) => low = high.clone(),
            }
        }
        (low.map(|(text, _)| text), high.map(|(text, _)| text))
    }
}

/// Draining must end before the pod is killed.
fn fit_drain(asked: Option<u32>, grace_seconds: i64) -> (u32, Option<String>) {
    let most = (grace_seconds - DRAIN_MARGIN_SECONDS).clamp(1, i64::from(DRAIN_SECONDS_MAX));
    let most = u32::try_from(most).unwrap_or(1);
    match asked {
        Some(asked) if i64::from(asked) > i64::from(most) => {
            let warning = format!(
                "{CONFIG_PREFIX}{DRAIN_SECONDS} is {asked}, but the pod is killed {grace_seconds} seconds after SIGTERM; {most} is used"
            );
            (most, Some(warning))
        }
        Some(asked) => (asked, None),
        None => (most, None),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// An empty text is an empty list; an empty item is none.
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

/// As much of a value as a message can bear.
fn quote(value: &str) -> String {
    match value.char_indices().map(|(at, _)| at).find(|at| *at >= QUOTE_MAX) {
        Some(end) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

// === impl Resources ===

impl Resources {
    /// The flag and value of the first that is no quantity, or of a request above its limit.
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
    /// The grammar of Kubernetes: a decimal number, and a unit or an exponent.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // Enough for any machine, and few enough not to overflow below.
        if number.is_empty() || number == "." || whole.len() > 12 || fraction.len() > 9 || fraction.contains('.') {
            return None;
        }
        let digits: i128 = format!("0{whole}{fraction:0<9}").parse().ok()?;
        let (times, over) = match unit {
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
            _ => (10i128.checked_pow(number_after_e(unit)?)?, 1),
        };
        Some(Self { nano: digits.checked_mul(times)? / over })
    }

    /// The least number of worker threads that can use as many cores.
    fn whole_cores(self) -> u16 {
        let cores = (self.nano + NANO - 1) / NANO;
        u16::try_from(cores).unwrap_or(WORKERS_MAX).clamp(1, WORKERS_MAX)
    }
}

/// The exponent in `e3`, within reason.
fn number_after_e(unit: &str) -> Option<u32> {
    let exponent = unit.strip_prefix(['e', 'E'])?;
    number(exponent).filter(|exponent| *exponent <= 12)
}

// === impl ServerVersion ===

impl ServerVersion {
    /// Older than anything that is supported, for where nothing better is known.
    pub const OLDEST: Self = Self { major: 1, minor: 0 };

    /// From what `/version` says; providers append to the minor version, as in `29+`.
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

// === impl Mistakes ===

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Mistake { key, value, on, remedy }) in self.0.iter().enumerate() {
            let between = if at == 0 { "" } else { ". Also: " };
            write!(f, "{between}annotation {CONFIG_PREFIX}{key} on the {on} is {value:?}; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for On {
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
    fn quantities() {
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
    fn workers_for_cores() {
        for (text, workers) in [("100m", 1), ("1", 1), ("1001m", 2), ("2", 2), ("1000", WORKERS_MAX)] {
            assert_eq!(Quantity::parse(text).unwrap().whole_cores(), workers, "{text}");
        }
    }

    #[test]
    fn server_versions() {
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
    fn draining_ends_before_the_pod_is_killed() {
        for (asked, grace, expected, warns) in [
            (None, 30, 25, false),
            (None, 3, 1, false),
            (None, 0, 1, false),
            (None, -1, 1, false),
            (None, i64::MAX, DRAIN_SECONDS_MAX, false),
            (Some(10), 30, 10, false),
            (Some(60), 30, 25, true),
        ] {
            let (seconds, warning) = fit_drain(asked, grace);
            assert_eq!((seconds, warning.is_some()), (expected, warns), "asked {asked:?}, grace {grace}");
        }
    }

    #[test]
    fn log_filters() {
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
