//! The Roles and RoleBindings that allow proxies to read a document.

use k8s_openapi::api::rbac::v1 as rbac;
use serde_json::Value;
use weft_crds::names;

use super::metadata::label;

/// Kinds of RBAC objects that allow proxies to read a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessKind {
    /// A Role.
    Role,
    /// A RoleBinding.
    Binding,
}

/// A Role or RoleBinding of Weft as it is in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Name.
    pub name: String,
    /// Has the managed-by label of Weft.
    pub labelled: bool,
    /// `rules`, or `roleRef` and `subjects`.
    pub content: Value,
}

// === impl Access ===

impl From<rbac::Role> for Access {
    fn from(role: rbac::Role) -> Self {
        Self {
            labelled: label(&role.metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            content: serde_json::json!({ "rules": role.rules }),
            name: role.metadata.name.unwrap_or_default(),
        }
    }
}

impl From<rbac::RoleBinding> for Access {
    fn from(binding: rbac::RoleBinding) -> Self {
        Self {
            labelled: label(&binding.metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            content: serde_json::json!({ "roleRef": binding.role_ref, "subjects": binding.subjects }),
            name: binding.metadata.name.unwrap_or_default(),
        }
    }
}
