//! Documents: the ConfigMaps that proxies read.

use k8s_openapi::api::core::v1 as core;
use weft_config::{DecodeError, Envelope, Export, Header, Inbound, Index, Pods, bootstrap};
use weft_crds::names;

use super::metadata::{label, revision};

/// Kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// `weft-config/x.<ns>`.
    Export,
    /// `weft-inbound/i.<ns>`.
    Inbound,
    /// `weft-config/p.<prefix>`; in place of a namespace, its name.
    Pods,
    /// `weft-config/index`, of namespace "".
    Index,
}

/// A document's ConfigMap as it is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Name of the ConfigMap.
    pub name: String,
    /// `metadata.resourceVersion`, as it is and as a number.
    pub version: String,
    /// See [`Document::version`].
    pub revision: u64,
    /// Has the managed-by label of Weft.
    pub labelled: bool,
    /// Is immutable: it can only be deleted and created again.
    pub immutable: bool,
    /// Its data.
    pub envelope: Envelope,
}

// === impl DocumentKind ===

impl DocumentKind {
    /// Name of the document of a namespace ("" for the index).
    pub fn name(self, namespace: &str) -> String {
        match self {
            Self::Export => bootstrap::export_name(namespace),
            Self::Inbound => bootstrap::inbound_name(namespace),
            Self::Pods => namespace.to_owned(),
            Self::Index => bootstrap::INDEX_NAME.to_owned(),
        }
    }

    /// The namespace that a document of this name is for.
    pub fn namespace_of(self, name: &str) -> Option<String> {
        match self {
            Self::Export => name.strip_prefix("x.").filter(|rest| !rest.is_empty()).map(str::to_owned),
            Self::Inbound => name.strip_prefix("i.").filter(|rest| !rest.is_empty()).map(str::to_owned),
            Self::Pods => bootstrap::prefix_of_name(name).map(|_| name.to_owned()),
            Self::Index => (name == bootstrap::INDEX_NAME).then(String::new),
        }
    }

    /// Kind and namespace of the document with this name, among the kinds that are stored in the same namespace as
    /// this one.
    pub fn slot(self, name: &str) -> Option<(Self, String)> {
        let kinds: &[Self] = match self {
            Self::Export | Self::Pods | Self::Index => &[Self::Export, Self::Pods, Self::Index],
            Self::Inbound => &[Self::Inbound],
        };
        kinds.iter().find_map(|kind| Some((*kind, kind.namespace_of(name)?)))
    }

    /// Name in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Inbound => "inbound",
            Self::Pods => "pods",
            Self::Index => "index",
        }
    }
}

/// The namespace in which documents of a kind are stored.
pub fn documents_namespace(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Export | DocumentKind::Pods | DocumentKind::Index => bootstrap::EXPORT_NAMESPACE,
        DocumentKind::Inbound => bootstrap::INBOUND_NAMESPACE,
    }
}

// === impl Document ===

impl Document {
    /// Its header, also if the body is damaged.
    pub fn header(&self) -> Option<Header> {
        Header::read(&self.envelope).ok()
    }

    /// Header and body of an export.
    pub fn export(&self) -> Result<(Header, Export), DecodeError> {
        self.envelope.read()
    }

    /// Header and body of a private document.
    pub fn inbound(&self) -> Result<(Header, Inbound), DecodeError> {
        self.envelope.read()
    }

    /// Header and body of a document of pods.
    pub fn pods(&self) -> Result<(Header, Pods), DecodeError> {
        self.envelope.read()
    }

    /// Header and body of the index.
    pub fn index(&self) -> Result<(Header, Index), DecodeError> {
        self.envelope.read()
    }
}

impl From<core::ConfigMap> for Document {
    fn from(object: core::ConfigMap) -> Self {
        let core::ConfigMap { metadata, data, binary_data, immutable } = object;
        let binary = binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Self {
            revision: revision(metadata.resource_version.as_deref()),
            labelled: label(&metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            immutable: immutable == Some(true),
            envelope: Envelope { data: data.unwrap_or_default(), binary },
            name: metadata.name.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
        }
    }
}
