//! Certificates that live for seconds or a minute: two proxies renew theirs again and again, under traffic of every
//! kind, and nothing fails. The authority signs as the operator does.

use std::sync::atomic::AtomicU64;

use h2::client::SendRequest;
use tokio::time::{sleep, timeout};

use super::*;
use crate::fake::{Behaviour, id};

/// How often a client of each kind sends.
const PACE: Duration = Duration::from_millis(50);
/// Longer than an idle connection between two proxies is kept: each request has a handshake.
const RARELY: Duration = Duration::from_secs(5);

/// What clients have seen.
#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    streams: AtomicU64,
    relays: AtomicU64,
    relayed: AtomicU64,
    /// Microseconds of each of them.
    times: Mutex<Vec<u32>>,
    failed: Mutex<Vec<String>>,
}

// === impl Seen ===

impl Seen {
    /// Counts what an exchange with the Service came to.
    async fn count(&self, counter: &AtomicU64, exchange: impl Future<Output = Result<(), String>>) -> bool {
        let begun = Instant::now();
        let result = timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(format!("nothing within {TIMEOUT:?}")));
        let taken = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.times.lock().expect("not poisoned").push(taken);
        counter.fetch_add(1, Ordering::Relaxed);
        let is_good = result.is_ok();
        self.failed.lock().expect("not poisoned").extend(result.err());
        is_good
    }

    fn slowest(&self, share: f64) -> Duration {
        let mut times = self.times.lock().expect("not poisoned").clone();
        times.sort_unstable();
        let at = ((times.len() - 1) as f64 * share) as usize;
        Duration::from_micros(times[at].into())
    }
}

/// Starts an application: HTTP is answered with its body, a connection that begins with a zero byte is echoed.
async fn echo_application() -> SocketAddr {
    let (address, _) = raw_application(async |stream: TcpStream| {
        let (_, mut first) = (stream.set_nodelay(true), [0]);
        if stream.peek(&mut first).await.is_ok_and(|read| read == 1) && first == [0] {
            return streams::echo(stream).await;
        }
        let answer =
            |request: Request<Incoming>| std::future::ready(Ok::<_, Infallible>(Response::new(request.into_body())));
        let echo = service_fn(answer);
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), echo).await;
    })
    .await;
    address
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    Ok(stream)
}

/// HTTP/1.1 on a connection that is kept alive.
async fn requests(address: SocketAddr, pace: Duration, seen: Arc<Seen>) {
    let mut sender = None;
    loop {
        let exchange = async {
            if sender.is_none() {
                let stream = connect(address).await?;
                let (new, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
                tokio::spawn(connection);
                sender = Some(new);
            }
            let body = Bytes::from(vec![7; 1024]);
            let request = Request::post("/").header("host", "web.shop").body(Full::new(body.clone())).map_err(text)?;
            let response = sender.as_mut().ok_or("no connection")?.send_request(request).await.map_err(text)?;
            let (status, reason) = (response.status(), reason(response.headers()).to_owned());
            let got = response.into_body().collect().await.map_err(text)?.to_bytes();
            if status == 200 && got == body { Ok(()) } else { Err(format!("{status} {reason} {got:?}")) }
        };
        if !seen.count(&seen.requests, exchange).await {
            sender = None;
        }
        sleep(pace).await;
    }
}

async fn http2(address: SocketAddr) -> Result<SendRequest<Bytes>, String> {
    let stream = connect(address).await?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(text)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// HTTP/2: a stream for each request, all on one connection.
async fn streams_of_requests(address: SocketAddr, seen: Arc<Seen>) {
    let mut sender = None;
    loop {
        let exchange = async {
            if sender.is_none() {
                sender = Some(http2(address).await?);
            }
            let ready = sender.clone().ok_or("no connection")?.ready().await.map_err(text)?;
            exchange_on_stream(ready, 1).await
        };
        if !seen.count(&seen.streams, exchange).await {
            sender = None;
        }
        sleep(PACE).await;
    }
}

/// One HTTP/2 stream on which messages go back and forth, for as long as the run takes.
async fn long_stream(address: SocketAddr, seen: Arc<Seen>) {
    let result = async { exchange_on_stream(http2(address).await?.ready().await.map_err(text)?, u64::MAX).await };
    let error = result.await.err();
    seen.failed.lock().expect("not poisoned").push(format!("the long stream ended: {error:?}"));
}

/// Sends messages on a stream, and gets each back before the next.
async fn exchange_on_stream(mut sender: SendRequest<Bytes>, messages: u64) -> Result<(), String> {
    let request = Request::post("http://web.shop/").body(()).map_err(text)?;
    let (response, mut sending) = sender.send_request(request, false).map_err(text)?;
    let mut received = None;
    let mut response = Some(response);
    for message in 0..messages {
        let sent = Bytes::copy_from_slice(&message.to_be_bytes());
        sending.send_data(sent.clone(), false).map_err(text)?;
        if let Some(response) = response.take() {
            let response = response.await.map_err(text)?;
            if response.status() != 200 {
                return Err(format!("{} {}", response.status(), reason(response.headers())));
            }
            received = Some(response.into_body());
        }
        let body = received.as_mut().ok_or("no body")?;
        let got = timeout(TIMEOUT, body.data()).await.map_err(text)?.ok_or("the stream ended")?.map_err(text)?;
        body.flow_control().release_capacity(got.len()).map_err(text)?;
        if got != sent {
            return Err(format!("{got:?} instead of {sent:?}"));
        }
        if messages > 1 {
            sleep(PACE).await;
        }
    }
    sending.send_data(Bytes::new(), true).map_err(text)?;
    let mut body = received.ok_or("no messages")?;
    while let Some(rest) = body.data().await {
        let rest = rest.map_err(text)?;
        if !rest.is_empty() {
            return Err(format!("{rest:?} after the end"));
        }
    }
    Ok(())
}

/// A TCP connection on which messages go back and forth.
async fn relay(address: SocketAddr, messages: u64, relayed: &AtomicU64) -> Result<(), String> {
    let mut stream = connect(address).await?;
    for message in 0..messages {
        let sent = message.to_be_bytes();
        stream.write_all(&sent).await.map_err(text)?;
        let mut got = [0; 8];
        timeout(TIMEOUT, stream.read_exact(&mut got)).await.map_err(text)?.map_err(text)?;
        if got != sent {
            return Err(format!("{got:?} instead of {sent:?}"));
        }
        relayed.fetch_add(1, Ordering::Relaxed);
        if messages > 1 {
            sleep(PACE).await;
        }
    }
    Ok(())
}

/// TCP connections one after the other: each has a handshake of its own.
async fn relays(address: SocketAddr, seen: Arc<Seen>) {
    loop {
        seen.count(&seen.relays, relay(address, 1, &seen.relayed)).await;
        sleep(PACE).await;
    }
}

/// One TCP connection, for as long as the run takes.
async fn long_relay(address: SocketAddr, seen: Arc<Seen>) {
    let error = relay(address, u64::MAX, &seen.relayed).await.err();
    seen.failed.lock().expect("not poisoned").push(format!("the long relay ended: {error:?}"));
}

/// Sends traffic for a while through two proxies whose certificates live for `lifetime`, and returns what there was.
async fn run(lifetime: Duration, length: Duration) -> String {
    let root = Root::new();
    let behaviour = |account| Behaviour { issued_id: id(account), lifetime, ..Behaviour::new(&root) };
    let (of_server, of_client) = (Fake::start(&root, behaviour(WEB)).await, Fake::start(&root, behaviour(CART)).await);
    let quiet = [("WEFT_ACCESS_LOG", "failures")];
    let server = Proxy::certified(&of_server, &root, "web", echo_application().await, strict("inbound"), &quiet);
    let client = Proxy::certified(&of_client, &root, "cart", free_address(), strict("outbound"), &quiet);
    server.await_ready().await;
    client.await_ready().await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;

    let (address, seen) = (client.outbound, Arc::new(Seen::default()));
    let clients = [
        tokio::spawn(requests(address, PACE, seen.clone())),
        tokio::spawn(requests(address, PACE, seen.clone())),
        tokio::spawn(requests(address, RARELY, seen.clone())),
        tokio::spawn(streams_of_requests(address, seen.clone())),
        tokio::spawn(long_stream(address, seen.clone())),
        tokio::spawn(relays(address, seen.clone())),
        tokio::spawn(long_relay(address, seen.clone())),
    ];
    let begun = Instant::now();
    while begun.elapsed() < length {
        sleep(Duration::from_secs(1)).await;
        let failed = seen.failed.lock().expect("not poisoned").len();
        assert!(failed < 100, "many fail: {:?}", seen.failed.lock().expect("not poisoned"));
    }
    for client in clients {
        client.abort();
    }

    let counts = [&seen.requests, &seen.streams, &seen.relays, &seen.relayed].map(|it| it.load(Ordering::Relaxed));
    let [requests, streams, relays, relayed] = counts;
    let failed = seen.failed.lock().expect("not poisoned").clone();
    let mut renewals = Vec::new();
    for proxy in [&client, &server] {
        renewals.push(proxy.sum("weft_identity_renewals_total", &["issued"]).await - 1);
        assert_eq!(proxy.sum("weft_identity_renewals_total", &[]).await, renewals[renewals.len() - 1] + 1);
    }
    let report = format!(
        "{} s, certificates of {} s: {requests} requests, {streams} streams, {relays} connections, {relayed} messages in \
         relays, {} failed; {renewals:?} renewals; median {:?}, p99 {:?}, slowest {:?}",
        length.as_secs(),
        lifetime.as_secs(),
        failed.len(),
        seen.slowest(0.5),
        seen.slowest(0.99),
        seen.slowest(1.0)
    );
    assert!(failed.is_empty(), "{report}: {failed:?}");
    // The last may be due at this moment.
    let due = length.as_secs_f64() / (0.6 * lifetime.as_secs_f64());
    assert!(renewals.iter().all(|count| *count as f64 > due - 1.0), "{due}: {report}");
    let plaintext = server.sum("weft_tcp_connections_total", &["security=\"plaintext\""]).await;
    assert!(counts.iter().all(|count| *count > 0) && plaintext == 0, "{report}, {plaintext} in plaintext");
    report
}

/// Certificates of 8 s.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_certificates_are_renewed() {
    println!("{}", run(Duration::from_secs(8), Duration::from_secs(20)).await);
}

/// An authority that cannot ask the API server, or is not there, for more than half of the life of a certificate: nobody
/// notices. When the certificate has expired, clients of new connections are told so, and the pod stays ready. When the
/// authority is back, all goes on within five seconds.
#[tokio::test(flavor = "multi_thread")]
async fn authority_may_be_away_until_certificates_expire() {
    const LIFETIME: Duration = Duration::from_secs(8);
    let root = Root::new();
    let behaviour = |account| Behaviour { issued_id: id(account), lifetime: LIFETIME, ..Behaviour::new(&root) };
    let (of_server, of_client) = (Fake::start(&root, behaviour(WEB)).await, Fake::start(&root, behaviour(CART)).await);
    let server = Proxy::certified(&of_server, &root, "web", echo_application().await, strict("inbound"), &[]);
    let client = Proxy::certified(&of_client, &root, "cart", free_address(), strict("outbound"), &[]);
    server.await_ready().await;
    client.await_ready().await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    let expiry = async |proxy: &Proxy| -> u64 {
        let page = proxy.page("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix("weft_identity_expiry_timestamp_seconds "));
        line.and_then(|text| text.parse::<f64>().ok()).expect("a time") as u64
    };

    let (address, seen) = (client.outbound, Arc::new(Seen::default()));
    let clients = [tokio::spawn(requests(address, PACE, seen.clone())), tokio::spawn(relays(address, seen.clone()))];
    let (first, of_first) = (expiry(&client).await, expiry(&server).await);
    wait("new certificates", async || expiry(&client).await > first && expiry(&server).await > of_first).await;
    for refusal in [Some((503, "the API server cannot be asked".to_owned())), None] {
        for authority in [&of_server, &of_client] {
            authority.change(|behaviour| behaviour.refusal = refusal.clone());
        }
        sleep(LIFETIME.mul_f64(0.7)).await;
    }
    let failed = seen.failed.lock().expect("not poisoned").clone();
    assert!(failed.is_empty() && client.sum("weft_identity_renewals_total", &["unavailable"]).await > 0, "{failed:?}");
    for client in clients {
        client.abort();
    }

    let of_authority = of_client.stop().await;
    let ends = expiry(&client).await + 22;
    sleep(Duration::from_secs(ends - UnixTime::now().as_secs())).await;
    let (status, headers, body) = client.get(&[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "no-certificate"), "{body}");
    assert!(body.contains("the certificate of this proxy expired at "), "{body}");
    let page = client.page("/readyz").await;
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("expired at") && page.contains("cannot reach"),
        "{page}"
    );
    let back = Instant::now();
    let _of_client = Fake::start_at(of_authority, &root, behaviour(CART)).await;
    wait("requests are served", async || client.get(&[]).await.0 == 200).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
}

/// Certificates of a minute, for `WEFT_SOAK_MINUTES`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make soak-identity"]
async fn soak() {
    let minutes = std::env::var("WEFT_SOAK_MINUTES").map_or(5, |text| text.parse().expect("a number"));
    println!("{}", run(Duration::from_secs(60), Duration::from_secs(60 * minutes)).await);
}
