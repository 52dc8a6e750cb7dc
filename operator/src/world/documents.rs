//! The operator's own objects as they are in the cluster: documents, and the roles that allow to read them.

use std::collections::BTreeSet;

use super::event::Change;
use super::objects::{Access, AccessKind, Document, DocumentKind, Key, documents_namespace};
use super::{Touched, World};

// === impl World ===

impl World {
    /// A document as it is in the cluster.
    pub fn document(&self, kind: DocumentKind, namespace: &str) -> Option<&Document> {
        self.documents.get(&(kind, namespace.to_owned()))
    }

    /// All documents as they are in the cluster, with the namespace that their name refers to.
    pub fn documents(&self) -> impl Iterator<Item = (DocumentKind, &str, &Document)> {
        self.documents.iter().map(|((kind, namespace), document)| (*kind, namespace.as_str(), document))
    }

    /// The Role or RoleBinding for the inbound document of a namespace, as it is in the cluster.
    pub fn access(&self, kind: AccessKind, namespace: &str) -> Option<&Access> {
        self.access.get(&(kind, namespace.to_owned()))
    }

    /// `kind` is the kind of the watch: the watch of exports includes the documents of pods and the index.
    pub(super) fn observe_document(&mut self, kind: DocumentKind, change: Change<Document>, touched: &mut Touched) {
        match change {
            Change::Apply(document) => {
                // Other ConfigMaps in the namespace are ignored.
                let Some(slot) = kind.slot(&document.name) else { return };
                let current = self.documents.get(&slot);
                if current.is_some_and(|current| current.revision > document.revision) || current == Some(&document) {
                    return;
                }
                touched.scopes.insert(slot.1.clone());
                self.documents.insert(slot, document);
            }
            Change::Delete(key) => {
                if let Some(slot) = kind.slot(&key.name)
                    && self.documents.remove(&slot).is_some()
                {
                    touched.scopes.insert(slot.1);
                }
            }
            Change::Reset(documents) => {
                let listed: BTreeSet<&str> = documents.iter().map(|document| document.name.as_str()).collect();
                let removed: Vec<String> = self
                    .documents
                    .iter()
                    .filter(|((other, _), document)| {
                        documents_namespace(*other) == documents_namespace(kind)
                            && !listed.contains(document.name.as_str())
                    })
                    .map(|(_, document)| document.name.clone())
                    .collect();
                for name in removed {
                    self.observe_document(kind, Change::Delete(Key::new("", name)), touched);
                }
                for document in documents {
                    self.observe_document(kind, Change::Apply(document), touched);
                }
            }
        }
    }

    pub(super) fn observe_access(&mut self, kind: AccessKind, change: Change<Access>, touched: &mut Touched) {
        match change {
            Change::Apply(access) => {
                let Some(namespace) = DocumentKind::Inbound.namespace_of(&access.name) else { return };
                let key = (kind, namespace.clone());
                if self.access.get(&key) != Some(&access) {
                    self.access.insert(key, access);
                    touched.scopes.insert(namespace);
                }
            }
            Change::Delete(key) => {
                if let Some(namespace) = DocumentKind::Inbound.namespace_of(&key.name)
                    && self.access.remove(&(kind, namespace.clone())).is_some()
                {
                    touched.scopes.insert(namespace);
                }
            }
            Change::Reset(all) => {
                let listed: BTreeSet<&str> = all.iter().map(|access| access.name.as_str()).collect();
                let removed: Vec<String> = self
                    .access
                    .iter()
                    .filter(|((other, _), access)| *other == kind && !listed.contains(access.name.as_str()))
                    .map(|(_, access)| access.name.clone())
                    .collect();
                for name in removed {
                    self.observe_access(kind, Change::Delete(Key::new("", name)), touched);
                }
                for access in all {
                    self.observe_access(kind, Change::Apply(access), touched);
                }
            }
        }
    }
}
