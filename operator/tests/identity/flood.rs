//! Fairness: a service account that asks without end delays no other.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use weft_identity::request::Pending;

use crate::fixture::{bound, fetch, fixture, refusals, until};

/// Bounds for half and for 99 % of the requests of another account during the flood, on a machine that is busy with the
/// flood's clients, and maybe with other tests: alone, they take a tenth of it.
const P50_MAX: Duration = Duration::from_secs(1);
const P99_MAX: Duration = Duration::from_secs(5);
/// Requests of the other account.
const REQUESTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_one_account_delays_no_other() {
    let fixture = Arc::new(fixture(1).await);
    let root = fixture.root().await;
    fixture.api.review("cart", bound("shop", "cart"));
    let address = fixture.replicas[0].address;
    let stop = CancellationToken::new();
    let mut flood = Vec::new();
    // Pods of one account, each with as many connections as it may have, and more.
    for pod in 0..2 {
        for _ in 0..20 {
            let stop = stop.clone();
            flood.push(tokio::spawn(async move {
                let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, pod));
                let head = "POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web";
                let body = Pending::generate().expect("a key").request().to_vec();
                let mut statuses = Vec::new();
                while !stop.is_cancelled() {
                    match fetch(from, address, root, head, &body).await {
                        Ok((status, _)) => statuses.push(status),
                        // Without a pause, those that are refused would only keep the CPU from the others.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                statuses
            }));
        }
    }
    until("the flood is on", || fixture.replicas[0].metrics.certificates_issued.get() > 100).await;
    let mut durations = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        assert_eq!(fixture.request(0, root, "cart").await.0, 200);
        durations.push(start.elapsed());
    }
    durations.sort();
    let (p50, p99) = (durations[REQUESTS / 2], durations[REQUESTS * 99 / 100]);
    stop.cancel();
    let mut statuses = Vec::new();
    for task in flood {
        statuses.extend(task.await.expect("no panic"));
    }
    // With --nocapture.
    eprintln!("another account during a flood of {} requests: p50 {p50:?}, p99 {p99:?}", statuses.len());
    assert!(p50 < P50_MAX && p99 < P99_MAX, "p50 {p50:?}, p99 {p99:?}");
    assert!(statuses.contains(&429), "the flood is more than one account may have");
    assert!(refusals(&fixture, "connections") > 0, "one address has a share of the connections");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let fixture = Arc::into_inner(fixture).expect("the only one");
    fixture.end().await;
}
