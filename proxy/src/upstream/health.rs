//! Active health checks of endpoints, for clusters that configure them.
//!
//! One task on the control thread for each endpoint of each cluster in use, so that more workers do not send more
//! checks. Results go to the [`SharedCluster`]: workers see that its health version changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::task::JoinHandle;
use weft_balance::Rng;
use weft_config as wire;
use weft_config::bootstrap::{Probe, ProbeKind};

use super::shared_cluster::SharedCluster;
use crate::probe;
use crate::worker::Shared;

/// How often the set of endpoints to check is brought up to date.
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);

/// The running checks, by cluster and endpoint.
type Checks = HashMap<(Arc<str>, SocketAddr), (wire::HealthCheck, JoinHandle<()>)>;

/// The health of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HealthState {
    is_healthy: bool,
    /// Results in a row that contradict `is_healthy`.
    contrary: u32,
}

/// Starts and stops the checks of all clusters in use. Does not return.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut checks = Checks::new();
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut tick = tokio::time::interval(UPDATE_INTERVAL);
    loop {
        tick.tick().await;
        let table = shared.store.load();
        let mut wanted: HashMap<(Arc<str>, SocketAddr), (wire::HealthCheck, Arc<SharedCluster>)> = HashMap::new();
        for (name, state) in shared.clusters.in_use() {
            let Some(cluster) = table.cluster_named(&name) else { continue };
            let Some(check) = &cluster.health_check else {
                state.retain_unhealthy(&[]);
                shared.metrics.set_healthy(&name, cluster.members.usable);
                continue;
            };
            state.retain_unhealthy(&cluster.endpoints);
            let unhealthy = state.unhealthy();
            let usable = &cluster.endpoints[..cluster.members.usable];
            let healthy = usable.iter().filter(|endpoint| !unhealthy.contains(*endpoint)).count();
            shared.metrics.set_healthy(&name, healthy);
            shared.metrics.set_unhealthy(&name, unhealthy.len());
            for endpoint in &cluster.endpoints {
                wanted.insert((name.clone(), *endpoint), (wire::HealthCheck::clone(check), state.clone()));
            }
        }
        checks.retain(|key, (check, task)| {
            let stays = wanted.get(key).is_some_and(|(wanted, _)| wanted == check);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, (check, state)) in wanted {
            if !checks.contains_key(&key) {
                let endpoint = key.1;
                let task = tokio::spawn(check_endpoint(check.clone(), endpoint, state, Rng::new(rng.next_u64())));
                checks.insert(key, (check, task));
            }
        }
    }
}

/// Checks one endpoint periodically. It counts as healthy until checks fail, because Kubernetes reports it ready.
async fn check_endpoint(check: wire::HealthCheck, endpoint: SocketAddr, cluster: Arc<SharedCluster>, mut rng: Rng) {
    let probe = probe_of(&check, endpoint);
    let (interval, timeout) = (Duration::from_millis(check.interval_ms), Duration::from_millis(check.timeout_ms));
    let mut health = HealthState { is_healthy: !cluster.unhealthy().contains(&endpoint), contrary: 0 };
    // A random delay, so that proxies that start together do not send their checks together.
    tokio::time::sleep(interval.mul_f64(f64::from(rng.below(1_000)) / 1_000.0)).await;
    loop {
        let answer = tokio::time::timeout(timeout, probe::check(&probe, endpoint.ip())).await;
        let is_healthy = matches!(answer, Ok(Ok(())));
        if health.record(is_healthy, &check) {
            tracing::info!(dst.endpoint = %endpoint, is_healthy, "endpoint health changed");
            cluster.set_unhealthy(endpoint, !is_healthy);
        }
        // The interval with 25 % jitter either way.
        tokio::time::sleep(interval.mul_f64(0.75 + f64::from(rng.below(1_000)) / 2_000.0)).await;
    }
}

fn probe_of(check: &wire::HealthCheck, endpoint: SocketAddr) -> Probe {
    let kind = match &check.kind {
        wire::HealthCheckKind::Http { path, host } => ProbeKind::Http {
            path: path.clone(),
            https: false,
            headers: host.iter().map(|host| ("host".to_owned(), host.clone())).collect(),
        },
        wire::HealthCheckKind::Tcp => ProbeKind::Tcp,
        wire::HealthCheckKind::Grpc { service } => ProbeKind::Grpc { service: service.clone() },
    };
    // Not used: `check_endpoint` applies the timeout, in milliseconds.
    Probe { port: check.port.unwrap_or(endpoint.port()), kind, timeout_seconds: 0 }
}

// === impl HealthState ===

impl HealthState {
    /// Records the result of one check. Returns whether the endpoint's health changed.
    fn record(&mut self, is_healthy: bool, check: &wire::HealthCheck) -> bool {
        if is_healthy == self.is_healthy {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let threshold = if is_healthy { check.healthy_after } else { check.unhealthy_after };
        let changed = self.contrary >= threshold;
        if changed {
            *self = Self { is_healthy, contrary: 0 };
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_changes_after_enough_results_in_a_row() {
        let check: wire::HealthCheck = serde_json::from_value(serde_json::json!({
            "kind": "tcp", "intervalMs": 1_000, "timeoutMs": 100, "unhealthyAfter": 3, "healthyAfter": 2
        }))
        .expect("a check");
        let mut health = HealthState { is_healthy: true, contrary: 0 };
        let results = [false, false, true, false, false, false, false, true, false, true, true, true];
        let changed: Vec<usize> = (0..results.len()).filter(|at| health.record(results[*at], &check)).collect();
        assert_eq!(changed, [5, 10], "the third failure in a row, then the second success in a row");
    }
}
