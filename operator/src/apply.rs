//! Writes. Each has a deadline and says in one word how it went; none decides anything.
//!
//! Documents are replaced with the resourceVersion that was decided on, so that of two writers the later one fails.
//! Conditions are applied server-side under a field manager of our own, so that fields of others stay theirs.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use weft_config::{Envelope, bootstrap};
use weft_crds::{MeshCluster, MeshPolicy, MeshRoute, Status, names};

use crate::compile::{Kind, ObjectId};
use crate::render;
use crate::world::{Access, AccessKind, Document, DocumentKind, documents_namespace};

/// One call to the API server. Beyond that it is tried again later.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was decided on is not there any more: look again.
    #[error("it changed meanwhile")]
    Conflict,
    /// What it was about is gone.
    #[error("it is gone")]
    Gone,
    /// No answer in time.
    #[error("the API server did not answer within {} s", CALL_MAX.as_secs())]
    Late,
    /// Another answer.
    #[error("the API server refused: {0}")]
    Refused(String),
}

// === impl Error ===

impl Error {
    /// As a word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Late => "late",
            Self::Refused(_) => "refused",
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => Self::Conflict,
            kube::Error::Api(status) if status.is_not_found() => Self::Gone,
            kube::Error::Api(status) => Self::Refused(status.message),
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Writes a document in place of the one found.
pub async fn document(
    client: &Client,
    kind: DocumentKind,
    namespace: &str,
    envelope: &Envelope,
    found: Option<&Document>,
) -> Result<Document, Error> {
    let api = documents(client, kind);
    let name = kind.name(namespace);
    let object = render::config_map(kind, namespace, envelope, found.map(|found| found.version.as_str()));
    let parameters = PostParams::default();
    let written = match found {
        Some(found) if !found.immutable => call(api.replace(&name, &parameters, &object)).await,
        Some(found) => {
            // What cannot be replaced can only be made anew.
            call(api.delete(&name, &exactly(&found.version))).await?;
            let object = render::config_map(kind, namespace, envelope, None);
            call(api.create(&parameters, &object)).await
        }
        None => call(api.create(&parameters, &object)).await,
    };
    match written {
        // It was there when we looked: look again.
        Err(Error::Gone) if found.is_some() => Err(Error::Conflict),
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
    match call(documents(client, kind).delete(&kind.name(namespace), &exactly(&found.version))).await {
        Ok(_) | Err(Error::Gone) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes who may read a namespace's private document as it should be.
pub async fn access(client: &Client, kind: AccessKind, namespace: &str, found: bool) -> Result<Access, Error> {
    match kind {
        AccessKind::Role => Ok(put::<Role>(client, render::role(namespace), found).await?.into()),
        AccessKind::Binding => {
            // The Role that a binding gives cannot be changed, so a wrong binding is made anew.
            if found {
                delete_access(client, AccessKind::Binding, namespace).await?;
            }
            Ok(put::<RoleBinding>(client, render::role_binding(namespace), false).await?.into())
        }
    }
}

/// Takes away who may read a namespace's private document.
pub async fn delete_access(client: &Client, kind: AccessKind, namespace: &str) -> Result<(), Error> {
    let name = bootstrap::inbound_name(namespace);
    let parameters = DeleteParams::default();
    let deleted = match kind {
        AccessKind::Role => call(inbound::<Role>(client).delete(&name, &parameters)).await.map(|_| ()),
        AccessKind::Binding => call(inbound::<RoleBinding>(client).delete(&name, &parameters)).await.map(|_| ()),
    };
    match deleted {
        Err(Error::Gone) => Ok(()),
        deleted => deleted,
    }
}

/// Writes the conditions of an object, and says its new resourceVersion.
pub async fn status(client: &Client, id: &ObjectId, uid: &str, status: &Status) -> Result<Option<String>, Error> {
    let resource = match id.kind {
        Kind::Route => ApiResource::erase::<MeshRoute>(&()),
        Kind::Cluster => ApiResource::erase::<MeshCluster>(&()),
        Kind::Policy => ApiResource::erase::<MeshPolicy>(&()),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &id.key.namespace, &resource);
    let object = json!({
        "apiVersion": Kind::api_version(),
        "kind": id.kind.word(),
        // Not another object of the same name.
        "metadata": { "name": id.key.name, "namespace": id.key.namespace, "uid": uid },
        "status": status,
    });
    // By force: whoever wrote our conditions by hand loses.
    let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
    let written = call(api.patch_status(&id.key.name, &parameters, &Patch::Apply(&object))).await?;
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

fn exactly(version: &str) -> DeleteParams {
    let preconditions = Preconditions { resource_version: Some(version.to_owned()), uid: None };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_MAX, request).await {
        Ok(answer) => answer.map_err(Error::from),
        Err(_) => Err(Error::Late),
    }
}
