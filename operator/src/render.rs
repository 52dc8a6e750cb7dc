//! From a document's body to its ConfigMap: generations, size check, and the RBAC objects around it. Pure; the time
//! is a parameter.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::ObjectMeta;
use serde::Serialize;
use weft_config::{
    BODY_BYTES_MAX, Envelope, Export, Header, Inbound, Index, OBJECT_BYTES_MAX, Pods, Written, bootstrap,
};
use weft_crds::names;
use weft_identity::UnixTime;

use crate::signing::Signing;
use crate::world::{Document, DocumentKind, documents_namespace};

/// The body of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "one variant for each kind of document")]
pub enum Body {
    Export(Export),
    Inbound(Inbound),
    Pods(Pods),
    Index(Index),
}

/// A document as it was last written, or as it was found at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its body.
    pub body: Body,
    /// Its header.
    pub written: Written,
    /// The encoded header and body.
    pub envelope: Envelope,
}

/// Who writes, and when.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// Number of times that the lease had changed hands.
    pub epoch: u64,
    /// Time since 1970.
    pub now_ms: u64,
    /// What signs. None: there is no issuer yet, and documents are not signed.
    pub signing: Option<&'a Signing>,
}

/// The action for a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is up to date.
    Keep,
    /// Write it.
    Write {
        /// The document to write.
        next: Box<Published>,
        /// The desired document did not change: the one in the cluster was edited, damaged or deleted.
        repair: bool,
    },
    /// It is too large; the last good one stays.
    TooLarge {
        /// Size, in bytes.
        bytes: usize,
        /// Maximum size, in bytes.
        limit: usize,
    },
}

// === impl Body ===

impl Body {
    /// Its kind.
    pub fn kind(&self) -> DocumentKind {
        match self {
            Self::Export(_) => DocumentKind::Export,
            Self::Inbound(_) => DocumentKind::Inbound,
            Self::Pods(_) => DocumentKind::Pods,
            Self::Index(_) => DocumentKind::Index,
        }
    }

    /// Whether the users' configuration is the same: everything but endpoints, zones, labels and addresses of pods.
    fn same_intent(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Export(a), Self::Export(b)) => without_endpoints(a.clone()) == without_endpoints(b.clone()),
            (Self::Inbound(a), Self::Inbound(b)) => without_pods(a.clone()) == without_pods(b.clone()),
            (Self::Pods(_), Self::Pods(_)) => true,
            _ => self == other,
        }
    }

    fn bytes(&self) -> usize {
        fn length<T: Serialize>(body: &T) -> usize {
            serde_json::to_vec(body).map_or(usize::MAX, |bytes| bytes.len())
        }
        match self {
            Self::Export(body) => length(body),
            Self::Inbound(body) => length(body),
            Self::Pods(body) => length(body),
            Self::Index(body) => length(body),
        }
    }

    fn envelope(&self, written: Written, sign: impl FnOnce(&[u8]) -> String) -> Envelope {
        let name = self.kind().name(&written.namespace);
        match self {
            Self::Export(body) => Envelope::write_signed(written, body, &name, sign),
            Self::Inbound(body) => Envelope::write_signed(written, body, &name, sign),
            Self::Pods(body) => Envelope::write_signed(written, body, &name, sign),
            Self::Index(body) => Envelope::write_signed(written, body, &name, sign),
        }
    }
}

fn without_endpoints(mut export: Export) -> Export {
    export.services.iter_mut().flat_map(|service| &mut service.ports).for_each(|port| port.endpoints.clear());
    export
}

fn without_pods(mut inbound: Inbound) -> Inbound {
    inbound.zones.clear();
    inbound.relabelled.clear();
    inbound
}

// === impl Published ===

impl Published {
    /// Adopts a document that an earlier process wrote, if it is intact.
    pub fn adopt(kind: DocumentKind, namespace: &str, document: &Document) -> Option<Self> {
        let (header, body) = match kind {
            DocumentKind::Export => document.export().map(|(header, body)| (header, Body::Export(body))),
            DocumentKind::Inbound => document.inbound().map(|(header, body)| (header, Body::Inbound(body))),
            DocumentKind::Pods => document.pods().map(|(header, body)| (header, Body::Pods(body))),
            DocumentKind::Index => document.index().map(|(header, body)| (header, Body::Index(body))),
        }
        .ok()?;
        let signature = header.signature;
        let written = Written {
            namespace: header.namespace,
            generation: header.generation,
            config_generation: header.config_generation,
            requires: header.requires,
            epoch: header.epoch,
        };
        // Only if this version would have written exactly the same: no other keys, no other encoding.
        let envelope = body.envelope(written.clone(), |_| signature);
        (written.namespace == namespace && envelope == document.envelope).then_some(Self { body, written, envelope })
    }
}

/// The action for a document. `published` is the one last written or adopted, `found` the one in the cluster,
/// `requires` the generations of other exports to wait for.
pub fn plan(
    namespace: &str,
    body: Body,
    requires: BTreeMap<String, u64>,
    published: Option<&Published>,
    found: Option<&Document>,
    writer: &Writer<'_>,
) -> Plan {
    let Writer { epoch, now_ms, signing } = *writer;
    let unchanged = published.is_some_and(|published| {
        // Generations of other namespaces change with their pods and cause no write. Only the set of required
        // namespaces counts: the references existed at the generation that the header has.
        published.body == body && published.written.requires.keys().eq(requires.keys())
    });
    let intact = published.is_some_and(|published| {
        found.is_some_and(|found| found.labelled && !found.immutable && found.envelope == published.envelope)
    });
    let header = found.and_then(Document::header);
    if unchanged && intact && is_signed(body.kind(), namespace, header.as_ref(), writer) {
        return Plan::Keep;
    }
    let body_bytes = body.bytes();
    if body_bytes > BODY_BYTES_MAX {
        return Plan::TooLarge { bytes: body_bytes, limit: BODY_BYTES_MAX };
    }
    let previous =
        |of: fn(&Written) -> u64, stored: Option<u64>| published.map_or(0, |p| of(&p.written)).max(stored.unwrap_or(0));
    let generation = next_generation(previous(|w| w.generation, header.as_ref().map(|h| h.generation)), now_ms);
    let config_generation = match published {
        Some(published) if published.body.same_intent(&body) => published.written.config_generation,
        _ => next_generation(previous(|w| w.config_generation, header.as_ref().map(|h| h.config_generation)), now_ms),
    };
    let written = Written { namespace: namespace.to_owned(), generation, config_generation, requires, epoch };
    let sign = |message: &[u8]| signing.map(|signing| signing.sign(message)).unwrap_or_default();
    let envelope = body.envelope(written.clone(), sign);
    let bytes = envelope.stored_bytes();
    if bytes > OBJECT_BYTES_MAX {
        return Plan::TooLarge { bytes, limit: OBJECT_BYTES_MAX };
    }
    Plan::Write { next: Box::new(Published { body, written, envelope }), repair: unchanged && !intact }
}

/// Whether a document needs no other signature.
fn is_signed(kind: DocumentKind, namespace: &str, header: Option<&Header>, writer: &Writer<'_>) -> bool {
    let now = UnixTime::since_unix_epoch(Duration::from_millis(writer.now_ms));
    writer
        .signing
        .is_none_or(|signing| header.is_some_and(|header| signing.has_signed(&kind.name(namespace), header, now)))
}

/// A generation above the previous one, and above that of a document which was deleted meanwhile. An edited header may
/// have any generation; one more than a century ahead of the clock is ignored.
pub(crate) fn next_generation(previous: u64, now_ms: u64) -> u64 {
    let plausible = if previous < now_ms.saturating_add(CENTURY_MS) { previous } else { 0 };
    now_ms.max(plausible.saturating_add(1))
}

const CENTURY_MS: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// The ConfigMap of a document.
pub fn config_map(kind: DocumentKind, namespace: &str, envelope: &Envelope) -> ConfigMap {
    let Envelope { data, binary } = envelope.clone();
    ConfigMap {
        metadata: metadata(documents_namespace(kind), &kind.name(namespace)),
        data: Some(data),
        binary_data: Some(binary.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect()),
        immutable: None,
    }
}

/// The Role to read a namespace's private document, and no other.
pub fn role(namespace: &str) -> Role {
    let name = bootstrap::inbound_name(namespace);
    Role {
        metadata: metadata(bootstrap::INBOUND_NAMESPACE, &name),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["configmaps".into()]),
            resource_names: Some(vec![name]),
            verbs: vec!["get".into(), "list".into(), "watch".into()],
            ..PolicyRule::default()
        }]),
    }
}

/// Binds the Role of a namespace to its service accounts.
pub fn role_binding(namespace: &str) -> RoleBinding {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let name = bootstrap::inbound_name(namespace);
    RoleBinding {
        metadata: metadata(bootstrap::INBOUND_NAMESPACE, &name),
        role_ref: RoleRef { api_group: RBAC.into(), kind: "Role".into(), name },
        subjects: Some(vec![Subject {
            api_group: Some(RBAC.into()),
            kind: "Group".into(),
            name: format!("system:serviceaccounts:{namespace}"),
            namespace: None,
        }]),
    }
}

fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        labels: Some(BTreeMap::from([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned())])),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
