//! The values of annotations on a pod and its namespace, and the errors found in them. An annotation of the pod
//! overrides one of its namespace. [`crate::settings`] gives each its type. An unknown key only warns and suggests the
//! most similar known key.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use weft_crds::names::CONFIG_PREFIX;

use crate::annotation::{ANNOTATIONS, Annotation};
use crate::namespace::Namespace;

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
pub struct AnnotationErrors(pub Vec<AnnotationError>);

/// One invalid annotation. Displayed with its key, object and value, and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub struct AnnotationError {
    key: &'static str,
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
        keys.filter(|(key, _)| ANNOTATIONS.iter().all(|known| known.key != *key))
            .map(|(key, source)| {
                let hint = Annotation::nearest(key).map(|known| format!("; did you mean {}?", known.name()));
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
        annotation: &'static Annotation,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (value, source) = self.find(annotation)?;
        let parsed = if value.len() > VALUE_MAX { None } else { parse(value) };
        if parsed.is_none() {
            self.add_error(annotation, value, source, &format!("use {}", annotation.values));
        }
        parsed
    }

    /// As [`Self::parse`], for a comma-separated list; empty where the annotation is absent or invalid.
    pub(crate) fn parse_list<T>(
        &mut self,
        annotation: &'static Annotation,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        self.parse(annotation, |value| items(value, parse)).unwrap_or_default()
    }

    /// The pod's value, else the namespace's.
    pub(crate) fn find(&self, annotation: &Annotation) -> Option<(&'a str, AnnotationSource)> {
        let key = annotation.key;
        let pod = self.pod.get(key).map(|value| (*value, AnnotationSource::Pod));
        pod.or_else(|| self.namespace.get(key).map(|value| (*value, AnnotationSource::Namespace)))
    }

    /// Records an invalid value, for [`Self::finish`].
    pub(crate) fn add_error(
        &mut self,
        annotation: &'static Annotation,
        value: &str,
        source: AnnotationSource,
        remedy: &str,
    ) {
        let (value, remedy) = (truncate(value), remedy.to_owned());
        self.errors.push(AnnotationError { key: annotation.key, value, source, remedy });
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
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ". Also: " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for AnnotationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, source, remedy } = self;
        write!(f, "annotation {CONFIG_PREFIX}{key} on the {source} is {value:?}; {remedy}")
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

/// The first [`QUOTED_VALUE_MAX`] bytes of a name, key or value, for messages.
pub(crate) fn truncate(value: &str) -> String {
    match value.char_indices().map(|(at, _)| at).find(|at| *at >= QUOTED_VALUE_MAX) {
        Some(end) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}
