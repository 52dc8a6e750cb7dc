//! A downstream connection, as shared by everything that serves it.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::direction::Direction;
use crate::orig_dst::original_destination;
use crate::telemetry::handles::Open;
use crate::worker::Worker;

/// A downstream connection. It counts as open until the last request and the last tunnel on it are over.
pub(crate) struct Downstream {
    pub(crate) worker: Rc<Worker>,
    pub(crate) direction: Direction,
    pub(crate) peer: SocketAddr,
    /// The original destination, before redirection.
    pub(crate) destination: SocketAddr,
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
    _open: Open,
}

impl Downstream {
    /// A connection that was just accepted, with its listener's permit. None: it is already closed.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        stream: &TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<Rc<Self>> {
        let shared = &worker.shared;
        let original = original_destination(stream, peer).ok()?;
        let destination = match (direction, shared.application) {
            (Direction::Inbound, Some(application)) if shared.own_ports.contains(&original.port()) => application,
            _ => original,
        };
        Some(Rc::new(Self {
            worker: worker.clone(),
            direction,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            destination,
            _permit: permit,
            _tracked: shared.connections.token(),
            _open: worker.handles.connection(direction),
        }))
    }
}
