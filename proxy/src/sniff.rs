//! Protocol detection on a connection, without a deadlock of client and server waiting for each other.
//!
//! A client that sends first is read until its protocol is known. A silent client may expect the server to speak
//! first (MySQL, SMTP): after [`CLIENT_FIRST_TIMEOUT`] the server is connected to as well, and the side that sends
//! first decides.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_codec::detect::{Verdict, detect, detect_partial};
use weft_codec::sni::{Hello, Offer, client_hello, offer};

use crate::stream::Stream;
use crate::tcp::End;

/// How long to wait for the client's first byte before the server is connected to. Short, because it delays each
/// connection whose server speaks first; long enough for the first bytes of a client that speaks first.
pub(crate) const CLIENT_FIRST_TIMEOUT: Duration = Duration::from_millis(50);

/// How often a server is connected to again for a silent client, if it could not be reached.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// First byte of a TLS connection: the type of a record with a handshake message.
const TLS_HANDSHAKE: u8 = 22;

/// How long detection may take, from the client's first byte.
const DETECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream with the bytes that were read ahead for detection.
pub(crate) struct Prefixed {
    prefix: BytesMut,
    stream: Stream,
}

/// What a client did within a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// It sent bytes, and this is their protocol.
    Detected(Verdict),
    /// It sent nothing.
    Silent,
    /// It closed the connection without sending anything.
    Closed,
}

/// Which side sent the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstSpeaker {
    /// The client, in this protocol.
    Client(Verdict),
    /// The server.
    Server,
    /// Neither: the connection is over, or idle for too long.
    Neither,
}

impl Prefixed {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { prefix: BytesMut::new(), stream }
    }

    /// Reads until the protocol is known. Waits up to `limit` for the first byte, and from there up to
    /// [`DETECT_TIMEOUT`]; then the bytes so far decide.
    pub(crate) async fn sniff(&mut self, limit: Duration) -> io::Result<Peek> {
        match self.first_bytes(limit).await? {
            Peek::Detected(_) => {}
            none => return Ok(none),
        }
        // Counts from the first byte, however late that was.
        let until = Instant::now() + DETECT_TIMEOUT;
        loop {
            match detect(&self.prefix) {
                Verdict::NeedMore => {}
                verdict => return Ok(Peek::Detected(verdict)),
            }
            match tokio::time::timeout_at(until, self.read_more()).await {
                Ok(Ok(0)) | Err(_) => return Ok(Peek::Detected(detect_partial(&self.prefix))),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Waits up to `limit` for the first bytes, whatever they are.
    pub(crate) async fn first_bytes(&mut self, limit: Duration) -> io::Result<Peek> {
        if self.prefix.is_empty() {
            match tokio::time::timeout(limit, self.read_more()).await {
                Ok(Ok(0)) => return Ok(Peek::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(Peek::Silent),
            }
        }
        Ok(Peek::Detected(Verdict::Opaque))
    }

    /// [`Self::sniff`], or [`Self::first_bytes`] where nothing is to be looked at.
    pub(crate) async fn peek(&mut self, limit: Duration, is_opaque: bool) -> io::Result<Peek> {
        if is_opaque { self.first_bytes(limit).await } else { self.sniff(limit).await }
    }

    /// For a silent client: waits until client or server sends the first byte. If `connect` cannot reach the server,
    /// it is tried again every [`RECONNECT_INTERVAL`]: the server may come up, and a client that expects it to speak
    /// first never sends a byte. `is_opaque`: the first bytes are not looked at.
    pub(crate) async fn await_first_speaker<T>(
        &mut self,
        timeout: Duration,
        is_opaque: bool,
        connect: impl AsyncFn() -> Option<(Stream, T)>,
    ) -> (FirstSpeaker, Option<(Stream, T)>) {
        let until = Instant::now() + timeout;
        loop {
            if let Some(mut server) = connect().await {
                tokio::select! {
                    read = self.read_more() => if !matches!(read, Ok(1..)) { return (FirstSpeaker::Neither, None) },
                    _ = server.0.readable() => return (FirstSpeaker::Server, Some(server)),
                    () = tokio::time::sleep_until(until) => return (FirstSpeaker::Neither, None),
                }
            }
            match self.peek(RECONNECT_INTERVAL, is_opaque).await {
                Ok(Peek::Detected(verdict)) => return (FirstSpeaker::Client(verdict), None),
                Ok(Peek::Silent) if Instant::now() < until => {}
                _ => return (FirstSpeaker::Neither, None),
            }
        }
    }

    /// The stream as an end of a relay.
    pub(crate) fn into_end(self) -> End {
        End { stream: self.stream, read: self.prefix.freeze() }
    }

    /// Reads until the server name (SNI) is known, or it is known that the client does not speak TLS.
    pub(crate) async fn client_hello(&mut self) -> io::Result<Hello> {
        self.read_hello(client_hello, &Hello::NeedMore, Hello::NotTls).await
    }

    /// Reads until it is known which protocols a TLS client offers (ALPN), or that it does not speak TLS.
    pub(crate) async fn offer(&mut self) -> io::Result<Offer> {
        self.read_hello(offer, &Offer::NeedMore, Offer::NotTls).await
    }

    /// The socket of a plain stream, and the bytes that were read ahead.
    pub(crate) fn into_socket(self) -> Result<(TcpStream, BytesMut), Self> {
        match self.stream {
            Stream::Plain(socket) => Ok((socket, self.prefix)),
            stream => Err(Self { stream, prefix: self.prefix }),
        }
    }

    /// Whether the bytes read ahead begin as TLS does.
    pub(crate) fn begins_as_tls(&self) -> bool {
        self.prefix.first() == Some(&TLS_HANDSHAKE)
    }

    async fn read_hello<T: PartialEq>(
        &mut self,
        parse: impl Fn(&[u8]) -> T,
        need_more: &T,
        not_tls: T,
    ) -> io::Result<T> {
        let until = Instant::now() + DETECT_TIMEOUT;
        loop {
            let found = parse(&self.prefix);
            if found != *need_more {
                return Ok(found);
            }
            let Ok(read) = tokio::time::timeout_at(until, self.read_more()).await else { return Ok(not_tls) };
            if read? == 0 {
                return Ok(not_tls);
            }
        }
    }

    /// Whether bytes were read ahead and not consumed yet.
    pub(crate) fn has_unread(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Ends an idle connection cleanly, as far as that is possible without waiting.
    pub(crate) async fn close_notify(&mut self) {
        let _ = poll_fn(|cx| Poll::Ready(self.poll_close_notify(cx))).await;
    }

    /// See [`Stream::socket`].
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }

    /// See [`Stream::poll_close_notify`].
    pub(crate) fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_close_notify(cx)
    }

    /// Reads more bytes ahead. Returns 0 at the end of the stream.
    pub(crate) async fn read_more(&mut self) -> io::Result<usize> {
        self.stream.read_more(&mut self.prefix).await
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let count = self.prefix.len().min(out.remaining());
        out.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // Frees the buffer: it is needed only for the first bytes of a connection.
            self.prefix = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
