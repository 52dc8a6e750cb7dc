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
use weft_config::bootstrap::ProbeKind;
use weft_identity::Account;

use super::endpoint::{Peer, open};
use super::shared_cluster::SharedCluster;
use crate::identity::Protocol;
use crate::worker::Shared;
use crate::{probe, tls};

/// How often the set of endpoints to check is brought up to date.
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);

/// The running checks, by cluster and endpoint.
type Checks = HashMap<(Arc<str>, SocketAddr), (Demand, JoinHandle<()>)>;

/// What is asked of an endpoint.
#[derive(Clone, PartialEq)]
struct Demand {
    check: wire::HealthCheck,
    account: Option<Account>,
    /// Mode of mutual TLS that policies set for the port.
    mode: Option<wire::MtlsMode>,
}

/// What is checked, and how.
struct Target {
    demand: Demand,
    peer: Option<Peer>,
    cluster: Arc<SharedCluster>,
}

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
        let mut wanted: HashMap<(Arc<str>, SocketAddr), Target> = HashMap::new();
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
            for (at, endpoint) in cluster.endpoints.iter().enumerate() {
                let (check, account) = (wire::HealthCheck::clone(check), cluster.account(at).cloned());
                let demand = Demand { check, account, mode: cluster.mtls };
                let peer = Peer::of(cluster, at, &shared.identity);
                wanted.insert((name.clone(), *endpoint), Target { demand, peer, cluster: state.clone() });
            }
        }
        checks.retain(|key, (demand, task)| {
            let stays = wanted.get(key).is_some_and(|wanted| wanted.demand == *demand);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, Target { demand, peer, cluster }) in wanted {
            if !checks.contains_key(&key) {
                let rng = Rng::new(rng.next_u64());
                let task = tokio::spawn(check_endpoint(demand.clone(), key.1, peer, cluster, rng));
                checks.insert(key, (demand, task));
            }
        }
    }
}

/// Checks one endpoint periodically. It counts as healthy until checks fail, because Kubernetes reports it ready.
async fn check_endpoint(
    Demand { check, account: _, mode }: Demand,
    endpoint: SocketAddr,
    peer: Option<Peer>,
    cluster: Arc<SharedCluster>,
    mut rng: Rng,
) {
    let (kind, address) = (probe_kind(&check), SocketAddr::new(endpoint.ip(), check.port.unwrap_or(endpoint.port())));
    let (interval, timeout) = (Duration::from_millis(check.interval_ms), Duration::from_millis(check.timeout_ms));
    let mut health = HealthState { is_healthy: !cluster.unhealthy().contains(&endpoint), contrary: 0 };
    // A random delay, so that proxies that start together do not send their checks together.
    tokio::time::sleep(interval.mul_f64(f64::from(rng.below(1_000)) / 1_000.0)).await;
    loop {
        let answer = tokio::time::timeout(timeout, check_once(&kind, address, peer.as_ref(), mode, timeout)).await;
        let is_healthy = matches!(answer, Ok(Ok(())));
        if health.record(is_healthy, &check) {
            tracing::info!(dst.endpoint = %endpoint, is_healthy, "endpoint health changed");
            cluster.set_unhealthy(endpoint, !is_healthy);
        }
        // The interval with 25 % jitter either way.
        tokio::time::sleep(interval.mul_f64(0.75 + f64::from(rng.below(1_000)) / 2_000.0)).await;
    }
}

/// One check, on a connection like those for requests.
async fn check_once(
    kind: &ProbeKind,
    address: SocketAddr,
    peer: Option<&Peer>,
    mode: Option<wire::MtlsMode>,
    timeout: Duration,
) -> anyhow::Result<()> {
    let protocol = match kind {
        ProbeKind::Http { .. } => Protocol::Http1,
        ProbeKind::Grpc { .. } => Protocol::Http2,
        ProbeKind::Tcp => Protocol::Tcp,
    };
    let required = peer.map_or(Ok(None), |peer| peer.required(mode))?;
    let stream = open(address, timeout).await?;
    match required {
        None => probe::check(stream, address, kind).await,
        Some((own, id)) => probe::check(tls::connect(stream, &own, id, protocol).await?, address, kind).await,
    }
}

fn probe_kind(check: &wire::HealthCheck) -> ProbeKind {
    match &check.kind {
        wire::HealthCheckKind::Http { path, host } => ProbeKind::Http {
            path: path.clone(),
            https: false,
            headers: host.iter().map(|host| ("host".to_owned(), host.clone())).collect(),
        },
        wire::HealthCheckKind::Tcp => ProbeKind::Tcp,
        wire::HealthCheckKind::Grpc { service } => ProbeKind::Grpc { service: service.clone() },
    }
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
