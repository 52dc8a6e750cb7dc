//! Whether the cluster has a kind that is not part of Weft or Kubernetes.

/// Whether the API server has a kind of the Gateway API. It is an installation of its own, which may come, change and
/// go at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It is not installed.
    Missing,
    /// Its definition serves only versions that Weft does not read.
    Unsupported(Definition),
    /// In a version that Weft reads.
    Served,
}

/// What a CustomResourceDefinition says about its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Definition {
    /// The kind, as in manifests.
    pub kind: String,
    /// UID of the CustomResourceDefinition.
    pub uid: String,
    /// The versions that it serves.
    pub versions: Vec<String>,
}

// === impl Availability ===

impl Availability {
    /// The states, as in metrics.
    pub const STATES: [&str; 3] = ["missing", "unsupported", "served"];

    /// The state, as in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unsupported(_) => "unsupported",
            Self::Served => "served",
        }
    }
}

// === impl Definition ===

impl Definition {
    /// What is wrong and what to do if Weft reads none of the versions, for users.
    pub fn message(&self) -> String {
        let Self { kind, uid: _, versions } = self;
        format!(
            "the cluster serves {kind} as {} only, and Weft does not read that: install the CustomResourceDefinitions of \
             Gateway API v1.7 or newer, which serve v1",
            versions.join(", ")
        )
    }
}
