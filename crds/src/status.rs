//! What Weft says about an object, in the Gateway API's words.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Weft says about the object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The `metadata.generation` that the conditions are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted: the object is valid and has an effect. ResolvedRefs: what it names exists. Programmed: it is in the
    /// configuration that proxies read. Ready: all of these.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object is valid and has an effect.
    Accepted,
    /// What it names exists.
    ResolvedRefs,
    /// It is in the configuration that proxies read.
    Programmed,
    /// All of the above. Tools that know no other condition know this one.
    Ready,
}

/// Reasons of conditions. Where the Gateway API has a word, it is that word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Accepted: all is well.
    Accepted,
    /// Not accepted: what the object attaches to does not exist.
    TargetNotFound,
    /// Not accepted: what the object attaches to cannot be governed (a headless Service).
    UnsupportedTarget,
    /// Not accepted: a value that Weft cannot use.
    UnsupportedValue,
    /// Not accepted, or in part: another object was first.
    Conflicted,
    /// Not accepted: the object cannot be read.
    Invalid,
    /// Accepted, and some of it is not in force.
    PartiallyInvalid,
    /// All references are resolved.
    ResolvedRefs,
    /// A backend does not exist.
    BackendNotFound,
    /// A subset does not exist, or selects no pod.
    SubsetNotFound,
    /// It is in the configuration that proxies read.
    Programmed,
    /// It is not yet, or not any more.
    Pending,
    /// The namespace's configuration does not fit into an object.
    TooLarge,
    /// Ready: all conditions are true.
    Ready,
    /// Not ready: another condition says why.
    NotReady,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
