//! Addresses of pods that are used again by pods of another workload, much faster than any client can hear of it.

use std::sync::atomic::AtomicU64;

use hyper::client::conn::http1::{SendRequest, handshake};
use tokio::sync::watch;

use super::*;

const REQUESTS: u64 = 100_000;
/// Requests between two moments at which all addresses change their owners.
const BETWEEN: u64 = 100;
/// Clients of each workload.
const CLIENTS: usize = 6;

/// Starts an address of pods. Connections go to its owner of now, and end when that changes, as those to a pod that is
/// deleted do.
async fn address(owner: watch::Receiver<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut owner = owner.clone();
            let to = *owner.borrow_and_update();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = owner.changed() => {}
                }
            });
        }
    });
    address
}

/// Starts an application that counts the requests for others.
async fn named(name: &'static str, strayed: Arc<AtomicU64>) -> SocketAddr {
    let (address, _) = raw_application(move |stream: TcpStream| {
        let strayed = strayed.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            if request.headers().get("x-for").is_none_or(|wanted| wanted != name) {
                strayed.fetch_add(1, Ordering::SeqCst);
            }
            async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes())))) }
        });
        async move {
            let _ = stream.set_nodelay(true);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
    address
}

/// A request on a connection that is kept. `None`: the connection failed, which no client of a mesh should see.
async fn ask(
    sender: &mut Option<SendRequest<Full<Bytes>>>,
    proxy: SocketAddr,
    wanted: &str,
) -> Option<(StatusCode, Bytes)> {
    if sender.as_ref().is_none_or(SendRequest::is_closed) {
        let stream = TcpStream::connect(proxy).await.ok()?;
        let _ = stream.set_nodelay(true);
        let (new, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        *sender = Some(new);
    }
    let request = Request::get("/").header("host", "web.shop").header("x-for", wanted);
    let sender = sender.as_mut()?;
    sender.ready().await.ok()?;
    let response = sender.send_request(request.body(Full::default()).ok()?).await.ok()?;
    let status = response.status();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

/// ID-13: two workloads have two addresses, and exchange them all the time, while clients of both send 100,000 requests.
/// No request reaches the other workload: the handshake shows who is there, and the request goes to the other address.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_of_100_000_requests_none_reaches_another_workload() {
    let (ca, strayed) = (Ca::new("cluster.local"), Arc::new(AtomicU64::new(0)));
    let quiet = [("WEFT_ACCESS_LOG", "off")];
    let mut pods = Vec::new();
    for (name, account) in [("web", WEB), ("bank", BANK)] {
        let application = named(name, strayed.clone()).await;
        pods.push(Proxy::with(application, Some(&ca.identity(account)), strict("inbound"), &quiet));
    }
    let owners = [0, 1].map(|at| watch::Sender::new(pods[at].inbound));
    let addresses = [address(owners[0].subscribe()).await, address(owners[1].subscribe()).await];
    let mut clients = Vec::new();
    for name in ["web", "bank"] {
        let client = Proxy::with(free_address(), Some(&ca.identity(CART)), strict("outbound"), &quiet);
        client.await_ready().await;
        // An endpoint that fails would else be left alone for half a minute.
        let settings = json!({"outliers": {"consecutiveLocalFailures": 0}});
        let endpoints = addresses.map(|address| endpoint(address, Some(name)));
        client.export_as("detect", settings, None, json!(endpoints)).await;
        clients.push(client);
    }
    for pod in &pods {
        pod.await_ready().await;
    }

    let (sent, cut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let mut senders = Vec::new();
    for (name, proxy) in ["web", "bank"].into_iter().zip(&clients).cycle().take(2 * CLIENTS) {
        let (sent, cut, address) = (sent.clone(), cut.clone(), proxy.outbound);
        senders.push(tokio::spawn(async move {
            let mut sender = None;
            while sent.fetch_add(1, Ordering::SeqCst) < REQUESTS {
                let answer = ask(&mut sender, address, name).await;
                let (status, body) = answer.expect("the client's own proxy answers");
                match status.as_u16() {
                    200 => assert_eq!(body, name),
                    // It was on its way when its pod was deleted.
                    502 | 503 => _ = cut.fetch_add(1, Ordering::SeqCst),
                    _ => panic!("{status} {}", String::from_utf8_lossy(&body)),
                }
            }
        }));
    }
    let mut exchanges = 0;
    while sent.load(Ordering::SeqCst) < REQUESTS {
        assert!(begun.elapsed() < 60 * TIMEOUT, "{sent:?} requests in {:?}", begun.elapsed());
        if sent.load(Ordering::SeqCst) > (exchanges + 1) * BETWEEN {
            exchanges += 1;
            for (at, owner) in owners.iter().enumerate() {
                owner.send_replace(pods[(at + exchanges as usize) % 2].inbound);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for sender in senders {
        sender.await.expect("every answer is that of the right workload");
    }

    let mut retried = 0;
    for client in &clients {
        retried += client.sum("weft_retries_total", &["connect"]).await;
    }
    let mut refused = 0;
    for pod in &pods {
        refused += pod.sum("weft_tcp_connections_total", &["mtls-handshake"]).await;
    }
    let cut = cut.load(Ordering::SeqCst);
    println!(
        "{REQUESTS} requests in {:?}, {exchanges} exchanges of addresses: {refused} handshakes found somebody else, \
         {retried} retries, {cut} requests cut, {} reached another workload",
        begun.elapsed(),
        strayed.load(Ordering::SeqCst)
    );
    assert_eq!(strayed.load(Ordering::SeqCst), 0);
    assert!(exchanges > 100 && refused > exchanges && retried > exchanges, "it was tried");
    assert!(cut <= exchanges * 2 * CLIENTS as u64, "{cut} requests failed: more than were on their way");
}
