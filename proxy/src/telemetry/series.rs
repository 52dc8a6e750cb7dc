//! The series of one metric, by label set. Like `Family` of prometheus-client, but series whose labels name something
//! that was deleted can be removed.

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The series of one metric. Clones share them.
#[derive(Debug)]
pub(crate) struct Series<L, M> {
    by_labels: Arc<Mutex<HashMap<L, Entry<M>>>>,
    new: fn() -> M,
}

#[derive(Debug)]
struct Entry<M> {
    metric: M,
    /// The last sweep found that nothing has these labels any more.
    is_stale: bool,
}

impl<L: Clone + Eq + Hash, M: Clone> Series<L, M> {
    /// No series; `new` creates the metric of each.
    pub(crate) fn new(new: fn() -> M) -> Self {
        Self { by_labels: Arc::default(), new }
    }

    /// The metric with these labels, created on first use.
    pub(crate) fn get_or_create(&self, labels: &L) -> M {
        let mut by_labels = self.lock();
        if let Some(entry) = by_labels.get(labels) {
            return entry.metric.clone();
        }
        let metric = (self.new)();
        by_labels.insert(labels.clone(), Entry { metric: metric.clone(), is_stale: false });
        metric
    }

    /// How many series there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Calls `each` with the labels of each series.
    pub(crate) fn for_each(&self, each: impl FnMut(&L)) {
        self.lock().keys().for_each(each);
    }

    /// Removes the series that were not live at the last sweep, and are not live now. Requests that were in flight when
    /// their labels' object was deleted are so counted, if they end between two sweeps.
    pub(crate) fn sweep(&self, is_live: impl Fn(&L) -> bool) {
        self.lock().retain(|labels, entry| {
            let was_stale = std::mem::replace(&mut entry.is_stale, !is_live(labels));
            !(was_stale && entry.is_stale)
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<L, Entry<M>>> {
        // No critical section leaves the map half changed: it is usable after a panic.
        self.by_labels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Clone + Eq + Hash, M: Clone + Default> Default for Series<L, M> {
    fn default() -> Self {
        Self::new(M::default)
    }
}

impl<L, M> Clone for Series<L, M> {
    fn clone(&self) -> Self {
        Self { by_labels: self.by_labels.clone(), new: self.new }
    }
}

impl<L, M> EncodeMetric for Series<L, M>
where
    L: Clone + Eq + Hash + EncodeLabelSet,
    M: Clone + EncodeMetric + TypedMetric,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, entry) in &*self.lock() {
            entry.metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn series_are_removed_at_the_second_sweep_without_their_object() {
        let series = Series::<[(&str, &str); 1], Counter>::default();
        let (kept, deleted) = ([("route", "kept")], [("route", "deleted")]);
        let is_live = |labels: &[(&str, &str); 1]| labels[0].1 == "kept";
        series.get_or_create(&kept).inc();
        series.get_or_create(&deleted).inc();
        series.sweep(is_live);
        series.get_or_create(&deleted).inc();
        assert_eq!(series.get_or_create(&deleted).get(), 2, "a request that ends after the deletion is counted");
        series.sweep(is_live);
        assert_eq!(series.lock().len(), 1);
        assert_eq!(series.get_or_create(&kept).get(), 1);
        series.sweep(|_| false);
        series.sweep(is_live);
        series.sweep(|_| false);
        assert_eq!(series.lock().len(), 1, "it was live in between");
    }
}
