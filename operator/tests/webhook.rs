//! The maintenance of the webhook's certificate, with an API server.

#[path = "identity/api.rs"]
mod api;

use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::lease::State;
use weft_operator::metrics::Metrics;
use weft_operator::webhook;

use api::{Api, SECRETS};

/// The lease changes with each renewal, which must not postpone the next attempt.
#[tokio::test]
async fn certificate_is_written_when_the_api_server_is_back() {
    let leader = || State::Leader { epoch: 1, until: tokio::time::Instant::now() + Duration::from_secs(3600) };
    let (api, client) = Api::start().await;
    api.set_read_only(true);
    let (lease, leads) = watch::channel(leader());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let metrics = Metrics::register(&mut Registry::default());
    let run = webhook::run(client, "weft-system".into(), leads, metrics, stop.clone(), tasks.clone());
    tasks.spawn(run);
    let start = Instant::now();
    while api.get(SECRETS, "weft-injector-tls").is_none() {
        if api.refused_writes() > 0 {
            api.set_read_only(false);
        }
        lease.send_replace(leader());
        assert!(start.elapsed() < Duration::from_secs(20), "{} refused writes", api.refused_writes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
