//! Connects to an endpoint of a cluster for a connection that is relayed: TCP, or a CONNECT tunnel.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft_balance::outlier::Outcome;

use super::endpoint::Endpoint;
use super::error::LeaseError;
use super::fallback::{self, Fallback, Next};
use crate::affinity::Affinity;
use crate::identity::Protocol;
use crate::reason::Reason;
use crate::security::Security;
use crate::stream::Stream;
use crate::table::Cluster;
use crate::worker::Worker;

/// A connection to an endpoint.
pub(crate) struct Connected {
    pub(crate) endpoint: SocketAddr,
    pub(crate) stream: Stream,
    pub(crate) security: Security,
}

/// Why there is none, with the endpoint that was tried last.
#[derive(Debug)]
pub(crate) struct NotConnected {
    pub(crate) reason: Reason,
    pub(crate) endpoint: Option<SocketAddr>,
    /// The error of the last attempt.
    pub(crate) error: Option<LeaseError>,
}

/// Connects to an endpoint of a cluster. If that fails, tries others, and finally the Service's own address.
/// `attempts` counts all of them.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    affinity: Affinity,
    attempts: &mut u32,
) -> Result<Connected, NotConnected> {
    const ATTEMPTS: usize = 3;
    let state = worker.cluster(cluster);
    let mut fallback = Fallback::new(worker, &state, subset);
    let mut address = fallback.first();
    let mut tried = Vec::new();
    loop {
        if let Some(address) = address.take() {
            *attempts += 1;
            let connected = address.open(Protocol::Tcp, cluster.connect_timeout).await;
            fallback.address_tried(connected.is_ok());
            match connected {
                Ok(stream) => return Ok(Connected::new(&address, stream)),
                Err(error) if tried.len() == ATTEMPTS => return Err(NotConnected::new(&address, error)),
                Err(_) => {}
            }
        }
        let picked = state.pick(subset, &tried, affinity, &mut worker.rng.borrow_mut(), worker.now());
        let Ok(endpoint) = picked else {
            match Box::pin(fallback.without_endpoints(None)).await {
                Some(Next::ServiceAddress(own)) => address = Some(own),
                Some(Next::PickAgain) => {}
                None => {
                    let reason = fallback::reason(&state.cluster());
                    return Err(NotConnected { reason, endpoint: None, error: None });
                }
            }
            continue;
        };
        *attempts += 1;
        match endpoint.open(Protocol::Tcp, cluster.connect_timeout).await {
            Ok(stream) => {
                state.fallback.connected();
                state.record(&endpoint, Outcome::Ok, worker.now());
                return Ok(Connected::new(&endpoint, stream));
            }
            // It is the same with every endpoint.
            Err(error @ LeaseError::NoCertificate(_)) => return Err(NotConnected::new(&endpoint, error)),
            Err(error) => {
                state.fallback.connect_failed();
                state.record(&endpoint, Outcome::Local, worker.now());
                tried.push(endpoint.address);
                address = fallback.after_failures(tried.len());
                if tried.len() == ATTEMPTS && address.is_none() {
                    return Err(NotConnected::new(&endpoint, error));
                }
            }
        }
    }
}

// === impl Connected ===

impl Connected {
    fn new(endpoint: &Endpoint, stream: Stream) -> Self {
        Self { endpoint: endpoint.address, security: endpoint.security(stream.is_tls()), stream }
    }
}

// === impl NotConnected ===

impl NotConnected {
    fn new(endpoint: &Endpoint, error: LeaseError) -> Self {
        Self { reason: error.reason(), endpoint: Some(endpoint.address), error: Some(error) }
    }
}
