//! Hostile bytes on the webhook's port, in a process of its own because its memory is measured. The admin port is that of
//! the operator, whose test it is in.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

// The same bytes as against the operator's ports.
#[path = "../../operator/tests/support/bytes.rs"]
mod bytes;
mod support;

use std::sync::Arc;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_injector::app;
use weft_injector::certificate::Certificate;

use crate::bytes::{Port, attack};
use crate::support::{Fixture, pod, review};

/// CP-08: no bytes end the injector or make it grow, and it goes on to review.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_change_nothing() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["weft-injector.weft-system.svc".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().der().clone();
    let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], private);
    let own = Certificate { config: Arc::new(server.unwrap()), not_after: String::new(), not_after_seconds: i64::MAX };
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (fixture, stop) = (Fixture::new(), CancellationToken::new());
    let (_sender, certificates) = watch::channel(None);
    let serving = tokio::spawn(app::serve(listener, fixture.router.clone(), own, certificates, stop.clone()));

    let body = review("shop", &pod()).to_string();
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    attack(&Port { name: "webhook", address, request, tls: Some(Arc::new(client)) }).await;

    let paths = fixture.requested_paths.lock().unwrap().clone();
    let is_namespace = |path: &String| path.starts_with("/api/v1/namespaces/");
    assert!(paths.iter().all(is_namespace), "the webhook asks for nothing but a namespace: {paths:?}");
    assert_eq!(fixture.review(&review("shop", &pod())).await["allowed"], Value::Bool(true), "it goes on");
    assert!(!serving.is_finished(), "the server goes on");
    stop.cancel();
    serving.await.unwrap().unwrap();
}
