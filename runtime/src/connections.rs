//! A listener whose connections are bounded for each address, so that a pod which opens as many as it can, and sends nothing,
//! takes the file descriptors of nobody else. There is no bound for all together: those who hold it would keep the kubelet's
//! probes away, and end the process.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

/// Connections at a time from one address: a node's probes and scrapes come from one. Further ones are closed.
pub const PER_ADDRESS_MAX: usize = 64;
/// A connection on which nothing arrives for so long ends. It is longer than lifecycle hooks, during which their kubelet
/// sends nothing.
pub const IDLE_MAX: Duration = Duration::from_secs(3600);

/// A listener with these bounds.
pub struct Bounded {
    listener: TcpListener,
    open: Open,
}

/// A connection that counts as long as it lives.
pub struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    address: IpAddr,
    open: Open,
}

type Open = Arc<Mutex<HashMap<IpAddr, usize>>>;

// === impl Bounded ===

impl Bounded {
    /// Bounds the connections of a listener.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, open: Open::default() }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // axum's own accept: it waits after an error, such as when there are no file descriptors left.
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            let address = peer.ip().to_canonical();
            let mut open = self.open.lock().expect("no panic while it is held");
            let count = open.entry(address).or_default();
            if *count < PER_ADDRESS_MAX {
                *count += 1;
                let idle = Box::pin(sleep(IDLE_MAX));
                return (Connection { stream, idle, address, open: self.open.clone() }, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

// === impl Connection ===

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.open.lock().expect("no panic while it is held");
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
            return Poll::Ready(read);
        }
        self.idle.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio_util::sync::CancellationToken;

    use crate::admin::{self, Admin};

    use super::*;

    async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn answer(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    /// CP-08: as many connections as may be, which send nothing.
    #[tokio::test]
    async fn silent_connections_of_one_address_keep_no_other_away_and_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(admin::serve(listener, admin::router(Admin::default()), stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..PER_ADDRESS_MAX {
            silent.push(connect([127, 0, 0, 2], address).await);
        }
        assert_eq!(answer(connect([127, 0, 0, 2], address).await).await, "", "one more is closed");
        assert!(answer(connect([127, 0, 0, 3], address).await).await.ends_with("live\n"), "another address");

        // Paused only now: accepting is not a matter of time.
        tokio::time::pause();
        tokio::time::advance(IDLE_MAX + Duration::from_secs(1)).await;
        tokio::time::resume();
        for mut stream in silent {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        assert!(answer(connect([127, 0, 0, 2], address).await).await.ends_with("live\n"), "it is let in again");
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
