//! Candidate endpoints of a Service: late, terminating, on other nodes, unreachable; and the Service's own address as
//! fallback.

use std::time::Instant;

use super::*;

/// `weft-reason` of a response of the proxy, or "".
fn reason(headers: &HeaderMap) -> &str {
    headers.get("weft-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default()
}

/// Exports Service `web`, which clients call, and Service `backend` at another address.
async fn export(proxy: &Proxy, web: Value, backend: Value) {
    let mut web = web;
    web["name"] = json!("web");
    web["addresses"] = json!(["127.0.0.1"]);
    let mut backend = backend;
    backend["name"] = json!("backend");
    proxy.export(&json!({"services": [backend, web]})).await;
}

/// Service `web` with a port that forwards all requests, or all TCP connections, to Service `backend`.
fn to_backend(proxy: &Proxy, port: u16, protocol: &str, subset: Option<&str>) -> Value {
    let mut cluster = json!({"namespace": "shop", "service": "backend", "port": port});
    if let Some(subset) = subset {
        cluster["subset"] = json!(subset);
    }
    let backends = json!([{"weight": 1, "target": {"cluster": cluster}}]);
    let routes = match protocol {
        "tcp" => {
            let route = json!({"namespace": "shop", "name": "web"});
            json!({"tcp": 0, "streams": [{"route": route, "name": "tcp", "backends": backends}]})
        }
        _ => json!({"matches": [{"rule": 0}], "rules": [rule(json!({"forward": {"backends": backends}}))]}),
    };
    json!({"ports": [{"port": proxy.address.port(), "protocol": protocol, "routes": routes}]})
}

/// Service `backend` with these endpoints.
fn with_endpoints(address: SocketAddr, settings: Value, endpoints: Value) -> Value {
    json!({
        "addresses": [address.ip()], "settings": settings, "ports": [{"port": address.port(), "endpoints": endpoints}]
    })
}

/// Exports only Service `web`, with these endpoints.
async fn export_web(proxy: &Proxy, protocol: &str, settings: Value, endpoints: Value) {
    let ports = json!([{"port": proxy.address.port(), "protocol": protocol, "endpoints": endpoints}]);
    let web = json!({"name": "web", "addresses": ["127.0.0.1"], "settings": settings, "ports": ports});
    proxy.export(&json!({"services": [web]})).await;
}

/// Addresses that refuse connections.
async fn refusing_addresses(count: usize) -> Vec<SocketAddr> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("binds"));
    }
    listeners.iter().map(|listener| listener.local_addr().expect("an address")).collect()
}

async fn service_address_attempts(proxy: &Proxy) -> u64 {
    proxy.sum("weft_service_address_attempts_total", "").await
}

#[tokio::test]
async fn requests_wait_for_the_first_endpoint() {
    let proxy = Proxy::start("wait").await;
    let (v1, _) = backend("v1", ok).await;
    for protocol in ["http", "tcp"] {
        // A Service that never had an endpoint, and one that lost it.
        for before in [json!([]), json!([{"address": v1}])] {
            export_web(&proxy, protocol, json!({}), before).await;
            export_web(&proxy, protocol, json!({}), json!([])).await;
            let begun = Instant::now();
            let address = proxy.address;
            let waiting: Vec<_> =
                (0..20).map(|_| tokio::spawn(async move { send(address, "GET", "/", &[], "").await })).collect();
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(waiting.iter().all(|request| !request.is_finished()), "{protocol}: they wait");
            export_web(&proxy, protocol, json!({}), json!([{"address": v1}])).await;
            for request in waiting {
                let (status, _, body) = request.await.expect("no panic");
                assert_eq!((status.as_u16(), body.as_str()), (200, "v1"), "{protocol}");
            }
            assert!(begun.elapsed() < Duration::from_secs(3), "{protocol}: after {:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn only_the_first_request_waits_for_an_empty_service() {
    let proxy = Proxy::start("wait-vain").await;
    let (v1, _) = backend("v1", ok).await;
    export_web(&proxy, "http", json!({}), json!([])).await;
    let begun = Instant::now();
    let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "no-endpoints"));
    let waited = begun.elapsed();
    assert!((Duration::from_millis(2_900)..Duration::from_secs(5)).contains(&waited), "after {waited:?}");
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 503);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "at once: {:?}", begun.elapsed());
    export_web(&proxy, "http", json!({}), json!([{"address": v1}])).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    export_web(&proxy, "http", json!({}), json!([])).await;
    let address = proxy.address;
    let waiting = tokio::spawn(async move { send(address, "GET", "/", &[], "").await.0 });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "requests wait again after there was an endpoint");
    export_web(&proxy, "http", json!({}), json!([{"address": v1}])).await;
    assert_eq!(waiting.await.expect("no panic"), 200);
}

#[tokio::test]
async fn request_timeout_bounds_the_wait_for_endpoints() {
    let proxy = Proxy::start("wait-bound").await;
    let timed = |subset: &str| routes(forward(&proxy, &[(subset, 1)]), json!({"requestTimeoutMs": 300}));
    for (subset, least) in [("empty", 300), ("undeclared", 0)] {
        proxy.configure(timed(subset), "http", &[], json!({"subsets": ["empty"]})).await;
        let begun = Instant::now();
        let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
        assert_eq!((status.as_u16(), reason(&headers)), (503, "no-endpoints"), "{subset}");
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(least), "{subset}: after {waited:?}");
        assert!(waited < Duration::from_millis(least + 250), "{subset}: after {waited:?}");
    }
}

#[tokio::test]
async fn service_address_is_used_when_no_endpoint_accepts_connections() {
    let proxy = Proxy::start("own-address").await;
    // The backend that the kernel chooses for connections to the Service's address.
    let (kernel, seen) = backend("kernel", ok).await;
    let (live, _) = backend("live", ok).await;
    let gone = refusing_addresses(5).await;
    let own = |count: usize| -> Value { gone[..count].iter().map(|address| json!({"address": address})).collect() };
    for protocol in ["http", "tcp"] {
        let web = || to_backend(&proxy, kernel.port(), protocol, None);
        for count in [0, 1, 5] {
            export(&proxy, web(), with_endpoints(kernel, json!({}), own(count))).await;
            for method in ["GET", "POST"] {
                for _ in 0..5 {
                    let (status, _, body) = proxy.send(method, "/", &[], "order").await;
                    assert_eq!((status.as_u16(), body.as_str()), (200, "kernel"), "{protocol}, {count}: {method}");
                }
            }
        }
        assert!(service_address_attempts(&proxy).await >= 30, "each is counted");
        export(&proxy, web(), with_endpoints(kernel, json!({}), json!([{"address": live}]))).await;
        for _ in 0..20 {
            assert_eq!(proxy.send("GET", "/", &[], "").await.2, "live", "{protocol}: the proxy uses the new endpoint");
        }
    }
    // Not with a subset: the kernel could choose a pod of another subset.
    let before = seen.requests.load(Ordering::SeqCst);
    let endpoints = json!([{"address": gone[0], "subsets": ["v1"]}]);
    let web = to_backend(&proxy, kernel.port(), "http", Some("v1"));
    export(&proxy, web, with_endpoints(kernel, json!({"subsets": ["v1"]}), endpoints)).await;
    let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "connect-failed"));
    assert_eq!(seen.requests.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn service_address_is_used_when_timeouts_leave_no_time_for_all_endpoints() {
    let proxy = Proxy::start("own-address-timed").await;
    let (kernel, _) = backend("kernel", ok).await;
    // Listeners with a full accept queue: connections are neither accepted nor refused.
    let (mut unresponsive, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let listener = socket.listen(0).expect("listens");
        let address = listener.local_addr().expect("an address");
        let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
        unresponsive.push(json!({"address": address}));
        kept.push((listener, waiting));
    }
    let web = |field: &str, ms: u64| {
        let mut web = to_backend(&proxy, kernel.port(), "http", None);
        web["ports"][0]["routes"]["rules"][0][field] = json!(ms);
        web
    };
    export(&proxy, web("attemptTimeoutMs", 100), with_endpoints(kernel, json!({}), json!(unresponsive))).await;
    for _ in 0..5 {
        let (status, _, body) = proxy.send("POST", "/", &[], "order").await;
        assert_eq!(
            (status.as_u16(), body.as_str()),
            (200, "kernel"),
            "the endpoints were not connected, so POST goes on"
        );
    }
    unresponsive.pop();
    export(&proxy, web("requestTimeoutMs", 100), with_endpoints(kernel, json!({}), json!(unresponsive))).await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(proxy.send("POST", "/", &[], "order").await.0.as_u16());
    }
    assert_eq!((statuses[0], &statuses[1..]), (504, &[200; 9][..]), "{statuses:?}");
    drop(kept);
}

#[tokio::test]
async fn recovered_endpoints_replace_the_service_address() {
    let proxy = Proxy::start("own-address-ends").await;
    let (kernel, _) = backend("kernel", ok).await;
    let gone = refusing_addresses(1).await[0];
    let web = || to_backend(&proxy, kernel.port(), "http", None);
    export(&proxy, web(), with_endpoints(kernel, json!({}), json!([{"address": gone}]))).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.2, "kernel");
    // The pod listens again, at the same address.
    let listener = TcpListener::bind(gone).await.expect("binds");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = [0; 4096];
                let _ = stream.read(&mut read).await;
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nback").await;
            });
        }
    });
    assert_eq!(proxy.send("GET", "/", &[], "").await.2, "kernel", "the endpoint is not tried at once");
    // Not a sleep of 10 s: the proxy's clock advances in steps of a few milliseconds.
    let recovers_before = Instant::now() + Duration::from_secs(15);
    while proxy.send("GET", "/", &[], "").await.2 != "back" {
        assert!(Instant::now() < recovers_before, "the endpoint is tried again after 10 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..5 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.2, "back");
    }
}

/// A Service's address while pods terminate: on the first connections each request is answered 503
/// `weft-unprocessed`, as by the proxy of a terminating pod, on later ones 200. Returns the address, and a counter of
/// the 503s.
async fn terminating_then_live(terminating: usize) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let unprocessed = Arc::new(AtomicU32::new(0));
    let count = unprocessed.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { break };
            let (count, is_terminating) = (count.clone(), number < terminating);
            tokio::spawn(async move {
                let mut read = [0; 4096];
                while stream.read(&mut read).await.is_ok_and(|length| length > 0) {
                    let answer: &[u8] = if is_terminating {
                        count.fetch_add(1, Ordering::SeqCst);
                        b"HTTP/1.1 503 No\r\nweft-unprocessed: true\r\nweft-reason: connect-failed\r\ncontent-length: 0\r\n\r\n"
                    } else {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nkernel"
                    };
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    (address, unprocessed)
}

#[tokio::test]
async fn service_address_is_retried_when_the_kernel_picks_a_terminating_pod() {
    let proxy = Proxy::start("own-address-terminating").await;
    let gone: Vec<Value> =
        refusing_addresses(3).await.iter().map(|at| json!({"address": at, "hasProxy": true})).collect();
    let (kernel, unprocessed) = terminating_then_live(4).await;
    let web = to_backend(&proxy, kernel.port(), "http", None);
    export(&proxy, web, with_endpoints(kernel, json!({}), json!(gone))).await;
    for method in ["POST", "GET", "POST", "GET"] {
        let (status, _, body) = proxy.send(method, "/", &[], "").await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "kernel"), "{method}");
    }
    assert_eq!(unprocessed.load(Ordering::SeqCst), 4, "no connection to a terminating pod is reused");

    // All pods terminate: the response has the reason, and the connection is not reused.
    let (kernel, unprocessed) = terminating_then_live(20).await;
    let web = to_backend(&proxy, kernel.port(), "http", None);
    export(&proxy, web, with_endpoints(kernel, json!({}), json!(gone))).await;
    let begun = Instant::now();
    let (status, headers, _) = proxy.send("POST", "/", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "connect-failed"));
    assert!(!headers.contains_key("weft-unprocessed"));
    assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());
    while unprocessed.load(Ordering::SeqCst) < 20 {
        proxy.send("POST", "/", &[], "").await;
    }
    assert_eq!(proxy.send("POST", "/", &[], "").await.2, "kernel");
    assert_eq!(unprocessed.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn applications_behind_the_service_address_cannot_request_retries() {
    let proxy = Proxy::start("own-address-claim").await;
    let gone = refusing_addresses(2).await;
    for endpoints in [json!([]), json!([{"address": gone[0], "hasProxy": true}, {"address": gone[1]}])] {
        let (kernel, unprocessed) = terminating_then_live(usize::MAX).await;
        let web = to_backend(&proxy, kernel.port(), "http", None);
        export(&proxy, web, with_endpoints(kernel, json!({}), endpoints.clone())).await;
        let (status, headers, _) = proxy.send("POST", "/", &[], "").await;
        assert_eq!((status.as_u16(), reason(&headers)), (503, ""), "{endpoints}");
        assert_eq!(unprocessed.load(Ordering::SeqCst), 1, "{endpoints}");
    }
}

#[tokio::test]
async fn refused_service_address_answers_connect_failed() {
    let proxy = Proxy::start("own-address-refuses").await;
    let gone = refusing_addresses(2).await;
    let web = to_backend(&proxy, gone[1].port(), "http", None);
    export(&proxy, web, with_endpoints(gone[1], json!({}), json!([{"address": gone[0]}]))).await;
    let begun = Instant::now();
    let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "connect-failed"));
    assert!(begun.elapsed() < Duration::from_secs(1), "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn internal_traffic_policy_local_stays_on_the_node() {
    let pod = Pod { node: "node-1".into(), ..Pod::default() };
    let proxy = Proxy::start_in("local", pod).await;
    let (here, _) = backend("here", ok).await;
    let (there, seen) = backend("there", ok).await;
    let (kernel, by_kernel) = backend("kernel", ok).await;
    let local = || json!({"localOnly": true});
    let elsewhere = json!({"address": there, "node": "node-2"});
    let unknown = json!({"address": there});
    for protocol in ["http", "tcp"] {
        let own = json!({"address": here, "node": "node-1"});
        export_web(&proxy, protocol, local(), json!([own, elsewhere])).await;
        for _ in 0..20 {
            assert_eq!(proxy.send("GET", "/", &[], "").await.2, "here", "{protocol}");
        }
        let own = json!({"address": here, "node": "node-1", "terminating": true});
        export_web(&proxy, protocol, local(), json!([own, elsewhere])).await;
        assert_eq!(
            proxy.send("GET", "/", &[], "").await.2,
            "here",
            "{protocol}: a terminating endpoint, the only one on the node"
        );
    }
    for other in [elsewhere, unknown] {
        let web = to_backend(&proxy, kernel.port(), "http", None);
        export(&proxy, web, with_endpoints(kernel, local(), json!([other]))).await;
        let (status, headers, body) = proxy.send("GET", "/", &[], "").await;
        assert_eq!((status.as_u16(), reason(&headers)), (503, "no-local-endpoints"), "{body}");
        assert!(body.contains("internalTrafficPolicy"), "{body}");
    }
    assert_eq!(by_kernel.connections.load(Ordering::SeqCst), 0, "the kernel would drop the connection");
    let web = to_backend(&proxy, there.port(), "http", None);
    export(&proxy, web, with_endpoints(there, local(), json!([]))).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.2, "there", "no endpoint is known: the kernel may know one");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn terminating_and_lost_endpoints_are_used_last() {
    let proxy = Proxy::start("terminating").await;
    let (terminating, _) = backend("terminating", ok).await;
    let (ready, _) = backend("ready", ok).await;
    let (lost, _) = backend("lost", ok).await;
    let terminating = || json!({"address": terminating, "terminating": true});
    let lost = || json!({"address": lost, "lost": true});
    for (endpoints, expected) in [
        (json!([terminating(), {"address": ready}, lost()]), "ready"),
        (json!([terminating(), lost()]), "terminating"),
        (json!([terminating()]), "terminating"),
        (json!([lost()]), "lost"),
    ] {
        export_web(&proxy, "http", json!({"balancer": "roundRobin"}), endpoints).await;
        for _ in 0..10 {
            let (status, _, body) = proxy.send("GET", "/", &[], "").await;
            assert_eq!((status.as_u16(), body.as_str()), (200, expected));
        }
    }
}

#[tokio::test]
async fn client_ip_affinity_lasts_for_the_timeout() {
    let proxy = Proxy::start("client-ip").await;
    let mut endpoints = Vec::new();
    for name in ["v1", "v2", "v3", "v4"] {
        endpoints.push((name, json!({"address": backend(name, ok).await.0})));
    }
    let all =
        |but: &str| -> Value { endpoints.iter().filter(|(name, _)| *name != but).map(|(_, at)| at.clone()).collect() };
    for protocol in ["http", "tcp"] {
        let settings = || json!({"balancer": "roundRobin", "clientIpSeconds": 1});
        export_web(&proxy, protocol, settings(), all("")).await;
        let first = proxy.send("GET", "/", &[], "").await.2;
        for _ in 0..10 {
            assert_eq!(proxy.send("GET", "/", &[], "").await.2, first, "{protocol}");
        }
        // Round robin may choose the same endpoint once, but not twice.
        let mut later = Vec::new();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            later.push(proxy.send("GET", "/", &[], "").await.2);
        }
        assert!(later.iter().any(|name| *name != first), "{protocol}: idle for longer than the timeout: {later:?}");
        let second = later.remove(1);
        export_web(&proxy, protocol, settings(), all(&second)).await;
        let third = proxy.send("GET", "/", &[], "").await.2;
        assert_ne!(third, second, "{protocol}: that endpoint is gone");
        export_web(&proxy, protocol, settings(), all("")).await;
        for _ in 0..10 {
            assert_eq!(
                proxy.send("GET", "/", &[], "").await.2,
                third,
                "{protocol}: the client stays with the new endpoint"
            );
        }
    }
}

#[tokio::test]
async fn same_node_is_preferred_then_same_zone() {
    let pod = Pod { node: "node-1".into(), zone: Some("a".into()), ..Pod::default() };
    let proxy = Proxy::start_in("same-node", pod).await;
    let mut at = Vec::new();
    for name in ["node", "zone", "far"] {
        at.push(backend(name, ok).await.0);
    }
    let by_place = |count: usize| -> Value {
        let node = json!({"address": at[0], "node": "node-1", "zone": "a"});
        let zone = json!({"address": at[1], "node": "node-2", "zone": "a"});
        let far = json!({"address": at[2], "node": "node-3", "zone": "b"});
        [node, zone, far].into_iter().skip(count).collect()
    };
    let by_hints = |count: usize| -> Value {
        let node = json!({"address": at[0], "forNodes": ["node-9", "node-1"], "forZones": ["b"]});
        let zone = json!({"address": at[1], "forNodes": ["node-2"], "forZones": ["b", "a"]});
        let far = json!({"address": at[2], "forNodes": ["node-3"], "forZones": ["b"]});
        [node, zone, far].into_iter().skip(count).collect()
    };
    let places: [&dyn Fn(usize) -> Value; 2] = [&by_place, &by_hints];
    for endpoints in places {
        for (gone, expected) in [(0, "node"), (1, "zone"), (2, "far")] {
            let settings = json!({"balancer": "random", "preferSameNode": true, "preferSameZone": true});
            export_web(&proxy, "http", settings, endpoints(gone)).await;
            for _ in 0..10 {
                assert_eq!(proxy.send("GET", "/", &[], "").await.2, expected);
            }
        }
    }
}

/// Namespace `bank` has no document, and that of `park` is refused.
#[tokio::test]
async fn backends_without_configuration_are_unavailable() {
    let proxy = Proxy::start("unconfigured").await;
    proxy.write("x.park", &json!({"services": 7}));
    let (v1, _) = backend("v1", ok).await;
    for (namespace, count) in [("bank", 1), ("park", 2)] {
        let target = json!({"namespace": namespace, "service": "ledger", "port": 80});
        let backends = json!([{"weight": 1, "target": {"cluster": target}}]);
        let action = json!({"forward": {"backends": backends}});
        proxy.configure(routes(action, json!({})), "http", &[], json!({})).await;
        let (status, headers, body) = proxy.send("GET", "/", &[], "").await;
        assert_eq!((status.as_u16(), reason(&headers)), (503, "config-unavailable"), "{namespace}");
        assert_eq!(body, format!("no configuration of {namespace}/ledger:80 is loaded\n"));

        let mirror = json!({"target": target, "share": {"numerator": 1, "denominator": 1}});
        let table = routes(forward(&proxy, &[("v1", 1)]), json!({"mirrors": [mirror]}));
        proxy.configure(table, "http", &[(v1, "v1")], json!({"subsets": ["v1"]})).await;
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200, "{namespace}: a mirror does not fail the request");

        let rule = json!({"route": {"namespace": "shop", "name": "reviews"}, "name": "tcp", "backends": backends});
        proxy.configure(Some(json!({"tcp": 0, "streams": [rule]})), "tcp", &[], json!({})).await;
        let mut client = TcpStream::connect(proxy.address).await.expect("connects");
        client.write_all(b"anything").await.expect("writes");
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "{namespace}: closed");
        for (metric, label) in [
            ("weft_tcp_connections_total", "reason=\"config-unavailable\""),
            ("weft_mirrored_requests_total", "outcome=\"config-unavailable\""),
        ] {
            // The copy waits for its namespace too.
            let begun = Instant::now();
            while proxy.sum(metric, label).await < count && begun.elapsed() < Duration::from_secs(5) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(proxy.sum(metric, label).await, count, "{namespace}: {metric}");
        }
    }
}
