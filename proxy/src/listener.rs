//! The accept loop: as many connections as the limit allows, and no error of one connection ends it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::downstream::Downstream;
use crate::telemetry::alive;
use crate::telemetry::metrics::Direction;
use crate::worker::Worker;

/// Connections that one worker has open in one direction; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 10_000;

/// Connections that the kernel queues.
const BACKLOG: i32 = 4096;

/// How long accepting rests when the process has no file descriptor or no memory left.
const REST: Duration = Duration::from_millis(50);

/// Binds a port on all addresses, both families where the kernel has both. Several sockets may share it: the kernel
/// spreads connections over them.
pub(crate) fn bind(port: u16) -> io::Result<std::net::TcpListener> {
    let open = |domain| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // Linux gives it to the connections that are accepted.
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    };
    let bind_v6 = || -> io::Result<Socket> {
        let socket = open(Domain::IPV6)?;
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        Ok(socket)
    };
    let bind_v4 = || -> io::Result<Socket> {
        let socket = open(Domain::IPV4)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        Ok(socket)
    };
    let socket = bind_v6().or_else(|_| bind_v4())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the process is drained, and gives each connection to `handle` in a task of its own.
pub(crate) async fn accept<F, R>(worker: Rc<Worker>, direction: Direction, listener: TcpListener, handle: F)
where
    F: Fn(Rc<Downstream>, TcpStream) -> R,
    R: Future<Output = ()> + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let drain = worker.shared.drain.clone();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while worker.shared.memory.is_full() && !drain.is_cancelled() {
            tokio::time::sleep(REST).await;
        }
        // First what the kernel has accepted before the drain: closing the socket would reset it, with a request in it perhaps.
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(downstream) = Downstream::new(&worker, direction, &stream, peer, place) {
                    alive::spawn(handle(downstream, stream));
                }
            }
            // The peer was gone before it was accepted: nothing to rest for.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_sends_at_once() {
        let listener = TcpListener::from_std(bind(0).expect("binds")).expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let (client, accepted) = tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        assert!(client.is_ok() && accepted.expect("accepts").0.nodelay().expect("is known"));
    }
}
