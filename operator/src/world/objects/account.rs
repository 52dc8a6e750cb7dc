//! ServiceAccounts.

use k8s_openapi::api::core::v1 as core;

use super::key::Key;
use super::metadata::key;

/// A ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Namespace and name.
    pub key: Key,
    /// UID, for Events about it.
    pub uid: String,
}

// === impl Account ===

impl From<kube::core::PartialObjectMeta<core::ServiceAccount>> for Account {
    fn from(object: kube::core::PartialObjectMeta<core::ServiceAccount>) -> Self {
        Self { key: key(&object.metadata), uid: object.metadata.uid.unwrap_or_default() }
    }
}
