//! Hostile bytes on each port of the operator, in a process of its own because its memory is measured.

#[path = "identity/api.rs"]
mod api;
#[path = "support/bytes.rs"]
mod bytes;
#[path = "identity/fixture.rs"]
mod fixture;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use weft_identity::request::Pending;
use weft_identity::tls;
use weft_runtime::admin::{self, Admin};

use crate::bytes::{Port, attack};
use crate::fixture::{OPERATOR, domain, fixture};

/// CP-08: no bytes end the operator or make it grow, and it goes on to serve.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_change_nothing() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let admin_address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let readiness = fixture.replicas[0].readiness.clone();
    let serving =
        tokio::spawn(admin::serve(listener, admin::router(Admin { readiness, ..Admin::default() }), stop.clone()));

    let trust = tls::Trust::Fingerprints(domain(), BTreeSet::from([root]));
    let config = tls::client(trust, OPERATOR.parse().expect("an id"), None, &[b"http/1.1"]).expect("a configuration");
    let body = Pending::generate().expect("a key").request().to_vec();
    let head = format!(
        "POST /v1/certificates HTTP/1.1\r\nhost: weft-identity\r\nauthorization: Bearer web\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    let authority =
        Port { name: "authority", address: fixture.replicas[0].address, request, tls: Some(Arc::new(config)) };
    let request = b"GET /readyz HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n".to_vec();
    let admin = Port { name: "admin", address: admin_address, request, tls: None };
    for port in [&authority, &admin] {
        attack(port).await;
    }

    // An account's share may be used up by the requests among them that were left intact.
    fixture.api.review("cart", fixture::bound("shop", "cart"));
    assert_eq!(fixture.request(0, root, "cart").await.0, 200, "the authority goes on");
    assert!(!serving.is_finished(), "the admin server goes on");
    stop.cancel();
    serving.await.expect("no panic").expect("it ends in order");
    fixture.end().await;
}
