//! Retries by gRPC status, and by `weft-unprocessed` from the proxy of a backend.

use http_body::Frame;
use http_body_util::StreamBody;

use super::*;

/// How a gRPC call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// grpc-status is in the response head (Trailers-Only).
    TrailersOnly,
    /// grpc-status is in trailers directly after the head.
    Trailers,
    /// grpc-status is in trailers, this long after the head.
    LateTrailers(Duration),
    /// grpc-status is in trailers after a message.
    AfterMessage,
}

/// A gRPC backend whose first, third, ... call fails with this status, in this way.
pub(super) async fn grpc_backend(status: &'static str, failure: Failure) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let calls = Arc::<AtomicU32>::default();
    let counted = calls.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = counted.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let calls = calls.clone();
                async move {
                    let _ = request.into_body().collect().await;
                    let fails = calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", if fails { status } else { "0" }.parse().expect("a value"));
                    let mut response = Response::builder().header("content-type", "application/grpc");
                    let mut frames: Vec<(Duration, Frame<Bytes>)> = Vec::new();
                    if !fails || failure == Failure::AfterMessage {
                        frames.push((Duration::ZERO, Frame::data(Bytes::from_static(b"\0\0\0\0\0"))));
                    }
                    if fails && failure == Failure::TrailersOnly {
                        response = response.header("grpc-status", status);
                    } else {
                        let delay = if let Failure::LateTrailers(delay) = failure { delay } else { Duration::ZERO };
                        frames.push((if fails { delay } else { Duration::ZERO }, Frame::trailers(trailers)));
                    }
                    let frames = futures_util::stream::unfold(frames.into_iter(), async |mut frames| {
                        let (delay, frame) = frames.next()?;
                        // Without a delay there is no sleep: even a sleep of zero would separate head and trailers.
                        if !delay.is_zero() {
                            tokio::time::sleep(delay).await;
                        }
                        Some((Ok::<_, Infallible>(frame), frames))
                    });
                    Ok::<_, Infallible>(response.body(StreamBody::new(frames)).expect("a response"))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, calls)
}

fn retry(codes: &[u16], method: &str) -> Value {
    json!({"retry": {"attempts": 1, "codes": codes, "methods": [method], "backoffMs": 1}})
}

#[tokio::test]
async fn grpc_statuses_are_retried_as_their_http_statuses() {
    let late = Failure::LateTrailers(Duration::from_millis(300));
    for (desc, status, failure, codes, method, calls) in [
        ("UNAVAILABLE", "14", Failure::TrailersOnly, [503], "POST", 2),
        ("DEADLINE_EXCEEDED", "4", Failure::TrailersOnly, [504], "POST", 2),
        ("RESOURCE_EXHAUSTED", "8", Failure::TrailersOnly, [429], "POST", 2),
        ("INTERNAL", "13", Failure::TrailersOnly, [500], "POST", 2),
        ("CANCELLED", "1", Failure::TrailersOnly, [499], "POST", 2),
        ("in trailers directly after the head", "14", Failure::Trailers, [503], "POST", 2),
        ("another status", "5", Failure::TrailersOnly, [503], "POST", 1),
        ("another method", "14", Failure::TrailersOnly, [503], "PUT", 1),
        ("after a message that was forwarded", "14", Failure::AfterMessage, [503], "POST", 1),
        ("long after the head, which was forwarded", "14", late, [503], "POST", 1),
        ("success", "0", Failure::TrailersOnly, [503], "POST", 1),
    ] {
        let proxy = Proxy::start(&format!("retry-grpc-{status}-{calls}")).await;
        let (backend, seen) = grpc_backend(status, failure).await;
        let table = routes(forward(&proxy, &[("v1", 1)]), retry(&codes, method));
        proxy.configure(table, "http2", &[(backend, "v1")], json!({"subsets": ["v1"]})).await;
        let (answer, headers, _) = proxy.send("POST", "/t/Call", &[("content-type", "application/grpc")], "").await;
        assert_eq!(answer, 200, "{desc}");
        assert_eq!(seen.load(Ordering::SeqCst), calls, "{desc}");
        let in_head = headers.get("grpc-status").map(|status| status.to_str().expect("text"));
        assert_eq!(in_head, (calls == 1 && failure == Failure::TrailersOnly).then_some(status), "{desc}");
    }
}

#[tokio::test]
async fn hedging_prefers_grpc_success_over_failure() {
    let proxy = Proxy::start("hedge-grpc").await;
    let (slow, seen) = backend("slow", |_| (200, Duration::from_millis(400))).await;
    let (failing, calls) = grpc_backend("14", Failure::TrailersOnly).await;
    let mut more = retry(&[503], "POST");
    more["hedge"] = json!({"afterMs": 50, "attempts": 1});
    let table = routes(forward(&proxy, &[("v1", 1)]), more);
    let settings = json!({"subsets": ["v1"], "balancer": "roundRobin"});
    proxy.configure(table, "http2", &[(slow, "v1"), (failing, "v1")], settings).await;
    let (status, headers, _) = proxy.send("POST", "/t/Call", &[("content-type", "application/grpc")], "").await;
    assert_eq!(
        (status.as_u16(), headers.get("grpc-status")),
        (200, None),
        "the response of the backend that does not fail"
    );
    assert_eq!((seen.requests.load(Ordering::SeqCst), calls.load(Ordering::SeqCst)), (1, 1), "both were asked");
}

/// A backend whose responses have `weft-unprocessed` like a proxy's. Returns its address and its counter of requests.
async fn unprocessed_backend() -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::<AtomicU32>::default();
    let counted = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = counted.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let _ = request.into_body().collect().await;
                    seen.fetch_add(1, Ordering::SeqCst);
                    let response = (Response::builder().status(503))
                        .header("weft-unprocessed", "true")
                        .header("weft-reason", "policy-denied")
                        .header("weft-source", "MeshPolicy/shop/none/0");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).expect("a response"))
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (address, seen)
}

#[tokio::test]
async fn weft_unprocessed_is_believed_from_proxies_only() {
    for protocol in ["http", "http2"] {
        let proxy = Proxy::start(&format!("retry-unprocessed-{protocol}")).await;
        let (backend, seen) = unprocessed_backend().await;
        for (has_proxy, requests) in [(false, 1), (true, 4), (false, 1)] {
            let endpoint = json!({"address": backend, "hasProxy": has_proxy});
            proxy.configure_endpoints(None, protocol, &[endpoint], json!({})).await;
            seen.store(0, Ordering::SeqCst);
            let (status, headers, _) = proxy.send("POST", "/", &[], "order").await;
            assert_eq!((status.as_u16(), seen.load(Ordering::SeqCst)), (503, requests), "{protocol}, {has_proxy}");
            assert!(
                !headers.contains_key("weft-unprocessed"),
                "{protocol}, {has_proxy}: weft-unprocessed is not forwarded"
            );
            for name in ["weft-reason", "weft-source"] {
                assert_eq!(headers.contains_key(name), has_proxy, "{protocol}, {has_proxy}: {name}");
            }
        }
    }
}

/// When a Service is scaled down, the applications of most of its pods may refuse connections. The request is retried
/// on every endpoint until one answers; if none does, it fails after each was tried once.
#[tokio::test]
async fn unprocessed_requests_are_retried_on_every_endpoint() {
    let proxy = Proxy::start("retry-scaled-down").await;
    let mut endpoints = Vec::new();
    let mut terminating = Vec::new();
    for _ in 0..9 {
        let (address, seen) = unprocessed_backend().await;
        endpoints.push(json!({"address": address, "hasProxy": true}));
        terminating.push(seen);
    }
    let (backend, _) = backend("stays", |_| (200, Duration::ZERO)).await;
    let all = [endpoints.clone(), vec![json!({"address": backend, "hasProxy": true})]].concat();
    // Without ejection, so that each request can use all endpoints.
    let settings = json!({"balancer": "roundRobin", "outliers": {"consecutive5xx": 0, "consecutiveGatewayErrors": 0}});
    proxy.configure_endpoints(None, "http", &all, settings.clone()).await;
    for round in 0..20 {
        let (status, _, body) = proxy.send("POST", "/", &[], "order").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "stays"), "{round}");
    }
    proxy.configure_endpoints(None, "http", &endpoints, settings).await;
    terminating.iter().for_each(|seen| seen.store(0, Ordering::SeqCst));
    assert_eq!(proxy.send("POST", "/", &[], "order").await.0, 503);
    assert_eq!(terminating.iter().map(|seen| seen.load(Ordering::SeqCst)).sum::<u32>(), 9, "each once");
}

/// An HTTP/1.1 backend that answers its first request with 503 and a body of this length, and counts the connections
/// that were closed.
async fn failing_once(length: usize) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (requests, closed) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
    let counted = closed.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (requests, closed) = (requests.clone(), counted.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let is_first = requests.fetch_add(1, Ordering::SeqCst) == 0;
                let (status, length) = if is_first { (503, length) } else { (200, 0) };
                let body = Full::new(Bytes::from(vec![b'x'; length]));
                async move { Response::builder().status(status).body(body) }
            });
            tokio::spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, closed)
}

#[tokio::test]
async fn retried_responses_are_drained_up_to_64_kib() {
    for (length, expected) in [(60 * 1024, 0), (80 * 1024, 1)] {
        let proxy = Proxy::start(&format!("drain-{length}")).await;
        let (address, closed) = failing_once(length).await;
        let table = routes(forward(&proxy, &[("v1", 1)]), retry(&[503], "GET"));
        proxy.configure(table, "http", &[(address, "v1")], json!({"subsets": ["v1"]})).await;
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200, "{length} bytes");
        // Longer than draining takes, and shorter than the idle timeout of connections to endpoints.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(closed.load(Ordering::SeqCst), expected, "connections closed after {length} bytes");
    }
}

/// The `retry` of an HTTPRoute names no methods.
#[tokio::test]
async fn retry_without_methods_is_for_statuses_of_every_method_and_resets_of_idempotent_ones() {
    for (method, resets, sent) in [("GET", false, 2), ("POST", false, 2), ("GET", true, 2), ("POST", true, 1)] {
        let proxy = Proxy::start(&format!("retry-any-{method}-{resets}")).await;
        let (address, requests) = resetting_or_503_once(resets).await;
        let retry = json!({"retry": {"attempts": 1, "codes": [503], "methods": [], "backoffMs": 1}});
        proxy
            .configure(
                routes(forward(&proxy, &[("v1", 1)]), retry),
                "http",
                &[(address, "v1")],
                json!({"subsets": ["v1"]}),
            )
            .await;
        let expected = if sent == 2 { 200 } else { 502 };
        assert_eq!(proxy.send(method, "/", &[], "x").await.0, expected, "{method}, resets: {resets}");
        assert_eq!(requests.load(Ordering::SeqCst), sent, "{method}, resets: {resets}");
    }
}

#[tokio::test]
async fn retry_with_no_attempts_sends_a_request_to_one_endpoint() {
    let proxy = Proxy::start("retry-off").await;
    let (v1, _) = backend("v1", ok).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    let settings = json!({"balancer": "roundRobin", "subsets": ["v1"], "outliers": {"consecutiveLocalFailures": 0}});
    for (attempts, failures) in [(1, 0), (0, 5)] {
        let retry = json!({"retry": {"attempts": attempts, "codes": [503], "methods": [], "backoffMs": 1}});
        let table = routes(forward(&proxy, &[("v1", 1)]), retry);
        proxy.configure(table, "http", &[(gone, "v1"), (v1, "v1")], settings.clone()).await;
        let mut failed = 0;
        for _ in 0..10 {
            let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
            if status != 200 {
                assert_eq!((status.as_u16(), headers["weft-reason"].to_str().expect("text")), (503, "connect-failed"));
                failed += 1;
            }
        }
        assert_eq!(failed, failures, "{attempts} attempts: every second request goes to the endpoint that is gone");
    }
}

/// A backend that resets the connection after its first request, or answers it 503.
async fn resetting_or_503_once(resets: bool) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let requests = Arc::<AtomicU32>::default();
    let counted = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let requests = counted.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let requests = requests.clone();
                    async move {
                        let _ = request.into_body().collect().await;
                        let is_first = requests.fetch_add(1, Ordering::SeqCst) == 0;
                        if is_first && resets {
                            return Err(std::io::Error::other("reset"));
                        }
                        let response = Response::builder().status(if is_first { 503 } else { 200 });
                        Ok(response.body(Full::new(Bytes::new())).expect("a response"))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, requests)
}
