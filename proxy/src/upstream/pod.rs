//! Connects to an address that is not a Service's: to a pod that proves who it is, or past the mesh.
//!
//! ```text
//! a pod with an identity            mutual TLS with that identity, or no connection
//!   at a port that it excludes      plaintext, unless the mode is Strict
//! not known, because the document
//!   of its prefix cannot be read    plaintext, unless the mode is Strict
//! anything else                     as it is
//! ```
//!
//! The address of a pod that has ended is soon that of another, and the document may say so a moment later. So if the pod
//! there is not the expected one, the news is waited for, and the connection made to whoever is there by then.

use std::net::SocketAddr;
use std::time::Duration;

use weft_config::bootstrap::{HEALTH_PORT, METRICS_PORT};
use weft_identity::SpiffeId;

use super::connect::NotConnected;
use super::endpoint::{Endpoint, Peer, open};
use super::error::LeaseError;
use crate::identity::Protocol;
use crate::reason::Reason;
use crate::security::{Security, Why};
use crate::stream::Stream;
use crate::table::Occupant;
use crate::worker::Worker;

/// Connect timeout. Source: Istio's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to an address.
pub(crate) struct Reached {
    pub(crate) stream: Stream,
    pub(crate) security: Security,
    /// Who has proven to be there.
    pub(crate) identity: Option<SpiffeId>,
}

/// Connects to an address that is not a Service's.
pub(crate) async fn reach(worker: &Worker, address: SocketAddr) -> Result<Reached, NotConnected> {
    let shared = &worker.shared;
    let plain = async |security| match open(address, TIMEOUT).await {
        Ok(stream) => Ok(Reached { stream: Stream::Plain(stream), security, identity: None }),
        Err(error) => Err(failed(address, error)),
    };
    if shared.pod_ips.contains(&address.ip()) {
        return plain(Security::Plaintext(Why::SamePod)).await;
    }
    // No proxy carries the ports of a proxy itself.
    if !shared.identity.is_expected() || [METRICS_PORT, HEALTH_PORT].contains(&address.port()) {
        return plain(Security::Passthrough).await;
    }
    let mut occupant = shared.store.find_occupant(address).await;
    let mut is_first = true;
    loop {
        let account = match &occupant {
            Occupant::Stranger => return plain(Security::Passthrough).await,
            Occupant::Unknown(_) if shared.identity.may_send_plaintext() => return plain(Security::Passthrough).await,
            Occupant::Unknown(_) => return Err(not_connected(address, Reason::ConfigUnavailable)),
            Occupant::Pod(_) if shared.memory.is_exhausted() => return Err(not_connected(address, Reason::Overload)),
            Occupant::Pod(account) => Some(account.clone()),
            Occupant::Excluded => None,
        };
        let identity = account.as_ref().zip(shared.identity.load());
        let identity = identity.map(|(account, own)| account.in_domain(own.id.trust_domain()));
        let peer = Peer { account, identity: shared.identity.clone() };
        let endpoint = Endpoint::new(address, Some(peer), worker.now());
        endpoint.is_excluded.set(occupant == Occupant::Excluded);
        let error = match endpoint.open(Protocol::Tcp, TIMEOUT).await {
            Ok(stream) => return Ok(Reached { security: endpoint.security(stream.is_tls()), stream, identity }),
            Err(error) => error,
        };
        // A pod without a proxy may refuse a handshake, or wait for more of it.
        let is_other =
            matches!(error, LeaseError::WrongIdentity(_) | LeaseError::Handshake(_) | LeaseError::Timeout(_));
        let next = if is_other && is_first { shared.store.find_successor(address, &occupant).await } else { None };
        let Some(next) = next else { return Err(failed(address, error)) };
        (occupant, is_first) = (next, false);
    }
}

fn failed(address: SocketAddr, error: LeaseError) -> NotConnected {
    NotConnected { reason: error.reason(), endpoint: Some(address), error: Some(error) }
}

fn not_connected(address: SocketAddr, reason: Reason) -> NotConnected {
    NotConnected { reason, endpoint: Some(address), error: None }
}
