//! Servers that close idle connections just when the proxy sends the next request on them.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use hyper::client::conn::http1::SendRequest;

use super::*;

/// Requests of all clients.
const REQUESTS: u32 = 100_000;

/// Concurrent clients, each with one connection and one request at a time.
const CLIENTS: u32 = 48;

/// The requests of one client.
#[derive(Debug, Default)]
struct ClientResult {
    sent: u32,
    /// Failures, except those in `failed_posts`.
    failed: Vec<String>,
    /// Numbers of the POSTs that were answered 502 `upstream-reset`.
    failed_posts: Vec<u32>,
}

/// How often the servers read each request completely, by the number in its path.
type RequestCounts = Arc<Mutex<HashMap<u32, u32>>>;

/// An HTTP/1.1 server that closes each connection after one of its first 40 responses, or when it was idle for 1 to 4
/// ms, without `Connection: close`.
async fn closing_server(received: RequestCounts, closed: Arc<AtomicU32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for number in 0u32.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (received, closed) = (received.clone(), closed.clone());
            tokio::spawn(async move {
                let _ = serve(stream, number, &received).await;
                closed.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    address
}

async fn serve(mut stream: TcpStream, number: u32, received: &RequestCounts) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answers = 1 + number * 7 % 40;
    let timeout = Duration::from_millis(u64::from(1 + number % 4));
    let mut read = Vec::new();
    for answered in 0..answers {
        let body = loop {
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
                let length: Option<usize> =
                    head.split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
                let whole = end + 4 + length.unwrap_or(0);
                if read.len() >= whole {
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let request = path.trim_start_matches('/').parse().unwrap_or(u32::MAX);
                    *received.lock().expect("not poisoned").entry(request).or_default() += 1;
                    read.drain(..whole);
                    break if head.starts_with("head ") { "" } else { "ok" };
                }
            }
            // The first request, and the rest of a request, have 5 s.
            let is_idle = answered > 0 && read.is_empty();
            let timeout = if is_idle { timeout } else { Duration::from_secs(5) };
            match tokio::time::timeout(timeout, stream.read_buf(&mut read)).await {
                Ok(Ok(1..)) => {}
                // Closes without reading what arrives meanwhile.
                _ => return Ok(()),
            }
        };
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}").as_bytes()).await?;
    }
    Ok(())
}

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

async fn client(address: SocketAddr, first: u32, stop: Arc<AtomicBool>) -> ClientResult {
    let mut sender = connect(address).await;
    let mut result = ClientResult::default();
    for number in (first..REQUESTS).step_by(CLIENTS as usize) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (method, body) = match number / CLIENTS % 8 {
            0 => ("POST", "an order"),
            1 => ("POST", ""),
            2 => ("PUT", "a thing"),
            3 => ("DELETE", ""),
            4 => ("HEAD", ""),
            _ => ("GET", ""),
        };
        // Connections are idle for about the server's idle timeout.
        if (number / CLIENTS).is_multiple_of(3) {
            tokio::time::sleep(Duration::from_millis(u64::from(number % 5))).await;
        }
        let request = Request::builder().method(method).uri(format!("/{number}")).header("host", "reviews.shop");
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request");
        if sender.ready().await.is_err() {
            sender = connect(address).await;
        }
        let response = sender.send_request(request).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        result.sent += 1;
        if parts.status == 200 {
            continue;
        }
        let reason = parts.headers.get("weft-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default();
        if method == "POST" && parts.status == 502 && reason == "upstream-reset" {
            result.failed_posts.push(number);
        } else {
            result.failed.push(format!(
                "{method} {number}: {} {reason} {}",
                parts.status,
                String::from_utf8_lossy(&body)
            ));
        }
    }
    result
}

/// RFC 9110 9.2.2: idempotent requests are retried when their connection closes. Other requests are not, because the
/// server may have processed them: they are answered 502.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_closed_by_the_server_fail_no_idempotent_request() {
    let proxy = Proxy::start("idle").await;
    let (received, closed) = (RequestCounts::default(), Arc::new(AtomicU32::new(0)));
    let (one, two) = (
        closing_server(received.clone(), closed.clone()).await,
        closing_server(received.clone(), closed.clone()).await,
    );
    proxy.configure(None, "http", &[(one, ""), (two, "")], json!({})).await;
    let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS).map(|first| tokio::spawn(client(proxy.address, first, stop.clone()))).collect();
    // Slow machines send fewer requests.
    let time_limit = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        stop.store(true, Ordering::Relaxed);
    });
    let (mut sent, mut failed, mut failed_posts) = (0, Vec::new(), Vec::new());
    for client in clients {
        let result = client.await.expect("it ends");
        sent += result.sent;
        failed.extend(result.failed);
        failed_posts.extend(result.failed_posts);
    }
    time_limit.abort();
    let (closed, page) = (closed.load(Ordering::Relaxed), proxy.get(proxy.metrics, "/metrics").await.1);
    let retries = page.lines().filter(|line| line.starts_with("weft_retries_total{")).collect::<Vec<_>>();
    println!(
        "{sent} requests in {:?}, {closed} connections closed, {} POSTs failed, {retries:?}",
        begun.elapsed(),
        failed_posts.len()
    );
    assert!(sent >= 20_000 && closed >= 1_000, "{sent} requests, {closed} connections closed");
    assert!(failed.is_empty(), "{} of {sent} failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
    let received = received.lock().expect("not poisoned");
    for number in (0..REQUESTS).filter(|number| number / CLIENTS % 8 < 2) {
        let times = received.get(&number).copied().unwrap_or(0);
        assert!(times <= 1, "the servers received POST {number} {times} times");
    }
    assert!(failed_posts.len() * 20 <= sent as usize, "{} POSTs failed", failed_posts.len());
}
