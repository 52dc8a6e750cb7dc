//! What holds for whatever a client sends. Checked by unit tests and by fuzzing.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::frame::{self, FrameHeader, PREFACE};
use super::limits::Limits;

/// A client that sends `sends` in pieces of `piece` bytes, and records what the server sends.
struct ScriptedClient<'a> {
    sends: &'a [u8],
    piece: usize,
    answer: Rc<RefCell<Vec<u8>>>,
}

/// A server behaves the same however its input is split into reads. `frames`: what a client sends after its preface
/// and SETTINGS.
pub fn check_properties(frames: &[u8]) {
    let mut sends = PREFACE.to_vec();
    sends.extend_from_slice(&FrameHeader::encode(frame::SETTINGS, 0, 0, 0));
    sends.extend_from_slice(frames);
    let whole = serve(&sends, usize::MAX);
    for piece in [1, 7, 1000] {
        assert_eq!(serve(&sends, piece), whole, "in pieces of {piece}");
    }
}

/// What a server sends to a client that sends these bytes in pieces, and the requests and bodies that it receives.
pub(super) fn serve(sends: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let limits = Limits { streams: 10, stream_window: 65_535, connection_window: 200_000, head_bytes: 2000 };
    let answer = Rc::<RefCell<Vec<u8>>>::default();
    let mut connection = Connection::server(ScriptedClient { sends, piece, answer: answer.clone() }, limits, |_| {});
    let mut cx = Context::from_waker(Waker::noop());
    let (mut streams, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        match connection.poll_accept(&mut cx) {
            Poll::Ready(Some((request, sending, receiving))) => streams.push((request, sending, receiving)),
            Poll::Ready(None) => break,
            Poll::Pending => {}
        }
    }
    for (request, mut sending, mut receiving) in streams {
        let mut seen = format!("{request:?}");
        let headers = request.map(|request| request.headers().clone()).unwrap_or_default();
        while let Poll::Ready(Some(Ok(data))) = receiving.poll_data(&cx) {
            receiving.release_capacity(data.len());
            seen.extend(data.iter().map(|&byte| char::from(byte)));
        }
        requests.push(format!("{seen} {} {:?}", receiving.is_end_stream(), receiving.take_trailers()));
        // Whatever state the stream is in, it can be answered and dropped.
        let _ = sending.respond(StatusCode::OK, &headers, false);
        let _ = sending.send_data(Bytes::from_static(b"x"), true);
    }
    (answer.take(), requests)
}

// === impl ScriptedClient ===

impl AsyncRead for ScriptedClient<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.sends.split_at(self.piece.min(self.sends.len()).min(out.remaining()));
        out.put_slice(now);
        self.sends = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ScriptedClient<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answer.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
