//! The metrics of configuration documents.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

/// The metrics of configuration. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ConfigMetrics {
    pub(crate) rejections: Counter,
    pub(crate) stale: Gauge,
    pub(crate) source_errors: Counter,
    documents: Arc<Mutex<BTreeMap<String, DocumentMetrics>>>,
}

/// The state of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DocumentMetrics {
    /// The generation in use. None: no version was ever in use.
    pub(crate) generation: Option<u64>,
    /// Since when it is not known that the version in use is the newest. None: it is the newest.
    pub(crate) unconfirmed_since: Option<Instant>,
}

/// Encodes the metrics of each document.
#[derive(Debug)]
struct Documents(ConfigMetrics);

// === impl ConfigMetrics ===

impl ConfigMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            rejections: Counter::default(),
            stale: Gauge::default(),
            source_errors: Counter::default(),
            documents: Arc::default(),
        };
        let Self { rejections, stale, source_errors, documents: _ } = metrics.clone();
        let registry = registry.sub_registry_with_prefix("weft_config");
        registry.register("rejections", "Versions of configuration documents that were rejected", rejections);
        registry.register("documents_stale", "Configuration documents whose newest version is not in use", stale);
        registry.register("source_errors", "Failed reads of the configuration source", source_errors);
        registry.register_collector(Box::new(Documents(metrics.clone())));
        metrics
    }

    /// Replaces the state of all documents.
    pub(crate) fn set_documents(&self, documents: impl Iterator<Item = (String, DocumentMetrics)>) {
        *self.lock() = documents.collect();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, DocumentMetrics>> {
        // The only critical sections assign and read: the map is usable after a panic.
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Documents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let documents = self.0.lock().clone();
        let help = "Generation in use of each configuration document";
        let mut family = encoder.encode_descriptor("generation", help, None, MetricType::Gauge)?;
        for (document, state) in &documents {
            let Some(generation) = state.generation else { continue };
            ConstGauge::new(generation).encode(family.encode_family(&[("document", document.as_str())])?)?;
        }
        let help = "Time since the version in use was last known to be the newest, in seconds: 0 while it is, grows \
                    while the API server cannot be reached or the newest version is rejected";
        let mut family = encoder.encode_descriptor("age_seconds", help, None, MetricType::Gauge)?;
        for (document, state) in &documents {
            let age = state.unconfirmed_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            ConstGauge::new(age).encode(family.encode_family(&[("document", document.as_str())])?)?;
        }
        Ok(())
    }
}
