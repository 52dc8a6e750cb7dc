//! The contract between whoever starts a proxy (the injector, a test, a person) and the proxy: ports, user, names of
//! environment variables, places of files, names of ConfigMaps. Every such string stands here and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where redirected connections of the pod's containers arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where redirected connections to the pod arrive.
pub const INBOUND_PORT: u16 = 15006;
/// Configuration dump and log level, on loopback only.
pub const ADMIN_PORT: u16 = 15000;
/// `GET /metrics`.
pub const METRICS_PORT: u16 = 15020;
/// `GET /readyz` and the pod's own probes and lifecycle hooks, rewritten.
pub const HEALTH_PORT: u16 = 15021;

/// The proxy's user and group. Redirection leaves this user's traffic alone, so nobody else in the pod may use it.
pub const PROXY_UID: i64 = 15015;

/// Namespace of the exported documents and the index.
pub const EXPORT_NAMESPACE: &str = "weft-config";
/// Namespace of the private documents.
pub const INBOUND_NAMESPACE: &str = "weft-inbound";
/// Name of the index.
pub const INDEX_NAME: &str = "index";

/// The label with the zone: of every node, and of its pods too where Kubernetes gives them that when they are scheduled
/// (1.35 and newer; 1.33 with the feature gate `PodTopologyLabelsAdmission`).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Name of the exported document of a namespace.
pub fn export_name(namespace: &str) -> String {
    format!("x.{namespace}")
}

/// Name of the private document of a namespace.
pub fn inbound_name(namespace: &str) -> String {
    format!("i.{namespace}")
}

/// The folder with a token for the API server (`token`), the API server's CA (`ca.crt`).
pub const TOKEN_DIR: &str = "/var/run/weft/token";
/// The file with the pod's labels, as the downward API writes them. It has what the scheduler adds, the zone; for the labels
/// that policies select by see [`ENV_POD_LABELS`].
pub const LABELS_FILE: &str = "/var/run/weft/pod/labels";
/// The folder, kept over restarts of the container, with copies of the documents last used.
pub const CACHE_DIR: &str = "/var/run/weft/cache";

/// The folder where a container sees its control group.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup";

/// Environment: the pod's namespace.
pub const ENV_NAMESPACE: &str = "WEFT_NAMESPACE";
/// Environment: the pod's name.
pub const ENV_POD: &str = "WEFT_POD";
/// Environment: the pod's UID.
pub const ENV_POD_UID: &str = "WEFT_POD_UID";
/// Environment: the labels that the pod was created with, JSON object. A value in the container's spec and not the downward
/// API's, because Kubernetes lets nothing change that spec while the pod runs: the operator reads the same value, and its
/// documents say how the labels differ from it by now.
pub const ENV_POD_LABELS: &str = "WEFT_POD_LABELS";
/// Environment: the node that the pod is on.
pub const ENV_NODE: &str = "WEFT_NODE";
/// Environment: the pod's addresses, comma between them.
pub const ENV_POD_IPS: &str = "WEFT_POD_IPS";
/// Environment: the pod's service account.
pub const ENV_SERVICE_ACCOUNT: &str = "WEFT_SERVICE_ACCOUNT";
/// Environment: named ports of the pod's containers, JSON object of name to number.
pub const ENV_PORT_NAMES: &str = "WEFT_PORT_NAMES";
/// Environment: the pod's probes, JSON of [`Probes`].
pub const ENV_PROBES: &str = "WEFT_PROBES";
/// Environment: the pod's lifecycle hooks, JSON of [`Hooks`].
pub const ENV_HOOKS: &str = "WEFT_HOOKS";
/// Environment: `true` for a classic proxy, which is asked to stop together with the application and not after it. Default `false`.
pub const ENV_CLASSIC: &str = "WEFT_CLASSIC";
/// Environment: worker threads. Default 1.
pub const ENV_WORKERS: &str = "WEFT_WORKERS";
/// Environment: log filter, in the syntax of `tracing_subscriber::EnvFilter`. Default `info`.
pub const ENV_LOG: &str = "WEFT_LOG";
/// Environment: `json` or `text`. Default `json`.
pub const ENV_LOG_FORMAT: &str = "WEFT_LOG_FORMAT";
/// Environment: which requests leave a line, a word of [`AccessLog`]. Default `failures`.
pub const ENV_ACCESS_LOG: &str = "WEFT_ACCESS_LOG";
/// Environment: how long open requests may take after SIGTERM, in seconds. Default 25.
pub const ENV_DRAIN_SECONDS: &str = "WEFT_DRAIN_SECONDS";
/// Environment: `kubernetes` (default), or `directory:PATH` with one JSON file for each document.
pub const ENV_SOURCE: &str = "WEFT_SOURCE";
/// Environment: how long a client may take, in milliseconds, JSON object of `head` (for that of a request, from its first
/// byte, and for a handshake of TLS, from the connection on; default 10 s), `idle` (nothing moves on a connection, a tunnel
/// or an HTTP/2 stream; default 1 h), `stall` (it takes nothing of what is sent to it; default 5 min), `upload` (it is waited
/// for while it sends a body of a known length, with a second more for each 240 octets that have come; default 1 min).
pub const ENV_TIMEOUTS_MS: &str = "WEFT_TIMEOUTS_MS";
/// Environment: ports on which neither side is made to wait for the other to speak first, comma between them.
pub const ENV_OPAQUE_PORTS: &str = "WEFT_OPAQUE_PORTS";

/// Environment, for the allocator: after how many milliseconds memory that was freed goes back to the kernel. It looks only
/// when something is freed, so with its own default, a second, what a rush took stays until the next one.
pub const ENV_PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
/// What that is in a pod.
pub const PURGE_DELAY_MS: &str = "10";

/// Environment: how a proxy stands outside of a pod, JSON of [`Local`]. Refused unless the source is a directory: in a
/// pod, redirection and probes count on the ports above.
pub const ENV_LOCAL: &str = "WEFT_LOCAL";

/// Ports that are never looked into, because on them the server speaks first: SMTP, MySQL, PostgreSQL, Redis and their
/// kin. Source: the default list of Linkerd.
pub const OPAQUE_PORTS_DEFAULT: &[u16] = &[25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// A proxy outside of a pod: nothing is redirected to it, and others may stand beside it. Each port is 0 by default, which
/// takes a free one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Local {
    /// In the place of [`OUTBOUND_PORT`].
    pub outbound_port: u16,
    /// In the place of [`INBOUND_PORT`].
    pub inbound_port: u16,
    /// In the place of [`ADMIN_PORT`].
    pub admin_port: u16,
    /// In the place of [`METRICS_PORT`].
    pub metrics_port: u16,
    /// In the place of [`HEALTH_PORT`].
    pub health_port: u16,
    /// Where connections to the inbound port are meant to go, since nothing else says it. Absent: they are refused.
    pub application: Option<SocketAddr>,
    /// The file with the certificate, in PEM, that is presented to those who connect to the inbound port, and with those
    /// that it is issued by behind it. They are to speak TLS, 1.3 or 1.2, and the application gets what comes out of it:
    /// HTTP/1.1, HTTP/2 or bytes, as they speak. Absent: connections are what they are.
    pub certificate: Option<PathBuf>,
    /// The file with its key, in PEM. There is a certificate if and only if there is a key.
    pub key: Option<PathBuf>,
}

/// The path on [`HEALTH_PORT`] under which the probe called `key` is answered.
pub fn probe_path(key: &str) -> String {
    format!("/probe/{key}")
}

/// Probes that the proxy makes in the kubelet's stead, by key (`<container>/<liveness|readiness|startup>`). Rewriting
/// them keeps them honest (a TCP probe of a redirected port would reach the proxy, never the application) and keeps
/// them working when a policy denies strangers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Probes(pub BTreeMap<String, Probe>);

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// Port of the application.
    pub port: u16,
    /// How it is asked.
    pub kind: ProbeKind,
    /// How long it may take, in seconds.
    pub timeout_seconds: u32,
}

/// How an application is asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// A GET; 200 to 399 is well.
    #[serde(rename_all = "camelCase")]
    Http {
        /// With the query.
        path: String,
        /// `https` is asked without checking the certificate, as the kubelet does.
        https: bool,
        /// Of the request; a `Host` among them replaces the pod's address.
        headers: Vec<(String, String)>,
    },
    /// A connection that opens.
    Tcp,
    /// `grpc.health.v1.Health/Check`; SERVING is well.
    Grpc {
        /// The service asked about; empty for the whole server.
        service: String,
    },
}

/// The path on [`HEALTH_PORT`] under which the hook called `key` is called.
pub fn hook_path(key: &str) -> String {
    format!("/hook/{key}")
}

/// Lifecycle hooks that the proxy calls in the kubelet's stead, by key (`<secret>/<container>/<postStart|preStop>`). Rewriting them
/// keeps them working when a policy denies strangers. Unlike a probe, a hook does something to the application: the secret, which
/// stands in the pod's spec and nowhere else, keeps those away who may not read that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hooks(pub BTreeMap<String, Hook>);

/// One hook: a GET, to which any response will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// Port of the application.
    pub port: u16,
    /// With the query.
    pub path: String,
    /// `https` is asked without checking the certificate, and an application that does not speak TLS is asked without, as the
    /// kubelet does.
    pub https: bool,
    /// Of the request; a `Host` among them replaces the pod's address.
    pub headers: Vec<(String, String)>,
    /// Called when the pod is asked to stop: a classic proxy stays until it was.
    pub pre_stop: bool,
}

/// A port, or ports from one to another, both included: `22`, `8000-8010`. In the annotations that exclude ports from
/// redirection and in the arguments of `weft-init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: NonZeroU16,
    /// The highest.
    pub last: NonZeroU16,
}

/// Which requests and connections leave a line in the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// All.
    On,
    /// Those that failed: the proxy answered by itself because something is wrong, the status is 500 or above, or the
    /// response broke off.
    #[default]
    Failures,
    /// None.
    Off,
}

/// Why a text is no [`AccessLog`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is none of \"on\", \"failures\" and \"off\"")]
pub struct AccessLogError(String);

/// Why a text is no [`PortRange`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no port (1 to 65535) and no range of ports (as in 8000-8010)")]
pub struct PortRangeError(String);

// === impl AccessLog ===

impl AccessLog {
    /// The word for it.
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

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}
