//! The objects of one namespace.

use std::collections::{BTreeMap, HashMap};

use super::objects::{Account, Cluster, Grant, NamespaceMeta, Pod, Policy, Route, Service, Slice};

/// The objects of one namespace, by name.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "one map for each kind")]
pub struct Namespace {
    /// The Namespace object; `None` if it does not exist (any more).
    pub meta: Option<NamespaceMeta>,
    pub services: BTreeMap<String, Service>,
    pub pods: BTreeMap<String, Pod>,
    pub slices: BTreeMap<String, Slice>,
    pub accounts: BTreeMap<String, Account>,
    pub routes: BTreeMap<String, Route>,
    pub clusters: BTreeMap<String, Cluster>,
    pub policies: BTreeMap<String, Policy>,
    pub grants: BTreeMap<String, Grant>,
}

// === impl Namespace ===

impl Namespace {
    /// EndpointSlices by Service.
    pub fn slices_by_service(&self) -> HashMap<&str, Vec<&Slice>> {
        let mut slices: HashMap<&str, Vec<&Slice>> = HashMap::new();
        for slice in self.slices.values() {
            slices.entry(&slice.service).or_default().push(slice);
        }
        slices
    }

    /// The pod of this name, if it has this UID (and is not a successor of the same name).
    pub fn pod(&self, name: &str, uid: &str) -> Option<&Pod> {
        self.pods.get(name).filter(|pod| pod.uid == uid)
    }

    /// Whether it is in the mesh by itself: it has the injection label, a Weft object, or a pod with a proxy.
    pub(super) fn is_enrolled(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.enabled)
            || !(self.routes.is_empty() && self.clusters.is_empty() && self.policies.is_empty())
            || self.pods.values().any(|pod| pod.has_proxy)
    }

    /// Namespaces that its routes reference.
    pub(super) fn referenced_namespaces(&self) -> impl Iterator<Item = &str> {
        self.routes.values().filter_map(|route| route.spec.as_ref().ok()).flat_map(|spec| {
            let parents = spec.parent_refs.iter().filter_map(|parent| parent.namespace.as_deref());
            let backends = spec.backend_refs().filter_map(|backend| backend.namespace.as_deref());
            let filters = spec.http.iter().flat_map(|rule| &rule.filters);
            let mirrors = filters.filter_map(|filter| filter.request_mirror.as_ref()?.backend_ref.namespace.as_deref());
            parents.chain(backends).chain(mirrors)
        })
    }
}
