//! The webhook's certificate. The operator creates and renews it in one Secret. This module watches that Secret by
//! name and passes each new certificate with its key to the running server. An invalid one is rejected, the last
//! valid one stays in use, and `/readyz` reports it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, watcher::Config};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use weft_crds::names::WEBHOOK_SECRET;
use weft_runtime::readiness::Part;
use weft_runtime::watch::Backoff;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::metrics::Metrics;

/// ALPN protocols of the server, in order of preference. The API server uses the first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A valid certificate with its key.
#[derive(Clone)]
pub struct Certificate {
    /// TLS configuration of the server.
    pub config: Arc<ServerConfig>,
    /// Expiry.
    pub not_after: String,
    /// Expiry in seconds since 1970.
    pub not_after_seconds: i64,
}

/// Why a Secret is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the Secret is missing.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// A value is not PEM.
    #[error("{0} is not PEM")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// The certificate cannot be parsed.
    #[error("tls.crt has no certificate that can be parsed")]
    Unreadable,
    /// The certificate has expired.
    #[error("the certificate expired at {0}")]
    Expired(String),
    /// Certificate and key do not match.
    #[error("the certificate and the key do not match")]
    Pair(#[source] rustls::Error),
}

/// Watches the Secret and sends each valid certificate to `sender`, for ever.
pub async fn follow(
    client: Client,
    namespace: String,
    sender: watch::Sender<Option<Certificate>>,
    part: Part,
    metrics: Metrics,
) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    // By name, so that the role can be limited to this one Secret.
    let config = Config::default().fields(&format!("metadata.name={WEBHOOK_SECRET}"));
    let secret_name = format!("{namespace}/{WEBHOOK_SECRET}");
    part.report(false, &format!("waiting for the operator to create Secret {secret_name}"));
    follow_events(watcher(secrets, config).backoff(Backoff::default()), &secret_name, sender, part, metrics).await;
}

async fn follow_events(
    events: impl Stream<Item = Result<Event<Secret>, watcher::Error>>,
    secret_name: &str,
    sender: watch::Sender<Option<Certificate>>,
    part: Part,
    metrics: Metrics,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let current = || sender.borrow().as_ref().map(|current| current.not_after.clone());
        match event {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => match load(&secret, SystemTime::now()) {
                Ok(certificate) => {
                    part.report(true, &format!("valid until {}", certificate.not_after));
                    metrics.certificate_expiry.set(certificate.not_after_seconds);
                    tracing::info!(not_after = certificate.not_after, "certificate loaded");
                    sender.send_replace(Some(certificate));
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(secret = secret_name, error, "certificate rejected");
                    part.report(
                        current().is_some(),
                        &format!("Secret {secret_name} rejected, {}: {error}", in_use(current())),
                    );
                }
            },
            Ok(Event::Delete(_)) => {
                tracing::warn!(secret = secret_name, "the Secret of the certificate was deleted");
                part.report(current().is_some(), &format!("Secret {secret_name} was deleted, {}", in_use(current())));
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(secret = secret_name, %error, "cannot watch the Secret of the certificate");
                if current().is_none() {
                    part.report(false, &format!("cannot watch Secret {secret_name}: {error}"));
                }
            }
        }
    }
}

fn in_use(not_after: Option<String>) -> String {
    not_after.map_or("no certificate in use".to_owned(), |until| format!("still using the one valid until {until}"))
}

/// Loads certificate and key from a Secret, and checks that they match and have not expired.
pub(crate) fn load(secret: &Secret, now: SystemTime) -> Result<Certificate, Error> {
    let data = |key: &'static str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.as_slice()).ok_or(Error::Missing(key))
    };
    let (certificate, key) = (data("tls.crt")?, data("tls.key")?);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Pem("tls.crt", error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Pem("tls.key", error))?;

    let leaf = chain.first().ok_or(Error::Unreadable)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Error::Unreadable)?;
    let not_after = parsed.validity().not_after;
    let (not_after, not_after_seconds) = (not_after.to_string(), not_after.timestamp());
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if not_after_seconds < i64::try_from(now).unwrap_or(i64::MAX) {
        return Err(Error::Expired(not_after));
    }
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).map_err(Error::Pair)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(Certificate { config: Arc::new(config), not_after, not_after_seconds })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use futures_util::stream;
    use k8s_openapi::ByteString;
    use weft_runtime::readiness::Readiness;

    use super::*;

    pub(crate) fn secret(entries: &[(&str, String)]) -> Secret {
        let data = entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.clone().into_bytes())));
        Secret { data: Some(data.collect::<BTreeMap<_, _>>()), ..Secret::default() }
    }

    /// A certificate valid until the start of a year, and its key.
    fn pair(year: i32) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["weft-injector.weft-system.svc".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn expired_mismatched_and_invalid_certificates_are_rejected() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ((good, key), (old, old_key), (_, other_key)) = (pair(2999), pair(2020), pair(2999));
        let check = |desc: &str, entries: &[(&str, String)], expected: &str| {
            let result = load(&secret(entries), SystemTime::now()).map(|certificate| certificate.not_after);
            let text = result.unwrap_or_else(|error| error.to_string());
            assert!(text.contains(expected), "{desc}: {text}");
        };
        let (crt, tls_key) = ("tls.crt", "tls.key");
        check("good", &[(crt, good.clone()), (tls_key, key.clone())], "2999");
        check("empty", &[], "no tls.crt");
        check("no key", &[(crt, good.clone())], "no tls.key");
        check("expired", &[(crt, old), (tls_key, old_key)], "expired at");
        check("another key", &[(crt, good.clone()), (tls_key, other_key)], "do not match");
        check("no certificate", &[(crt, String::new()), (tls_key, key.clone())], "no certificate");
        check("invalid key", &[(crt, good), (tls_key, "x".to_owned())], "tls.key is not PEM");
    }

    #[tokio::test]
    async fn last_valid_certificate_stays_when_the_secret_is_invalid_or_deleted() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (certificate, key) = pair(2999);
        let good = secret(&[("tls.crt", certificate), ("tls.key", key)]);
        let run = async |events: Vec<Event<Secret>>| {
            let (sender, receiver) = watch::channel(None);
            let readiness = Readiness::default();
            let events = stream::iter(events.into_iter().map(Ok));
            follow_events(events, "a/b", sender, readiness.part("certificate"), Metrics::default()).await;
            (receiver.borrow().is_some(), readiness.is_ready(), readiness.detail())
        };
        let (some, ready, detail) = run(vec![Event::Init, Event::InitDone]).await;
        assert!(!some && !ready, "no Secret, no certificate: {detail}");
        let (some, ready, detail) = run(vec![Event::Apply(secret(&[]))]).await;
        assert!(!some && !ready && detail.contains("no certificate in use"), "{detail}");
        let (some, ready, detail) = run(vec![Event::InitApply(good.clone())]).await;
        assert!(some && ready && detail.contains("valid until"), "{detail}");
        let (some, ready, detail) =
            run(vec![Event::Apply(good.clone()), Event::Apply(secret(&[])), Event::Delete(good)]).await;
        assert!(some && ready && detail.contains("was deleted, still using the one"), "{detail}");
    }
}
