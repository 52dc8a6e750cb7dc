//! Connects to an endpoint of a cluster for a connection that is relayed: TCP, or a CONNECT tunnel.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_balance::outlier::Outcome;

use super::endpoint::open;
use super::fallback::{self, Fallback, Next};
use crate::affinity::Affinity;
use crate::reason::Reason;
use crate::table::Cluster;
use crate::worker::Worker;

/// Connects to an endpoint of a cluster. If that fails, tries others, and finally the Service's own address.
/// `attempts` counts all of them.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    affinity: Affinity,
    attempts: &mut u32,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    const ATTEMPTS: usize = 3;
    let state = worker.cluster(cluster);
    let mut fallback = Fallback::new(worker, &state, subset);
    let mut address = fallback.first();
    let mut tried = Vec::new();
    loop {
        if let Some(address) = address.take() {
            *attempts += 1;
            let connected = open(address.address, cluster.connect_timeout).await;
            fallback.address_tried(connected.is_ok());
            if let Ok(stream) = connected {
                return Ok((address.address, stream));
            }
            if tried.len() == ATTEMPTS {
                return Err((Reason::ConnectFailed, Some(address.address)));
            }
        }
        let picked = state.pick(subset, &tried, affinity, &mut worker.rng.borrow_mut(), worker.now());
        let Ok(endpoint) = picked else {
            match Box::pin(fallback.without_endpoints(None)).await {
                Some(Next::ServiceAddress(own)) => address = Some(own),
                Some(Next::PickAgain) => {}
                None => return Err((fallback::reason(&state.cluster()), None)),
            }
            continue;
        };
        *attempts += 1;
        match open(endpoint.address, cluster.connect_timeout).await {
            Ok(stream) => {
                state.fallback.connected();
                state.record(&endpoint, Outcome::Ok, worker.now());
                return Ok((endpoint.address, stream));
            }
            Err(_) => {
                state.fallback.connect_failed();
                state.record(&endpoint, Outcome::Local, worker.now());
                tried.push(endpoint.address);
                address = fallback.after_failures(tried.len());
                if tried.len() == ATTEMPTS && address.is_none() {
                    return Err((Reason::ConnectFailed, Some(endpoint.address)));
                }
            }
        }
    }
}
