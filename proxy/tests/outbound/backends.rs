//! Filters of single backends: they apply to the requests for which the backend was picked, and to nothing else.

use super::*;

fn settings() -> Value {
    json!({"subsets": ["v1", "v2", "v3"], "balancer": "roundRobin"})
}

/// Edits that set one header.
fn sets(name: &str, value: &str) -> Value {
    json!({"set": [{"name": name, "value": value}]})
}

/// A rule's action: backends of these subsets, of equal weight, with these filters.
fn forward_with(proxy: &Proxy, backends: &[(&str, Value)]) -> Value {
    let shares: Vec<(&str, u32)> = backends.iter().map(|(subset, _)| (*subset, 1)).collect();
    let mut action = forward(proxy, &shares);
    for (at, (_, filters)) in backends.iter().enumerate().filter(|(_, (_, filters))| !filters.is_null()) {
        action["forward"]["backends"][at]["filters"] = filters.clone();
    }
    action
}

/// Sends a request over HTTP/1.1 or HTTP/2.
async fn send_over(
    http2: bool,
    proxy: &Proxy,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, String) {
    if !http2 {
        return proxy.send(method, path, headers, "").await;
    }
    let stream = TokioIo::new(TcpStream::connect(proxy.address).await.expect("connects"));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(format!("http://reviews.shop{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::new())).expect("a request");
    let (parts, body) = sender.send_request(request).await.expect("a response").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

/// The heads of the requests that a backend received since the last call.
fn take_heads(seen: &BackendStats) -> Vec<(String, HeaderMap)> {
    std::mem::take(&mut *seen.heads.lock().expect("not poisoned"))
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn backends_apply_only_their_own_filters() {
    for (http2, protocol) in [(false, "http"), (true, "http2")] {
        let proxy = Proxy::start(&format!("backends-{protocol}")).await;
        let (v1, seen_v1) = backend("v1", ok).await;
        let (v2, seen_v2) = backend("v2", ok).await;
        let own = |tag: &str| json!({"requestHeaders": sets("x-own", tag), "responseHeaders": sets("x-answered", tag)});
        // One Service, twice with different filters and once without any.
        let action = forward_with(&proxy, &[("v1", own("one")), ("v2", own("two")), ("v1", Value::Null)]);
        // Another rule with the same backend and other filters.
        let other = forward_with(&proxy, &[("v1", own("other"))]);
        let table = json!({
            "matches": [{"rule": 0, "path": {"exact": "/split"}}, {"rule": 1, "path": {"exact": "/other"}}],
            "rules": [rule(action), rule(other)]
        });
        proxy.configure(Some(table), protocol, &[(v1, "v1"), (v2, "v2")], settings()).await;

        let (mut counts, client) = ([0; 3], [("x-own", "client")]);
        for _ in 0..90 {
            let (status, headers, body) = send_over(http2, &proxy, "GET", "/split", &client).await;
            assert_eq!(status, 200);
            let heads = [take_heads(&seen_v1), take_heads(&seen_v2)].concat();
            let [(_, sent)] = heads.as_slice() else { panic!("one request, not {heads:?}") };
            let (sent, answered) = (texts(sent, "x-own"), texts(&headers, "x-answered"));
            let case = match (body.as_str(), sent[0].as_str(), answered.as_slice()) {
                ("v1", "one", [tag]) if tag == "one" => 0,
                ("v2", "two", [tag]) if tag == "two" => 1,
                ("v1", "client", []) => 2,
                other => panic!("{protocol}: filters of another backend: {other:?}"),
            };
            assert_eq!(sent.len(), 1, "{protocol}: {sent:?}");
            counts[case] += 1;
        }
        assert!(counts.iter().all(|count| *count >= 10), "{protocol}: equal weights, {counts:?} of 90");
        let (_, headers, _) = send_over(http2, &proxy, "GET", "/other", &client).await;
        assert_eq!(texts(&take_heads(&seen_v1)[0].1, "x-own"), ["other"], "{protocol}");
        assert_eq!(texts(&headers, "x-answered"), ["other"], "{protocol}");
    }
}

#[tokio::test]
async fn sole_and_weighted_backends_apply_their_filters_alike() {
    let proxy = Proxy::start("backends-order").await;
    let (v1, seen) = backend("v1", ok).await;
    let add = |name: &str, value: &str| json!({"add": [{"name": name, "value": value}]});
    let filters = json!({
        "requestHeaders": {"remove": ["x-client"], "set": [{"name": "x-both", "value": "backend"}], "add": [{"name": "x-list", "value": "backend"}]},
        "responseHeaders": {"set": [{"name": "x-both", "value": "backend"}], "add": [{"name": "x-list", "value": "backend"}]},
        "rewrite": {"path": {"prefix": "/own"}}
    });
    let mut sole = forward_with(&proxy, &[("v1", filters.clone())]);
    let mut weighted = forward_with(&proxy, &[("v1", filters), ("v2", Value::Null)]);
    weighted["forward"]["backends"][1]["weight"] = 0.into();
    for action in [&mut sole, &mut weighted] {
        action["forward"]["rewrite"] = json!({"hostname": "rule.example", "path": {"full": "/rule"}});
    }
    for (desc, action) in [("sole", sole), ("weighted", weighted)] {
        let mut both = rule(action);
        both["requestHeaders"] = sets("x-both", "rule");
        both["requestHeaders"]["add"] = add("x-list", "rule")["add"].clone();
        both["responseHeaders"] = sets("x-both", "rule");
        both["responseHeaders"]["add"] = add("x-list", "rule")["add"].clone();
        let table = json!({"matches": [{"rule": 0, "path": {"prefix": "/old"}}], "rules": [both]});
        proxy.configure(Some(table), "detect", &[(v1, "v1")], settings()).await;
        // `Connection` removes neither header that a backend edits.
        let client = [("x-client", "1"), ("connection", "x-both, x-list")];
        let (status, headers, _) = proxy.send("GET", "/old/a?q=1", &client, "").await;
        assert_eq!(status, 200, "{desc}");
        let (target, sent) = take_heads(&seen).pop().expect("a request");
        assert_eq!(target, "/own/a?q=1", "{desc}: the backend's path replaces that of the rule");
        assert_eq!(texts(&sent, "host"), ["rule.example"], "{desc}: the rest of the rule's rewrite stays");
        assert_eq!(texts(&sent, "x-both"), ["backend"], "{desc}: the backend's edits of requests come last");
        assert_eq!(texts(&sent, "x-list"), ["rule", "backend"], "{desc}");
        assert!(!sent.contains_key("x-client"), "{desc}: {sent:?}");
        assert_eq!(texts(&headers, "x-both"), ["rule"], "{desc}: the rule's edits of responses come last");
        assert_eq!(texts(&headers, "x-list"), ["backend", "rule"], "{desc}");
    }
}

#[tokio::test]
async fn retries_and_hedges_keep_the_backend_and_its_filters() {
    let retry = json!({"retry": {"attempts": 1, "codes": [503], "methods": ["GET"], "backoffMs": 5}});
    let hedge = json!({"hedge": {"afterMs": 50, "attempts": 1}});
    for (protocol, kind, more) in
        [("http", "retry", &retry), ("http2", "retry", &retry), ("http", "hedge", &hedge), ("http2", "hedge", &hedge)]
    {
        let proxy = Proxy::start(&format!("backends-{kind}-{protocol}")).await;
        // Of the two endpoints of a backend, the first one fails.
        let bad = move |_| if kind == "retry" { (503, Duration::ZERO) } else { (200, Duration::from_secs(5)) };
        let mut endpoints = Vec::new();
        let mut seen = Vec::new();
        for subset in ["v1", "v2"] {
            for is_bad in [true, false] {
                let (address, stats) = if is_bad { backend(subset, bad).await } else { backend(subset, ok).await };
                endpoints.push((address, subset));
                seen.push(stats);
            }
        }
        let own = |tag: &str| {
            let rewrite = json!({"hostname": format!("{tag}.example"), "path": {"full": format!("/{tag}")}});
            json!({"requestHeaders": sets("x-own", tag), "responseHeaders": sets("x-answered", tag), "rewrite": rewrite})
        };
        let action = forward_with(&proxy, &[("v1", own("v1")), ("v2", own("v2"))]);
        let mut settings = settings();
        settings["retryBudget"] = json!({"percent": 100, "minPerSecond": 100});
        proxy.configure(routes(action, more.clone()), protocol, &endpoints, settings).await;

        let mut resent = [0, 0];
        for _ in 0..24 {
            let (status, headers, body) = send_over(protocol == "http2", &proxy, "GET", "/", &[]).await;
            assert_eq!(
                (status.as_u16(), texts(&headers, "x-answered")),
                (200, vec![body.clone()]),
                "{protocol} {kind}"
            );
            let heads: Vec<_> = seen.iter().map(take_heads).collect();
            let at = usize::from(body == "v2");
            assert!(heads[2 - 2 * at].is_empty() && heads[3 - 2 * at].is_empty(), "the other backend got no attempt");
            let attempts = heads.concat();
            for (target, sent) in &attempts {
                assert_eq!(
                    (target, texts(sent, "x-own")),
                    (&format!("/{body}"), vec![body.clone()]),
                    "{protocol} {kind}"
                );
                if protocol == "http" {
                    assert_eq!(texts(sent, "host"), [format!("{body}.example")], "{protocol} {kind}");
                }
            }
            resent[at] += u32::from(attempts.len() == 2);
        }
        assert!(
            resent.iter().all(|count| *count > 0),
            "{protocol} {kind}: both backends had a second attempt, {resent:?}"
        );
    }
}

#[tokio::test]
async fn answers_of_the_proxy_itself_have_cors_headers_but_no_edits_of_the_backend() {
    let proxy = Proxy::start("backends-answers").await;
    let (v1, seen) = backend("v1", ok).await;
    let allowed = "https://shop.example";
    let cors = json!({"origins": [{"scheme": "https", "host": "shop.example", "port": 443}], "methods": ["PUT"], "maxAgeS": 5});
    let filters = json!({"responseHeaders": sets("x-answered", "backend"), "cors": cors});
    let mut redirected = forward_with(&proxy, &[("v1", filters.clone())]);
    redirected["forward"]["backends"][0]["target"] =
        json!({"redirect": {"status": 301, "hostname": "new.example", "path": {"prefix": "/new"}}});
    let mut missing = forward_with(&proxy, &[("v1", filters.clone())]);
    missing["forward"]["backends"][0]["target"] = json!({"invalid": "no Service shop/nope"});
    // No endpoint has the subset v3.
    let empty = forward_with(&proxy, &[("v3", filters.clone())]);
    let table = json!({
        "matches": [
            {"rule": 0, "path": {"prefix": "/old"}},
            {"rule": 1, "path": {"exact": "/missing"}},
            {"rule": 2, "path": {"exact": "/empty"}},
            {"rule": 3, "path": {"exact": "/here"}}
        ],
        "rules": [rule(redirected), rule(missing), rule(empty), rule(forward_with(&proxy, &[("v1", filters)]))]
    });
    proxy.configure(Some(table), "detect", &[(v1, "v1")], settings()).await;
    for (path, status, reason, edited) in [
        ("/old/a", 301, vec!["redirect"], vec!["backend"]),
        ("/missing", 500, vec!["backend-not-found"], vec![]),
        ("/empty", 503, vec!["no-endpoints"], vec![]),
        ("/here", 200, vec![], vec!["backend"]),
    ] {
        let (got, headers, _) = proxy.send("GET", path, &[("origin", allowed)], "").await;
        assert_eq!(
            (got.as_u16(), texts(&headers, "weft-reason")),
            (status, reason.iter().map(|r| (*r).to_owned()).collect()),
            "{path}"
        );
        assert_eq!(texts(&headers, "x-answered"), edited, "{path}");
        assert_eq!(texts(&headers, "access-control-allow-origin"), [allowed], "{path}");
        if path == "/old/a" {
            let location = format!("http://new.example:{}/new/a", proxy.address.port());
            assert_eq!(texts(&headers, "location"), [location]);
        }
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1, "only one of these reached a backend");
}

#[tokio::test]
async fn preflights_are_answered_by_the_backend_that_is_picked() {
    let proxy = Proxy::start("backends-cors").await;
    let (v1, seen_v1) = backend("v1", ok).await;
    let (v2, seen_v2) = backend("v2", ok).await;
    let cors = json!({"cors": {"origins": [{"scheme": "https", "host": "shop.example", "port": 443}], "maxAgeS": 5}});
    let mut sole = forward_with(&proxy, &[("v1", cors.clone()), ("v2", Value::Null)]);
    sole["forward"]["backends"][1]["weight"] = 0.into();
    let split = forward_with(&proxy, &[("v1", cors), ("v2", Value::Null)]);
    let table = json!({
        "matches": [
            {"rule": 0, "path": {"exact": "/sole"}, "method": "PUT"},
            {"rule": 1, "path": {"exact": "/split"}, "method": "PUT"}
        ],
        "rules": [rule(sole), rule(split)]
    });
    proxy.configure(Some(table), "detect", &[(v1, "v1"), (v2, "v2")], settings()).await;
    let asks = ("access-control-request-method", "PUT");
    for (origin, status, reason) in
        [("https://shop.example", 204, "cors-preflight"), ("https://evil.example", 403, "cors-refused")]
    {
        let (got, headers, _) = proxy.send("OPTIONS", "/sole", &[("origin", origin), asks], "").await;
        assert_eq!((got.as_u16(), texts(&headers, "weft-reason")), (status, vec![reason.to_owned()]), "{origin}");
    }
    assert_eq!(seen_v1.requests.load(Ordering::SeqCst), 0);
    let mut answered = 0;
    for _ in 0..40 {
        let (status, ..) = proxy.send("OPTIONS", "/split", &[("origin", "https://shop.example"), asks], "").await;
        answered += u32::from(status == 204);
    }
    assert_eq!(seen_v1.requests.load(Ordering::SeqCst), 0, "its preflights are answered by the proxy");
    assert_eq!(seen_v2.requests.load(Ordering::SeqCst), 40 - answered, "a backend without the filter gets its own");
    assert!((8..=32).contains(&answered), "{answered} of 40");
}

#[tokio::test]
async fn mirrors_of_a_backend_get_only_its_requests() {
    let proxy = Proxy::start("backends-mirror").await;
    let (v1, seen_v1) = backend("v1", ok).await;
    let (v2, _) = backend("v2", ok).await;
    let (v3, copied) = backend("v3", ok).await;
    let target = json!({"namespace": "shop", "service": "reviews", "port": proxy.address.port(), "subset": "v3"});
    let mirror =
        |suffix: &str| json!([{"target": target, "share": {"numerator": 1, "denominator": 1}, "hostSuffix": suffix}]);
    let filters = json!({"requestHeaders": sets("x-own", "v1"), "mirrors": mirror("-backend")});
    let action = forward_with(&proxy, &[("v1", filters), ("v2", Value::Null)]);
    let table = routes(action, json!({"mirrors": mirror("-rule")}));
    proxy.configure(table, "detect", &[(v1, "v1"), (v2, "v2"), (v3, "v3")], settings()).await;
    for _ in 0..20 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    }
    let of_v1 = seen_v1.requests.load(Ordering::SeqCst);
    for _ in 0..300 {
        if copied.requests.load(Ordering::SeqCst) >= 20 + of_v1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let heads = take_heads(&copied);
    let count = |host: &str, own: &[&str]| {
        let is_of = |(_, sent): &&(String, HeaderMap)| texts(sent, "host") == [host] && texts(sent, "x-own") == own;
        u32::try_from(heads.iter().filter(is_of).count()).expect("few")
    };
    assert_eq!(count("reviews.shop-backend", &["v1"]), of_v1, "{heads:?}");
    assert_eq!(count("reviews.shop-rule", &["v1"]), of_v1, "a copy is the request as its backend gets it");
    assert_eq!(count("reviews.shop-rule", &[]), 20 - of_v1);
    assert!((1..20).contains(&of_v1), "{of_v1} of 20");
}
