//! The contract between the proxy and what starts it (the injector, a test, a person): ports, user, names of
//! environment variables, file paths, names of ConfigMaps. Each such string is defined here and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pods::Prefix;

/// Port to which outbound connections of the pod's containers are redirected.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port to which inbound connections of the pod are redirected.
pub const INBOUND_PORT: u16 = 15006;
/// Configuration dump and log level, on loopback only.
pub const ADMIN_PORT: u16 = 15000;
/// `GET /metrics`, and [`CALLERS_PATH`].
pub const METRICS_PORT: u16 = 15020;
/// `GET`: who calls the pod in plaintext, as [`PlaintextCallers`](crate::PlaintextCallers) in JSON.
pub const CALLERS_PATH: &str = "/plaintext-callers";
/// `GET /readyz` and the pod's own probes and lifecycle hooks, rewritten.
pub const HEALTH_PORT: u16 = 15021;
/// Port of the certificate authority in the operator: HTTPS.
pub const IDENTITY_PORT: u16 = 15012;
/// `POST` of a certificate signing request in DER, with a service account token as bearer token.
pub const IDENTITY_PATH: &str = "/v1/certificates";
/// Audience of the tokens with which certificates are requested.
pub const IDENTITY_AUDIENCE: &str = "weft-identity";
/// The file with such a token. The kubelet replaces it before it expires.
pub const IDENTITY_TOKEN_FILE: &str = "/var/run/secrets/weft.dev/identity/token";

/// The proxy's user and group. Redirection excludes this user's traffic, so no other container of the pod may run as
/// it.
pub const PROXY_UID: i64 = 15015;

/// Namespace of the exported documents, the documents of pods, and the index.
pub const EXPORT_NAMESPACE: &str = "weft-config";
/// Namespace of the inbound documents.
pub const INBOUND_NAMESPACE: &str = "weft-inbound";
/// Name of the index.
pub const INDEX_NAME: &str = "index";
/// Name of the document with the trust bundle: the roots of each trust domain.
pub const TRUST_NAME: &str = "trust";

/// The label with the zone: on every node, and on pods if Kubernetes copies it there when they are scheduled (1.35
/// and newer; 1.33 with the feature gate `PodTopologyLabelsAdmission`).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Name of the exported document of a namespace.
pub fn export_name(namespace: &str) -> String {
    format!("x.{namespace}")
}

/// Name of the inbound document of a namespace.
pub fn inbound_name(namespace: &str) -> String {
    format!("i.{namespace}")
}

/// Name of the document of the pods whose addresses have a prefix: `p.10.1.2.0`, `p.fd00-0-0-0-0-0-0-1200`.
pub fn pods_name(prefix: Prefix) -> String {
    match prefix.first() {
        IpAddr::V4(first) => format!("p.{first}"),
        IpAddr::V6(first) => format!("p.{}", first.segments().map(|segment| format!("{segment:x}")).join("-")),
    }
}

/// The prefix of the document of this name, if it is one of pods.
pub fn prefix_of_name(name: &str) -> Option<Prefix> {
    let first = name.strip_prefix("p.")?;
    let address =
        first.parse::<IpAddr>().ok().or_else(|| first.replace('-', ":").parse::<Ipv6Addr>().ok().map(Into::into));
    address.map(Prefix::of).filter(|prefix| pods_name(*prefix) == name)
}

/// The directory with a token for the API server (`token`) and the API server's CA (`ca.crt`).
pub const TOKEN_DIR: &str = "/var/run/weft/token";
/// The file with the pod's labels, written by the downward API. It includes labels added by the scheduler, such as
/// the zone; for the labels that policies select by, see [`ENV_POD_LABELS`].
pub const LABELS_FILE: &str = "/var/run/weft/pod/labels";
/// The directory with copies of the documents last used. It outlives restarts of the container.
pub const CACHE_DIR: &str = "/var/run/weft/cache";

/// The directory where a container sees its cgroup.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup";

/// Environment: the pod's namespace.
pub const ENV_NAMESPACE: &str = "WEFT_NAMESPACE";
/// Environment: the pod's name.
pub const ENV_POD: &str = "WEFT_POD";
/// Environment: the pod's UID.
pub const ENV_POD_UID: &str = "WEFT_POD_UID";
/// Environment: the labels that the pod was created with, JSON object. This is a literal value in the container's
/// spec, not a reference to the downward API, because Kubernetes does not allow changes to that spec while the pod
/// runs: the operator reads the same value, and its documents say how the labels differ from it by now.
pub const ENV_POD_LABELS: &str = "WEFT_POD_LABELS";
/// Environment: the pod's node.
pub const ENV_NODE: &str = "WEFT_NODE";
/// Environment: the pod's addresses, separated by commas.
pub const ENV_POD_IPS: &str = "WEFT_POD_IPS";
/// Environment: the pod's service account.
pub const ENV_SERVICE_ACCOUNT: &str = "WEFT_SERVICE_ACCOUNT";
/// Environment: named ports of the pod's containers, JSON object of name to number.
pub const ENV_PORT_NAMES: &str = "WEFT_PORT_NAMES";
/// Environment: the pod's probes, JSON of [`Probes`].
pub const ENV_PROBES: &str = "WEFT_PROBES";
/// Environment: the pod's lifecycle hooks, JSON of [`Hooks`].
pub const ENV_HOOKS: &str = "WEFT_HOOKS";
/// Environment: `true` for a classic sidecar, which gets SIGTERM together with the application and not after it.
/// Default `false`.
pub const ENV_CLASSIC: &str = "WEFT_CLASSIC";
/// Environment: worker threads. Default 1.
pub const ENV_WORKERS: &str = "WEFT_WORKERS";
/// Environment: log filter, in the syntax of `tracing_subscriber::EnvFilter`. Default `info`.
pub const ENV_LOG: &str = "WEFT_LOG";
/// Environment: `json` or `text`. Default `json`.
pub const ENV_LOG_FORMAT: &str = "WEFT_LOG_FORMAT";
/// Environment: which requests and connections are logged, see [`AccessLog`]. Default `failures`.
pub const ENV_ACCESS_LOG: &str = "WEFT_ACCESS_LOG";
/// Environment: drain time, in seconds: how long requests in flight may take after SIGTERM. Default 25.
pub const ENV_DRAIN_SECONDS: &str = "WEFT_DRAIN_SECONDS";
/// Environment: `kubernetes` (default), or `directory:PATH` with one JSON file for each document.
pub const ENV_SOURCE: &str = "WEFT_SOURCE";
/// Environment: timeouts towards clients, in milliseconds, JSON object of `head` (for the head of a request, from its
/// first byte, and for a TLS handshake, from the connection on; default 10 s), `idle` (no byte moves on a connection,
/// a tunnel or an HTTP/2 stream; default 1 h), `stall` (a client does not read what is sent to it; default 5 min),
/// `upload` (for receiving a body of known length, plus a second for each 240 octets received; default 1 min).
pub const ENV_TIMEOUTS_MS: &str = "WEFT_TIMEOUTS_MS";
/// Environment: ports without protocol detection, separated by commas. Neither side has to wait for the other to send
/// first.
pub const ENV_OPAQUE_PORTS: &str = "WEFT_OPAQUE_PORTS";

/// Environment: `directory:PATH`: the proxy's identity is in the files `tls.crt`, `tls.key` and `bundle.json` there, and
/// is read again when they change. For runs outside of a cluster. Default: none.
pub const ENV_IDENTITY: &str = "WEFT_IDENTITY";

/// Environment: URL of the certificate authority, `https://HOST:PORT/PATH`. If it is set, the proxy has an identity, is
/// not ready before it has the first certificate, and needs the three variables below. Default: no identity.
pub const ENV_IDENTITY_URL: &str = "WEFT_IDENTITY_URL";
/// Environment: the SPIFFE id that the authority must prove.
pub const ENV_IDENTITY_AUTHORITY: &str = "WEFT_IDENTITY_AUTHORITY";
/// Environment: trust domain of the pod's identity.
pub const ENV_TRUST_DOMAIN: &str = "WEFT_TRUST_DOMAIN";
/// Environment: fingerprints of the roots that were trusted when the pod was created, SHA-256 in hexadecimal, separated
/// by commas. All other trust follows from them.
pub const ENV_ROOTS: &str = "WEFT_ROOTS";

/// Environment, for the allocator: milliseconds after which freed memory is returned to the kernel. The allocator
/// checks only when something is freed, so with its own default of a second, the memory of a burst would stay until
/// the next burst.
pub const ENV_PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
/// Its value in a pod.
pub const PURGE_DELAY_MS: &str = "10";

/// Environment: settings of a proxy outside of a pod, JSON of [`Local`]. Refused unless the source is a directory: in
/// a pod, redirection and probes rely on the ports above.
pub const ENV_LOCAL: &str = "WEFT_LOCAL";

/// Ports without protocol detection, because their servers send first: SMTP, MySQL, PostgreSQL, Redis and similar.
/// Source: the default list of Linkerd.
pub const OPAQUE_PORTS_DEFAULT: &[u16] = &[25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// A proxy outside of a pod: nothing is redirected to it, and several may run on one host. Each port is 0 by default,
/// which means a free one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Local {
    /// Instead of [`OUTBOUND_PORT`].
    pub outbound_port: u16,
    /// Instead of [`INBOUND_PORT`].
    pub inbound_port: u16,
    /// Instead of [`ADMIN_PORT`].
    pub admin_port: u16,
    /// Instead of [`METRICS_PORT`].
    pub metrics_port: u16,
    /// Instead of [`HEALTH_PORT`].
    pub health_port: u16,
    /// Destination of connections to the inbound port. Absent: they are refused.
    pub application: Option<SocketAddr>,
    /// Destination of connections to the outbound port that is no Service's. Absent: they are refused.
    pub destination: Option<SocketAddr>,
    /// The file with the certificate for the inbound port and its issuers, in PEM. Clients must speak TLS 1.3 or 1.2;
    /// the application gets the decrypted HTTP/1.1, HTTP/2 or TCP. Absent: TLS is not terminated.
    pub certificate: Option<PathBuf>,
    /// The file with the private key, in PEM. Certificate and key are set together.
    pub key: Option<PathBuf>,
    /// Whether TLS clients of the inbound port must prove an identity also if they are no proxies of the mesh, which
    /// the names in their ClientHello say (ALPN). By default, the TLS of others is the application's own. Needs
    /// [`ENV_IDENTITY`], and excludes a certificate.
    pub mutual_tls: bool,
    /// Instead of [`IDENTITY_TOKEN_FILE`].
    pub token: Option<PathBuf>,
}

/// The path on [`HEALTH_PORT`] of the probe with this key.
pub fn probe_path(key: &str) -> String {
    format!("/probe/{key}")
}

/// Probes that the proxy makes for the kubelet, by key (`<container>/<liveness|readiness|startup>`). Without the
/// rewrite, a TCP probe of a redirected port would reach the proxy and not the application, and policies would apply
/// to the kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Probes(pub BTreeMap<String, Probe>);

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// Port of the application.
    pub port: u16,
    /// How the application is probed.
    pub kind: ProbeKind,
    /// Timeout, in seconds.
    pub timeout_seconds: u32,
}

/// How an application is probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// A GET; 200 to 399 is success.
    #[serde(rename_all = "camelCase")]
    Http {
        /// Path and query.
        path: String,
        /// Whether to use HTTPS. The certificate is not verified, as in the kubelet.
        https: bool,
        /// Request headers. A `Host` replaces the pod's address.
        headers: Vec<(String, String)>,
    },
    /// A connection that opens is success.
    Tcp,
    /// `grpc.health.v1.Health/Check`; SERVING is success.
    Grpc {
        /// The service to ask for; empty for the whole server.
        service: String,
    },
}

/// The path on [`HEALTH_PORT`] of the hook with this key.
pub fn hook_path(key: &str) -> String {
    format!("/hook/{key}")
}

/// Lifecycle hooks that the proxy calls for the kubelet, by key (`<secret>/<container>/<postStart|preStop>`). Without
/// the rewrite, policies would apply to the kubelet. Unlike a probe, a hook has an effect on the application: the
/// secret, which is only in the pod's spec, keeps out callers who may not read the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hooks(pub BTreeMap<String, Hook>);

/// One hook: a GET. Any response is success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// Port of the application.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Whether to use HTTPS. The certificate is not verified, and an application that does not speak TLS is called
    /// over HTTP, as in the kubelet.
    pub https: bool,
    /// Request headers. A `Host` replaces the pod's address.
    pub headers: Vec<(String, String)>,
    /// Whether this is a preStop hook: a classic sidecar runs until it was called.
    pub pre_stop: bool,
}

/// A port, or a range of ports with both ends included: `22`, `8000-8010`. Used in the annotations that exclude ports
/// from redirection, in the arguments of `weft-init`, and in documents of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The lowest port.
    pub first: NonZeroU16,
    /// The highest port.
    pub last: NonZeroU16,
}

/// Which requests and connections the access log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// All.
    On,
    /// Failed ones: the proxy generated an error response, the status is 500 or above, or the response was cut short.
    #[default]
    Failures,
    /// None.
    Off,
}

/// The text is not an [`AccessLog`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not one of \"on\", \"failures\" and \"off\"")]
pub struct AccessLogError(String);

/// The text is not a [`PortRange`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a port (1 to 65535) or a range of ports (as in 8000-8010)")]
pub struct PortRangeError(String);

// === impl AccessLog ===

impl AccessLog {
    /// The name of the value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Failures => "failures",
            Self::Off => "off",
        }
    }
}

impl FromStr for AccessLog {
    type Err = AccessLogError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::On, Self::Failures, Self::Off].into_iter().find(|log| log.as_str() == text);
        known.ok_or_else(|| AccessLogError(text.to_owned()))
    }
}

// === impl PortRange ===

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PortRangeError(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or_else(error)
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last { Err(error()) } else { Ok(Self { first, last }) }
    }
}

impl PortRange {
    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        (self.first.get()..=self.last.get()).contains(&port)
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}
