//! Looking at what a connection says first, without making anybody wait.
//!
//! A client that speaks is read until its protocol is known. A client that is silent may be one whose server speaks first
//! (MySQL, SMTP), so after a moment the server is connected to as well, and whoever speaks first settles it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::detect::{Verdict, detect, settle};
use crate::sni::{Hello, client_hello};
use crate::stream::Stream;
use crate::tcp::End;

/// How long a client may be silent before its server is asked. Short, because a server that speaks first is waited for
/// by this much; long enough for a client's first bytes to come along with its connection.
pub(crate) const SILENCE: Duration = Duration::from_millis(50);

/// How long a silent client waits for another look at whether its server can be asked.
const NEXT_LOOK: Duration = Duration::from_secs(1);

/// How long a client that has begun to speak may leave its protocol open.
const DETECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream, with what was read from it put back in front.
pub(crate) struct Prefixed {
    prefix: BytesMut,
    stream: Stream,
}

/// What a client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It spoke, and this is what.
    Spoke(Verdict),
    /// It said nothing so far.
    Nothing,
    /// It left without a word.
    Closed,
}

/// Who spoke first after a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The client, and this is what.
    Client(Verdict),
    /// The server.
    Server,
    /// Neither: the connection is over.
    Nobody,
}

impl Prefixed {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { prefix: BytesMut::new(), stream }
    }

    /// Reads until the protocol is known, or until the client has been silent for `silence`. What it has begun to say may
    /// take [`DETECT_TIMEOUT`]; then its beginning decides.
    pub(crate) async fn sniff(&mut self, silence: Duration) -> io::Result<Said> {
        if self.prefix.is_empty() {
            match tokio::time::timeout(silence, self.more()).await {
                Ok(Ok(0)) => return Ok(Said::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(Said::Nothing),
            }
        }
        // From its first byte, however long that was waited for.
        let until = Instant::now() + DETECT_TIMEOUT;
        loop {
            match detect(&self.prefix) {
                Verdict::NeedMore => {}
                verdict => return Ok(Said::Spoke(verdict)),
            }
            match tokio::time::timeout_at(until, self.more()).await {
                Ok(Ok(0)) | Err(_) => return Ok(Said::Spoke(settle(&self.prefix))),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// After a silence: waits for whoever speaks first, the client or its server, which is `ask`ed by a connection. Where none can
    /// be made, another look is taken now and then: one may be there soon, and who speaks first would never be heard.
    pub(crate) async fn first<T>(
        &mut self,
        patience: Duration,
        ask: impl AsyncFn() -> Option<(TcpStream, T)>,
    ) -> (First, Option<(TcpStream, T)>) {
        let until = Instant::now() + patience;
        loop {
            if let Some(server) = ask().await {
                tokio::select! {
                    read = self.more() => if !matches!(read, Ok(1..)) { return (First::Nobody, None) },
                    _ = server.0.readable() => return (First::Server, Some(server)),
                    () = tokio::time::sleep_until(until) => return (First::Nobody, None),
                }
            }
            match self.sniff(NEXT_LOOK).await {
                Ok(Said::Spoke(verdict)) => return (First::Client(verdict), None),
                Ok(Said::Nothing) if Instant::now() < until => {}
                _ => return (First::Nobody, None),
            }
        }
    }

    /// The stream as the end of a relay.
    pub(crate) fn into_end(self) -> End {
        End { stream: self.stream, read: self.prefix.freeze() }
    }

    /// After a client has spoken: reads until it is known what server name it asks for, if it speaks TLS at all.
    pub(crate) async fn hello(&mut self) -> io::Result<Hello> {
        let until = Instant::now() + DETECT_TIMEOUT;
        loop {
            match client_hello(&self.prefix) {
                Hello::NeedMore => {}
                hello => return Ok(hello),
            }
            let Ok(read) = tokio::time::timeout_at(until, self.more()).await else { return Ok(Hello::NotTls) };
            if read? == 0 {
                return Ok(Hello::NotTls);
            }
        }
    }

    /// Whether something was read and is still to be.
    pub(crate) fn has_begun(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Ends a connection on which nothing is under way. What cannot be said at once is not said.
    pub(crate) async fn farewell(&mut self) {
        let _ = poll_fn(|cx| Poll::Ready(self.poll_farewell(cx))).await;
    }

    /// See [`Stream::socket`].
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket()
    }

    /// See [`Stream::poll_farewell`].
    pub(crate) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_farewell(cx)
    }

    /// Reads more of what the client says first, and puts it back. 0: it has ended.
    pub(crate) async fn more(&mut self) -> io::Result<usize> {
        self.stream.more(&mut self.prefix).await
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
            // Gives the memory back: most of a connection's life is after its first bytes.
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
