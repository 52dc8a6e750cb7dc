use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::properties::{check_properties, serve};
use super::*;
use crate::limits::INTERIM_MAX;

const LIMITS: Limits = Limits { streams: 3, stream_window: 65_535, connection_window: 70_000, head_bytes: 16 * 1024 };

fn request(method: &str) -> http::request::Parts {
    Request::builder().method(method).uri("http://app/x").body(()).expect("a request").into_parts().0
}

/// Reads a body to its end.
async fn body(receiving: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), Error> {
    let mut whole = Vec::new();
    while let Some(data) = poll_fn(|cx| receiving.poll_data(cx)).await {
        let data = data?;
        receiving.release_capacity(data.len());
        whole.extend_from_slice(&data);
    }
    Ok((whole, receiving.take_trailers()))
}

/// Sends parts one after the other, each once the last was sent, and then trailers.
async fn send(sending: &mut SendStream, parts: Vec<Vec<u8>>, trailers: bool) -> Result<(), Error> {
    let mut parts = VecDeque::from(parts);
    while let Some(part) = parts.pop_front() {
        sending.send_data(part.into(), parts.is_empty() && !trailers)?;
        poll_fn(|cx| sending.poll_sent(cx)).await?;
    }
    if trailers {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", http::HeaderValue::from_static("0"));
        sending.send_trailers(map)?;
    }
    poll_fn(|cx| sending.poll_sent(cx)).await
}

/// A server that echoes each body.
async fn echo(stream: DuplexStream) {
    let mut connection = Connection::server(stream, LIMITS, |_| {});
    while let Some((request, mut sending, mut receiving)) = poll_fn(|cx| connection.poll_accept(cx)).await {
        let request = request.expect("a request that is not too large");
        tokio::task::spawn_local(async move {
            let (whole, trailers) = body(&mut receiving).await?;
            sending.respond(StatusCode::OK, request.headers(), false)?;
            send(&mut sending, vec![whole], trailers.is_some()).await
        });
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime.expect("a runtime"), async {
        tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("it ends")
    })
}

/// A client of the echo server, over a pipe with a buffer of `pipe` bytes.
fn client(pipe: usize) -> Requests {
    let (near, far) = duplex(pipe);
    tokio::task::spawn_local(echo(far));
    let (mut connection, requests) = Connection::client(near, LIMITS, |_| {});
    tokio::task::spawn_local(async move { poll_fn(|cx| connection.poll_run(cx)).await });
    requests
}

proptest! {
    /// Concurrent bodies arrive unchanged, whatever their parts and the pipe's buffer. Requests beyond
    /// SETTINGS_MAX_CONCURRENT_STREAMS wait.
    #[test]
    fn bodies_arrive_unchanged(
        bodies in prop::collection::vec(prop::collection::vec(0usize..100_000, 1..4), 1..8),
        trailers in any::<bool>(),
        pipe in 1usize..50_000,
    ) {
        let part = |length: &usize| (0..*length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
        let bodies: Vec<Vec<Vec<u8>>> = bodies.iter().map(|parts| parts.iter().map(part).collect()).collect();
        let expected: Vec<Vec<u8>> = bodies.iter().map(|parts| parts.concat()).collect();
        let found = run(async {
            let requests = client(pipe);
            let calls = bodies.into_iter().map(|parts| {
                let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
                async move {
                    send(&mut sending, parts, trailers).await.expect("sent");
                    let (status, _) = poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
                    assert_eq!(status, StatusCode::OK);
                    let (whole, end) = body(&mut receiving).await.expect("whole");
                    assert_eq!(end.is_some(), trailers);
                    assert!(receiving.is_end_stream());
                    whole
                }
            });
            futures_util::future::join_all(calls).await
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn split_input_gives_the_same_result(frames in prop::collection::vec(
        (prop::sample::select(vec![0u8, 1, 1, 2, 3, 4, 6, 7, 8, 9, 200]), any::<u8>(), 0u32..8,
         prop::collection::vec(prop::sample::select(vec![0u8, 1, 4, 16, 65, 0x40, 0x82, 0x84, 0x86, 0x87, 255]), 0..40)),
        0..12,
    )) {
        let put = |(kind, flags, stream, payload): &(u8, u8, u32, Vec<u8>)| {
            [&FrameHeader::encode(*kind, *flags & 0b0010_1101, *stream, payload.len())[..], payload].concat()
        };
        check_properties(&frames.iter().flat_map(put).collect::<Vec<_>>());
    }
}

/// The next `count` frames on `stream`.
async fn frames(stream: &mut DuplexStream, count: usize) -> Vec<(u8, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while found.len() < count {
        let mut bytes = [0; HEADER_BYTES];
        stream.read_exact(&mut bytes).await.expect("a frame");
        let head = FrameHeader::parse(bytes);
        let mut payload = vec![0; head.length];
        stream.read_exact(&mut payload).await.expect("its payload");
        found.push((head.kind, head.stream, payload));
    }
    found
}

fn put(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&FrameHeader::encode(kind, flags, stream, payload.len())[..], payload].concat()
}

/// A client whose server is the test. Its preface and first frames were read.
async fn connect_client(settings: &[u8]) -> (Requests, DuplexStream) {
    let (near, mut far) = duplex(100_000);
    let (mut connection, requests) = Connection::client(near, LIMITS, |_| {});
    tokio::task::spawn_local(async move { poll_fn(|cx| connection.poll_run(cx)).await });
    let mut preface = [0; PREFACE.len()];
    far.read_exact(&mut preface).await.expect("a preface");
    assert_eq!(preface, PREFACE);
    let kinds: Vec<u8> = frames(&mut far, 2).await.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE]);
    far.write_all(&put(frame::SETTINGS, 0, 0, settings)).await.expect("written");
    (requests, far)
}

#[test]
fn requests_fail_with_the_error_of_the_server() {
    let goaway =
        |last: u32, reason: u32| put(frame::GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat());
    let reset = |reason: u32| put(frame::RST_STREAM, 0, 1, &reason.to_be_bytes());
    for (frames, expected) in [
        (goaway(0, 0), "peer sent GOAWAY: NO_ERROR"),
        (goaway(0, 11), "peer sent GOAWAY: ENHANCE_YOUR_CALM"),
        (reset(7), "stream reset: REFUSED_STREAM"),
        (reset(99), "stream reset: error code 99"),
        (put(frame::HEADERS, 5, 1, &[0x82]), "HTTP/2 stream error: PROTOCOL_ERROR"),
        (put(frame::HEADERS, 5, 1, &[0xff]), "HTTP/2 connection error: COMPRESSION_ERROR"),
        (put(frame::HEADERS, 5, 9, &[0x88]), "HTTP/2 connection error: PROTOCOL_ERROR"),
        (put(frame::DATA, 0, 1, b"early"), "HTTP/2 stream error: PROTOCOL_ERROR"),
        (Vec::new(), "connection closed: unexpected end of file"),
    ] {
        let found = run(async {
            let (requests, mut far) = connect_client(&[]).await;
            let (_sending, mut receiving) = requests.send(&request("GET"), None, true).expect("sent");
            far.write_all(&frames).await.expect("written");
            if frames.is_empty() {
                drop(far);
            }
            poll_fn(|cx| receiving.poll_response(cx)).await
        });
        assert_eq!(found.map(|_| ()).expect_err("no response").to_string(), expected);
    }
}

#[test]
fn requests_wait_for_max_concurrent_streams() {
    run(async {
        let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 1]).await;
        assert_eq!(frames(&mut far, 1).await[0].0, frame::SETTINGS, "the acknowledgement");
        assert_eq!(requests.max_concurrent_streams(), Some(1));
        let mut calls: Vec<_> = (0..3).map(|_| requests.send(&request("GET"), None, true).expect("sent")).collect();
        // The second is cancelled while it waits: the server never sees it.
        calls.remove(1);
        for (stream, (_, receiving)) in [1, 5].into_iter().zip(&mut calls) {
            let (kind, id, _) = frames(&mut far, 1).await.remove(0);
            assert_eq!((kind, id), (frame::HEADERS, stream));
            far.write_all(&put(frame::HEADERS, 5, stream, &[0x88])).await.expect("written");
            poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
        }
        // No request can come any more: the connection sends GOAWAY and closes.
        drop((requests, calls));
        assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
        assert_eq!(far.read(&mut [0]).await.expect("read"), 0, "the end");
    });
}

/// DATA never exceeds the windows of stream and connection, and continues when they grow, also after the peer has
/// made a window negative.
#[test]
fn data_never_exceeds_the_windows() {
    run(async {
        let (requests, mut far) = connect_client(&[0, 4, 0, 0, 0, 10]).await;
        frames(&mut far, 1).await;
        let (mut sending, _receiving) = requests.send(&request("POST"), Some(25), false).expect("sent");
        sending.send_data(Bytes::from_static(b"0123456789abcdefghijklmno"), true).expect("kept");
        let data = frames(&mut far, 2).await.remove(1);
        assert_eq!(data, (frame::DATA, 1, b"0123456789".to_vec()));
        assert!(poll_fn(|cx| Poll::Ready(sending.poll_sent(cx).is_pending())).await, "the rest is kept");
        far.write_all(&put(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 3])).await.expect("written");
        far.write_all(&put(frame::WINDOW_UPDATE, 0, 1, &9u32.to_be_bytes())).await.expect("written");
        let got = frames(&mut far, 2).await;
        assert_eq!(got[1], (frame::DATA, 1, b"ab".to_vec()), "10 - 7 + 9 - 10");
        far.write_all(&put(frame::WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes())).await.expect("written");
        assert_eq!(frames(&mut far, 1).await[0], (frame::DATA, 1, b"cdefghijklmno".to_vec()));
        poll_fn(|cx| sending.poll_sent(cx)).await.expect("all of it");
    });
}

/// A graceful shutdown sends two GOAWAYs, answers open requests and those in flight, and accepts none after that.
#[test]
fn graceful_shutdown_answers_requests_in_flight() {
    run(async {
        let (near, mut far) = duplex(100_000);
        let mut connection = Connection::server(near, LIMITS, |_| {});
        far.write_all(PREFACE).await.expect("written");
        far.write_all(&put(frame::SETTINGS, 0, 0, &[])).await.expect("written");
        far.write_all(&put(frame::HEADERS, 5, 1, &[0x82, 0x84, 0x86])).await.expect("written");
        let (_, mut first, _first) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
        connection.graceful_shutdown();
        assert!(poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await);
        let got = frames(&mut far, 5).await;
        let kinds: Vec<u8> = got.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE, frame::SETTINGS, frame::GOAWAY, frame::PING]);
        assert_eq!(got[3].2[..4], 0x7fff_ffffu32.to_be_bytes());
        far.write_all(&put(frame::HEADERS, 5, 3, &[0x82, 0x84, 0x86])).await.expect("written");
        far.write_all(&put(frame::PING, frame::ACK, 0, &got[4].2)).await.expect("written");
        far.write_all(&put(frame::HEADERS, 5, 5, &[0x82, 0x84, 0x86])).await.expect("written");
        let (_, mut second, _second) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("it was on its way");
        assert!(poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await, "the third came too late");
        assert_eq!(frames(&mut far, 1).await[0].2[..4], 3u32.to_be_bytes(), "the last that counts");
        for sending in [&mut first, &mut second] {
            sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
        }
        assert!(poll_fn(|cx| connection.poll_accept(cx)).await.is_none());
        assert_eq!(frames(&mut far, 2).await.iter().map(|it| it.1).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(far.read(&mut [0]).await.expect("read"), 0, "the end");
    });
}

thread_local! {
    static OPEN_STREAMS: Cell<i64> = const { Cell::new(0) };
}

#[test]
fn streams_are_counted_until_both_handles_are_dropped() {
    run(async {
        let (near, mut far) = duplex(100_000);
        let count = |by| OPEN_STREAMS.set(OPEN_STREAMS.get() + by);
        let mut connection = Connection::server(near, LIMITS, count);
        let heads: Vec<u8> = [1, 3].iter().flat_map(|id| put(frame::HEADERS, 5, *id, &[0x82, 0x84, 0x86])).collect();
        far.write_all(&[PREFACE, &put(frame::SETTINGS, 0, 0, &[]), &heads].concat()).await.expect("written");
        let (_, mut sending, receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
        let open = poll_fn(|cx| connection.poll_accept(cx)).await.expect("another");
        assert_eq!(OPEN_STREAMS.get(), 2);
        sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
        drop(receiving);
        assert_eq!(OPEN_STREAMS.get(), 2, "one handle is left");
        drop(sending);
        assert_eq!(OPEN_STREAMS.get(), 1);
        drop(connection);
        assert_eq!(OPEN_STREAMS.get(), 1, "its handles are left");
        drop(open);
        assert_eq!(OPEN_STREAMS.get(), 0);
    });
}

/// Rapidly cancelled requests are harmless up to the reset budget.
#[test]
fn cancelled_requests_do_not_close_the_connection() {
    for (count, ends) in [(400, false), (600, true)] {
        let one = |number: u32| {
            let id = 2 * number + 1;
            let head = put(frame::HEADERS, frame::END_HEADERS, id, &[0x83, 0x84, 0x86]);
            let body = put(frame::DATA, 0, id, &[1; 5000]);
            [head, body, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
        };
        // Each request comes in one read: the first read is made as long.
        let piece = one(0).len();
        let settings = put(frame::SETTINGS, 0, 0, &[]);
        let unknown = put(0xee, 0, 0, &vec![0; piece - PREFACE.len() - settings.len() - HEADER_BYTES]);
        let sends = [PREFACE.to_vec(), settings, unknown].into_iter().chain((0..count).map(one));
        let (mut answer, requests) = serve(&sends.collect::<Vec<_>>().concat(), piece);
        assert!(requests.is_empty());
        let mut last = None;
        while let Some(bytes) = answer.first_chunk::<HEADER_BYTES>() {
            let head = FrameHeader::parse(*bytes);
            last = (head.kind == frame::GOAWAY).then(|| answer[HEADER_BYTES + 7]).or(last);
            answer.drain(..HEADER_BYTES + head.length);
        }
        assert_eq!(last, ends.then_some(Reason::ENHANCE_YOUR_CALM.0 as u8), "{count} requests");
    }
}

/// If a peer sends little at once, a frame holds no large buffer, however long it waits to be read.
#[test]
fn short_reads_hold_little_memory() {
    run(async {
        let (near, mut far) = duplex(100_000);
        let mut connection = Connection::server(near, LIMITS, |_| {});
        far.write_all(PREFACE).await.expect("written");
        far.write_all(&put(frame::SETTINGS, 0, 0, &[])).await.expect("written");
        far.write_all(&put(frame::HEADERS, 4, 1, &[0x83, 0x84, 0x86])).await.expect("written");
        let (_, _sending, mut receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
        for _ in 0..3 {
            for part in put(frame::DATA, 0, 1, &[1; 5000]).chunks(2000) {
                far.write_all(part).await.expect("written");
                assert!(poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await);
            }
            let data = poll_fn(|cx| receiving.poll_data(cx)).await.expect("data").expect("whole");
            let data = data.try_into_mut().expect("not shared");
            assert!(data.len() == 5000 && data.capacity() < 2 * READ_BYTES, "{} bytes are held", data.capacity());
        }
    });
}

/// Bytes that are never read return to the connection's window, or a few such streams would block the connection.
#[test]
fn unread_bytes_return_to_the_connection_window() {
    run(async {
        let requests = client(5000);
        for _ in 0..30 {
            let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
            sending.send_data(Bytes::from(vec![1; 60_000]), true).expect("kept");
            poll_fn(|cx| receiving.poll_response(cx)).await.expect("a response");
        }
        let (mut sending, mut receiving) = requests.send(&request("POST"), None, false).expect("sent");
        send(&mut sending, vec![vec![1; 60_000]; 3], false).await.expect("sent");
        assert_eq!(body(&mut receiving).await.expect("whole").0.len(), 180_000);
    });
}

/// The error code of the GOAWAY that a server sends to a client that sends these frames.
fn go_away_reason(frames: &[u8]) -> Option<u8> {
    let settings = put(frame::SETTINGS, 0, 0, &[]);
    let (answer, _) = serve(&[PREFACE, &settings, frames].concat(), 10_000);
    let mut rest = &answer[..];
    let mut reason = None;
    while let Some(bytes) = rest.first_chunk::<HEADER_BYTES>() {
        let head = FrameHeader::parse(*bytes);
        reason = (head.kind == frame::GOAWAY).then(|| rest[HEADER_BYTES + 7]).or(reason);
        rest = &rest[HEADER_BYTES + head.length..];
    }
    reason
}

/// Frames that carry no message spend the control budget.
#[test]
fn control_frames_are_bounded() {
    let increment = 1u32.to_be_bytes();
    let get = [0x82, 0x84, 0x86];
    let ended = |id: u32| {
        let request = put(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, id, &get);
        [request, put(frame::RST_STREAM, 0, id, &Reason::CANCEL.0.to_be_bytes())].concat()
    };
    let open = put(frame::HEADERS, frame::END_HEADERS, 3, &get);
    // An increment of zero: the stream is reset, and its frames in flight are ignored.
    let window = [open.clone(), put(frame::WINDOW_UPDATE, 0, 3, &[0; 4])].concat();
    for (desc, before, frame) in [
        ("empty data", open.clone(), put(frame::DATA, 0, 3, &[])),
        ("data that is padding", open.clone(), put(frame::DATA, frame::PADDED, 3, &[3, 0, 0, 0])),
        ("data of a stream that was reset", window, put(frame::DATA, 0, 3, b"x")),
        ("priorities", Vec::new(), put(frame::PRIORITY, 0, 3, &[0; 5])),
        ("resets of a stream that is over", ended(1), put(frame::RST_STREAM, 0, 1, &[0; 4])),
        ("settings", Vec::new(), put(frame::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("acknowledged settings", Vec::new(), put(frame::SETTINGS, frame::ACK, 0, &[])),
        ("pings", Vec::new(), put(frame::PING, 0, 0, &[0; 8])),
        ("answered pings", Vec::new(), put(frame::PING, frame::ACK, 0, &[0; 8])),
        ("GOAWAYs", Vec::new(), put(frame::GOAWAY, 0, 0, &[0; 8])),
        ("increments of the connection", Vec::new(), put(frame::WINDOW_UPDATE, 0, 0, &increment)),
        ("increments of a stream", open, put(frame::WINDOW_UPDATE, 0, 3, &increment)),
        ("increments of a stream that is over", ended(1), put(frame::WINDOW_UPDATE, 0, 1, &increment)),
        ("unknown frames", Vec::new(), put(0xee, 0, 0, &[0; 8])),
    ] {
        let times = |count: usize| go_away_reason(&[before.clone(), frame.repeat(count)].concat());
        assert_eq!(times(900), None, "900 {desc}");
        assert_eq!(times(2_000), Some(Reason::ENHANCE_YOUR_CALM.0 as u8), "2,000 {desc}");
    }
}

/// A change of SETTINGS_INITIAL_WINDOW_SIZE touches all streams: only the last value of a frame is applied, and
/// the control budget bounds the frames.
#[test]
fn initial_window_changes_are_bounded() {
    let value = |size: u32| [&[0, 4][..], &size.to_be_bytes()].concat();
    let open: Vec<u8> =
        (0..10).flat_map(|at| put(frame::HEADERS, frame::END_HEADERS, 2 * at + 1, &[0x82, 0x84, 0x86])).collect();
    let full = put(frame::WINDOW_UPDATE, 0, 1, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
    let beyond = [value(0x7fff_ffff), value(65_535)].concat();
    assert_eq!(go_away_reason(&[&open[..], &full, &put(frame::SETTINGS, 0, 0, &beyond)].concat()), None);
    let beyond = put(frame::SETTINGS, 0, 0, &value(65_536));
    let found = go_away_reason(&[&open[..], &full, &beyond].concat());
    assert_eq!(found, Some(Reason::FLOW_CONTROL_ERROR.0 as u8));
    let change = [put(frame::SETTINGS, 0, 0, &value(1)), put(frame::SETTINGS, 0, 0, &value(2))].concat();
    assert_eq!(go_away_reason(&[&open[..], &change.repeat(200)].concat()), None);
    let found = go_away_reason(&[&open[..], &change.repeat(1_000)].concat());
    assert_eq!(found, Some(Reason::ENHANCE_YOUR_CALM.0 as u8));
}

/// The outcome of a request that these frames answer.
fn response_to(method: &str, answer: &[u8]) -> Result<(StatusCode, Vec<u8>), String> {
    run(async {
        let (requests, mut far) = connect_client(&[]).await;
        let (_sending, mut receiving) = requests.send(&request(method), None, true).expect("sent");
        far.write_all(answer).await.expect("written");
        let (status, _) = poll_fn(|cx| receiving.poll_response(cx)).await.map_err(|error| error.to_string())?;
        let (whole, _) = body(&mut receiving).await.map_err(|error| error.to_string())?;
        Ok((status, whole))
    })
}

#[test]
fn informational_responses_are_bounded() {
    let early = put(frame::HEADERS, frame::END_HEADERS, 1, b"\x08\x03103");
    let last = put(frame::HEADERS, 5, 1, &[0x88]);
    let many = INTERIM_MAX as usize;
    let found = response_to("GET", &[early.repeat(many), last.clone()].concat());
    assert_eq!(found, Ok((StatusCode::OK, Vec::new())));
    let found = response_to("GET", &[early.repeat(many + 1), last].concat());
    assert_eq!(found, Err("HTTP/2 stream error: PROTOCOL_ERROR".to_owned()));
}

/// RFC 9110 6.4.1: no content follows, whatever `content-length` says.
#[test]
fn content_of_bodiless_responses_is_an_error() {
    // `content-length: 5`, then DATA with or without content.
    let length = b"\x0f\x0d\x015";
    for (method, status, is_bodiless) in
        [("GET", 0x88, false), ("HEAD", 0x88, true), ("GET", 0x89, true), ("GET", 0x8b, true), ("POST", 0x89, true)]
    {
        let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[&[status][..], length].concat());
        let found = |data: &[u8]| response_to(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
        assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
        assert_eq!(found(b"").is_ok(), is_bodiless, "{method} {status:#x}: {:?}", found(b""));
        let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[status]);
        let found = |data: &[u8]| response_to(method, &[&head[..], &put(frame::DATA, 1, 1, data)].concat());
        assert_eq!(found(b"hello").is_err(), is_bodiless, "{method} {status:#x}: {:?}", found(b"hello"));
        assert!(found(b"").is_ok(), "{method} {status:#x}");
    }
}

/// These limits are ours, so a server that exceeds them has not violated the protocol: only the stream is reset,
/// any number of times.
#[test]
fn oversized_headers_reset_only_their_stream() {
    // `a: vvv...`, whose length takes two bytes after the first.
    let field = |length: usize| {
        let rest = length - 127;
        [&b"\0\x01a\x7f"[..], &[(rest % 128) as u8 | 0x80, (rest / 128) as u8], &vec![b'v'; length]].concat()
    };
    let many = |count: usize| b"\0\x01a\x01b".repeat(count);
    // `:status: 200` counts 42 bytes, and each field 32 more than its name and value.
    let most = LIMITS.head_bytes as usize - 42 - 33;
    for (desc, fields, is_trailer, is_taken) in [
        ("a head of 16 KiB", field(most), false, true),
        ("a larger head", field(most + 1), false, false),
        ("a head of 100 fields", many(100), false, true),
        ("a head of 101 fields", many(101), false, false),
        ("trailers of 16 KiB", field(most + 42), true, true),
        ("larger trailers", field(most + 43), true, false),
        ("trailers of 100 fields", many(100), true, true),
        ("trailers of 101 fields", many(101), true, false),
    ] {
        run(async {
            let (requests, mut far) = connect_client(&[]).await;
            frames(&mut far, 1).await;
            for id in (1..).step_by(2).take(600) {
                let (_sending, mut receiving) = requests.send(&request("GET"), None, true).expect("sent");
                frames(&mut far, 1).await;
                let status = [0x88];
                let block = if is_trailer { fields.clone() } else { [&status[..], &fields].concat() };
                let (first, rest) = block.split_at(block.len().min(16_000));
                if is_trailer {
                    far.write_all(&put(frame::HEADERS, frame::END_HEADERS, id, &status)).await.expect("written");
                }
                let block = [
                    put(frame::HEADERS, frame::END_STREAM, id, first),
                    put(frame::CONTINUATION, frame::END_HEADERS, id, rest),
                ];
                far.write_all(&block.concat()).await.expect("written");
                let found = async {
                    poll_fn(|cx| receiving.poll_response(cx)).await?;
                    body(&mut receiving).await
                };
                match found.await {
                    Ok(_) => assert!(is_taken, "{desc}"),
                    Err(Error::TooLarge) => {
                        assert!(!is_taken, "{desc}");
                        assert_eq!(frames(&mut far, 1).await[0].0, frame::RST_STREAM, "{desc}");
                    }
                    Err(error) => panic!("{desc}: {error}"),
                }
            }
        });
    }
}

/// RFC 9113 6.5.2: a server must not enable push.
#[test]
fn enable_push_from_a_server_is_an_error() {
    for (value, error) in [(0, None), (1, Some("HTTP/2 connection error: PROTOCOL_ERROR"))] {
        let push = put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, value]);
        let found = response_to("GET", &[push, put(frame::HEADERS, 5, 1, &[0x88])].concat());
        assert_eq!(found.err().as_deref(), error, "{value}");
    }
    assert_eq!(go_away_reason(&put(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1])), None, "a client can");
}

/// Requests that are cancelled while they wait do not keep the connection open.
#[test]
fn cancelled_waiting_requests_do_not_keep_the_connection() {
    run(async {
        let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 0]).await;
        frames(&mut far, 1).await;
        for _ in 0..3 {
            drop(requests.send(&request("GET"), None, true).expect("waits"));
        }
        drop(requests);
        assert_eq!(frames(&mut far, 1).await[0].0, frame::GOAWAY);
    });
}

/// Requests that were not sent can be sent elsewhere, however the connection closes.
#[test]
fn waiting_requests_fail_as_unsent() {
    run(async {
        let (requests, mut far) = connect_client(&[0, 3, 0, 0, 0, 1]).await;
        frames(&mut far, 1).await;
        let mut calls = [(); 2].map(|()| requests.send(&request("POST"), None, true).expect("sent"));
        frames(&mut far, 1).await;
        drop(far);
        let mut errors = Vec::new();
        for (_, receiving) in &mut calls {
            errors.push(poll_fn(|cx| receiving.poll_response(cx)).await.expect_err("no response"));
        }
        assert!(matches!(errors[..], [Error::Closed(_), Error::Unsent(_)]), "{errors:?}");
    });
}

/// END_STREAM needs no window, so it does not wait for streams that do.
#[test]
fn end_stream_needs_no_window() {
    run(async {
        let (requests, mut far) = connect_client(&[]).await;
        frames(&mut far, 1).await;
        let mut calls = [(); 4].map(|()| requests.send(&request("POST"), None, false).expect("sent").0);
        calls[0].send_data(Bytes::from(vec![1; 60_000]), false).expect("sent");
        calls[1].send_data(Bytes::from(vec![1; 60_000]), false).expect("kept");
        let mut trailers = HeaderMap::new();
        trailers.insert("a", http::HeaderValue::from_static("b"));
        calls[2].send_data(Bytes::new(), true).expect("sent");
        calls[3].send_trailers(trailers).expect("sent");
        let mut ended = Vec::new();
        let mut bytes = 0;
        while ended.len() < 2 {
            let mut head = [0; HEADER_BYTES];
            far.read_exact(&mut head).await.expect("a frame");
            let head = FrameHeader::parse(head);
            let mut payload = vec![0; head.length];
            far.read_exact(&mut payload).await.expect("its payload");
            bytes += if head.kind == frame::DATA { head.length } else { 0 };
            if head.has(frame::END_STREAM) && matches!(head.kind, frame::DATA | frame::HEADERS) {
                ended.push((head.kind, head.stream));
            }
        }
        assert_eq!(ended, [(frame::DATA, 5), (frame::HEADERS, 7)]);
        assert!(bytes <= 65_535);
    });
}

/// Nothing is sent after the last GOAWAY, whatever is read or dropped later: the write side may be shut down.
#[test]
fn nothing_is_sent_after_the_last_goaway() {
    run(async {
        let (near, mut far) = duplex(100_000);
        let mut connection = Connection::server(near, LIMITS, |_| {});
        let body = vec![1; 16_000];
        let data: Vec<u8> = (0..4).flat_map(|at| put(frame::DATA, u8::from(at == 3), 1, &body)).collect();
        let head = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
        far.write_all(&[PREFACE, &put(frame::SETTINGS, 0, 0, &[]), &head, &data].concat()).await.expect("written");
        let (_, mut sending, mut receiving) = poll_fn(|cx| connection.poll_accept(cx)).await.expect("a request");
        let polled = poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending()));
        assert!(polled.await);
        connection.graceful_shutdown();
        sending.respond(StatusCode::OK, &HeaderMap::new(), true).expect("answered");
        far.write_all(&put(frame::PING, frame::ACK, 0, b"shutdown")).await.expect("written");
        drop(poll_fn(|cx| connection.poll_accept(cx)).await);
        while let Poll::Ready(Some(Ok(data))) = poll_fn(|cx| Poll::Ready(receiving.poll_data(cx))).await {
            receiving.release_capacity(data.len());
        }
        drop((sending, receiving, connection));
        let mut kinds = Vec::new();
        let mut head = [0; HEADER_BYTES];
        while far.read_exact(&mut head).await.is_ok() {
            let head = FrameHeader::parse(head);
            far.read_exact(&mut vec![0; head.length]).await.expect("its payload");
            kinds.push(head.kind);
        }
        assert_eq!(kinds.last(), Some(&frame::GOAWAY), "{kinds:?}");
    });
}

/// Everything but DATA is timed like a head until it is complete.
#[test]
fn incomplete_heads_are_timed() {
    let settings = put(frame::SETTINGS, 0, 0, &[]);
    let started = [PREFACE, &settings].concat();
    let headers = put(frame::HEADERS, frame::END_HEADERS, 1, &[0x83, 0x84, 0x86]);
    let block = put(frame::HEADERS, 0, 1, &[0x83, 0x84, 0x86]);
    let more = put(frame::CONTINUATION, 0, 1, &[]);
    let last = put(frame::CONTINUATION, frame::END_HEADERS, 1, &[]);
    for (desc, frames, is_unfinished) in [
        ("nothing", vec![], false),
        ("a part of the preface", PREFACE[..20].to_vec(), true),
        ("the preface", PREFACE.to_vec(), true),
        ("a part of the settings", started[..started.len() - 1].to_vec(), true),
        ("the settings", started.clone(), false),
        ("a part of a frame's head", [&started[..], &[0, 0]].concat(), true),
        ("a part of a frame", [&started[..], &headers[..headers.len() - 1]].concat(), true),
        ("a request", [&started[..], &headers].concat(), false),
        ("a part of a block", [&started[..], &block].concat(), true),
        ("more of it", [&started[..], &block, &more].concat(), true),
        ("the block", [&started[..], &block, &more, &last].concat(), false),
        ("a part of data", [&started[..], &headers, &[0, 0, 9, 0, 0, 0, 0, 0, 1, 0]].concat(), false),
    ] {
        run(async {
            let (near, mut far) = duplex(100_000);
            let mut connection = Connection::server(near, LIMITS, |_| {});
            for piece in frames.chunks(1) {
                far.write_all(piece).await.expect("written");
                poll_fn(|cx| Poll::Ready(connection.poll_accept(cx).is_pending())).await;
            }
            assert_eq!(connection.incomplete_since().is_some(), is_unfinished, "{desc}");
        });
    }
}
