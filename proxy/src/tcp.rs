//! Relays bytes between two connections, in both directions. Each direction ends when its sender closes it.
//!
//! Between two sockets a direction begins with plain reads and writes, which cost least for small messages. Once it
//! carries bulk, it is spliced through a pipe and its bytes stay in the kernel. If one side is TLS or an HTTP/2
//! stream, bytes are copied. A side that ends without its protocol's end (`close_notify`, END_STREAM) was cut short,
//! and the other side is not closed cleanly either. A silent direction holds no buffer. An error names the side that
//! failed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;
use weft_codec::Tick;
use weft_codec::read_buffer::{READ_BYTES, with_read_buffer};

use crate::stream::Stream;

/// Full reads in a row after which a direction counts as bulk.
const BULK_READS: u32 = 4;

/// Size asked of a pipe, in bytes. The kernel may give less: unprivileged users share a limit.
const PIPE_BYTES: usize = 256 * 1024;

/// How long a TCP connection may go on after the process was asked to stop. There is no way to tell its peers to
/// finish.
const DRAIN: Duration = Duration::from_secs(5);

/// One end of a relay, with the bytes that were read from it already.
pub(crate) struct End {
    pub(crate) stream: Stream,
    pub(crate) read: Bytes,
}

/// What was relayed, and how it ended.
pub(crate) struct Relayed {
    /// Bytes from downstream to upstream.
    pub(crate) sent: u64,
    /// Bytes from upstream to downstream.
    pub(crate) received: u64,
    pub(crate) outcome: Result<(), RelayError>,
}

/// Why a relay ended before both directions did.
#[derive(Debug)]
pub(crate) enum RelayError {
    /// The downstream end failed.
    Downstream(io::Error),
    /// The upstream end failed.
    Upstream(io::Error),
    /// No byte moved within the idle timeout.
    IdleTimeout,
    /// It is no longer allowed.
    Refused,
    /// The process stops.
    Drained,
}

/// The direction of a relay.
#[derive(Clone, Copy)]
enum Direction {
    /// From the downstream end to the upstream end.
    ToUpstream,
    ToDownstream,
}

/// Relays until both directions are closed, no byte has moved for `idle`, or `refused` completes.
pub(crate) async fn relay(
    downstream: End,
    upstream: End,
    idle: Duration,
    drain: &CancellationToken,
    refused: impl Future<Output = ()>,
) -> Relayed {
    let (sent, received, active) = (Cell::new(0), Cell::new(0), Cell::new(Tick::now()));
    let count = |total: &Cell<u64>, bytes: usize| {
        total.set(total.get() + bytes as u64);
        active.set(Tick::now());
    };
    let (count_sent, count_received) = (|bytes| count(&sent, bytes), |bytes| count(&received, bytes));
    let aborted = async {
        tokio::select! {
            () = idle_timeout(&active, idle) => RelayError::IdleTimeout,
            () = drained(drain) => RelayError::Drained,
            () = refused => RelayError::Refused,
        }
    };
    // Directions that ended cleanly.
    let (upload_ended, download_ended) = (Cell::new(false), Cell::new(false));
    let (client, server, outcome) = match (downstream.stream, upstream.stream) {
        (Stream::Plain(client), Stream::Plain(server)) => {
            let both = async {
                let upload = mark_ended(
                    &upload_ended,
                    pump(Direction::ToUpstream, &client, &server, downstream.read, count_sent),
                );
                let download = mark_ended(
                    &download_ended,
                    pump(Direction::ToDownstream, &server, &client, upstream.read, count_received),
                );
                tokio::try_join!(upload, download)
            };
            let outcome = tokio::select! { outcome = both => outcome.map(drop), error = aborted => Err(error) };
            (Stream::Plain(client), Stream::Plain(server), outcome)
        }
        (client, server) => {
            let (client, server) = (RefCell::new(client), RefCell::new(server));
            let both = async {
                let upload = mark_ended(
                    &upload_ended,
                    copy(Direction::ToUpstream, &client, &server, downstream.read, count_sent),
                );
                let download = mark_ended(
                    &download_ended,
                    copy(Direction::ToDownstream, &server, &client, upstream.read, count_received),
                );
                tokio::try_join!(upload, download)
            };
            let outcome = tokio::select! { outcome = both => outcome.map(drop), error = aborted => Err(error) };
            (client.into_inner(), server.into_inner(), outcome)
        }
    };
    if outcome.is_err() {
        for (stream, has_received_all) in [(client, download_ended.get()), (server, upload_ended.get())] {
            // A plain socket that was sent everything and its end is only closed: a reset would discard what is still
            // on its way.
            if !(has_received_all && matches!(stream, Stream::Plain(_))) {
                stream.abort();
            }
        }
    }
    Relayed { sent: sent.get(), received: received.get(), outcome }
}

// === impl Direction ===

impl Direction {
    /// An error of the end that is read.
    fn source(self, error: io::Error) -> RelayError {
        match self {
            Self::ToUpstream => RelayError::Downstream(error),
            Self::ToDownstream => RelayError::Upstream(error),
        }
    }

    /// An error of the end that is written.
    fn sink(self, error: io::Error) -> RelayError {
        match self {
            Self::ToUpstream => RelayError::Upstream(error),
            Self::ToDownstream => RelayError::Downstream(error),
        }
    }
}

impl From<Stream> for End {
    /// An end of which nothing was read yet.
    fn from(stream: Stream) -> Self {
        Self { stream, read: Bytes::new() }
    }
}

/// Runs a direction and marks its end.
async fn mark_ended(
    ended: &Cell<bool>,
    direction: impl Future<Output = Result<(), RelayError>>,
) -> Result<(), RelayError> {
    direction.await?;
    ended.set(true);
    Ok(())
}

async fn drained(drain: &CancellationToken) {
    drain.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Completes when `active` is older than `limit`.
async fn idle_timeout(active: &Cell<Tick>, limit: Duration) {
    while let Some(rest) = limit.checked_sub(active.get().elapsed()).filter(|rest| !rest.is_zero()) {
        tokio::time::sleep(rest).await;
    }
}

/// Relays one direction between two sockets to its end, and passes the end on.
async fn pump(
    direction: Direction,
    from: &TcpStream,
    to: &TcpStream,
    prefix: Bytes,
    count: impl Fn(usize),
) -> Result<(), RelayError> {
    write_all(to, &prefix).await.map_err(|error| direction.sink(error))?;
    count(prefix.len());
    drop(prefix);
    let mut full_reads = 0;
    loop {
        tokio::task::coop::consume_budget().await;
        let Some((bytes, left)) = forward_once(direction, from, to)? else {
            from.readable().await.map_err(|error| direction.source(error))?;
            continue;
        };
        if bytes == 0 {
            return shutdown_write(to).map_err(|error| direction.sink(error));
        }
        write_all(to, &left).await.map_err(|error| direction.sink(error))?;
        count(bytes);
        if bytes < READ_BYTES {
            // A short read has emptied the socket: another read now would find nothing.
            full_reads = 0;
            from.readable().await.map_err(|error| direction.source(error))?;
            continue;
        }
        full_reads += 1;
        if full_reads == BULK_READS {
            // Without a spare file descriptor, the direction goes on with reads and writes.
            match pipe() {
                Ok(pipe) => break splice_through(direction, from, to, &pipe, count).await,
                Err(_) => full_reads = 0,
            }
        }
    }
}

/// One read and as many writes as the sink takes: the bytes read, and the part of them that is not written. None:
/// nothing to read.
fn forward_once(
    direction: Direction,
    from: &TcpStream,
    to: &TcpStream,
) -> Result<Option<(usize, Vec<u8>)>, RelayError> {
    with_read_buffer(|buffer| {
        let read = match from.try_read(buffer) {
            Ok(bytes) => &buffer[..bytes],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(direction.source(error)),
        };
        let mut left = read;
        while !left.is_empty() {
            match to.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(direction.sink(error)),
            }
        }
        Ok(Some((read.len(), left.to_vec())))
    })
}

/// Passes the end of a direction on.
fn shutdown_write(to: &TcpStream) -> io::Result<()> {
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // The peer has closed the connection altogether.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        ended => ended,
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The read end and the write end of a new pipe.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_BYTES).unwrap_or(i32::MAX)));
    Ok((read, write))
}

/// Relays a direction through a pipe to its end, and passes the end on.
async fn splice_through(
    direction: Direction,
    from: &TcpStream,
    to: &TcpStream,
    (read, write): &(OwnedFd, OwnedFd),
    count: impl Fn(usize),
) -> Result<(), RelayError> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        tokio::task::coop::consume_budget().await;
        // The pipe is empty here, so only the socket can block.
        let fill = from.async_io(Interest::READABLE, || Ok(splice(from, None, write, None, PIPE_BYTES, flags)?));
        let filled = fill.await.map_err(|error| direction.source(error))?;
        if filled == 0 {
            return shutdown_write(to).map_err(|error| direction.sink(error));
        }
        let mut left = filled;
        while left > 0 {
            let drain = to.async_io(Interest::WRITABLE, || Ok(splice(read, None, to, None, left, flags)?));
            left -= drain.await.map_err(|error| direction.sink(error))?;
        }
        count(filled);
    }
}

/// Relays one direction to its end where a side is not a plain socket, and passes the end on. Both directions are
/// polled by one task, so a stream is never borrowed twice.
async fn copy(
    direction: Direction,
    from: &RefCell<Stream>,
    to: &RefCell<Stream>,
    prefix: Bytes,
    count: impl Fn(usize),
) -> Result<(), RelayError> {
    copy_all(to, &prefix).await.map_err(|error| direction.sink(error))?;
    count(prefix.len());
    drop(prefix);
    loop {
        tokio::task::coop::consume_budget().await;
        let mut buffer = Vec::new();
        let bytes = poll_fn(|cx| {
            buffer.reserve_exact(READ_BYTES);
            let read = poll_read_buf(Pin::new(&mut *from.borrow_mut()), cx, &mut buffer);
            if read.is_pending() {
                buffer = Vec::new();
            }
            read
        });
        let bytes = bytes.await.map_err(|error| direction.source(error))?;
        if bytes == 0 {
            return match poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_shutdown(cx)).await {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => ended.map_err(|error| direction.sink(error)),
            };
        }
        copy_all(to, &buffer).await.map_err(|error| direction.sink(error))?;
        count(bytes);
    }
}

async fn copy_all(to: &RefCell<Stream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_write(cx, bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    // rustls may have taken bytes that the socket has not.
    poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_flush(cx)).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use std::future::pending;

    use super::*;

    /// Two sockets that are connected to each other.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.expect("connects"), theirs.expect("accepts").0)
    }

    /// A client and a server with a relay between them that has already read `read` from the client.
    async fn relayed(read: &'static [u8]) -> (TcpStream, TcpStream, impl Future<Output = Relayed>) {
        let ((client, downstream), (upstream, server)) = tokio::join!(pair(), pair());
        let downstream = End { stream: Stream::Plain(downstream), read: Bytes::from_static(read) };
        let idle = Duration::from_secs(60);
        (client, server, async move {
            relay(downstream, Stream::Plain(upstream).into(), idle, &CancellationToken::new(), pending()).await
        })
    }

    #[tokio::test]
    async fn directions_end_independently() {
        let (mut client, mut server, relay) = relayed(b"he").await;
        let ends = async move {
            client.write_all(b"llo").await.expect("writes");
            client.shutdown().await.expect("ends");
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.expect("reads");
            assert_eq!(heard, "hello", "what was read before comes first, and the end is passed on");
            server.write_all(b"bye").await.expect("the other direction goes on");
            drop(server);
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.expect("reads");
            assert_eq!(heard, "bye");
        };
        let (Relayed { sent, received, outcome }, ()) = tokio::join!(relay, ends);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!((sent, received), (5, 3));
    }

    /// The error names the side that sent the reset.
    #[tokio::test]
    async fn reset_is_reported_for_its_sender_and_passed_on() {
        for client_resets in [true, false] {
            let (mut client, mut server, relay) = relayed(b"").await;
            let ends = async move {
                client.write_all(b"hello").await.expect("writes");
                server.read_exact(&mut [0; 5]).await.expect("reads");
                let resets = if client_resets { &client } else { &server };
                SockRef::from(resets).set_linger(Some(Duration::ZERO)).expect("set");
                let mut other = if client_resets {
                    drop(client);
                    server
                } else {
                    drop(server);
                    client
                };
                let heard = other.read(&mut [0; 5]).await.map_err(|error| error.kind());
                assert_eq!(heard, Err(io::ErrorKind::ConnectionReset), "a reset is passed on as a reset");
            };
            let (Relayed { outcome, .. }, ()) = tokio::join!(relay, ends);
            let error = outcome.expect_err("the relay failed");
            assert_eq!(matches!(error, RelayError::Downstream(_)), client_resets, "{error:?}");
            assert_eq!(matches!(error, RelayError::Upstream(_)), !client_resets, "{error:?}");
        }
    }

    #[tokio::test]
    async fn bulk_is_relayed_unchanged() {
        const BYTES: usize = 20 << 20;
        let (mut client, mut server, relay) = relayed(b"").await;
        let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        let sending = async move {
            let bytes: Vec<u8> = (0..BYTES).map(byte).collect();
            client.write_all(&bytes).await.expect("writes");
            client.shutdown().await.expect("ends");
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.expect("reads");
            assert_eq!(heard, b"thanks");
        };
        let receiving = async move {
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.expect("reads");
            assert!(heard.len() == BYTES && heard.iter().enumerate().all(|(at, got)| *got == byte(at)));
            server.write_all(b"thanks").await.expect("writes");
        };
        let (Relayed { sent, received, .. }, (), ()) = tokio::join!(relay, sending, receiving);
        assert_eq!((sent, received), (BYTES as u64, 6));
    }

    #[tokio::test]
    async fn idle_relays_time_out() {
        let just_now = Cell::new(Tick::now());
        let wait = Duration::from_millis(20);
        assert!(tokio::time::timeout(wait * 3, idle_timeout(&just_now, Duration::from_secs(60))).await.is_err());
        tokio::time::timeout(Duration::from_secs(5), idle_timeout(&just_now, wait)).await.expect("it is over");
    }
}
