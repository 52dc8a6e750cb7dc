//! The process's settings, read from the environment once at start. An invalid value is an error here, never replaced
//! by a default later.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::env;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use serde::Deserialize;
use weft_config::bootstrap::{self as contract, AccessLog, Hooks, Local, Probes};
use weft_identity::{Fingerprint, SpiffeId, TrustDomain};

use crate::identity::authority::Authority;
use crate::identity::source::CaSettings;
use crate::{identity, tls};

/// Everything that does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// The pod that the proxy runs in.
    pub pod: Pod,
    /// Worker threads.
    pub workers: usize,
    /// The source of configuration.
    pub source: Source,
    /// The source of the proxy's identity. None: it has none.
    pub identity: Option<identity::source::Source>,
    /// The directory of cached documents. Unused if the source is a directory.
    pub cache: PathBuf,
    /// Ports to listen on.
    pub ports: Ports,
    /// TLS for the inbound port, only outside of a pod. None: inbound connections are not terminated.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether all TLS on the inbound port is mutual, only outside of a pod. See [`Local::mutual_tls`].
    pub mutual_tls: bool,
    /// Timeouts towards clients.
    pub timeouts: Timeouts,
    /// Destination ports without protocol detection: their connections are TCP.
    pub opaque_ports: HashSet<u16>,
    /// Probes that the proxy makes for the kubelet.
    pub probes: Probes,
    /// Lifecycle hooks that the proxy calls for the kubelet.
    pub hooks: Hooks,
    /// Whether the proxy is a classic sidecar, which gets SIGTERM together with the application. See
    /// [`contract::ENV_CLASSIC`].
    pub classic: bool,
    /// Drain time: how long requests in flight may take after SIGTERM.
    pub drain: Duration,
    /// Log filter and format.
    pub log: (String, String),
    /// Which requests and connections are logged.
    pub access_log: AccessLog,
    /// The cgroup directory, with the memory limit and usage.
    pub cgroup: PathBuf,
}

/// The pod that the proxy runs in.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID. Empty in local runs.
    pub uid: String,
    /// Its node. Empty if not known (local runs).
    pub node: String,
    /// Its addresses. Empty: destinations are not checked (local runs).
    pub ips: Vec<IpAddr>,
    /// Its service account.
    pub service_account: String,
    /// Its labels when it was created. The inbound document has later changes.
    pub labels: BTreeMap<String, String>,
    /// The zone of its node, from its labels or else from the inbound document.
    pub zone: Option<String>,
    /// Whether the zone is from its labels. Then the inbound document's zone is ignored.
    pub zone_is_labelled: bool,
    /// Named ports of its containers.
    pub port_names: BTreeMap<String, u16>,
    /// Outside of a pod: the destination of connections made to the inbound port itself. None: they are refused.
    pub application: Option<SocketAddr>,
    /// Outside of a pod: the destination of connections made to the outbound port itself, if no Service has its address.
    /// None: they are refused.
    pub destination: Option<SocketAddr>,
}

/// The source of configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// ConfigMaps, watched by name.
    Kubernetes,
    /// One file for each document, `<name>.json`, holding the body.
    Directory(PathBuf),
}

/// Ports to listen on; 0 means a free one.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// See [`contract::OUTBOUND_PORT`].
    pub outbound: u16,
    /// See [`contract::INBOUND_PORT`].
    pub inbound: u16,
    /// See [`contract::ADMIN_PORT`].
    pub admin: u16,
    /// See [`contract::METRICS_PORT`].
    pub metrics: u16,
    /// See [`contract::HEALTH_PORT`].
    pub health: u16,
}

/// Timeouts towards clients. See [`contract::ENV_TIMEOUTS_MS`].
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the head of a request, from its first byte to its last; and for a TLS handshake, from the connection on.
    pub head: Duration,
    /// While no byte moves in either direction on a connection, a tunnel, or an HTTP/2 stream.
    pub idle: Duration,
    /// While a client does not read what is sent to it.
    pub stall: Duration,
    /// For receiving a body of known length, in addition to the time that the received bytes earn.
    pub upload: Duration,
}

/// An environment variable that is missing or invalid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variable is not set.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// The value of the variable is invalid.
    #[error("invalid {name}={value:?}: {reason}")]
    Value {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pod's labels cannot be read.
    #[error("the pod's labels cannot be read from {file}", file = contract::LABELS_FILE)]
    Labels(#[source] std::io::Error),
    /// The variable names files that cannot be used.
    #[error("{name}: {fields}")]
    Files {
        /// The variable.
        name: &'static str,
        /// The fields that name the files.
        fields: &'static str,
        /// What is wrong with the files.
        source: Box<tls::Error>,
    },
}

// === impl Bootstrap ===

impl Bootstrap {
    /// Reads the environment and the files it names.
    pub fn from_env() -> Result<Self, Error> {
        let source = match variable(contract::ENV_SOURCE) {
            None => Source::Kubernetes,
            Some(value) => parse_source(&value)?,
        };
        let mut pod = Pod::from_env(&source)?;
        let (mut ports, mut tls, mut mutual_tls) = (Ports::default(), None, false);
        let mut token = contract::IDENTITY_TOKEN_FILE.into();
        if let Some(local) = json::<Local>(contract::ENV_LOCAL)? {
            (ports, tls) = (local_ports(&local, &source)?, local_tls(&local)?);
            (pod.application, pod.destination) = (local.application, local.destination);
            mutual_tls = local.mutual_tls;
            token = local.token.unwrap_or(token);
        }
        let identity = identity_from_env(&pod, token)?;
        if mutual_tls && (tls.is_some() || identity.is_none()) {
            let reason = format!("mutualTls needs {} and excludes a certificate", contract::ENV_IDENTITY);
            return Err(invalid(contract::ENV_LOCAL, "mutualTls", reason));
        }
        Ok(Self {
            pod,
            workers: parsed(contract::ENV_WORKERS)?.unwrap_or(1usize).clamp(1, 256),
            source,
            identity,
            cache: contract::CACHE_DIR.into(),
            ports,
            tls,
            mutual_tls,
            timeouts: json::<TimeoutsMs>(contract::ENV_TIMEOUTS_MS)?.unwrap_or_default().into(),
            opaque_ports: list(contract::ENV_OPAQUE_PORTS)?
                .map_or_else(|| contract::OPAQUE_PORTS_DEFAULT.iter().copied().collect(), HashSet::from_iter),
            probes: json(contract::ENV_PROBES)?.unwrap_or_default(),
            hooks: json(contract::ENV_HOOKS)?.unwrap_or_default(),
            classic: parsed(contract::ENV_CLASSIC)?.unwrap_or(false),
            drain: Duration::from_secs(parsed(contract::ENV_DRAIN_SECONDS)?.unwrap_or(25)),
            log: (
                variable(contract::ENV_LOG).unwrap_or_else(|| "info".into()),
                variable(contract::ENV_LOG_FORMAT).unwrap_or_else(|| "json".into()),
            ),
            access_log: parsed(contract::ENV_ACCESS_LOG)?.unwrap_or_default(),
            cgroup: contract::CGROUP_DIR.into(),
        })
    }
}

impl Pod {
    fn from_env(source: &Source) -> Result<Self, Error> {
        let namespace = variable(contract::ENV_NAMESPACE).ok_or(Error::Missing(contract::ENV_NAMESPACE))?;
        let zone = match source {
            Source::Kubernetes => std::fs::read_to_string(contract::LABELS_FILE)
                .and_then(|labels| parse_zone(&labels))
                .map_err(Error::Labels)?,
            Source::Directory(_) => None,
        };
        Ok(Self {
            namespace,
            name: variable(contract::ENV_POD).unwrap_or_default(),
            uid: required_in_pod(source, contract::ENV_POD_UID, variable(contract::ENV_POD_UID))?,
            node: variable(contract::ENV_NODE).unwrap_or_default(),
            ips: list(contract::ENV_POD_IPS)?.unwrap_or_default(),
            service_account: variable(contract::ENV_SERVICE_ACCOUNT).unwrap_or_else(|| "default".into()),
            zone_is_labelled: zone.is_some(),
            zone,
            labels: required_in_pod(source, contract::ENV_POD_LABELS, json(contract::ENV_POD_LABELS)?)?,
            port_names: json(contract::ENV_PORT_NAMES)?.unwrap_or_default(),
            application: None,
            destination: None,
        })
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            outbound: contract::OUTBOUND_PORT,
            inbound: contract::INBOUND_PORT,
            admin: contract::ADMIN_PORT,
            metrics: contract::METRICS_PORT,
            health: contract::HEALTH_PORT,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        TimeoutsMs::default().into()
    }
}

/// [`Timeouts`] as they are in the environment.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TimeoutsMs {
    head: u64,
    idle: u64,
    stall: u64,
    upload: u64,
}

impl Default for TimeoutsMs {
    /// `idle` and `stall` are Envoy's defaults (idle timeout, stream flush). Envoy has no default for `head`; common
    /// servers allow 10 to 60 s, and clients in a mesh are near. `upload` is nginx's `client_body_timeout`, between
    /// two reads.
    fn default() -> Self {
        Self { head: 10_000, idle: 3_600_000, stall: 300_000, upload: 60_000 }
    }
}

impl From<TimeoutsMs> for Timeouts {
    fn from(TimeoutsMs { head, idle, stall, upload }: TimeoutsMs) -> Self {
        let [head, idle, stall, upload] = [head, idle, stall, upload].map(Duration::from_millis);
        Self { head, idle, stall, upload }
    }
}

/// The zone, if it is among the labels that the downward API wrote.
fn parse_zone(labels: &str) -> std::io::Result<Option<String>> {
    for line in labels.lines() {
        let Some((key, value)) = parse_label(line) else {
            return Err(std::io::Error::other(format!("{line:?} is not a label")));
        };
        if key == contract::ZONE_LABEL && !value.is_empty() {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// A line of the downward API: `key="value"`, the value quoted as Go quotes.
fn parse_label(line: &str) -> Option<(String, String)> {
    let (key, quoted) = line.split_once('=')?;
    // Label values have no character that Go would escape, so they parse as JSON strings.
    Some((key.to_owned(), serde_json::from_str(quoted).ok()?))
}

fn parse_source(value: &str) -> Result<Source, Error> {
    match value.split_once(':') {
        None if value == "kubernetes" => Ok(Source::Kubernetes),
        Some(("directory", path)) if !path.is_empty() => Ok(Source::Directory(path.into())),
        _ => Err(invalid(contract::ENV_SOURCE, value, "expected \"kubernetes\" or \"directory:PATH\"")),
    }
}

fn identity_from_env(pod: &Pod, token: PathBuf) -> Result<Option<identity::source::Source>, Error> {
    match (variable(contract::ENV_IDENTITY), variable(contract::ENV_IDENTITY_URL)) {
        (None, None) => Ok(None),
        (Some(value), None) => parse_identity(&value).map(Some),
        (None, Some(url)) => ca_from_env(pod, &url, token).map(identity::source::Source::Ca).map(Some),
        (Some(value), Some(_)) => {
            let reason = format!("only allowed without {}", contract::ENV_IDENTITY_URL);
            Err(invalid(contract::ENV_IDENTITY, &value, reason))
        }
    }
}

fn parse_identity(value: &str) -> Result<identity::source::Source, Error> {
    match value.split_once(':') {
        Some(("directory", path)) if !path.is_empty() => Ok(identity::source::Source::Directory(path.into())),
        _ => Err(invalid(contract::ENV_IDENTITY, value, "expected \"directory:PATH\"")),
    }
}

fn ca_from_env(pod: &Pod, url: &str, token: PathBuf) -> Result<CaSettings, Error> {
    let client = Authority::new(url, token).map_err(|error| invalid(contract::ENV_IDENTITY_URL, url, error))?;
    let domain: TrustDomain = required(contract::ENV_TRUST_DOMAIN)?;
    let id = SpiffeId::new(domain, &pod.namespace, &pod.service_account)
        .map_err(|error| invalid(contract::ENV_SERVICE_ACCOUNT, &pod.service_account, error))?;
    let roots: BTreeSet<Fingerprint> = list(contract::ENV_ROOTS)?.unwrap_or_default().into_iter().collect();
    // Without roots, any server could be the authority.
    if roots.is_empty() {
        return Err(Error::Missing(contract::ENV_ROOTS));
    }
    Ok(CaSettings { client, authority: required(contract::ENV_IDENTITY_AUTHORITY)?, id, roots })
}

/// A variable that must be set in a pod. Without its labels, for example, a proxy would select the wrong policies.
fn required_in_pod<T: Default>(source: &Source, name: &'static str, value: Option<T>) -> Result<T, Error> {
    match (value, source) {
        (Some(value), _) => Ok(value),
        (None, Source::Directory(_)) => Ok(T::default()),
        (None, Source::Kubernetes) => Err(Error::Missing(name)),
    }
}

/// The ports of a proxy outside of a pod. In a pod, ports are fixed.
fn local_ports(local: &Local, source: &Source) -> Result<Ports, Error> {
    if *source == Source::Kubernetes {
        let reason = format!("only allowed outside of a pod, where {} is a directory", contract::ENV_SOURCE);
        return Err(invalid(contract::ENV_LOCAL, &format!("{local:?}"), reason));
    }
    Ok(Ports {
        outbound: local.outbound_port,
        inbound: local.inbound_port,
        admin: local.admin_port,
        metrics: local.metrics_port,
        health: local.health_port,
    })
}

/// The TLS configuration of a proxy outside of a pod, if it has one.
fn local_tls(local: &Local) -> Result<Option<Arc<ServerConfig>>, Error> {
    let incomplete = |what| Err(invalid(contract::ENV_LOCAL, &format!("{local:?}"), what));
    match (&local.certificate, &local.key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => match tls::server(certificate, key) {
            Ok(config) => Ok(Some(config)),
            Err(error) => {
                Err(Error::Files { name: contract::ENV_LOCAL, fields: "certificate and key", source: Box::new(error) })
            }
        },
        (Some(_), None) => incomplete("a certificate is set and no key"),
        (None, Some(_)) => incomplete("a key is set and no certificate"),
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn invalid(name: &'static str, value: &str, reason: impl ToString) -> Error {
    Error::Value { name, value: value.to_owned(), reason: reason.to_string() }
}

fn parsed<T: FromStr<Err: ToString>>(name: &'static str) -> Result<Option<T>, Error> {
    variable(name).map(|value| value.trim().parse().map_err(|error: T::Err| invalid(name, &value, error))).transpose()
}

fn required<T: FromStr<Err: ToString>>(name: &'static str) -> Result<T, Error> {
    parsed(name)?.ok_or(Error::Missing(name))
}

fn list<T: FromStr<Err: ToString>>(name: &'static str) -> Result<Option<Vec<T>>, Error> {
    let Some(value) = variable(name) else { return Ok(None) };
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| {
            item.parse().map_err(|error: T::Err| invalid(name, &value, format!("{item:?}: {}", error.to_string())))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

fn json<T: serde::de::DeserializeOwned>(name: &'static str) -> Result<Option<T>, Error> {
    variable(name).map(|value| serde_json::from_str(&value).map_err(|error| invalid(name, &value, error))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_parsed_in_the_downward_api_format() {
        assert_eq!(parse_label("app=\"reviews\""), Some(("app".into(), "reviews".into())));
        assert_eq!(parse_label("weft.dev/inject=\"true\""), Some(("weft.dev/inject".into(), "true".into())));
        assert_eq!(parse_label("nonsense"), None);
    }

    #[test]
    fn zone_is_read_from_labels_and_a_malformed_file_is_an_error() {
        let zone = |labels: &str| parse_zone(labels).map_err(|error| error.to_string());
        assert_eq!(zone("app=\"a\"\ntopology.kubernetes.io/zone=\"z\"\n"), Ok(Some("z".into())));
        assert_eq!(zone("app=\"a\"\ntopology.kubernetes.io/zone=\"\"\n"), Ok(None));
        assert_eq!(zone(""), Ok(None));
        assert_eq!(zone("app=\"a\"\nnonsense\n"), Err("\"nonsense\" is not a label".into()));
    }

    #[test]
    fn labels_are_required_in_a_pod() {
        let labels =
            |source, value| required_in_pod::<BTreeMap<String, String>>(source, contract::ENV_POD_LABELS, value);
        let (kubernetes, directory) = (Source::Kubernetes, Source::Directory("/tmp/x".into()));
        assert!(labels(&kubernetes, Some(BTreeMap::new())).is_ok(), "a pod may have none");
        let error = labels(&kubernetes, None).expect_err("not set").to_string();
        assert_eq!(error, "WEFT_POD_LABELS is not set");
        assert!(labels(&directory, None).is_ok(), "outside of a pod there are none");
    }

    #[test]
    fn sources_are_parsed() {
        assert_eq!(parse_source("kubernetes").ok(), Some(Source::Kubernetes));
        assert_eq!(parse_source("directory:/tmp/x").ok(), Some(Source::Directory("/tmp/x".into())));
        let error = parse_source("file:/tmp/x").expect_err("unknown").to_string();
        assert!(error.contains("directory:PATH"), "{error}");
    }

    #[test]
    fn identities_are_read_from_directories_only() {
        let parsed = parse_identity("directory:/tmp/x").ok();
        assert_eq!(parsed, Some(identity::source::Source::Directory("/tmp/x".into())));
        for value in ["/tmp/x", "directory:", "spire:/run/x"] {
            let error = parse_identity(value).expect_err("unknown").to_string();
            assert!(error.contains("WEFT_IDENTITY") && error.contains("directory:PATH"), "{error}");
        }
    }

    #[test]
    fn ports_are_configurable_only_outside_of_a_pod() {
        let local: Local =
            serde_json::from_str(r#"{"inboundPort": 9000, "application": "127.0.0.1:8080"}"#).expect("it is one");
        let ports = local_ports(&local, &Source::Directory("/tmp/x".into())).expect("outside of a pod it may");
        assert_eq!((ports.inbound, ports.outbound), (9000, 0));
        assert_eq!(local.application, Some(SocketAddr::from(([127, 0, 0, 1], 8080))));
        let error = local_ports(&local, &Source::Kubernetes).expect_err("in a pod it may not").to_string();
        assert!(error.contains("WEFT_LOCAL") && error.contains("WEFT_SOURCE"), "{error}");
    }
}
