//! HTTP/2 frame by frame: a raw client, scripted applications, and a correct application built on the `h2` crate.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use weft_codec::hpack::decode::Decoder;
use weft_codec::hpack::{Field, TABLE_BYTES_MAX};
pub(crate) use weft_codec::http2::frame::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use weft_codec::http2::frame::{FrameHeader, HEADER_BYTES, put, put_settings};

use super::place::{APP_H2, POD, TIMEOUT};

/// One side of an HTTP/2 connection, read and written as raw frames.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Status(u16),
    /// The stream was reset, with this error code.
    Reset(u32),
    /// GOAWAY with this error code.
    GoAway(u32),
    Closed,
    Timeout,
}

impl End {
    /// Whether the request was refused: a status of 400 or above, a reset, a GOAWAY or a closed connection.
    pub(crate) fn is_refusal(self) -> bool {
        match self {
            Self::Status(status) => status >= 400,
            Self::Reset(_) | Self::GoAway(_) | Self::Closed => true,
            Self::Timeout => false,
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    put(kind, flags, stream, payload, &mut bytes);
    bytes.into()
}

/// A SETTINGS frame with these identifiers and values.
pub(crate) fn settings_frame(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    put_settings(settings, &mut bytes);
    bytes.into()
}

/// An HPACK integer (RFC 7541 5.1) in the low `bits` of a byte, whose other bits are `prefix`.
fn number(prefix: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1usize << bits) - 1;
    if value < most {
        return vec![prefix | value as u8];
    }
    let (mut bytes, mut rest) = (vec![prefix | most as u8], value - most);
    while rest >= 128 {
        bytes.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// A header as a literal without indexing.
pub(crate) fn literal(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let (name, value) = (name.as_ref(), value.as_ref());
    [vec![0], number(0, 7, name.len()), name.to_vec(), number(0, 7, value.len()), value.to_vec()].concat()
}

/// A header as a literal with incremental indexing: it becomes entry 62.
pub(crate) fn indexed_literal(name: &str, value: &[u8]) -> Vec<u8> {
    [vec![0x40], number(0, 7, name.len()), name.into(), number(0, 7, value.len()), value.to_vec()].concat()
}

pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    headers.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// The head of a valid request.
pub(crate) fn head(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", "app"), (":path", path)])
}

impl Wire {
    /// Connects, and sends the preface and empty SETTINGS.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::with_settings(address, &[])
    }

    pub(crate) fn with_settings(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        let mut wire = Self { stream, buffer: Vec::new() };
        wire.send(PREFACE).send(settings_frame(settings));
        wire
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// Sends bytes. Returns false if the connection is closed or the write times out.
    pub(crate) fn flood(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame, if one arrives within the read timeout.
    pub(crate) fn next(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() {
                let FrameHeader { length, kind, flags, stream } = FrameHeader::parse(*header);
                if self.buffer.len() >= HEADER_BYTES + length {
                    let payload = self.buffer.drain(..HEADER_BYTES + length).skip(HEADER_BYTES).collect();
                    return Ok(Frame { kind, flags, stream, payload });
                }
            }
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(count) => self.buffer.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(End::Timeout);
                }
                Err(_) => return Err(End::Closed),
            }
        }
    }

    /// Reads until the stream's first response head, or until the stream or connection ends.
    pub(crate) fn end(&mut self, stream: u32) -> End {
        loop {
            match self.next() {
                Err(end) => return end,
                Ok(frame) if frame.kind == GOAWAY => return End::GoAway(code(&frame.payload[4..])),
                Ok(frame) if frame.stream == stream && frame.kind == RST_STREAM => {
                    return End::Reset(code(&frame.payload));
                }
                Ok(frame) if frame.stream == stream && frame.kind == HEADERS => {
                    return End::Status(status(&frame.payload));
                }
                Ok(_) => {}
            }
        }
    }

    /// Reads until the next response head or reset on any stream.
    pub(crate) fn first_status(&mut self) -> End {
        loop {
            match self.next() {
                Ok(frame) if frame.kind == HEADERS => return End::Status(status(&frame.payload)),
                Ok(frame) if frame.kind == RST_STREAM => return End::Reset(code(&frame.payload)),
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }

    /// Acknowledges SETTINGS and PING until a request head arrives, and returns its stream. None: the connection has
    /// ended.
    pub(crate) fn request(&mut self) -> Option<u32> {
        loop {
            match self.next() {
                Ok(frame) if frame.kind == HEADERS => return Some(frame.stream),
                Ok(frame) => self.acknowledge(&frame),
                Err(End::Timeout) => {}
                Err(_) => return None,
            }
        }
    }

    pub(crate) fn acknowledge(&mut self, frame: &Frame) {
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            let payload = if frame.kind == PING { &frame.payload[..] } else { &[] };
            self.send(self::frame(frame.kind, ACK, 0, payload));
        }
    }

    /// Reads the body of a response whose head was read, and returns how it ended.
    pub(crate) fn body(&mut self, stream: u32) -> (Vec<u8>, Result<(), End>) {
        let mut body = Vec::new();
        loop {
            match self.next() {
                Err(end) => return (body, Err(end)),
                Ok(frame) if frame.kind == GOAWAY => return (body, Err(End::GoAway(code(&frame.payload[4..])))),
                Ok(frame) if frame.stream == stream && frame.kind == RST_STREAM => {
                    return (body, Err(End::Reset(code(&frame.payload))));
                }
                Ok(frame) if frame.stream == stream && matches!(frame.kind, DATA | HEADERS) => {
                    if frame.kind == DATA {
                        body.extend_from_slice(&frame.payload);
                    }
                    if frame.flags & END_STREAM != 0 {
                        return (body, Ok(()));
                    }
                }
                Ok(_) => {}
            }
        }
    }

    /// Whether the connection ends within `time`, by a GOAWAY with an error code or by closing.
    pub(crate) fn ends_within(&mut self, time: Duration) -> bool {
        let begun = Instant::now();
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(100)));
        while begun.elapsed() < time {
            match self.next() {
                Err(End::Timeout) => {}
                Err(_) => return true,
                Ok(frame) if frame.kind == GOAWAY && code(&frame.payload[4..]) != 0 => return true,
                Ok(_) => {}
            }
        }
        false
    }
}

/// Starts an HTTP/2 application that runs `serve` for each connection, with the connection's number from 0.
pub(crate) fn application(serve: impl Fn(u32, Wire) + Send + Sync + 'static) {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::from(POD), APP_H2)).expect("the port is free");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, mut stream) in (0..).zip(listener.incoming().flatten()) {
            let serve = serve.clone();
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut preface = [0; PREFACE.len()];
                if stream.read_exact(&mut preface).is_ok() {
                    serve(number, Wire { stream, buffer: Vec::new() });
                }
            });
        }
    });
}

fn code(bytes: &[u8]) -> u32 {
    bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
}

/// The `:status` of the first header block of a connection. 0: it has none. In a later block, fields behind it may refer
/// to table entries that are unknown here.
fn status(block: &[u8]) -> u16 {
    let mut status = 0;
    let _ = Decoder::new(TABLE_BYTES_MAX).decode(Bytes::copy_from_slice(block), |field, _| {
        if let Field::Status(found) = field {
            status = found.as_u16();
        }
    });
    status
}

/// What the application received on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamRecord {
    pub(crate) octets: usize,
    pub(crate) has_ended: bool,
    pub(crate) reset: Option<u32>,
}

/// An HTTP/2 application that follows a [`Script`].
#[derive(Clone, Default)]
pub(crate) struct ScriptedApp {
    came: Arc<Mutex<BTreeMap<(u32, u32), StreamRecord>>>,
    script: Arc<Mutex<Script>>,
}

/// What a [`ScriptedApp`] does.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// Frames sent on the stream of each request head: type, flags, payload.
    pub(crate) response: Vec<(u8, u8, Vec<u8>)>,
    /// Sends WINDOW_UPDATE for received DATA. Otherwise the initial windows are never refilled.
    pub(crate) updates_windows: bool,
    /// How the connection is shut down after the response.
    pub(crate) shutdown: Option<std::net::Shutdown>,
}

impl ScriptedApp {
    pub(crate) fn start(settings: &[(u16, u32)]) -> Self {
        let app = Self::default();
        let (server, settings) = (app.clone(), settings.to_vec());
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::from(POD), APP_H2)).expect("the port is free");
        thread::spawn(move || {
            for (stream, number) in listener.incoming().flatten().zip(0..) {
                let (server, settings) = (server.clone(), settings.clone());
                thread::spawn(move || server.serve(stream, number, &settings));
            }
        });
        app
    }

    pub(crate) fn follow(&self, script: Script) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// Waits until `is_done` holds for each stream since the last call, and returns them.
    pub(crate) fn take_when(&self, what: &str, is_done: impl Fn(&StreamRecord) -> bool) -> Vec<StreamRecord> {
        let came = || self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        while came().is_empty() || !came().values().all(&is_done) {
            assert!(begun.elapsed() < TIMEOUT, "{what}: {:?}", came());
            thread::sleep(Duration::from_millis(5));
        }
        std::mem::take(&mut *came()).into_values().collect()
    }

    fn serve(&self, mut stream: TcpStream, connection: u32, settings: &[(u16, u32)]) {
        let mut preface = [0; PREFACE.len()];
        let _ = (stream.set_nodelay(true), stream.set_read_timeout(Some(Duration::from_secs(3600))));
        if stream.read_exact(&mut preface).is_err() || preface != PREFACE {
            return;
        }
        let mut wire = Wire { stream, buffer: Vec::new() };
        wire.send(settings_frame(settings));
        while let Ok(Frame { kind, flags, stream, payload }) = wire.next() {
            let script = self.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let note = |change: &dyn Fn(&mut StreamRecord)| {
                let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
                change(came.entry((connection, stream)).or_default());
            };
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let payload = if kind == PING { payload } else { Vec::new() };
                    wire.send(frame(kind, ACK, 0, &payload));
                }
                RST_STREAM => note(&|came| came.reset = Some(code(&payload))),
                DATA => {
                    note(&|came| {
                        came.octets += payload.len();
                        came.has_ended |= flags & END_STREAM != 0;
                    });
                    if script.updates_windows && !payload.is_empty() {
                        let count = (payload.len() as u32).to_be_bytes();
                        wire.send(
                            [frame(WINDOW_UPDATE, 0, 0, &count), frame(WINDOW_UPDATE, 0, stream, &count)].concat(),
                        );
                    }
                }
                HEADERS => {
                    note(&|came| came.has_ended |= flags & END_STREAM != 0);
                    if flags & END_HEADERS == 0 {
                        continue;
                    }
                    for (kind, flags, payload) in &script.response {
                        let to = if *kind == GOAWAY { 0 } else { stream };
                        wire.send(frame(*kind, *flags, to, payload));
                    }
                    if let Some(how) = script.shutdown {
                        let _ = wire.stream.shutdown(how);
                    }
                }
                _ => {}
            }
        }
    }
}

/// An HTTP/2 application that sends GOAWAY after a number of requests on each connection. It answers those requests,
/// and ignores streams beyond the last one that the GOAWAY names.
#[derive(Debug, Default)]
pub(crate) struct GoAwayApp {
    pub(crate) answered: AtomicU32,
    pub(crate) go_aways: AtomicU32,
}

impl GoAwayApp {
    pub(crate) fn start(after: u32) -> Arc<Self> {
        let app = Arc::new(Self::default());
        let server = app.clone();
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::from(POD), APP_H2)).expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream, after));
            }
        });
        app
    }

    fn serve(&self, mut stream: TcpStream, after: u32) {
        let mut preface = [0; PREFACE.len()];
        let _ = (stream.set_nodelay(true), stream.set_read_timeout(Some(TIMEOUT)));
        if stream.read_exact(&mut preface).is_err() || preface != PREFACE {
            return;
        }
        let mut wire = Wire { stream, buffer: Vec::new() };
        wire.send(frame(SETTINGS, 0, 0, &[]));
        let (mut requests, mut answers, mut last) = (0, 0, None);
        // Reads until the proxy closes too: closing with unread data would send RST instead of FIN.
        while let Ok(Frame { kind, flags, stream, payload }) = wire.next() {
            match kind {
                SETTINGS | PING if flags & ACK == 0 => {
                    let payload = if kind == PING { payload } else { Vec::new() };
                    wire.send(frame(kind, ACK, 0, &payload));
                }
                HEADERS | DATA if last.is_some_and(|last| stream > last) => {}
                HEADERS | DATA => {
                    requests += u32::from(kind == HEADERS);
                    if requests == after && last.is_none() {
                        last = Some(stream);
                        self.go_aways.fetch_add(1, Ordering::SeqCst);
                        wire.send(frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat()));
                    }
                    if flags & END_STREAM != 0 {
                        answers += 1;
                        self.answered.fetch_add(1, Ordering::SeqCst);
                        // `:status: 200` of the static table.
                        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]));
                    }
                    if answers == after {
                        let _ = wire.stream.shutdown(std::net::Shutdown::Write);
                    }
                }
                _ => {}
            }
        }
    }
}

/// A request as [`Http2App`] received it.
#[derive(Clone, Debug)]
pub(crate) struct Http2Request {
    pub(crate) method: String,
    pub(crate) uri: http::Uri,
    pub(crate) headers: HeaderMap,
    /// None: the body was truncated.
    pub(crate) body: Option<Vec<u8>>,
}

/// An HTTP/2 application, built on the `h2` crate, that records its requests.
#[derive(Clone, Default)]
pub(crate) struct Http2App {
    got: Arc<Mutex<Vec<Http2Request>>>,
    /// Requests in flight.
    pub(crate) open: Arc<AtomicU32>,
    /// The highest value of `open`.
    pub(crate) max_open: Arc<AtomicU32>,
}

impl Http2App {
    pub(crate) fn start() -> Self {
        Self::with_streams(1000)
    }

    pub(crate) fn with_streams(streams: u32) -> Self {
        let app = Self::default();
        let server = app.clone();
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::from(POD), APP_H2)).expect("the port is free");
        listener.set_nonblocking(true).expect("an option");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(server.clone().serve(stream, streams));
                }
            });
        });
        app
    }

    pub(crate) fn take(&self) -> Vec<Http2Request> {
        std::mem::take(&mut self.got.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn serve(self, stream: tokio::net::TcpStream, streams: u32) {
        let mut builder = h2::server::Builder::new();
        builder.max_header_list_size(1024 * 1024).max_concurrent_streams(streams);
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let app = self.clone();
            tokio::spawn(async move {
                let open = app.open.fetch_add(1, Ordering::SeqCst) + 1;
                app.max_open.fetch_max(open, Ordering::SeqCst);
                app.clone().serve_request(request, respond).await;
                app.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    async fn serve_request(self, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, mut incoming) = request.into_parts();
        let mut body = Some(Vec::new());
        while let Some(data) = incoming.data().await {
            match (data, &mut body) {
                (Ok(data), Some(body)) => {
                    let _ = incoming.flow_control().release_capacity(data.len());
                    body.extend_from_slice(&data);
                }
                _ => {
                    body = None;
                    break;
                }
            }
        }
        let (path, bodiless) = (parts.uri.path().to_owned(), parts.method == http::Method::HEAD);
        let got = Http2Request { method: parts.method.to_string(), uri: parts.uri, headers: parts.headers, body };
        self.got.lock().unwrap_or_else(PoisonError::into_inner).push(got);
        let length = if path == "/big" { 4 * 1024 * 1024 } else { 5 };
        if path == "/hang" {
            // Waits until the stream is reset.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            return;
        }
        let Ok(mut body) = respond.send_response(Response::new(()), bodiless) else { return };
        if bodiless {
            return;
        }
        match path.as_str() {
            "/cut" => {
                let _ = body.send_data(Bytes::from_static(b"hello"), false);
                tokio::time::sleep(Duration::from_millis(20)).await;
                body.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            }
            _ => {
                let mut left = length;
                while left > 0 {
                    body.reserve_capacity(left.min(16 * 1024));
                    match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                        Some(Ok(capacity)) => {
                            let count = capacity.min(left);
                            left -= count;
                            if body.send_data(Bytes::from(vec![b'o'; count]), left == 0).is_err() {
                                return;
                            }
                        }
                        _ => return,
                    }
                }
            }
        }
    }
}
