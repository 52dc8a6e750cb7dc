//! The table of annotations that configure a pod's proxy. [`crate::settings`] parses their values, messages quote the
//! texts, and `docs/reference/annotations.md` is generated from it.

use weft_crds::names::CONFIG_PREFIX;

/// Minimum similarity (normalized Levenshtein, 0 to 1) to suggest a known key for an unknown one.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.6;

/// An annotation of a pod or its namespace.
#[derive(Debug)]
pub struct Annotation {
    /// The key, without [`CONFIG_PREFIX`].
    pub key: &'static str,
    /// The valid values: completes "use ...".
    pub values: &'static str,
    /// The default, as the reference states it.
    pub default: &'static str,
    /// A valid value.
    pub example: &'static str,
    /// What it configures, as the reference states it.
    pub configures: &'static str,
}

/// Every annotation, in the order of the reference.
pub const ANNOTATIONS: [&Annotation; 13] = [
    &PROXY_CPU_REQUEST,
    &PROXY_CPU_LIMIT,
    &PROXY_MEMORY_REQUEST,
    &PROXY_MEMORY_LIMIT,
    &WORKERS,
    &PROXY_LOG_LEVEL,
    &ACCESS_LOG,
    &DRAIN_SECONDS,
    &NATIVE_SIDECAR,
    &EXCLUDE_INBOUND_PORTS,
    &EXCLUDE_OUTBOUND_PORTS,
    &EXCLUDE_OUTBOUND_IPS,
    &OPAQUE_PORTS,
];

const CORES: &str = "a number of cores, as in 100m or 2";
const BYTES: &str = "a number of bytes from 1Mi, as in 64Mi";
const PORTS: &str = "at most 100 ports and ranges with commas between them, as in 22,8000-8010";

pub(crate) static PROXY_CPU_REQUEST: Annotation = Annotation {
    key: "proxy-cpu-request",
    values: CORES,
    default: "chart value `proxy.resources.requests.cpu`, at most the limit",
    example: "100m",
    configures: "CPU request of the proxy's container",
};

pub(crate) static PROXY_CPU_LIMIT: Annotation = Annotation {
    key: "proxy-cpu-limit",
    values: CORES,
    default: "chart value `proxy.resources.limits.cpu`, at least the request",
    example: "2",
    configures: "CPU limit of the proxy's container",
};

pub(crate) static PROXY_MEMORY_REQUEST: Annotation = Annotation {
    key: "proxy-memory-request",
    values: BYTES,
    default: "chart value `proxy.resources.requests.memory`, at most the limit",
    example: "64Mi",
    configures: "memory request of the proxy's container",
};

pub(crate) static PROXY_MEMORY_LIMIT: Annotation = Annotation {
    key: "proxy-memory-limit",
    values: BYTES,
    default: "chart value `proxy.resources.limits.memory`, at least the request",
    example: "512Mi",
    configures: "memory limit of the proxy's container",
};

pub(crate) static WORKERS: Annotation = Annotation {
    key: "workers",
    values: "a number of threads from 1 to 64",
    default: "the CPU limit, rounded up to whole cores; 1 without a limit",
    example: "2",
    configures: "worker threads of the proxy",
};

pub(crate) static PROXY_LOG_LEVEL: Annotation = Annotation {
    key: "proxy-log-level",
    values: "off, error, warn, info, debug or trace, or a list as in info,weft_proxy=debug",
    default: "`info`",
    example: "info,weft_proxy=debug",
    configures: "log filter of the proxy",
};

pub(crate) static ACCESS_LOG: Annotation = Annotation {
    key: "access-log",
    values: "\"on\", \"failures\" or \"off\"",
    default: "`failures`",
    example: "on",
    configures: "which requests and connections the proxy logs: all, failed ones, none",
};

pub(crate) static DRAIN_SECONDS: Annotation = Annotation {
    key: "drain-seconds",
    values: "a number of seconds from 1 to 86400",
    default: "the pod's `terminationGracePeriodSeconds` less 5, which is also the maximum",
    example: "20",
    configures: "how long requests in flight may take after SIGTERM",
};

pub(crate) static NATIVE_SIDECAR: Annotation = Annotation {
    key: "native-sidecar",
    values: "\"auto\", \"true\" or \"false\"",
    default: "`auto`: `true` if the API server is 1.29 or later",
    example: "false",
    configures: "whether the proxy is a native sidecar (an init container with `restartPolicy: Always`) or an ordinary \
                 container",
};

pub(crate) static EXCLUDE_INBOUND_PORTS: Annotation = Annotation {
    key: "exclude-inbound-ports",
    values: PORTS,
    default: "none",
    example: "22,8000-8010",
    configures: "ports of the pod whose inbound connections are not redirected to the proxy",
};

pub(crate) static EXCLUDE_OUTBOUND_PORTS: Annotation = Annotation {
    key: "exclude-outbound-ports",
    values: PORTS,
    default: "none",
    example: "6379",
    configures: "destination ports whose outbound connections are not redirected to the proxy",
};

pub(crate) static EXCLUDE_OUTBOUND_IPS: Annotation = Annotation {
    key: "exclude-outbound-ips",
    values: "at most 100 addresses and networks with commas between them, as in 10.0.0.0/8,fd00::/8",
    default: "none",
    example: "10.0.0.0/8,fd00::/8",
    configures: "destination networks whose outbound connections are not redirected to the proxy",
};

pub(crate) static OPAQUE_PORTS: Annotation = Annotation {
    key: "opaque-ports",
    values: "at most 100 ports with commas between them, as in 3306,5432; empty for none",
    default: "`25,587,3306,4444,5432,6379,9300,11211`",
    example: "3306,5432",
    configures: "ports without protocol detection: their connections are forwarded as TCP",
};

// === impl Annotation ===

impl Annotation {
    /// The key with its prefix.
    pub fn name(&self) -> String {
        format!("{CONFIG_PREFIX}{}", self.key)
    }

    /// The known annotation with the most similar key, if one is similar enough.
    pub(crate) fn nearest(key: &str) -> Option<&'static Self> {
        ANNOTATIONS
            .into_iter()
            .map(|known| (strsim::normalized_levenshtein(key, known.key), known))
            .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, known)| known)
    }
}

#[cfg(test)]
mod tests {
    use weft_config::bootstrap::OPAQUE_PORTS_DEFAULT;

    use super::*;

    #[test]
    fn default_opaque_ports_are_those_of_the_proxy() {
        let ports: Vec<String> = OPAQUE_PORTS_DEFAULT.iter().map(u16::to_string).collect();
        assert_eq!(OPAQUE_PORTS.default, format!("`{}`", ports.join(",")));
    }
}
