//! Bytes both ways, each direction closed as its sender closes it.
//!
//! Between two sockets a direction begins with reads and writes, which cost least while messages are small. Once it carries
//! bulk, its bytes no longer come up from the kernel: they are spliced through a pipe. Where one side is TLS or a stream of
//! HTTP/2, bytes are copied; what ends there without saying so was cut short, and is not ended cleanly on the other side.
//! Nothing is held for a direction that is silent. Whoever failed is who a cut is ascribed to.

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

use crate::clock::Tick;
use crate::read_buffer::{READ_BYTES, with_read_buffer};
use crate::stream::Stream;

/// Full buffers in a row that make bulk of a direction.
const BULK_READS: u32 = 4;

/// Bytes that a pipe is asked to hold. The kernel may give less: unprivileged users share a limit.
const PIPE_BYTES: usize = 256 * 1024;

/// How long a connection of bytes may go on after the process was asked to stop: nothing can tell it to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// One end of a relay, and what was read from it already.
pub(crate) struct End {
    pub(crate) stream: Stream,
    pub(crate) read: Bytes,
}

/// What was carried, whatever ended it.
pub(crate) struct Relayed {
    /// Bytes from the first end to the second.
    pub(crate) sent: u64,
    /// Bytes from the second end to the first.
    pub(crate) received: u64,
    pub(crate) outcome: Result<(), Cut>,
}

/// Why a relay ended before both directions did.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The first end failed.
    First(io::Error),
    /// The second end failed.
    Second(io::Error),
    /// Nothing moved for too long.
    Idle,
    /// The process stops.
    Stopped,
}

/// A direction.
#[derive(Clone, Copy)]
enum Way {
    /// From the first end to the second.
    Out,
    Back,
}

/// Relays until both directions are closed, or silent for as long as `idle`.
pub(crate) async fn relay(first: End, second: End, idle: Duration, drain: &CancellationToken) -> Relayed {
    let (sent, received, active) = (Cell::new(0), Cell::new(0), Cell::new(Tick::now()));
    let carried = |count: &Cell<u64>, bytes: usize| {
        count.set(count.get() + bytes as u64);
        active.set(Tick::now());
    };
    let (there, back) = (|bytes| carried(&sent, bytes), |bytes| carried(&received, bytes));
    let end = async {
        tokio::select! {
            () = silence(&active, idle) => Cut::Idle,
            () = drained(drain) => Cut::Stopped,
        }
    };
    // Directions that have ended.
    let (there_ended, back_ended) = (Cell::new(false), Cell::new(false));
    let (one, two, outcome) = match (first.stream, second.stream) {
        (Stream::Plain(one), Stream::Plain(two)) => {
            let both = async {
                let there = note(&there_ended, pump(Way::Out, &one, &two, first.read, there));
                let back = note(&back_ended, pump(Way::Back, &two, &one, second.read, back));
                tokio::try_join!(there, back)
            };
            let outcome = tokio::select! { outcome = both => outcome.map(drop), error = end => Err(error) };
            (Stream::Plain(one), Stream::Plain(two), outcome)
        }
        (one, two) => {
            let (one, two) = (RefCell::new(one), RefCell::new(two));
            let both = async {
                let there = note(&there_ended, copy(Way::Out, &one, &two, first.read, there));
                let back = note(&back_ended, copy(Way::Back, &two, &one, second.read, back));
                tokio::try_join!(there, back)
            };
            let outcome = tokio::select! { outcome = both => outcome.map(drop), error = end => Err(error) };
            (one.into_inner(), two.into_inner(), outcome)
        }
    };
    if outcome.is_err() {
        for (stream, has_heard_all) in [(one, back_ended.get()), (two, there_ended.get())] {
            // A reset would take away what is on its way to a socket that was sent everything, and its end.
            if !(has_heard_all && matches!(stream, Stream::Plain(_))) {
                stream.cut();
            }
        }
    }
    Relayed { sent: sent.get(), received: received.get(), outcome }
}

// === impl Way ===

impl Way {
    /// The end that it takes from failed.
    fn source(self, error: io::Error) -> Cut {
        match self {
            Self::Out => Cut::First(error),
            Self::Back => Cut::Second(error),
        }
    }

    /// The other end failed.
    fn sink(self, error: io::Error) -> Cut {
        match self {
            Self::Out => Cut::Second(error),
            Self::Back => Cut::First(error),
        }
    }
}

impl From<TcpStream> for End {
    /// Nothing was read from it yet.
    fn from(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), read: Bytes::new() }
    }
}

/// Runs a direction, and notes its end.
async fn note(ended: &Cell<bool>, direction: impl Future<Output = Result<(), Cut>>) -> Result<(), Cut> {
    direction.await?;
    ended.set(true);
    Ok(())
}

async fn drained(drain: &CancellationToken) {
    drain.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Ends when nothing was active for as long as `limit`.
async fn silence(active: &Cell<Tick>, limit: Duration) {
    while let Some(rest) = limit.checked_sub(active.get().elapsed()).filter(|rest| !rest.is_zero()) {
        tokio::time::sleep(rest).await;
    }
}

/// Carries one direction to its end, and passes the end on.
async fn pump(way: Way, from: &TcpStream, to: &TcpStream, first: Bytes, carried: impl Fn(usize)) -> Result<(), Cut> {
    write_all(to, &first).await.map_err(|error| way.sink(error))?;
    carried(first.len());
    drop(first);
    let mut full = 0;
    loop {
        tokio::task::coop::consume_budget().await;
        let Some((bytes, left)) = pass(way, from, to)? else {
            from.readable().await.map_err(|error| way.source(error))?;
            continue;
        };
        if bytes == 0 {
            return end(to).map_err(|error| way.sink(error));
        }
        write_all(to, &left).await.map_err(|error| way.sink(error))?;
        carried(bytes);
        if bytes < READ_BYTES {
            // A short read has emptied the socket: asking again at once would only hear so.
            full = 0;
            from.readable().await.map_err(|error| way.source(error))?;
            continue;
        }
        full += 1;
        if full == BULK_READS {
            // Without a descriptor to spare, bytes go on as they did.
            match pipe() {
                Ok(pipe) => break splice_through(way, from, to, &pipe, carried).await,
                Err(_) => full = 0,
            }
        }
    }
}

/// Reads once, and writes that as far as it goes: how much was read, and what is left of it. None: there is nothing to be read.
fn pass(way: Way, from: &TcpStream, to: &TcpStream) -> Result<Option<(usize, Vec<u8>)>, Cut> {
    with_read_buffer(|buffer| {
        let read = match from.try_read(buffer) {
            Ok(bytes) => &buffer[..bytes],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(way.source(error)),
        };
        let mut left = read;
        while !left.is_empty() {
            match to.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(way.sink(error)),
            }
        }
        Ok(Some((read.len(), left.to_vec())))
    })
}

/// Passes on that no more bytes come.
fn end(to: &TcpStream) -> io::Result<()> {
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // It is gone altogether.
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

/// Carries a direction to its end through a pipe, and passes the end on.
async fn splice_through(
    way: Way,
    from: &TcpStream,
    to: &TcpStream,
    (read, write): &(OwnedFd, OwnedFd),
    carried: impl Fn(usize),
) -> Result<(), Cut> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        tokio::task::coop::consume_budget().await;
        // The pipe is empty here, so it is the socket that would block.
        let fill = from.async_io(Interest::READABLE, || Ok(splice(from, None, write, None, PIPE_BYTES, flags)?));
        let filled = fill.await.map_err(|error| way.source(error))?;
        if filled == 0 {
            return end(to).map_err(|error| way.sink(error));
        }
        let mut left = filled;
        while left > 0 {
            let drain = to.async_io(Interest::WRITABLE, || Ok(splice(read, None, to, None, left, flags)?));
            left -= drain.await.map_err(|error| way.sink(error))?;
        }
        carried(filled);
    }
}

/// Carries one direction to its end where a side is no socket, and passes the end on. Both directions are polled as one task, so
/// neither finds a stream in use.
async fn copy(
    way: Way,
    from: &RefCell<Stream>,
    to: &RefCell<Stream>,
    first: Bytes,
    carried: impl Fn(usize),
) -> Result<(), Cut> {
    copy_all(to, &first).await.map_err(|error| way.sink(error))?;
    carried(first.len());
    drop(first);
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
        let bytes = bytes.await.map_err(|error| way.source(error))?;
        if bytes == 0 {
            return match poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_shutdown(cx)).await {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                ended => ended.map_err(|error| way.sink(error)),
            };
        }
        copy_all(to, &buffer).await.map_err(|error| way.sink(error))?;
        carried(bytes);
    }
}

async fn copy_all(to: &RefCell<Stream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_write(cx, bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    // TLS may have taken what the socket has not.
    poll_fn(|cx| Pin::new(&mut *to.borrow_mut()).poll_flush(cx)).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Two sockets that are connected to each other.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.expect("connects"), theirs.expect("accepts").0)
    }

    /// A client and a server with a relay between them, which has read `read` from the client already.
    async fn relayed(read: &'static [u8]) -> (TcpStream, TcpStream, impl Future<Output = Relayed>) {
        let ((client, first), (second, server)) = tokio::join!(pair(), pair());
        let first = End { stream: Stream::Plain(first), read: Bytes::from_static(read) };
        let idle = Duration::from_secs(60);
        (client, server, async move { relay(first, second.into(), idle, &CancellationToken::new()).await })
    }

    #[tokio::test]
    async fn a_direction_ends_alone() {
        let (mut client, mut server, relay) = relayed(b"he").await;
        let ends = async move {
            client.write_all(b"llo").await.expect("writes");
            client.shutdown().await.expect("ends");
            let mut heard = String::new();
            server.read_to_string(&mut heard).await.expect("reads");
            assert_eq!(heard, "hello", "what was read already comes first, and the end is passed on");
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

    /// Who is to blame is who failed.
    #[tokio::test]
    async fn a_reset_is_that_of_its_sender() {
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
                assert_eq!(heard, Err(io::ErrorKind::ConnectionReset), "a reset is passed on as one");
            };
            let (Relayed { outcome, .. }, ()) = tokio::join!(relay, ends);
            let cut = outcome.expect_err("it was cut");
            assert_eq!(matches!(cut, Cut::First(_)), client_resets, "{cut:?}");
            assert_eq!(matches!(cut, Cut::Second(_)), !client_resets, "{cut:?}");
        }
    }

    #[tokio::test]
    async fn bulk_arrives_as_it_was_sent() {
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
    async fn silence_has_an_end() {
        let just_now = Cell::new(Tick::now());
        let wait = Duration::from_millis(20);
        assert!(tokio::time::timeout(wait * 3, silence(&just_now, Duration::from_secs(60))).await.is_err());
        tokio::time::timeout(Duration::from_secs(5), silence(&just_now, wait)).await.expect("it is over");
    }
}
