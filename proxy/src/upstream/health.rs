//! Asking endpoints how they are (active health checks), where that is asked for.
//!
//! One task on the control thread for each endpoint of each cluster in use, so that checks are not multiplied by workers.
//! What they find stands in the cluster's [`Load`], where workers see that something has changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::task::JoinHandle;
use weft_config as wire;
use weft_config::bootstrap::{Probe, ProbeKind};

use super::load::Load;
use crate::balance::Rng;
use crate::probe;
use crate::worker::Shared;

/// How often the endpoints to be asked are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Who is asked, and how.
type Asked = HashMap<(Arc<str>, SocketAddr), (wire::HealthCheck, JoinHandle<()>)>;

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    is_well: bool,
    /// Answers in a row that say otherwise.
    against: u32,
}

/// Asks whoever is to be asked, for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut asked = Asked::new();
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let table = shared.store.load();
        let mut wanted: HashMap<(Arc<str>, SocketAddr), (wire::HealthCheck, Arc<Load>)> = HashMap::new();
        for (name, load) in shared.loads.in_use() {
            let Some(cluster) = table.cluster_named(&name) else { continue };
            let Some(check) = &cluster.health_check else {
                load.keep_unwell(&[]);
                continue;
            };
            load.keep_unwell(&cluster.endpoints);
            shared.metrics.set_unhealthy(&name, load.unwell().len());
            for endpoint in &cluster.endpoints {
                wanted.insert((name.clone(), *endpoint), (wire::HealthCheck::clone(check), load.clone()));
            }
        }
        asked.retain(|key, (check, task)| {
            let stays = wanted.get(key).is_some_and(|(wanted, _)| wanted == check);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, (check, load)) in wanted {
            if !asked.contains_key(&key) {
                let endpoint = key.1;
                let task = tokio::spawn(ask_again(check.clone(), endpoint, load, Rng::new(rng.next_u64())));
                asked.insert(key, (check, task));
            }
        }
    }
}

/// Asks one endpoint again and again. It is taken to be well until it says otherwise: Kubernetes says that it is ready.
async fn ask_again(check: wire::HealthCheck, endpoint: SocketAddr, load: Arc<Load>, mut rng: Rng) {
    let probe = probe_of(&check, endpoint);
    let (interval, timeout) = (Duration::from_millis(check.interval_ms), Duration::from_millis(check.timeout_ms));
    let mut standing = Standing { is_well: !load.unwell().contains(&endpoint), against: 0 };
    // Proxies that start together do not ask together.
    tokio::time::sleep(interval.mul_f64(f64::from(rng.below(1_000)) / 1_000.0)).await;
    loop {
        let answer = tokio::time::timeout(timeout, probe::ask(&probe, endpoint.ip())).await;
        let is_well = matches!(answer, Ok(Ok(())));
        if standing.note(is_well, &check) {
            tracing::info!(dst.endpoint = %endpoint, is_well, "health of an endpoint changed");
            load.set_unwell(endpoint, !is_well);
        }
        // A quarter more or less.
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
    // The timeout is kept here, to the millisecond.
    Probe { port: check.port.unwrap_or(endpoint.port()), kind, timeout_seconds: 0 }
}

// === impl Standing ===

impl Standing {
    /// Takes an answer in. Says whether it turned the endpoint's standing.
    fn note(&mut self, is_well: bool, check: &wire::HealthCheck) -> bool {
        if is_well == self.is_well {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if is_well { check.healthy_after } else { check.unhealthy_after };
        let turned = self.against >= needed;
        if turned {
            *self = Self { is_well, against: 0 };
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_answers_in_a_row_turn_a_standing() {
        let check: wire::HealthCheck = serde_json::from_value(serde_json::json!({
            "kind": "tcp", "intervalMs": 1_000, "timeoutMs": 100, "unhealthyAfter": 3, "healthyAfter": 2
        }))
        .expect("a check");
        let mut standing = Standing { is_well: true, against: 0 };
        let answers = [false, false, true, false, false, false, false, true, false, true, true, true];
        let turned: Vec<usize> = (0..answers.len()).filter(|at| standing.note(answers[*at], &check)).collect();
        assert_eq!(turned, [5, 10], "the third failure in a row, then the second success in a row");
    }
}
