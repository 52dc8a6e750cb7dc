//! Hedged requests: a second attempt is sent to another endpoint when the first one is slow.

use std::time::Instant;

use super::*;

/// Delay of a slow endpoint.
const SLOW: Duration = Duration::from_millis(600);

/// Counts a request as cancelled if it is dropped before it is done.
struct Guard {
    cancelled: Arc<AtomicU32>,
    is_done: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_done {
            self.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A backend that answers after 30 s. Returns its address, and its counters of requests and of cancelled requests.
async fn stuck_backend() -> (SocketAddr, Arc<AtomicU32>, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (seen, cancelled) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let shared = (seen.clone(), cancelled.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, cancelled) = shared.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                seen.fetch_add(1, Ordering::SeqCst);
                let guard = Guard { cancelled: cancelled.clone(), is_done: false };
                async move {
                    // Moves the whole guard into the future, not only the field.
                    let mut guard = guard;
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    guard.is_done = true;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("stuck"))))
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (address, seen, cancelled)
}

/// Two backends that share a counter: requests are answered by turns with `first` and `second`, whichever backend
/// gets them.
async fn alternating_backends(
    first: (u16, Duration),
    second: (u16, Duration),
) -> ([(SocketAddr, &'static str); 2], Arc<AtomicU32>) {
    let asked = Arc::<AtomicU32>::default();
    let behave = |asked: Arc<AtomicU32>| {
        move |_| if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { first } else { second }
    };
    let (one, _) = backend("one", behave(asked.clone())).await;
    let (two, _) = backend("two", behave(asked.clone())).await;
    ([(one, "v1"), (two, "v1")], asked)
}

fn hedged(proxy: &Proxy, more: Value) -> Option<Value> {
    let mut table = routes(forward(proxy, &[("v1", 1)]), more)?;
    table["rules"][0]["hedge"] = json!({"afterMs": 50, "attempts": 1});
    Some(table)
}

fn settings(more: Value) -> Value {
    let mut settings = json!({"subsets": ["v1"], "balancer": "roundRobin"});
    settings.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    settings
}

#[tokio::test]
async fn hedging_avoids_stuck_endpoints_without_ejecting_them() {
    for protocol in ["http", "http2"] {
        let proxy = Proxy::start(&format!("hedge-{protocol}")).await;
        let (slow, seen, cancelled) = stuck_backend().await;
        let (fast, _) = backend("fast", ok).await;
        let endpoints = [(slow, "v1"), (fast, "v1")];
        proxy.configure(hedged(&proxy, json!({})), protocol, &endpoints, settings(json!({}))).await;
        for _ in 0..16 {
            let begun = Instant::now();
            let (status, _, body) = proxy.send("GET", "/", &[], "").await;
            assert_eq!((status.as_u16(), body.as_str()), (200, "fast"), "{protocol}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{protocol}: after {:?}", begun.elapsed());
        }
        let seen = seen.load(Ordering::SeqCst);
        assert!(seen >= 8, "{protocol}: the stuck endpoint was asked first {seen} times");
        assert_eq!(proxy.sum("weft_retries_total", "reason=\"hedge\"").await, u64::from(seen), "{protocol}");
        for _ in 0..200 {
            if cancelled.load(Ordering::SeqCst) == seen {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(cancelled.load(Ordering::SeqCst), seen, "{protocol}: each slow attempt is cancelled");
        assert_eq!(proxy.sum("weft_endpoints_ejected", "").await, 0, "{protocol}");
    }
}

#[tokio::test]
async fn only_retryable_requests_are_hedged() {
    let proxy = Proxy::start("hedge-what").await;
    let (endpoints, asked) = alternating_backends((200, SLOW), (200, Duration::ZERO)).await;
    let retry = |method: &str| json!({"retry": {"attempts": 1, "codes": [503], "methods": [method], "backoffMs": 5}});
    let default = || json!({});
    let refuses = json!({"retryBudget": {"percent": 0, "minPerSecond": 0}});
    for (desc, method, rule, cluster, is_hedged) in [
        ("a GET", "GET", default(), default(), true),
        ("a PUT with its body", "PUT", default(), default(), true),
        ("a POST", "POST", default(), default(), false),
        ("a POST that the rule retries", "POST", retry("POST"), default(), true),
        ("a GET that the rule does not retry", "GET", retry("POST"), default(), false),
        ("no budget", "GET", default(), refuses, false),
        ("a limit", "GET", default(), json!({"limits": {"maxRequests": 1}}), false),
    ] {
        proxy.configure(hedged(&proxy, rule), "http", &endpoints, settings(cluster)).await;
        asked.store(0, Ordering::SeqCst);
        let begun = Instant::now();
        let (status, headers, _) = proxy.send(method, "/", &[], "order").await;
        assert_eq!((status.as_u16(), headers["x-body"].to_str().expect("text")), (200, "5"), "{desc}");
        assert_eq!(begun.elapsed() < SLOW, is_hedged, "{desc}: after {:?}", begun.elapsed());
        assert_eq!(asked.load(Ordering::SeqCst), 1 + u32::from(is_hedged), "{desc}");
    }
    for reason in ["budget", "overflow"] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(proxy.sum("weft_retries_refused_total", &label).await, 1, "{reason}");
    }
    proxy.configure(hedged(&proxy, default()), "http", &endpoints[..1], settings(default())).await;
    asked.store(0, Ordering::SeqCst);
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "there is no other endpoint");
}

#[tokio::test]
async fn hedging_prefers_a_response_that_needs_no_retry() {
    let proxy = Proxy::start("hedge-bad").await;
    let retry = json!({"retry": {"attempts": 1, "codes": [503], "methods": ["GET"], "backoffMs": 5}});
    let (endpoints, asked) = alternating_backends((200, SLOW), (503, Duration::ZERO)).await;
    proxy.configure(hedged(&proxy, retry), "http", &endpoints, settings(json!({}))).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200, "the 503 is retryable, so the slow 200 is used");
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    proxy.configure(hedged(&proxy, json!({})), "http", &endpoints, settings(json!({}))).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 503, "without retries the first response is used");
}

#[tokio::test]
async fn timeouts_apply_to_hedged_requests() {
    let proxy = Proxy::start("hedge-timeout").await;
    let never = (200, Duration::from_secs(20));
    let (endpoints, _) = alternating_backends(never, never).await;
    for (field, reason, ms) in
        [("attemptTimeoutMs", "attempt-timeout", 250), ("requestTimeoutMs", "request-timeout", 200)]
    {
        proxy.configure(hedged(&proxy, json!({field: 200})), "http", &endpoints, settings(json!({}))).await;
        let begun = Instant::now();
        let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
        assert_eq!((status.as_u16(), headers["weft-reason"].to_str().expect("text")), (504, reason));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(ms) && took < Duration::from_secs(2), "{reason}: after {took:?}");
    }
}
