//! What the injector counts. Labels are bounded: outcomes and reasons are closed lists.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Seconds. The API server waits for a few; a review takes well under one thousandth.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    /// Answered reviews.
    pub reviews: Family<Review, Counter>,
    /// How long an answer took.
    pub duration: Histogram,
    /// When the certificate in use expires, in seconds since 1970.
    pub certificate_expiry: Gauge,
}

/// What came of a review.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Review {
    /// `injected`, `skipped`, `refused` or `malformed`.
    pub outcome: &'static str,
    /// Code of the skip or the refusal; empty where a proxy was added.
    pub reason: &'static str,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let duration = Histogram::new(BUCKETS);
        Self { reviews: Family::default(), duration, certificate_expiry: Gauge::default() }
    }
}

impl Metrics {
    /// A registry that shows them.
    pub fn registry(&self) -> Arc<Registry> {
        let mut registry = Registry::with_prefix("weft_injector");
        let Self { reviews, duration, certificate_expiry } = self.clone();
        registry.register("reviews", "Answered reviews, by outcome and reason", reviews);
        registry.register_with_unit("review_duration", "How long an answer took", Unit::Seconds, duration);
        let help = "When the certificate in use expires, in seconds since 1970";
        registry.register("certificate_expiry_timestamp_seconds", help, certificate_expiry);
        Arc::new(registry)
    }
}
