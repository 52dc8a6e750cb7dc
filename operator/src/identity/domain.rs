//! The trust domain. It is decided once: what the trust document has is in force. Before the first one is written, the Mesh
//! decides, and without a Mesh it is `cluster.local`.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use weft_config::bootstrap;
use weft_crds::mesh::{self, TRUST_DOMAIN};
use weft_identity::{TrustBundle, TrustDomain};

use super::trust;
use crate::apply::{self, call};
use crate::world::objects::RawMeshObject;
use crate::world::{Document, Mesh};

/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Reads what decides, until that succeeds.
pub async fn in_force(client: &Client) -> TrustDomain {
    loop {
        match read(client).await {
            Ok(domain) => return domain,
            Err(error) => tracing::warn!(%error, "cannot read the trust domain, retrying"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The Mesh as it is now.
pub async fn read_mesh(client: &Client) -> Result<Option<Mesh>, apply::Error> {
    let meshes: Api<RawMeshObject<weft_crds::Mesh>> = Api::all(client.clone());
    Ok(call(meshes.get_opt(mesh::NAME)).await?.map(RawMeshObject::read))
}

async fn read(client: &Client) -> Result<TrustDomain, apply::Error> {
    let documents: Api<ConfigMap> = Api::namespaced(client.clone(), bootstrap::EXPORT_NAMESPACE);
    let document = call(documents.get_opt(bootstrap::TRUST_NAME)).await?.map(Document::from);
    let published = document.as_ref().and_then(trust::read);
    let mesh = read_mesh(client).await?;
    Ok(decide(published.as_ref(), mesh.as_ref()))
}

fn decide(published: Option<&TrustBundle>, mesh: Option<&Mesh>) -> TrustDomain {
    let of_mesh = || mesh?.spec.as_ref().ok()?.trust_domain.as_ref()?.parse().ok();
    let in_force = published.and_then(TrustBundle::only_domain).cloned();
    in_force.or_else(of_mesh).unwrap_or_else(|| TRUST_DOMAIN.parse().expect("the default is valid"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weft_identity::UnixTime;
    use weft_identity::authority::Authority;

    use super::*;

    #[test]
    fn trust_domain_is_that_of_the_document_then_of_the_mesh() {
        let old: TrustDomain = "old.example".parse().unwrap();
        let root = Authority::root(&old, UnixTime::now()).unwrap();
        let published = TrustBundle::new(old, [root.certificate]).unwrap();
        let mesh = |spec: Value| -> Mesh {
            let raw: RawMeshObject<weft_crds::Mesh> =
                serde_json::from_value(json!({"metadata": {"name": "weft"}, "spec": spec})).unwrap();
            raw.read()
        };
        let corp = || Some(mesh(json!({"trustDomain": "corp.example"})));
        for (desc, published, mesh, expected) in [
            ("first installation", None, None, "cluster.local"),
            ("the Mesh decides", None, corp(), "corp.example"),
            ("a Mesh without one", None, Some(mesh(json!({}))), "cluster.local"),
            ("one that the schema would refuse", None, Some(mesh(json!({"trustDomain": "Corp"}))), "cluster.local"),
            ("later, the document decides", Some(&published), corp(), "old.example"),
            ("the Mesh was deleted", Some(&published), None, "old.example"),
        ] {
            assert_eq!(decide(published, mesh.as_ref()).as_str(), expected, "{desc}");
        }
    }
}
