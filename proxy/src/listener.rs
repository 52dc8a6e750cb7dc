//! The accept loop: bounds the number of connections, and survives errors of single connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::direction::Direction;
use crate::downstream::Downstream;
use crate::telemetry::alive;
use crate::worker::Worker;

/// Open connections of one worker in one direction; more wait in the accept queue.
const CONNECTIONS_MAX: usize = 10_000;

/// Length of the accept queue.
const BACKLOG: i32 = 4096;

/// Pause after an accept error (no file descriptor or memory left), and between checks of a full memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Binds a port on all addresses, IPv4 and IPv6 if the kernel has both. Several sockets may share a port: the kernel
/// distributes connections over them.
pub(crate) fn bind(port: u16) -> io::Result<std::net::TcpListener> {
    let open = |domain| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // On Linux, accepted connections inherit it.
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

/// Accepts connections until the process drains, and spawns `handle` for each.
pub(crate) async fn accept<F, R>(worker: Rc<Worker>, direction: Direction, listener: TcpListener, handle: F)
where
    F: Fn(Rc<Downstream>, TcpStream) -> R,
    R: Future<Output = ()> + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let drain = worker.shared.drain.clone();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        while worker.shared.memory.is_full() && !drain.is_cancelled() {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(downstream) = Downstream::new(&worker, direction, &stream, peer, permit) {
                    alive::spawn(handle(downstream, stream));
                }
            }
            // The peer closed the connection before it was accepted: no pause.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    for (stream, peer) in close(listener) {
        if let Ok(permit) = permits.clone().try_acquire_owned()
            && let Some(downstream) = Downstream::new(&worker, direction, &stream, peer, permit)
        {
            alive::spawn(handle(downstream, stream));
        }
    }
}

/// Closes a listener, and returns the connections in its accept queue: the kernel would reset them, perhaps with a
/// request in them. The queue is read without the runtime, which may not have heard of the last connections yet.
fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut queued = Vec::new();
    let Ok(listener) = listener.into_std() else { return queued };
    while queued.len() < BACKLOG as usize {
        match listener.accept() {
            Ok((stream, peer)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                queued.extend(stream.ok().map(|stream| (stream, peer)));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    queued
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_a_listener_returns_the_connections_in_its_queue() {
        let listener = TcpListener::from_std(bind(0).expect("binds")).expect("listens");
        let port = listener.local_addr().expect("an address").port();
        // The test does not await in between, so the runtime has not heard of them.
        let connect = |_| std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
        let clients: Vec<_> = (0..3).map(connect).collect();
        let mut queued = close(listener);
        assert_eq!(queued.len(), clients.len());
        tokio::io::AsyncWriteExt::write_all(&mut queued[0].0, b"x").await.expect("the connection is usable");
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "closed");
    }

    #[tokio::test]
    async fn accepted_connections_have_nodelay() {
        let listener = TcpListener::from_std(bind(0).expect("binds")).expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let (client, accepted) = tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        assert!(client.is_ok() && accepted.expect("accepts").0.nodelay().expect("is known"));
    }
}
