//! The filters of a rule, one by one.

use super::*;

/// All requests.
fn all() -> Value {
    json!({"numerator": 1, "denominator": 1})
}

/// A rule with filters, which are fields beside its action.
fn with(mut rule: Value, more: Value) -> Value {
    rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    rule
}

fn reason(headers: &HeaderMap) -> Option<&str> {
    headers.get("weft-reason").map(|reason| reason.to_str().expect("text"))
}

#[tokio::test]
async fn faults_delay_and_abort_and_say_whose_word_it_was() {
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
    assert_eq!((status.as_u16(), reason(&headers)), (200, None), "a wait alone is no answer");
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
        "the wait is part of the request's time"
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
