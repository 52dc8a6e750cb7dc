//! What holds for the whole cluster: the Mesh, and the trust document.

use weft_config::bootstrap;
use weft_crds::mesh::Mode;
use weft_identity::TrustBundle;

use super::event::Change;
use super::objects::{Document, Mesh};
use super::{Touched, World};

/// The scope that is touched when the status of a Mesh may change: that of the index.
const SCOPE: &str = "";

// === impl World ===

impl World {
    /// The default mode of mutual TLS. A Mesh that does not parse changes nothing.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// All objects of the kind Mesh. One counts, the others get a condition.
    pub fn meshes(&self) -> impl Iterator<Item = &Mesh> {
        self.meshes.values()
    }

    /// The roots that proxies trust, from the last intact trust document.
    pub fn trust(&self) -> Option<&TrustBundle> {
        self.trust.as_ref()
    }

    pub(super) fn observe_mesh(&mut self, change: Change<Mesh>, touched: &mut Touched) {
        match change {
            Change::Apply(mesh) => {
                let name = &mesh.meta.key.name;
                let current = self.meshes.get(name);
                if current.is_some_and(|current| current.meta.revision > mesh.meta.revision) {
                    return;
                }
                self.meshes.insert(name.clone(), mesh);
            }
            Change::Delete(key) => drop(self.meshes.remove(&key.name)),
            Change::Reset(meshes) => {
                self.meshes = meshes.into_iter().map(|mesh| (mesh.meta.key.name.clone(), mesh)).collect();
            }
        }
        touched.scopes.insert(SCOPE.to_owned());
        let mode = match self.meshes.get(weft_crds::mesh::NAME).map(|mesh| &mesh.spec) {
            Some(Ok(spec)) => spec.mode(),
            Some(Err(_)) => self.mode,
            None => Mode::default(),
        };
        if mode != std::mem::replace(&mut self.mode, mode) {
            touched.scopes.extend(self.mesh());
        }
    }

    /// Takes the trust document from the watch of the namespace that it shares with other documents.
    pub(super) fn observe_trust(&mut self, change: &Change<Document>, touched: &mut Touched) {
        let is_trust = |document: &&Document| document.name == bootstrap::TRUST_NAME;
        let found = match change {
            Change::Apply(document) => Some(document).filter(is_trust),
            Change::Reset(documents) => documents.iter().find(is_trust),
            Change::Delete(_) => None,
        };
        // One that is damaged or deleted changes nothing: it is written again.
        let Some((_, bundle)) = found.and_then(|document| document.envelope.read().ok()) else { return };
        if self.trust.as_ref() != Some(&bundle) {
            self.trust = Some(bundle);
            touched.scopes.insert(SCOPE.to_owned());
        }
    }
}
