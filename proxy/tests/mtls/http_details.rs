//! What is fragile in HTTP, through both proxies: informational responses, trailers, halves that end first, resets, and
//! answers before the request is complete.

use h2::{Reason as Code, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::*;

/// Reads until what is read ends with `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let byte = tokio::time::timeout(TIMEOUT, stream.read_u8()).await;
        let byte = byte.unwrap_or_else(|_| panic!("only {}", String::from_utf8_lossy(&bytes)));
        bytes.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&bytes))));
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_responses_and_trailers_go_through_http_1() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let (application, _) = raw_application(move |mut stream| {
        let seen = seen.clone();
        async move {
            let head = read_until(&mut stream, "\r\n\r\n").await;
            assert!(head.contains("expect: 100-continue"), "{head}");
            let hint = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
            stream.write_all(hint.as_bytes()).await.expect("sent");
            let body = read_until(&mut stream, "\r\n\r\n").await;
            seen.lock().expect("not poisoned").push(head + &body);
            let answer = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("sent");
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let (client, _server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
    let head =
        "POST / HTTP/1.1\r\nhost: web\r\nte: trailers\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let hints = read_until(&mut stream, "\r\n\r\n").await;
    assert!(hints.starts_with("HTTP/1.1 103 ") && hints.contains("link: </style.css>"), "{hints}");
    let proceed = read_until(&mut stream, "\r\n\r\n").await;
    assert!(proceed.starts_with("HTTP/1.1 100 "), "{proceed}");
    let forged = format!(
        "5\r\nhello\r\n0\r\nx-sum: 5\r\nX-Forwarded-Client-Cert: URI={BANK}\r\nx_forwarded_client_cert: {BANK}\r\n\r\n"
    );
    stream.write_all(forged.as_bytes()).await.expect("sent");
    let answer = read_until(&mut stream, "0\r\nx-sum: 2\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let bodies = bodies.lock().expect("not poisoned").concat();
    assert!(bodies.contains(&format!("x-forwarded-client-cert: By={WEB};URI={CART}")), "{bodies}");
    assert!(bodies.contains("x-sum: 5") && !bodies.contains("bank"), "trailers cannot add a caller: {bodies}");
}

/// A client that sends FIN after its request still gets the response, and a TCP client after its last byte.
#[tokio::test(flavor = "multi_thread")]
async fn halves_that_are_closed_first_do_not_end_the_other() {
    let (application, _) = raw_application(async |mut stream| {
        let mut received = Vec::new();
        let mut part = [0; 1024];
        while !received.ends_with(b"end") {
            let read = stream.read(&mut part).await.expect("bytes");
            received.extend(&part[..read]);
        }
        if received[0] == 0 {
            assert_eq!(stream.read(&mut part).await.expect("the end"), 0, "the client's half ends");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let answer: &[u8] =
            if received[0] == 0 { b"late" } else { b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate" };
        stream.write_all(answer).await.expect("sent");
    })
    .await;
    let (client, _server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    for request in ["POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nend", "\0bytes and an end"] {
        let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("ended");
        let mut answer = String::new();
        let read = tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("a clean end");
        assert!(answer.ends_with("late"), "{request:?}: {answer:?}");
    }
}

/// A connection that the application resets is reset for the client too: what was cut does not look complete.
#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_do_not_end_cleanly() {
    let (application, _) = raw_application(async |mut stream| {
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.expect("a byte");
        let head: &[u8] = if first == [0] { b"half" } else { b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf" };
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(head).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.set_zero_linger().expect("set");
    })
    .await;
    let (client, _server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    for request in [&b"GET / HTTP/1.1\r\nhost: web\r\n\r\n"[..], b"\0bytes"] {
        let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
        stream.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.expect("in time");
        assert!(answer.ends_with(b"half"), "{}", String::from_utf8_lossy(&answer));
        assert!(read.is_err() || request[0] != 0, "TCP has a reset: {read:?}");
    }
}

/// The answer to an upload that is not complete arrives at once, over either version of HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn answers_before_the_end_of_an_upload_go_through() {
    const PART: usize = 64 * 1024;
    let (http1, _) = raw_application(async |mut stream| {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nlarge").await.expect("sent");
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let ca = Ca::new("cluster.local");
    let (client, _server) = pair(&ca, http1, strict("inbound")).await;
    let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
    let head = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&vec![0; PART]).await.expect("sent");
    let answer = read_until(&mut stream, "large").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let (http2, _) = calls().await;
    let (client, _server) = pair(&ca, http2, strict("inbound")).await;
    let mut sender = sender(&client).await;
    let request = Request::post("http://web.shop/early").body(()).expect("a request");
    let (response, mut body) = sender.send_request(request, false).expect("sent");
    body.send_data(vec![0; PART].into(), false).expect("sent");
    let response = tokio::time::timeout(TIMEOUT, response).await.expect("in time").expect("a response");
    assert_eq!(response.status(), 413);
}

async fn sender(client: &Proxy) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(client.outbound).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

/// Starts a gRPC-like server. It answers each message with itself and ends with a status in trailers; at `/reset` it
/// resets the stream after a message, at `/early` it answers at once. Tells what its clients have reset.
async fn calls() -> (SocketAddr, mpsc::UnboundedReceiver<Option<Code>>) {
    let (resets, received) = mpsc::unbounded_channel();
    let (address, _) = raw_application(move |stream| {
        let resets = resets.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let resets = resets.clone();
                let path = request.uri().path().to_owned();
                let status = if path == "/early" { 413 } else { 200 };
                let response = Response::builder().status(status).body(()).expect("a response");
                let stream = respond.send_response(response, path == "/early");
                let stream: SendStream<Bytes> = stream.expect("sent");
                if path != "/early" {
                    tokio::spawn(async move {
                        let _ = resets.send(call(&path, request.into_body(), stream).await);
                    });
                }
            }
        }
    })
    .await;
    (address, received)
}

/// Serves one call. Returns with what the client reset it.
async fn call(path: &str, mut body: RecvStream, mut stream: SendStream<Bytes>) -> Option<Code> {
    while let Some(message) = body.data().await {
        match message {
            Ok(message) => {
                let _ = body.flow_control().release_capacity(message.len());
                stream.send_data(message, false).expect("sent");
            }
            Err(error) => return error.reason(),
        }
        if path == "/reset" {
            // A reset discards what is not sent yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.send_reset(Code::ENHANCE_YOUR_CALM);
            return None;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    stream.send_trailers(trailers).expect("sent");
    None
}

/// Messages of a stream go both ways as they come, its end has trailers, and resets reach the other side.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_streams_trailers_and_resets_go_through() {
    let (application, mut resets) = calls().await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let mut sender = sender(&client).await;
    for path in ["/stream", "/reset", "/cancel"] {
        let request = Request::post(format!("http://web.shop{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (response, mut stream) = sender.send_request(request, false).expect("sent");
        let mut body = tokio::time::timeout(TIMEOUT, response).await.expect("in time").expect("a response").into_body();
        let count = if path == "/stream" { 50_u8 } else { 1 };
        for number in 0..count {
            stream.send_data(vec![number; 100].into(), false).expect("sent");
            let message = tokio::time::timeout(TIMEOUT, body.data()).await.expect("in time").expect("a message");
            let message = message.unwrap_or_else(|error| panic!("{path} {number}: {error}"));
            body.flow_control().release_capacity(message.len()).expect("released");
            assert_eq!(message, vec![number; 100], "{path}");
        }
        match path {
            "/stream" => {
                stream.send_data(Bytes::new(), true).expect("sent");
                assert!(body.data().await.is_none(), "no more messages");
                let trailers = body.trailers().await.expect("a clean end").expect("trailers");
                assert_eq!(trailers["grpc-status"], "0");
            }
            "/reset" => {
                let error = tokio::time::timeout(TIMEOUT, body.data()).await.expect("in time").expect("an end");
                assert!(error.expect_err("no clean end").is_reset());
            }
            _ => stream.send_reset(Code::CANCEL),
        }
        let reset = tokio::time::timeout(TIMEOUT, resets.recv()).await.expect("in time").expect("a call");
        assert_eq!(reset, (path == "/cancel").then_some(Code::CANCEL), "{path}");
    }
    assert_eq!(server.sum("weft_downstream_connections_accepted_total", &["inbound"]).await, 1, "one connection");
}
