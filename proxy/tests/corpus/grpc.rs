//! gRPC calls and streams through two proxies: client, outbound proxy of its pod, inbound proxy of the other pod,
//! server. The cases are the portable ones of the gRPC project's interoperability tests, written with the `h2` crate.
//!
//! `grpc-timeout` is forwarded unchanged, and the proxies do not enforce it: so does Linkerd, and so does Envoy by
//! default. A route's timeout ends a call in the mesh.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};

use super::place::{APP_H2, Direction, Options, Proxy, SECOND_POD, in_namespace, wait};

/// A length-prefixed gRPC message.
fn message(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + body.len());
    frame.put_u8(0);
    frame.put_u32(body.len() as u32);
    frame.put_slice(body);
    frame.freeze()
}

/// Splits a body into gRPC messages as they arrive.
struct Messages {
    body: RecvStream,
    buffer: BytesMut,
}

impl Messages {
    fn new(body: RecvStream) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next message. None: the body has ended.
    async fn next(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some(header) = self.buffer.get(..5) {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            match self.body.data().await {
                None => return Ok(None),
                Some(data) => {
                    let data = data?;
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
            }
        }
    }

    async fn trailers(&mut self) -> Result<HeaderMap, h2::Error> {
        Ok(self.body.trailers().await?.unwrap_or_default())
    }
}

async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => {
                let part = bytes.split_to(capacity?.min(bytes.len()));
                let last = end && bytes.is_empty();
                stream.send_data(part, last)?;
            }
            None => return Err(h2::Reason::CANCEL.into()),
        }
    }
    Ok(())
}

fn trailers(status: &str, text: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_str(status).expect("a value"));
    if !text.is_empty() {
        trailers.insert("grpc-message", HeaderValue::from_str(text).expect("a value"));
    }
    trailers
}

/// Windows and buffers like those of common gRPC servers. With the defaults of the `h2` crate, 200 small messages
/// count as a flood.
fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(1 << 24).data_frame_budget(1 << 24);
    builder
}

/// The server of the second pod.
#[derive(Clone, Default)]
struct Server {
    /// Calls that their client cancelled.
    cancelled: Arc<AtomicU32>,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Server {
    fn start() -> Self {
        let server = Self::default();
        let shared = server.clone();
        let listener =
            std::net::TcpListener::bind((std::net::Ipv4Addr::from(SECOND_POD), APP_H2)).expect("the port is free");
        listener.set_nonblocking(true).expect("an option");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let server = shared.clone();
                    tokio::spawn(async move {
                        let Ok(mut connection) = builder().handshake(stream).await else { return };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let server = server.clone();
                            tokio::spawn(async move {
                                if server.clone().call(request, respond).await.is_err() {
                                    server.cancelled.fetch_add(1, Ordering::SeqCst);
                                }
                            });
                        }
                    });
                }
            });
        });
        server
    }

    async fn call(self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
        let (parts, body) = request.into_parts();
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).push(parts.headers.clone());
        let mut messages = Messages::new(body);
        let mut response = Response::builder().header("content-type", "application/grpc");
        if let Some(echo) = parts.headers.get("x-echo-initial") {
            response = response.header("x-echo-initial", echo);
        }
        let response = response.body(()).expect("a response");
        let only = |status: &str, text: &str| {
            let mut response =
                Response::builder().header("content-type", "application/grpc").body(()).expect("a response");
            response.headers_mut().extend(trailers(status, text));
            response
        };
        let mut last = trailers("0", "");
        if let Some(echo) = parts.headers.get("x-echo-trailing-bin") {
            last.insert("x-echo-trailing-bin", echo.clone());
        }
        match parts.uri.path() {
            "/t/Unary" => {
                let got = messages.next().await?.unwrap_or_default();
                let mut stream = respond.send_response(response, false)?;
                send(&mut stream, message(&got), false).await?;
                stream.send_trailers(last)?;
            }
            // Replies with the sum of the message sizes.
            "/t/Collect" => {
                let mut sum = 0;
                while let Some(got) = messages.next().await? {
                    sum += got.len();
                }
                let mut stream = respond.send_response(response, false)?;
                send(&mut stream, message(sum.to_string().as_bytes()), false).await?;
                stream.send_trailers(last)?;
            }
            // Replies with a message of each requested size.
            "/t/Spread" => {
                let got = messages.next().await?.unwrap_or_default();
                let mut stream = respond.send_response(response, false)?;
                for size in String::from_utf8_lossy(&got).split_whitespace() {
                    send(&mut stream, message(&vec![b'x'; size.parse().expect("a size")]), false).await?;
                }
                stream.send_trailers(last)?;
            }
            // Echoes each message when it arrives.
            "/t/Chat" => {
                let mut stream = respond.send_response(response, false)?;
                while let Some(got) = messages.next().await? {
                    send(&mut stream, message(&got), false).await?;
                }
                stream.send_trailers(last)?;
            }
            "/t/Fail" => {
                let mut stream = respond.send_response(response, false)?;
                stream.send_trailers(trailers(
                    "2",
                    "%09%0Atest with whitespace%0D%0Aand Unicode BMP %E2%98%BA and non-BMP %F0%9F%98%88%09%0A",
                ))?;
            }
            "/t/FailAtOnce" => {
                respond.send_response(only("7", "no"), true)?;
            }
            // Responds completely without reading the rest of the request: the stream is then reset with NO_ERROR.
            "/t/Early" => {
                let mut stream = respond.send_response(response, false)?;
                stream.send_trailers(trailers("8", "enough"))?;
            }
            // Ends the call as grpc-go does when its deadline has passed before the handler responded.
            "/t/Expire" => {
                while messages.next().await?.is_some() {}
                tokio::time::sleep(Duration::from_millis(100)).await;
                respond.send_reset(h2::Reason::CANCEL);
            }
            "/t/Sleep" => {
                let mut stream = respond.send_response(response, false)?;
                return Err(std::future::poll_fn(|cx| stream.poll_reset(cx)).await?.into());
            }
            _ => {
                respond.send_response(only("12", ""), true)?;
            }
        }
        Ok(())
    }
}

/// An open call.
struct Call {
    send: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

struct Client(h2::client::SendRequest<Bytes>);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .data_frame_budget(1 << 24)
            .handshake(stream)
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        Self(client)
    }

    async fn call(&mut self, method: &str, metadata: &[(&'static str, &'static str)]) -> Call {
        let mut request = Request::post(format!("http://app/t/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        std::future::poll_fn(|cx| self.0.poll_ready(cx)).await.expect("ready");
        let (response, send) = self.0.send_request(request.body(()).expect("a request"), false).expect("sent");
        Call { send, response }
    }

    /// Makes one call with messages of these sizes. Returns the response head, its messages and its trailers.
    async fn exchange(
        &mut self,
        method: &str,
        metadata: &[(&'static str, &'static str)],
        sizes: &[usize],
    ) -> (HeaderMap, Vec<Bytes>, HeaderMap) {
        let mut call = self.call(method, metadata).await;
        let bodies: Vec<Bytes> = sizes.iter().map(|size| message(&vec![b'm'; *size])).collect();
        let Call { send, response } = &mut call;
        let (read, ()) = tokio::join!(read(response), finish_with(send, bodies));
        read
    }
}

async fn finish_with(stream: &mut SendStream<Bytes>, messages: Vec<Bytes>) {
    for message in messages {
        if send(stream, message, false).await.is_err() {
            return;
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}

/// Reads a response: head, messages and trailers.
async fn read(response: &mut h2::client::ResponseFuture) -> (HeaderMap, Vec<Bytes>, HeaderMap) {
    let response = response.await.expect("a response");
    assert_eq!(response.status(), 200);
    let (parts, body) = response.into_parts();
    let mut messages = Messages::new(body);
    let mut got = Vec::new();
    while let Some(message) = messages.next().await.expect("a whole stream") {
        got.push(message);
    }
    let trailers = messages.trailers().await.expect("trailers");
    // A Trailers-Only response has them in its head.
    let trailers = if trailers.is_empty() { parts.headers.clone() } else { trailers };
    (parts.headers, got, trailers)
}

fn sizes(messages: &[Bytes]) -> Vec<usize> {
    messages.iter().map(Bytes::len).collect()
}

fn run(body: impl AsyncFnOnce(&Server, Client)) {
    let server = Server::start();
    // The client-side proxy is dropped first: it is a client of the server-side one.
    let _server_side = Proxy::second();
    let _client_side = Proxy::with(Options { remote: true, ..Options::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::connect(Direction::Outbound.address_h2()).await;
        tokio::time::timeout(Duration::from_secs(60), body(&server, client)).await.expect("nothing hangs");
    });
}

#[test]
fn grpc_calls_and_streams_pass_two_proxies() {
    in_namespace(module_path!(), "grpc_calls_and_streams_pass_two_proxies", || {
        run(async |server, mut client| {
            // empty_unary, large_unary, and larger than any window.
            for size in [0, 1, 271_828, 4 * 1024 * 1024] {
                let (_, got, last) = client.exchange("Unary", &[], &[size]).await;
                assert_eq!((sizes(&got), &last["grpc-status"]), (vec![size], &HeaderValue::from_static("0")));
            }
            // client_streaming, server_streaming, ping_pong, empty_stream.
            let (_, got, last) = client.exchange("Collect", &[], &[27_182, 8, 1_828, 45_904]).await;
            assert_eq!((got[0].as_ref(), &last["grpc-status"]), (&b"74922"[..], &HeaderValue::from_static("0")));
            let mut call = client.call("Spread", &[]).await;
            finish_with(&mut call.send, vec![message(b"31415 9 2653 58979")]).await;
            let (_, got, last) = read(&mut call.response).await;
            assert_eq!(
                (sizes(&got), &last["grpc-status"]),
                (vec![31_415, 9, 2_653, 58_979], &HeaderValue::from_static("0"))
            );
            let Call { mut send, response } = client.call("Chat", &[]).await;
            let mut messages = Messages::new(response.await.expect("a head before any message").into_body());
            for size in [31_415, 9, 2_653, 58_979] {
                super::grpc::send(&mut send, message(&vec![b'p'; size]), false).await.expect("sent");
                assert_eq!(
                    messages.next().await.expect("whole").map(|got| got.len()),
                    Some(size),
                    "each is answered before the next is sent"
                );
            }
            send.send_data(Bytes::new(), true).expect("half closed");
            assert_eq!(messages.next().await.expect("whole"), None);
            assert_eq!(messages.trailers().await.expect("trailers")["grpc-status"], "0");
            let (_, got, last) = client.exchange("Chat", &[], &[]).await;
            assert_eq!((got.len(), &last["grpc-status"]), (0, &HeaderValue::from_static("0")));
            // Many small messages at once.
            let (_, got, _) = client.exchange("Chat", &[], &[1; 1_500]).await;
            assert_eq!(got.len(), 1_500);
            // custom_metadata.
            let echo = [("x-echo-initial", "test_initial_metadata_value"), ("x-echo-trailing-bin", "q6ur")];
            let (first, _, last) = client.exchange("Unary", &echo, &[1]).await;
            assert_eq!(
                (&first["x-echo-initial"], &last["x-echo-trailing-bin"]),
                (&HeaderValue::from_static("test_initial_metadata_value"), &HeaderValue::from_static("q6ur"))
            );
            // status_code_and_message, special_status_message, unimplemented_method, trailers only.
            let (_, _, last) = client.exchange("Fail", &[], &[1]).await;
            assert_eq!(last["grpc-status"], "2");
            assert_eq!(
                last["grpc-message"],
                "%09%0Atest with whitespace%0D%0Aand Unicode BMP %E2%98%BA and non-BMP %F0%9F%98%88%09%0A"
            );
            for (method, status) in [("FailAtOnce", "7"), ("Nothing", "12")] {
                let (first, got, _) = client.exchange(method, &[], &[1]).await;
                assert_eq!((&first["grpc-status"], got.len()), (&HeaderValue::from_static(status), 0), "{method}");
            }
            // Headers that both proxies forward unchanged.
            let heads = std::mem::take(&mut *server.heads.lock().unwrap_or_else(PoisonError::into_inner));
            assert!(
                heads.iter().all(|head| head["te"] == "trailers" && head["content-type"] == "application/grpc"),
                "{heads:?}"
            );
        });
    });
}

/// The client's own timer may end later than the server's, and then it takes the status that it gets.
#[test]
fn grpc_calls_that_the_server_ends_at_their_deadline_have_exceeded_it() {
    in_namespace(module_path!(), "grpc_calls_that_the_server_ends_at_their_deadline_have_exceeded_it", || {
        run(async |_, mut client| {
            for (timeout, status) in [("50m", "4"), ("50000u", "4"), ("10S", "14"), ("x", "14")] {
                let (first, _, _) = client.exchange("Expire", &[("grpc-timeout", timeout)], &[1]).await;
                assert_eq!(
                    (&first["grpc-status"], &first["grpc-message"]),
                    (&HeaderValue::from_static(status), &HeaderValue::from_static("upstream-reset")),
                    "{timeout}"
                );
            }
        });
    });
}

#[test]
fn grpc_cancellations_and_early_responses_pass_two_proxies() {
    in_namespace(module_path!(), "grpc_cancellations_and_early_responses_pass_two_proxies", || {
        run(async |server, mut client| {
            // cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server: each cancels the call at
            // the server.
            let mut call = client.call("Collect", &[]).await;
            send(&mut call.send, message(b"begun"), false).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(50)).await;
            call.send.send_reset(h2::Reason::CANCEL);
            let Call { send: mut stream, response } = client.call("Chat", &[]).await;
            send(&mut stream, message(b"begun"), false).await.expect("sent");
            let mut messages = Messages::new(response.await.expect("a head").into_body());
            assert_eq!(messages.next().await.expect("whole").as_deref(), Some(&b"begun"[..]));
            stream.send_reset(h2::Reason::CANCEL);
            let mut call = client.call("Sleep", &[("grpc-timeout", "100m")]).await;
            let _ = call.send.send_data(Bytes::new(), true);
            let head = tokio::time::timeout(Duration::from_millis(400), call.response).await;
            assert!(head.is_ok_and(|head| head.is_ok()), "the proxies do not enforce grpc-timeout");
            call.send.send_reset(h2::Reason::CANCEL);
            let cancelled = server.cancelled.clone();
            tokio::task::spawn_blocking(move || {
                wait("three calls are cancelled", || cancelled.load(Ordering::SeqCst) == 3)
            })
            .await
            .expect("it does not panic");
            let timeouts: Vec<_> = server
                .heads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .filter_map(|head| head.get("grpc-timeout").cloned())
                .collect();
            assert_eq!(timeouts, ["100m"], "forwarded unchanged");
            // An invalid one changes nothing.
            for timeout in ["99999999H", "999999999999999999S", "x", ""] {
                let (_, _, last) = client.exchange("Unary", &[("grpc-timeout", timeout)], &[1]).await;
                assert_eq!(last["grpc-status"], "0", "{timeout}");
            }
            // A complete response before the end of the request, which the server does not read.
            for _ in 0..20 {
                let mut call = client.call("Early", &[]).await;
                send(&mut call.send, message(&[b'e'; 1000]), false).await.expect("sent");
                let (_, _, last) = read(&mut call.response).await;
                assert_eq!(
                    (&last["grpc-status"], &last["grpc-message"]),
                    (&HeaderValue::from_static("8"), &HeaderValue::from_static("enough"))
                );
            }
            let (_, got, _) = client.exchange("Unary", &[], &[7]).await;
            assert_eq!(sizes(&got), [7], "the connection is still usable");
        });
    });
}
