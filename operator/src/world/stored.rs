//! How the World compares the kinds of a namespace, and which changes to them are urgent.

use std::collections::BTreeSet;

use weft_config::Prefix;
use weft_crds::{MeshClusterSpec, MeshPolicySpec, MeshRouteSpec};

use super::namespace::Namespace;
use super::objects::{Account, GatewayRoute, Grant, Key, MeshObject, Pod, Service, Slice};

/// A kind that the World stores by namespace and name.
pub(super) trait Stored: PartialEq + Sized {
    fn key(&self) -> &Key;
    /// The resourceVersion as a number, to ignore watch events older than our own writes; 0 for kinds that the
    /// operator does not write.
    fn revision(&self) -> u64 {
        0
    }
    /// Whether the change from `self` to `next` (`None`: deleted) removes an endpoint that proxies may be using, or
    /// may make a policy apply to a pod.
    fn is_urgent(&self, _next: Option<&Self>) -> bool {
        false
    }
    /// The prefixes of addresses whose documents of pods a change from `before` to `after` affects.
    fn touched_prefixes(_before: Option<&Self>, _after: Option<&Self>) -> BTreeSet<Prefix> {
        BTreeSet::new()
    }
    /// Adds it to the namespace's indices, or removes it.
    fn index(&self, _namespace: &mut Namespace, _is_added: bool) {}
    /// Whether `next` compiles to the same as `self`.
    fn same(&self, next: &Self) -> bool {
        self == next
    }
}

// === impl Stored ===

impl Stored for Service {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Stored for Pod {
    fn key(&self) -> &Key {
        &self.key
    }
    fn is_urgent(&self, next: Option<&Self>) -> bool {
        // A policy that selects by labels must apply before traffic that follows the new labels.
        let relabelled = next.is_some_and(|next| next.labels != self.labels);
        relabelled || self.serving() && !next.is_some_and(Self::serving)
    }
    fn touched_prefixes(before: Option<&Self>, after: Option<&Self>) -> BTreeSet<Prefix> {
        if before.is_some_and(|before| after.is_some_and(|after| before.has_same_identity(after))) {
            return BTreeSet::new();
        }
        before.into_iter().chain(after).flat_map(Self::prefixes).collect()
    }
    fn index(&self, namespace: &mut Namespace, is_added: bool) {
        namespace.index_pod(self, is_added);
        if self.is_meshed() {
            namespace.meshed = if is_added { namespace.meshed + 1 } else { namespace.meshed.saturating_sub(1) };
        }
    }
}

impl Stored for Slice {
    fn key(&self) -> &Key {
        &self.key
    }
    fn is_urgent(&self, next: Option<&Self>) -> bool {
        let ready = |slice: &Self| slice.endpoints.iter().filter(|endpoint| endpoint.ready).count();
        ready(self) > next.map_or(0, ready)
    }
    fn index(&self, namespace: &mut Namespace, is_added: bool) {
        namespace.index_slice(self, is_added);
    }
}

impl Stored for Account {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Stored for Grant {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Stored for GatewayRoute {
    fn key(&self) -> &Key {
        &self.meta.key
    }
    fn revision(&self) -> u64 {
        self.meta.revision
    }
    fn same(&self, next: &Self) -> bool {
        let Self { kind: _, version, meta, spec, services, mistaken, unknown_fields, namespaces, parents } = self;
        *version == next.version
            && (spec, services, mistaken) == (&next.spec, &next.services, &next.mistaken)
            && *unknown_fields == next.unknown_fields
            && (namespaces, parents) == (&next.namespaces, &next.parents)
            && meta.same(&next.meta)
    }
}

macro_rules! stored_mesh_object {
    ($spec:ty) => {
        impl Stored for MeshObject<$spec> {
            fn key(&self) -> &Key {
                &self.meta.key
            }
            fn revision(&self) -> u64 {
                self.meta.revision
            }
            fn same(&self, next: &Self) -> bool {
                // A status that another client removed or changed is written again.
                self.spec == next.spec && self.status == next.status && self.meta.same(&next.meta)
            }
        }
    };
}

stored_mesh_object!(MeshRouteSpec);
stored_mesh_object!(MeshClusterSpec);
stored_mesh_object!(MeshPolicySpec);
