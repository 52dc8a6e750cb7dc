//! Servers that close connections which idle, at the very moment when the proxy sends the next request on one.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use hyper::client::conn::http1::SendRequest;

use super::*;

/// Requests of all clients together.
const REQUESTS: u32 = 100_000;

/// Clients, each with a connection of its own and one request at a time.
const CLIENTS: u32 = 48;

/// What one client saw.
#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    /// Of idempotent requests, those that failed.
    failed: Vec<String>,
    /// Of others, those that failed, by number.
    lost: Vec<u32>,
}

/// How often the server read each request to its end, by the number in its path.
type Reached = Arc<Mutex<HashMap<u32, u32>>>;

/// A server of HTTP/1.1 that closes each connection right after one of its first answers, or when it has idled for some
/// milliseconds, and never says so before.
async fn closing(reached: Reached, closed: Arc<AtomicU32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for number in 0u32.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (reached, closed) = (reached.clone(), closed.clone());
            tokio::spawn(async move {
                let _ = serve(stream, number, &reached).await;
                closed.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    address
}

async fn serve(mut stream: TcpStream, number: u32, reached: &Reached) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answers = 1 + number * 7 % 40;
    let patience = Duration::from_millis(u64::from(1 + number % 4));
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
                    *reached.lock().expect("whole").entry(request).or_default() += 1;
                    read.drain(..whole);
                    break if head.starts_with("head ") { "" } else { "ok" };
                }
            }
            // Whoever has not sent a request yet, or not all of it, is waited for as servers do.
            let is_idle = answered > 0 && read.is_empty();
            let patience = if is_idle { patience } else { Duration::from_secs(5) };
            match tokio::time::timeout(patience, stream.read_buf(&mut read)).await {
                Ok(Ok(1..)) => {}
                // What came until now is left unread.
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

async fn client(address: SocketAddr, first: u32, stop: Arc<AtomicBool>) -> Tally {
    let mut sender = connect(address).await;
    let mut tally = Tally::default();
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
        // So that connections idle for about as long as the server bears it.
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
        tally.sent += 1;
        if parts.status == 200 {
            continue;
        }
        let reason = parts.headers.get("weft-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default();
        if method == "POST" && parts.status == 502 && reason == "upstream-reset" {
            tally.lost.push(number);
        } else {
            tally.failed.push(format!(
                "{method} {number}: {} {reason} {}",
                parts.status,
                String::from_utf8_lossy(&body)
            ));
        }
    }
    tally
}

/// RFC 9110 9.2.2: what is idempotent may be sent again when a connection closes under it, and is. Of anything else it is
/// not known whether the server has acted on it: it is not sent again, and its client is told (502).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_closed_by_the_server_fail_no_idempotent_request() {
    let proxy = Proxy::start("idle").await;
    let (reached, closed) = (Reached::default(), Arc::new(AtomicU32::new(0)));
    let (one, two) = (closing(reached.clone(), closed.clone()).await, closing(reached.clone(), closed.clone()).await);
    proxy.configure(None, "http", &[(one, ""), (two, "")], json!({})).await;
    let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS).map(|first| tokio::spawn(client(proxy.address, first, stop.clone()))).collect();
    // A machine that is slow or busy sends fewer.
    let bound = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        stop.store(true, Ordering::Relaxed);
    });
    let (mut sent, mut failed, mut lost) = (0, Vec::new(), Vec::new());
    for client in clients {
        let tally = client.await.expect("it ends");
        sent += tally.sent;
        failed.extend(tally.failed);
        lost.extend(tally.lost);
    }
    bound.abort();
    let (closed, page) = (closed.load(Ordering::Relaxed), proxy.get(proxy.metrics, "/metrics").await.1);
    let repeated = page.lines().filter(|line| line.starts_with("weft_retries_total{")).collect::<Vec<_>>();
    println!(
        "{sent} requests in {:?}, {closed} connections closed, {} of POST lost, {repeated:?}",
        begun.elapsed(),
        lost.len()
    );
    assert!(sent >= 20_000 && closed >= 1_000, "{sent} requests, {closed} connections closed");
    assert!(failed.is_empty(), "{} of {sent} failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
    let reached = reached.lock().expect("whole");
    for number in (0..REQUESTS).filter(|number| number / CLIENTS % 8 < 2) {
        let times = reached.get(&number).copied().unwrap_or(0);
        assert!(times <= 1, "POST {number} reached the server {times} times");
    }
    assert!(lost.len() * 20 <= sent as usize, "{} of the POSTs are lost", lost.len());
}
