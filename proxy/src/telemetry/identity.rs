//! The metrics of the pod's identity.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weft_identity::UnixTime;

/// The metrics of identity, which exist only where there is one. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdentityMetrics {
    expiry: Gauge,
    renewals: Family<OutcomeLabel, Counter>,
    refused_bundles: Family<ReasonLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

// === impl IdentityMetrics ===

impl IdentityMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { expiry, renewals, refused_bundles } = metrics.clone();
        let registry = registry.sub_registry_with_prefix("weft_identity");
        let help = "Expiration time of this pod's certificate, in seconds since 1970; 0 before the first one";
        registry.register("expiry_timestamp_seconds", help, expiry);
        registry.register("renewals", "Requests for a certificate of this pod, by outcome", renewals);
        let help = "Versions of the trust bundle that were refused, by reason";
        registry.register("bundles_refused", help, refused_bundles);
        metrics
    }

    /// A certificate was issued.
    pub(crate) fn issued(&self, not_after: UnixTime) {
        self.expiry.set(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX));
        self.count("issued");
    }

    /// None was issued.
    pub(crate) fn failed(&self, outcome: &'static str) {
        self.count(outcome);
    }

    fn count(&self, outcome: &'static str) {
        self.renewals.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A bundle was refused.
    pub(crate) fn refuse_bundle(&self, reason: &'static str) {
        self.refused_bundles.get_or_create(&ReasonLabel { reason }).inc();
    }
}
