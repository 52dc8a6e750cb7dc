//! Who gets a certificate, and what of a request counts: ID-08, ID-09.

use serde_json::json;
use weft_identity::request::{Answer, Pending};
use weft_identity::verify::{Purpose, verify};
use weft_identity::{SpiffeId, UnixTime, pem};

use crate::fixture::{LOOPBACK, bound, fetch, fixture, refusals};

/// ID-08: over HTTPS, from loopback.
#[tokio::test(flavor = "multi_thread")]
async fn id_08_tokens_that_prove_no_pod_get_no_certificate_not_even_over_loopback() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let mut audience = bound("shop", "web");
    audience["audiences"] = json!(["https://kubernetes.default.svc"]);
    let mut unbound = bound("shop", "web");
    unbound["user"]["extra"] = json!({});
    let mut node = bound("shop", "web");
    node["user"]["username"] = json!("system:node:node-1");
    let refused = |error: &str| json!({"authenticated": false, "error": error});
    for (token, status) in [
        ("other-audience", audience),
        ("legacy", unbound),
        ("node", node),
        ("expired", refused("token has expired")),
        ("deleted-pod", refused("pod \"web-1\" not found")),
    ] {
        fixture.api.review(token, status);
    }
    for (token, status, reason, expected) in [
        ("unknown", 401, "token", "invalid bearer token"),
        ("expired", 401, "token", "token has expired"),
        ("deleted-pod", 401, "token", "not found"),
        ("other-audience", 401, "audience", "not for the audience weft-identity: project one for it into the pod"),
        ("legacy", 403, "not-a-pod", "not bound to a pod"),
        ("node", 403, "not-an-account", "system:node:node-1"),
        ("", 401, "no-token", "Authorization: Bearer"),
    ] {
        let before = refusals(&fixture, reason);
        let (found, answer) = fixture.request(0, root, token).await;
        let error = answer.expect_err("no certificate");
        assert_eq!(found, status, "{token}: {error}");
        assert!(error.starts_with("{\"error\":") && error.contains(expected), "{token}: {error}");
        assert_eq!(refusals(&fixture, reason), before + 1, "{token}");
    }
    assert_eq!(fixture.replicas[0].metrics.certificates_issued.get(), 0);
    fixture.end().await;
}

/// ID-08: decided, not forgotten: a token is not bound to the address of its pod, which the API server does not know yet when
/// the pod asks. The threat model says what follows.
#[tokio::test(flavor = "multi_thread")]
async fn token_proves_its_pod_from_every_address() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let body = Pending::generate().expect("a key").request().to_vec();
    let head = "POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web";
    for from in [[127, 0, 0, 1], [127, 0, 2, 7]] {
        let (status, body) =
            fetch(from.into(), fixture.replicas[0].address, root, head, &body).await.expect("a response");
        assert_eq!(status, 200, "{body}");
        let answer: Answer = serde_json::from_str(&body).expect("an answer");
        let chain = pem::read_certificates(answer.chain.as_bytes()).expect("PEM");
        let peer = verify(&chain, &answer.bundle, Purpose::Client, UnixTime::now()).expect("valid");
        assert_eq!(peer.id.to_string(), "spiffe://cluster.local/ns/shop/sa/web", "that of the token, from {from:?}");
    }
    fixture.end().await;
}

/// ID-08: without the API server there is no certificate.
#[tokio::test(flavor = "multi_thread")]
async fn id_08_answer_of_the_api_server_is_used_again_but_an_error_never() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    fixture.api.set_down(true);
    let (status, answer) = fixture.request(0, root, "web").await;
    assert_eq!((status, answer.is_err()), (503, true), "no API server, no certificate");
    fixture.api.set_down(false);
    let before = fixture.api.reviewed();
    for _ in 0..3 {
        assert_eq!(fixture.request(0, root, "web").await.0, 200);
    }
    assert_eq!(fixture.api.reviewed(), before + 1);
    for _ in 0..3 {
        assert_eq!(fixture.request(0, root, "unknown").await.0, 401);
    }
    assert_eq!(fixture.api.reviewed(), before + 4, "a refusal is not kept");
    fixture.end().await;
}

/// ID-09: 16 MiB, no proof of possession, one key for two accounts, other names, CA:TRUE, a lifetime of years.
#[tokio::test(flavor = "multi_thread")]
async fn id_09_requests_decide_nothing_but_the_key() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let address = fixture.replicas[0].address;
    let head = "POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web";
    let good = Pending::generate().expect("a key").request().to_vec();
    let mut forged = good.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    for (desc, body, expected) in [
        ("nothing", vec![], (400, "not a certificate signing request in DER")),
        ("no proof of possession", forged, (400, "not made with its key")),
        ("16 KiB and one byte", vec![0; 16 * 1024 + 1], (413, "more than 16384 bytes")),
        ("16 MiB", vec![0; 16 << 20], (413, "more than 16384 bytes")),
    ] {
        let (status, error) = fetch(LOOPBACK, address, root, head, &body).await.expect("a response");
        assert_eq!(status, expected.0, "{desc}: {error}");
        assert!(error.contains("\"error\"") && error.contains(expected.1), "{desc}: {error}");
    }
    // Another identity, a CA and a lifetime of years are asked for; the token decides.
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().expect("ASCII"))];
    let request = params.serialize_request(&key).expect("a request");
    fixture.api.review("cart", bound("shop", "cart"));
    for account in ["web", "cart"] {
        let head = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: bearer {account}");
        let (status, body) = fetch(LOOPBACK, address, root, &head, request.der()).await.expect("a response");
        assert_eq!(status, 200, "{body}");
        let answer: Answer = serde_json::from_str(&body).expect("an answer");
        let chain = pem::read_certificates(answer.chain.as_bytes()).expect("PEM");
        let now = UnixTime::now();
        let peer = verify(&chain, &answer.bundle, Purpose::Server, now).expect("valid: no CA");
        let expected: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().expect("an id");
        assert_eq!(peer.id, expected, "the same key for two accounts");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
        let life = leaf.validity().not_after.timestamp() - i64::try_from(now.as_secs()).expect("a time");
        assert!((86_300..=86_400).contains(&life), "{life} s");
    }
    for (head, expected) in [
        ("GET /v1/certificates HTTP/1.1\r\nauthorization: Bearer web", 405),
        ("POST / HTTP/1.1\r\nauthorization: Bearer web", 404),
        ("POST /v1/certificates HTTP/1.1\r\nauthorization: Basic web", 401),
        ("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web\r\nauthorization: Bearer cart", 401),
        ("POST /v1/certificates HTTP/1.1", 401),
    ] {
        assert_eq!(fetch(LOOPBACK, address, root, head, &good).await.expect("a response").0, expected, "{head}");
    }
    let long = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer {}", "x".repeat(64 * 1024));
    let refused = fetch(LOOPBACK, address, root, &long, &good).await;
    assert!(refused.is_err() || refused.is_ok_and(|(status, _)| status == 431), "a head of 64 KiB");
    fixture.end().await;
}
