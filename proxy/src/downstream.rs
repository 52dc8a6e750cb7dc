//! A client's connection, as all that works for it knows it.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::orig_dst::original_destination;
use crate::telemetry::metrics::{Direction, Open};
use crate::worker::Worker;

/// A client's connection. It counts as open until the last request and the last tunnel on it are over.
pub(crate) struct Downstream {
    pub(crate) worker: Rc<Worker>,
    pub(crate) direction: Direction,
    pub(crate) peer: SocketAddr,
    /// Where the client meant to go.
    pub(crate) destination: SocketAddr,
    _place: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
    _open: Open,
}

impl Downstream {
    /// A connection that was just accepted, in a place that a listener has for it. None: it is gone already.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        stream: &TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
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
            _place: place,
            _tracked: shared.connections.token(),
            _open: worker.handles.connection(direction),
        }))
    }
}
