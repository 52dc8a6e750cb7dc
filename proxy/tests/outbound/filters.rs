//! Filters of a rule: faults, mirroring, CORS, rate limits, limits of response bodies.

use http_body::Frame;
use http_body_util::StreamBody;

use super::*;

/// A share of all requests.
fn all() -> Value {
    json!({"numerator": 1, "denominator": 1})
}

/// A rule with filters. `more` has the rule's other fields.
fn with(mut rule: Value, more: Value) -> Value {
    rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    rule
}

fn reason(headers: &HeaderMap) -> Option<&str> {
    headers.get("weft-reason").map(|reason| reason.to_str().expect("text"))
}

#[tokio::test]
async fn faults_delay_and_abort_and_name_their_rule() {
    let proxy = Proxy::start("fault").await;
    let (v1, seen) = backend("v1", ok).await;
    let delay = |ms: u64| json!({"delay": {"durationMs": ms, "share": all()}});
    let abort = |status: u16, share: Value| json!({"abort": {"status": status, "share": share}});
    let to_v1 = || rule(forward(&proxy, &[("v1", 1)]));
    let table = json!({
        "matches": [
            {"rule": 0, "path": {"exact": "/slow"}},
            {"rule": 1, "path": {"exact": "/fail"}},
            {"rule": 2, "path": {"exact": "/late"}},
            {"rule": 3, "path": {"exact": "/half"}},
            {"rule": 4, "path": {"exact": "/direct"}}
        ],
        "rules": [
            with(to_v1(), json!({"fault": delay(200)})),
            with(to_v1(), json!({"fault": abort(418, all())})),
            with(to_v1(), json!({"fault": delay(10_000), "requestTimeoutMs": 200})),
            with(to_v1(), json!({"fault": abort(503, json!({"numerator": 1, "denominator": 2}))})),
            with(rule(json!({"respond": {"status": 200}})), json!({"fault": abort(500, all())}))
        ]
    });
    proxy.configure(Some(table), "detect", &[(v1, "v1")], json!({"subsets": ["v1"]})).await;

    let begun = std::time::Instant::now();
    let (status, headers, _) = proxy.send("GET", "/slow", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (200, None), "a delay alone does not answer");
    assert!(begun.elapsed() >= Duration::from_millis(200), "after {:?}", begun.elapsed());
    assert_eq!(seen.requests.swap(0, Ordering::SeqCst), 1);

    for (path, expected) in [("/fail", 418), ("/direct", 500)] {
        let (status, headers, _) = proxy.send("GET", path, &[], "").await;
        assert_eq!((status.as_u16(), reason(&headers)), (expected, Some("fault")), "{path}");
        assert_eq!(headers["weft-source"], "MeshRoute/shop/reviews/0", "{path}");
    }
    let (_, headers, _) = proxy.send("POST", "/fail", &[("content-type", "application/grpc")], "").await;
    assert_eq!(
        (&headers["grpc-status"], &headers["grpc-message"]),
        (&"2".parse().expect("a value"), &"fault".parse().expect("a value"))
    );

    let begun = std::time::Instant::now();
    let (status, headers, _) = proxy.send("GET", "/late", &[], "").await;
    assert_eq!(
        (status.as_u16(), reason(&headers)),
        (504, Some("request-timeout")),
        "the delay counts towards the request timeout"
    );
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0, "none of these reached a backend");

    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(proxy.send("GET", "/half", &[], "").await.0 == 503);
    }
    assert!((65..=135).contains(&failed), "half of 200 fail, got {failed}");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 200 - failed);
    let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
    let counted = page
        .lines()
        .find(|line| line.starts_with("weft_requests_total{") && line.contains("fault") && line.contains("503"));
    assert!(counted.is_some_and(|line| line.ends_with(&format!(" {failed}"))), "{counted:?}");
}

/// A mirror to a subset of the Service.
fn mirror_to(proxy: &Proxy, subset: &str, more: Value) -> Value {
    let target = json!({"namespace": "shop", "service": "reviews", "port": proxy.address.port(), "subset": subset});
    with(json!({"target": target, "share": all()}), more)
}

/// How many mirrored requests had this outcome.
async fn mirrored(proxy: &Proxy, outcome: &str) -> u64 {
    proxy.sum("weft_mirrored_requests_total", &format!("outcome=\"{outcome}\"")).await
}

/// Waits until `count` mirrored requests had this outcome.
async fn await_mirrored(proxy: &Proxy, outcome: &str, count: u64) {
    for _ in 0..300 {
        if mirrored(proxy, outcome).await >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(mirrored(proxy, outcome).await, count, "{outcome}");
}

#[tokio::test]
async fn mirrored_requests_do_not_delay_the_response() {
    let proxy = Proxy::start("mirror").await;
    let (v1, seen) = backend("v1", ok).await;
    let (shadow, copied) = backend("shadow", |_| (500, Duration::from_secs(2))).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    let to_v1 = || {
        let mut action = forward(&proxy, &[("v1", 1)]);
        action["forward"]["rewrite"] = json!({"hostname": "new.example", "path": {"full": "/new"}});
        rule(action)
    };
    let part = json!({"share": {"numerator": 0, "denominator": 100}});
    let table = json!({
        "matches": [
            {"rule": 0, "path": {"exact": "/copied"}},
            {"rule": 1, "path": {"exact": "/gone"}},
            {"rule": 2, "path": {"exact": "/never"}},
            {"rule": 3, "path": {"exact": "/twice"}}
        ],
        "rules": [
            with(to_v1(), json!({"mirrors": [mirror_to(&proxy, "shadow", json!({"hostSuffix": "-shadow"}))]})),
            with(to_v1(), json!({"mirrors": [mirror_to(&proxy, "gone", json!({})), mirror_to(&proxy, "none", json!({}))]})),
            with(to_v1(), json!({"mirrors": [with(mirror_to(&proxy, "shadow", json!({})), part)]})),
            with(to_v1(), json!({"mirrors": [mirror_to(&proxy, "shadow", json!({})), mirror_to(&proxy, "shadow", json!({}))]}))
        ]
    });
    let endpoints = [(v1, "v1"), (shadow, "shadow"), (gone, "gone")];
    let settings = json!({"subsets": ["v1", "shadow", "gone", "none"], "limits": {"maxRequests": 2}});
    proxy.configure(Some(table), "detect", &endpoints, settings).await;

    let begun = std::time::Instant::now();
    let (status, _, body) = proxy.send("POST", "/copied?q=1", &[("x-mark", "1")], "order").await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "v1"));
    assert!(begun.elapsed() < Duration::from_secs(1), "the mirrored response is not waited for: {:?}", begun.elapsed());
    await_mirrored(&proxy, "answered", 1).await;
    let (target, headers) = copied.heads.lock().expect("not poisoned").pop().expect("a copy");
    assert_eq!((target.as_str(), &headers["host"]), ("/new?q=1", &"new.example-shadow".parse().expect("a value")));
    assert_eq!(
        (&headers["x-mark"], &headers["content-length"]),
        (&"1".parse().expect("a value"), &"5".parse().expect("a value"))
    );
    assert_eq!(seen.heads.lock().expect("not poisoned").pop().expect("the request").1["host"], "new.example");

    let large = "x".repeat(65 * 1024);
    let (status, headers, _) = proxy.send("POST", "/copied", &[], &large).await;
    assert_eq!((status.as_u16(), headers["x-body"].to_str().expect("text")), (200, "66560"));
    await_mirrored(&proxy, "body-not-kept", 1).await;
    assert_eq!(copied.requests.load(Ordering::SeqCst), 1);

    assert_eq!(proxy.send("GET", "/gone", &[], "").await.0, 200, "an unreachable mirror does not fail the request");
    await_mirrored(&proxy, "failed", 1).await;
    await_mirrored(&proxy, "no-endpoints", 1).await;
    assert_eq!(proxy.send("GET", "/never", &[], "").await.0, 200);
    assert_eq!(copied.requests.load(Ordering::SeqCst), 1, "0 of 100 are mirrored");

    // Two mirrored requests reach the limit of two. It does not apply to the requests themselves.
    for _ in 0..3 {
        assert_eq!(proxy.send("GET", "/twice", &[], "").await.0, 200);
    }
    await_mirrored(&proxy, "overflow", 4).await;
    await_mirrored(&proxy, "answered", 3).await;
    assert_eq!(copied.requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn cors_allows_configured_origins() {
    let proxy = Proxy::start("cors").await;
    let (v1, seen) = backend("v1", ok).await;
    let cors = json!({
        "origins": [{"scheme": "https", "host": "*.shop.example", "port": 443}],
        "credentials": true, "methods": ["PUT"], "headers": ["x-a"], "expose": ["x-version"], "maxAgeS": 60
    });
    let mut table = json!({
        "matches": [{"rule": 0, "path": {"exact": "/cors"}, "method": "PUT"}, {"rule": 1}],
        "rules": [with(rule(forward(&proxy, &[("v1", 1)])), json!({"cors": cors})), rule(forward(&proxy, &[("v1", 1)]))]
    });
    proxy.configure(Some(table.clone()), "detect", &[(v1, "v1")], json!({"subsets": ["v1"]})).await;
    let good = ("origin", "https://a.shop.example");
    let evil = ("origin", "https://evil.example");
    let asks = ("access-control-request-method", "PUT");
    let value =
        |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());

    let (status, headers, body) = proxy.send("OPTIONS", "/cors", &[good, asks], "").await;
    assert_eq!(
        (status.as_u16(), reason(&headers), body.as_str()),
        (204, Some("cors-preflight"), ""),
        "answered for the PUT"
    );
    assert_eq!(headers["weft-source"], "MeshRoute/shop/reviews/0");
    for (name, expected) in [
        ("access-control-allow-origin", Some("https://a.shop.example")),
        ("access-control-allow-credentials", Some("true")),
        ("access-control-allow-methods", Some("PUT")),
        ("access-control-allow-headers", Some("x-a")),
        ("access-control-max-age", Some("60")),
        ("vary", Some("Origin")),
    ] {
        assert_eq!(value(&headers, name).as_deref(), expected, "{name}");
    }
    let (status, headers, _) = proxy.send("OPTIONS", "/cors", &[evil, asks], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (403, Some("cors-refused")));
    assert_eq!(value(&headers, "access-control-allow-origin"), None);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0, "no preflight reached a backend");

    for (origin, allowed) in [(good, Some("https://a.shop.example")), (evil, None)] {
        let (status, headers, _) = proxy.send("PUT", "/cors", &[origin], "x").await;
        assert_eq!(status, 200, "the browser enforces CORS, not the proxy");
        assert_eq!(value(&headers, "access-control-allow-origin").as_deref(), allowed);
        assert_eq!(value(&headers, "access-control-expose-headers").as_deref(), allowed.map(|_| "x-version"));
        assert_eq!(value(&headers, "vary").as_deref(), Some("Origin"));
    }
    let (_, headers, _) = proxy.send("OPTIONS", "/other", &[good, asks], "").await;
    assert_eq!(
        (value(&headers, "x-version").as_deref(), value(&headers, "vary")),
        (Some("v1"), None),
        "without a cors filter the backend answers preflights"
    );

    // Error responses of the proxy have CORS headers too, so that pages can read them.
    table["rules"][0]["fault"] = json!({"abort": {"status": 503, "share": all()}});
    proxy.configure(Some(table), "detect", &[(v1, "v1")], json!({"subsets": ["v1"]})).await;
    let (status, headers, _) = proxy.send("PUT", "/cors", &[good], "").await;
    assert_eq!(
        (status.as_u16(), value(&headers, "access-control-allow-origin").as_deref()),
        (503, Some("https://a.shop.example"))
    );
}

#[tokio::test]
async fn rate_limits_answer_429() {
    let proxy = Proxy::start("rate").await;
    let (v1, seen) = backend("v1", ok).await;
    let limited = |limit: Value| with(rule(forward(&proxy, &[("v1", 1)])), json!({"rateLimit": limit}));
    let table = json!({
        "matches": [{"rule": 0, "path": {"exact": "/all"}}, {"rule": 1, "path": {"exact": "/each"}}],
        "rules": [
            limited(json!({"requests": 1, "perMs": 3_600_000, "burst": 3})),
            limited(json!({"requests": 1, "perMs": 3_600_000, "burst": 2, "key": {"header": "x-caller"}}))
        ]
    });
    let endpoints = [(v1, "v1")];
    proxy.configure(Some(table.clone()), "detect", &endpoints, json!({"subsets": ["v1"]})).await;
    let field = |headers: &HeaderMap, name: &str| {
        headers.get(name).map_or("", |value| value.to_str().expect("text")).to_owned()
    };
    for remaining in ["2", "1", "0"] {
        let (status, headers, _) = proxy.send("GET", "/all", &[], "").await;
        assert_eq!((status.as_u16(), field(&headers, "ratelimit-limit").as_str()), (200, "3"));
        assert_eq!(field(&headers, "ratelimit-remaining"), remaining);
    }
    let (status, headers, _) = proxy.send("GET", "/all", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (429, Some("rate-limited")));
    assert_eq!(headers["weft-source"], "MeshRoute/shop/reviews/0");
    let seconds = |name: &str| field(&headers, name).parse::<u32>().expect("seconds");
    assert!((3590..=3600).contains(&seconds("retry-after")), "{headers:?}");
    assert!((10_790..=10_800).contains(&seconds("ratelimit-reset")), "{headers:?}");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 3);

    for (caller, expected) in [("a", [200, 200, 429]), ("b", [200, 200, 429])] {
        for status in expected {
            assert_eq!(proxy.send("GET", "/each", &[("x-caller", caller)], "").await.0, status, "{caller}");
        }
    }
    // An unrelated change of the configuration does not refill the buckets.
    proxy.configure(Some(table), "detect", &endpoints, json!({"subsets": ["v1", "v2"]})).await;
    assert_eq!(proxy.send("GET", "/all", &[], "").await.0, 429);
    assert_eq!(proxy.send("GET", "/each", &[("x-caller", "c")], "").await.0, 200);
    assert_eq!(proxy.send("GET", "/each", &[("x-caller", "a")], "").await.0, 429);
}

/// A backend that answers `/length/N` with N bytes and their `content-length`, `/stream/N` with N bytes without it.
async fn sized_backend() -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicU32::new(0));
    let accepted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(async |request: Request<Incoming>| {
                let (kind, bytes) = request.uri().path()[1..].split_once('/').expect("a kind and a number");
                let bytes: usize = bytes.parse().expect("a number");
                let body = if request.method() == "HEAD" { Vec::new() } else { vec![b'x'; bytes] };
                // After the first byte a pause, in which the proxy sends the head.
                let chunks = futures_util::stream::unfold((Bytes::from(body), 1), async |(mut rest, size)| {
                    tokio::time::sleep(Duration::from_millis(if size == 1 { 0 } else { 20 })).await;
                    let chunk = rest.split_to(rest.len().min(size));
                    (!chunk.is_empty()).then(|| (Ok::<_, Infallible>(Frame::data(chunk)), (rest, 16 * 1024)))
                });
                let body = StreamBody::new(chunks);
                let mut response = Response::builder();
                if kind == "length" {
                    response = response.header("content-length", bytes);
                }
                Ok::<_, Infallible>(response.body(body).expect("a response"))
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    (address, connections)
}

/// The status, the reason, and the body if it is complete.
async fn get_over(http2: bool, proxy: &Proxy, method: &str, path: &str) -> (u16, Option<String>, Result<usize, ()>) {
    let stream = TokioIo::new(TcpStream::connect(proxy.address).await.expect("connects"));
    let request = Request::builder().method(method).uri(format!("http://reviews.shop{path}"));
    let request = request.header("host", "reviews.shop").body(Full::new(Bytes::new())).expect("a request");
    let response = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("handshake");
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let (head, mut body) = response.expect("a response").into_parts();
    let mut bytes = 0;
    let body = loop {
        match body.frame().await {
            None => break Ok(bytes),
            Some(Ok(frame)) => bytes += frame.into_data().map_or(0, |data| data.len()),
            Some(Err(_)) => {
                assert!(bytes <= 1000, "{bytes} bytes of a body that is cut at 1000");
                break Err(());
            }
        }
    };
    (head.status.as_u16(), reason(&head.headers).map(str::to_owned), body)
}

#[tokio::test]
async fn response_bodies_beyond_the_limit_are_refused_or_cut() {
    let too_large = Some("response-too-large".to_owned());
    let text = "the response body has 1001 bytes, more than the rule's limit of 1000\n";
    for (http2, protocol) in [(false, "http"), (true, "http2")] {
        let proxy = Proxy::start(&format!("body-limit-{protocol}")).await;
        let (v1, connections) = sized_backend().await;
        let table = routes(forward(&proxy, &[("v1", 1)]), json!({"responseBodyBytesMax": 1000}));
        proxy.configure(table, protocol, &[(v1, "v1")], json!({"subsets": ["v1"]})).await;
        for round in 0..3 {
            for (method, path, status, expected_reason, body) in [
                ("GET", "/length/1000", 200, None, Ok(1000)),
                ("GET", "/length/1001", 502, too_large.clone(), Ok(text.len())),
                ("GET", "/stream/1000", 200, None, Ok(1000)),
                ("GET", "/stream/1001", 200, None, Err(())),
                ("GET", "/stream/200000", 200, None, Err(())),
                ("GET", "/length/0", 200, None, Ok(0)),
                ("HEAD", "/length/1001", 200, None, Ok(0)),
            ] {
                let answer = get_over(http2, &proxy, method, path).await;
                assert_eq!(answer, (status, expected_reason, body), "{protocol} {method} {path}, round {round}");
            }
        }
        let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
        let counted = |status: &str| -> u64 {
            let is_of = |line: &&str| {
                line.starts_with("weft_requests_total{") && line.contains(status) && line.contains("response-too-large")
            };
            page.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        assert_eq!((counted("\"502\""), counted("\"200\"")), (3, 6), "refused and cut responses: {page}");
        // A refused or cut response ends an HTTP/1.1 connection, and one stream of an HTTP/2 connection.
        let expected = if http2 { 1 } else { 10 };
        assert_eq!(connections.load(Ordering::SeqCst), expected, "{protocol}");
    }
}
