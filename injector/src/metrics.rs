//! The injector's metrics. Label values are bounded: outcomes and reasons are closed lists. docs/reference/metrics.md is
//! generated from them.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Histogram buckets in seconds. A review takes well under a millisecond; the API server's timeout is a few seconds.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// The injector's metrics. Clones share their values.
#[derive(Clone)]
pub struct Metrics {
    /// Answered reviews of pods.
    pub reviews: Family<Review, Counter>,
    /// Answered reviews of workloads and namespaces.
    pub warning_reviews: Family<WarningReview, Counter>,
    /// Duration of reviews.
    pub duration: Histogram,
    /// Expiry of the webhook's certificate, in seconds since 1970.
    pub certificate_expiry: Gauge,
}

/// Labels of a review.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Review {
    /// `injected`, `refreshed`, `skipped`, `refused` or `malformed`.
    pub outcome: &'static str,
    /// Code of the skip or refusal; empty for the other outcomes.
    pub reason: &'static str,
}

/// Labels of a review of a workload or namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WarningReview {
    /// `warned`, `clean`, `unknown` (the namespace could not be read) or `malformed`.
    pub outcome: &'static str,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let duration = Histogram::new(BUCKETS);
        Self {
            reviews: Family::default(),
            warning_reviews: Family::default(),
            duration,
            certificate_expiry: Gauge::default(),
        }
    }
}

impl Metrics {
    /// A registry with all of them, and with those of the process.
    pub fn registry(&self) -> Arc<Registry> {
        let mut registry = weft_runtime::metrics::registry("injector", env!("CARGO_PKG_VERSION"));
        self.register(&mut registry);
        Arc::new(registry)
    }

    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weft_injector");
        let Self { reviews, warning_reviews, duration, certificate_expiry } = self.clone();
        registry.register("reviews", "Admission reviews of pods answered, by outcome and reason", reviews);
        let help = "Admission reviews of workloads and namespaces answered, by whether their author was warned";
        registry.register("warning_reviews", help, warning_reviews);
        registry.register_with_unit("review_duration", "Duration of admission reviews", Unit::Seconds, duration);
        let help = "Expiration time of the webhook's certificate, in seconds since 1970";
        registry.register("webhook_certificate_expiration_timestamp_seconds", help, certificate_expiry);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weft_runtime::reference::{check, metrics_table};

    use super::*;

    #[test]
    fn page_of_metrics_lists_those_of_the_injector() {
        let metrics = Metrics::default();
        drop(metrics.reviews.get_or_create(&Review { outcome: "injected", reason: "" }));
        drop(metrics.warning_reviews.get_or_create(&WarningReview { outcome: "warned" }));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        check(&page, "injector", &metrics_table(&registry));
    }
}
