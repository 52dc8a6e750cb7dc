//! Removes the series of Services and rules that no longer exist, so that a proxy that runs for long does not
//! accumulate them.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;

use crate::worker::Shared;

/// How often it looks. A series is removed at the second look that does not find its labels: with Prometheus' usual
/// interval of 30 s, its last value was scraped before.
const PERIOD: Duration = Duration::from_secs(30);

/// Removes series forever.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let table = shared.store.load();
        // A worker's handles must stay those of the registered series.
        let held = [&shared.clusters, &shared.mirror_clusters].into_iter().flat_map(|clusters| clusters.in_use());
        let held: HashSet<Arc<str>> = held.map(|(name, _)| name).collect();
        let is_service = |name: &str| held.contains(name) || table.cluster_named(name).is_some();
        // Only the rules that have series are collected, for a configuration may have very many.
        let sources = shared.metrics.sources();
        let rules: HashSet<&str> = table.rule_names().filter(|name| sources.contains(*name)).collect();
        shared.metrics.sweep(is_service, |name| rules.contains(name));
    }
}
