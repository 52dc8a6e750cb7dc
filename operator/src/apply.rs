//! Writes to the API server. Each has a timeout and an outcome for metrics; this module makes no decisions.
//!
//! Documents are replaced with the resourceVersion that the decision was based on, so that of two concurrent writers
//! one fails. So is the status of the Gateway API's routes. Conditions of other kinds use server-side apply with a field
//! manager of their own, so that the fields of other managers are kept.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_config::bootstrap;
use weft_crds::{Status, names};

use crate::render;
use crate::world::{
    Access, AccessKind, Document, DocumentKind, GatewayRoute, Meta, ObjectId, ParentStatus, documents_namespace,
};

/// Timeout of one call to the API server; then it is retried later.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object changed since it was read: read it again.
    #[error("it changed since it was read")]
    Conflict,
    /// The object does not exist (any more).
    #[error("it does not exist any more")]
    NotFound,
    /// No response in time.
    #[error("the API server did not respond within {} s", CALL_MAX.as_secs())]
    Timeout,
    /// Any other error.
    #[error("the API server returned an error: {0}")]
    Refused(String),
}

// === impl Error ===

impl Error {
    /// Value of the metric label `outcome`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotFound => "gone",
            Self::Timeout => "late",
            Self::Refused(_) => "refused",
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => Self::Conflict,
            kube::Error::Api(status) if status.is_not_found() => Self::NotFound,
            kube::Error::Api(status) => Self::Refused(status.message),
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Creates a document's ConfigMap, or replaces the one found.
pub async fn document(client: &Client, mut object: ConfigMap, found: Option<&Document>) -> Result<Document, Error> {
    let api = Api::namespaced(client.clone(), object.metadata.namespace.as_deref().unwrap_or_default());
    let name = object.metadata.name.clone().unwrap_or_default();
    let parameters = PostParams::default();
    let written = match found {
        Some(found) if !found.immutable => {
            object.metadata.resource_version = Some(found.version.clone());
            call(api.replace(&name, &parameters, &object)).await
        }
        Some(found) => {
            // An immutable ConfigMap must be deleted and created again.
            call(api.delete(&name, &if_version(&found.version))).await?;
            call(api.create(&parameters, &object)).await
        }
        None => call(api.create(&parameters, &object)).await,
    };
    match written {
        // It was deleted since it was read: read it again.
        Err(Error::NotFound) if found.is_some() => Err(Error::Conflict),
        written => Ok(written?.into()),
    }
}

/// Reads a document as it is now.
pub async fn read_document(client: &Client, kind: DocumentKind, namespace: &str) -> Result<Option<Document>, Error> {
    Ok(call(documents(client, kind).get_opt(&kind.name(namespace))).await?.map(Document::from))
}

/// Deletes a document, if it is still the one found.
pub async fn delete_document(
    client: &Client,
    kind: DocumentKind,
    namespace: &str,
    found: &Document,
) -> Result<(), Error> {
    match call(documents(client, kind).delete(&kind.name(namespace), &if_version(&found.version))).await {
        Ok(_) | Err(Error::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates or replaces the Role or RoleBinding for a namespace's private document.
pub async fn access(client: &Client, kind: AccessKind, namespace: &str, found: bool) -> Result<Access, Error> {
    match kind {
        AccessKind::Role => Ok(put::<Role>(client, render::role(namespace), found).await?.into()),
        AccessKind::Binding => {
            // The roleRef of a binding is immutable, so a wrong binding is deleted and created again.
            if found {
                delete_access(client, AccessKind::Binding, namespace).await?;
            }
            Ok(put::<RoleBinding>(client, render::role_binding(namespace), false).await?.into())
        }
    }
}

/// Deletes the Role or RoleBinding for a namespace's private document.
pub async fn delete_access(client: &Client, kind: AccessKind, namespace: &str) -> Result<(), Error> {
    let name = bootstrap::inbound_name(namespace);
    let parameters = DeleteParams::default();
    let deleted = match kind {
        AccessKind::Role => call(inbound::<Role>(client).delete(&name, &parameters)).await.map(|_| ()),
        AccessKind::Binding => call(inbound::<RoleBinding>(client).delete(&name, &parameters)).await.map(|_| ()),
    };
    match deleted {
        Err(Error::NotFound) => Ok(()),
        deleted => deleted,
    }
}

/// Writes the status of an object, and returns its new resourceVersion.
pub async fn status(client: &Client, id: &ObjectId, uid: &str, status: &Status) -> Result<Option<String>, Error> {
    let resource = id.kind.resource();
    let api: Api<DynamicObject> = match id.key.namespace.as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    // The uid prevents a write to a new object of the same name.
    let mut metadata = json!({ "name": id.key.name, "uid": uid });
    if !id.key.namespace.is_empty() {
        metadata["namespace"] = json!(id.key.namespace);
    }
    let object = json!({
        "apiVersion": resource.api_version,
        "kind": id.kind.as_str(),
        "metadata": metadata,
        "status": status,
    });
    // With force: conditions that another manager took over are taken back.
    let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
    let written = call(api.patch_status(&id.key.name, &parameters, &Patch::Apply(&object))).await?;
    Ok(written.metadata.resource_version)
}

/// Writes `status.parents` of a route of the Gateway API, if the route is still as it was read, and returns its new
/// resourceVersion: the list has entries of other controllers too.
pub async fn parents(client: &Client, route: &GatewayRoute, parents: &[ParentStatus]) -> Result<Option<String>, Error> {
    let GatewayRoute { kind, version, meta: Meta { key, revision, .. }, .. } = route;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &kind.resource_in(version));
    let parents: Vec<Value> = parents.iter().map(ParentStatus::to_json).collect();
    let patch = json!({
        "metadata": { "resourceVersion": revision.to_string() },
        "status": { "parents": parents },
    });
    let parameters = PatchParams { field_manager: Some(names::OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
    let written = call(api.patch_status(&key.name, &parameters, &Patch::Merge(&patch))).await?;
    Ok(written.metadata.resource_version)
}

async fn put<K>(client: &Client, object: K, found: bool) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
{
    let api = inbound::<K>(client);
    let name = object.meta().name.clone().unwrap_or_default();
    if found {
        call(api.replace(&name, &PostParams::default(), &object)).await
    } else {
        call(api.create(&PostParams::default(), &object)).await
    }
}

fn documents(client: &Client, kind: DocumentKind) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), documents_namespace(kind))
}

fn inbound<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(client: &Client) -> Api<K> {
    Api::namespaced(client.clone(), bootstrap::INBOUND_NAMESPACE)
}

fn if_version(version: &str) -> DeleteParams {
    let preconditions = Preconditions { resource_version: Some(version.to_owned()), uid: None };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// Sends a request with the timeout.
pub(crate) async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_MAX, request).await {
        Ok(answer) => answer.map_err(Error::from),
        Err(_) => Err(Error::Timeout),
    }
}
