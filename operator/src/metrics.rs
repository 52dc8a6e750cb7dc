//! The operator's metrics: all names, labels and help texts. docs/reference/metrics.md is generated from them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All metrics. Clones share them.
#[derive(Clone)]
#[expect(missing_docs, reason = "the texts are in `register`")]
pub struct Metrics {
    pub objects: Family<KindLabel, Gauge>,
    pub objects_not_ready: Family<NotReadyLabels, Gauge>,
    pub dirty: Gauge,
    pub compile_seconds: Histogram,
    pub writes: Family<WriteLabel, Counter>,
    pub unchanged: Counter,
    pub repairs: Counter,
    pub status_writes: Family<OutcomeLabel, Counter>,
    pub events: Family<OutcomeLabel, Counter>,
    pub leader: Gauge,
    pub watch_restarts: Family<KindLabel, Counter>,
    pub last_sync: Gauge<f64, AtomicU64>,
    pub document_bytes_max: Family<DocumentLabel, Gauge<i64, AtomicI64>>,
    pub webhook_certificate_expiry: Gauge,
    pub certificates_issued: Counter,
    pub certificates_refused: Family<ReasonLabel, Counter>,
    pub issuer_certificate_expiry: Gauge,
    pub issuer_refused: Gauge,
    pub gateway_api_kinds: Family<AvailabilityLabels, Gauge>,
}

/// Labels of a kind of the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AvailabilityLabels {
    /// A kind, plural and in lower case.
    pub kind: &'static str,
    /// `missing`, `unsupported` or `served`.
    pub state: &'static str,
}

/// Label `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// A kind, plural and in lower case.
    pub kind: String,
}

/// Labels of objects that are not ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct NotReadyLabels {
    /// `MeshCluster`, `MeshPolicy`, `MeshRoute` or a route of the Gateway API, such as `HTTPRoute`.
    pub kind: &'static str,
    /// Reason of the condition; `Pending` without one.
    pub reason: String,
}

/// Label `document`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DocumentLabel {
    /// `export`, `inbound`, `pods` or `index`.
    pub document: &'static str,
}

/// Label `outcome`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// `written`, or the reason of the failure.
    pub outcome: &'static str,
}

/// Label `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// One of a closed list.
    pub reason: &'static str,
}

/// Labels of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabel {
    /// `export`, `inbound`, `pods` or `index`.
    pub document: &'static str,
    /// `written`, or the reason of the failure.
    pub outcome: &'static str,
}

// === impl Metrics ===

impl Metrics {
    /// Creates and registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            objects: Family::default(),
            objects_not_ready: Family::default(),
            dirty: Gauge::default(),
            compile_seconds: Histogram::new(exponential_buckets(0.000_05, 4.0, 9)),
            writes: Family::default(),
            unchanged: Counter::default(),
            repairs: Counter::default(),
            status_writes: Family::default(),
            events: Family::default(),
            leader: Gauge::default(),
            watch_restarts: Family::default(),
            last_sync: Gauge::default(),
            document_bytes_max: Family::default(),
            webhook_certificate_expiry: Gauge::default(),
            certificates_issued: Counter::default(),
            certificates_refused: Family::default(),
            issuer_certificate_expiry: Gauge::default(),
            issuer_refused: Gauge::default(),
            gateway_api_kinds: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("weft_operator");
        registry.register("objects", "Watched objects, by kind", metrics.objects.clone());
        registry.register(
            "objects_not_ready",
            "Objects whose condition Ready is not True, or routes of the Gateway API of which another condition is not, by \
             kind and reason",
            metrics.objects_not_ready.clone(),
        );
        registry.register("dirty_scopes", "Namespaces waiting to be compiled or written", metrics.dirty.clone());
        registry.register("compile_duration_seconds", "Time to compile one namespace", metrics.compile_seconds.clone());
        registry.register("document_writes", "Writes of documents, by document and outcome", metrics.writes.clone());
        registry.register("documents_unchanged", "Compiled documents that needed no write", metrics.unchanged.clone());
        registry.register(
            "document_repairs",
            "Documents written again because they were edited, damaged or deleted",
            metrics.repairs.clone(),
        );
        registry.register("status_writes", "Writes of object statuses, by outcome", metrics.status_writes.clone());
        registry.register(
            "events",
            "Kubernetes Events, by outcome: written, repeated, known (exists already), limited (too many about one \
             object), dropped (the queue is full), standby, or the reason of the failure",
            metrics.events.clone(),
        );
        registry.register("leader", "1 while this process is the leader", metrics.leader.clone());
        registry.register(
            "watch_restarts",
            "Watches restarted after a failure, by kind",
            metrics.watch_restarts.clone(),
        );
        registry.register(
            "last_sync_timestamp_seconds",
            "Time when all documents were last up to date, in seconds since 1970",
            metrics.last_sync.clone(),
        );
        registry.register(
            "largest_document_bytes",
            "Size of the largest stored document in bytes",
            metrics.document_bytes_max.clone(),
        );
        registry.register(
            "webhook_certificate_expiration_timestamp_seconds",
            "Expiration time of the webhook's certificate, in seconds since 1970",
            metrics.webhook_certificate_expiry.clone(),
        );
        registry.register(
            "certificates_issued",
            "Certificates issued to workloads by this process",
            metrics.certificates_issued.clone(),
        );
        registry.register(
            "certificates_refused",
            "Requests for a certificate that were refused, by reason: no-token, token (not accepted by the API server), \
             audience, not-an-account, not-a-pod, too-large, request (no valid request), rate-limit, connections (too \
             many), busy, review (the API server cannot be asked), no-issuer",
            metrics.certificates_refused.clone(),
        );
        registry.register(
            "issuer_certificate_expiration_timestamp_seconds",
            "Expiration time of the issuer in use, or of a certificate above it, in seconds since 1970",
            metrics.issuer_certificate_expiry.clone(),
        );
        registry.register(
            "issuer_refused",
            "1 while the Secret weft-issuer cannot be used or does not exist; the last good issuer is in use, if any",
            metrics.issuer_refused.clone(),
        );
        registry.register(
            "gateway_api_kinds",
            "1 for the state of each kind of the Gateway API: missing (not installed), unsupported (its \
             CustomResourceDefinition serves no version that Weft reads) or served",
            metrics.gateway_api_kinds.clone(),
        );
        metrics
    }

    /// Sets how many objects are not ready; series that are not among them end.
    pub fn set_not_ready(&self, counts: &BTreeMap<NotReadyLabels, i64>, before: &BTreeMap<NotReadyLabels, i64>) {
        for labels in before.keys().filter(|labels| !counts.contains_key(labels)) {
            self.objects_not_ready.remove(labels);
        }
        for (labels, count) in counts {
            self.objects_not_ready.get_or_create(labels).set(*count);
        }
    }

    /// Counts the write of a document.
    pub fn wrote(&self, document: &'static str, outcome: &'static str) {
        self.writes.get_or_create(&WriteLabel { document, outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weft_runtime::reference::{check, metrics_table};

    use super::*;

    #[test]
    fn page_of_metrics_lists_those_of_the_operator() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (kind, outcome) = (KindLabel { kind: "services".to_owned() }, OutcomeLabel { outcome: "written" });
        drop(metrics.objects.get_or_create(&kind));
        drop(metrics.watch_restarts.get_or_create(&kind));
        drop(metrics.document_bytes_max.get_or_create(&DocumentLabel { document: "export" }));
        drop(metrics.status_writes.get_or_create(&outcome));
        drop(metrics.events.get_or_create(&outcome));
        drop(
            metrics
                .objects_not_ready
                .get_or_create(&NotReadyLabels { kind: "MeshRoute", reason: "Pending".to_owned() }),
        );
        drop(metrics.gateway_api_kinds.get_or_create(&AvailabilityLabels { kind: "httproutes", state: "served" }));
        metrics.wrote("export", "written");
        drop(metrics.certificates_refused.get_or_create(&ReasonLabel { reason: "token" }));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
        check(&page, "operator", &metrics_table(&registry));
    }
}
