//! The annotations that configure a pod's proxy: their keys, their values on a pod and its namespace, and the errors
//! found in them. An annotation of the pod overrides one of its namespace. [`crate::settings`] gives each its type.
//! An unknown key only warns and suggests the most similar known key.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use weft_crds::names::CONFIG_PREFIX;
use weft_crds::suggest;

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

pub(crate) const PROXY_CPU_REQUEST: &str = "proxy-cpu-request";
pub(crate) const PROXY_CPU_LIMIT: &str = "proxy-cpu-limit";
pub(crate) const PROXY_MEMORY_REQUEST: &str = "proxy-memory-request";
pub(crate) const PROXY_MEMORY_LIMIT: &str = "proxy-memory-limit";
pub(crate) const PROXY_LOG_LEVEL: &str = "proxy-log-level";
pub(crate) const ACCESS_LOG: &str = "access-log";
pub(crate) const WORKERS: &str = "workers";
pub(crate) const DRAIN_SECONDS: &str = "drain-seconds";
pub(crate) const NATIVE_SIDECAR: &str = "native-sidecar";
pub(crate) const EXCLUDE_INBOUND_PORTS: &str = "exclude-inbound-ports";
pub(crate) const EXCLUDE_OUTBOUND_PORTS: &str = "exclude-outbound-ports";
pub(crate) const EXCLUDE_OUTBOUND_IPS: &str = "exclude-outbound-ips";
pub(crate) const OPAQUE_PORTS: &str = "opaque-ports";

/// Maximum of entries in a list. Each excluded entry is an iptables rule that every new connection traverses.
const LIST_MAX: usize = 100;
/// Maximum number of bytes in a value. The longest sensible list is shorter.
const VALUE_MAX: usize = 4096;
/// Maximum number of bytes of a value that a message quotes.
const QUOTED_VALUE_MAX: usize = 64;

/// The annotations of a pod and its namespace, and the errors found so far.
pub(crate) struct Annotations<'a> {
    pod: BTreeMap<&'a str, &'a str>,
    namespace: BTreeMap<&'a str, &'a str>,
    errors: Vec<AnnotationError>,
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
pub(crate) enum AnnotationSource {
    Pod,
    Namespace,
}

// === impl Annotations ===

impl<'a> Annotations<'a> {
    /// Takes those with the prefix [`CONFIG_PREFIX`].
    pub(crate) fn new(namespace: &'a Namespace, pod: &'a Pod) -> Self {
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
    pub(crate) fn unknown_key_warnings(&self) -> Vec<String> {
        let keys = self.pod.keys().map(|key| (*key, AnnotationSource::Pod));
        let keys = keys.chain(self.namespace.keys().map(|key| (*key, AnnotationSource::Namespace)));
        keys.filter(|(key, _)| !KEYS.contains(key))
            .map(|(key, source)| {
                let hint = suggest::nearest(key, KEYS).map(|known| format!("; did you mean {CONFIG_PREFIX}{known}?"));
                format!(
                    "annotation {CONFIG_PREFIX}{} on the {source} is unknown and has no effect{}",
                    truncate(key),
                    hint.unwrap_or_default()
                )
            })
            .collect()
    }

    /// The parsed value, `None` where the annotation is absent or invalid; an invalid one is recorded as an error.
    pub(crate) fn parse<T>(
        &mut self,
        key: &'static str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (value, source) = self.find(key)?;
        let parsed = if value.len() > VALUE_MAX { None } else { parse(value) };
        if parsed.is_none() {
            self.add_error(key, value, source, remedy);
        }
        parsed
    }

    /// As [`Self::parse`], for a comma-separated list; empty where the annotation is absent or invalid.
    pub(crate) fn parse_list<T>(
        &mut self,
        key: &'static str,
        remedy: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        self.parse(key, remedy, |value| items(value, parse)).unwrap_or_default()
    }

    /// The pod's value, else the namespace's.
    pub(crate) fn find(&self, key: &str) -> Option<(&'a str, AnnotationSource)> {
        let pod = self.pod.get(key).map(|value| (*value, AnnotationSource::Pod));
        pod.or_else(|| self.namespace.get(key).map(|value| (*value, AnnotationSource::Namespace)))
    }

    /// Records an invalid value, for [`Self::finish`].
    pub(crate) fn add_error(&mut self, key: &str, value: &str, source: AnnotationSource, remedy: &str) {
        let (key, value, remedy) = (key.to_owned(), truncate(value), remedy.to_owned());
        self.errors.push(AnnotationError { key, value, source, remedy });
    }

    /// Fails if an error was recorded.
    pub(crate) fn finish(self) -> Result<(), AnnotationErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(AnnotationErrors(self.errors)) }
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

/// Parses decimal digits, without a sign.
pub(crate) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Parses a comma-separated list. An empty text is an empty list; an empty item is an error.
pub(crate) fn items<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let items: Option<Vec<T>> = text.split(',').map(|item| parse(item.trim())).collect();
    items.filter(|items| items.len() <= LIST_MAX)
}

/// The first [`QUOTED_VALUE_MAX`] bytes of a value, for messages.
fn truncate(value: &str) -> String {
    match value.char_indices().map(|(at, _)| at).find(|at| *at >= QUOTED_VALUE_MAX) {
        Some(end) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}
