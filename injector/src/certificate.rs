//! The webhook's certificate. The operator makes and renews it and keeps it in one Secret; here that Secret is watched by
//! name, and each new pair goes to the server while it runs. A pair that does not fit together is refused and the last
//! good one stays, with a word on `/readyz`.

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
use weft_runtime::watch::backoff;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::metrics::Metrics;

/// What the server takes, in order of preference. The API server asks for the first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A pair that fits together.
#[derive(Clone)]
pub struct Certificate {
    /// For the server.
    pub config: Arc<ServerConfig>,
    /// Until when it is valid.
    pub not_after: String,
    /// The same, in seconds since 1970.
    pub not_after_seconds: i64,
}

/// Why a Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is not there.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// A key has something else in it.
    #[error("{0} is not PEM")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// The certificate cannot be read.
    #[error("tls.crt holds no certificate that can be read")]
    Unreadable,
    /// The certificate is past its time.
    #[error("the certificate was valid until {0}")]
    Expired(String),
    /// Certificate and key are not a pair.
    #[error("certificate and key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// Sends each good certificate to `sender`, for ever.
pub async fn follow(
    client: Client,
    namespace: String,
    sender: watch::Sender<Option<Certificate>>,
    part: Part,
    metrics: Metrics,
) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    // By name, so that the role needs no more than this one Secret.
    let config = Config::default().fields(&format!("metadata.name={WEBHOOK_SECRET}"));
    let place = format!("{namespace}/{WEBHOOK_SECRET}");
    part.report(false, &format!("waiting for the operator to make Secret {place}"));
    follow_events(
        watcher(secrets, config).backoff(watcher::ExponentialBackoff::from(backoff())),
        &place,
        sender,
        part,
        metrics,
    )
    .await;
}

async fn follow_events(
    events: impl Stream<Item = Result<Event<Secret>, watcher::Error>>,
    place: &str,
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
                    tracing::error!(secret = place, error, "certificate refused");
                    part.report(
                        current().is_some(),
                        &format!("Secret {place} refused, {}: {error}", keeping(current())),
                    );
                }
            },
            Ok(Event::Delete(_)) => {
                tracing::warn!(secret = place, "the certificate's Secret is gone");
                part.report(current().is_some(), &format!("Secret {place} is gone, {}", keeping(current())));
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(secret = place, %error, "the certificate's Secret cannot be watched");
                if current().is_none() {
                    part.report(false, &format!("Secret {place} cannot be watched: {error}"));
                }
            }
        }
    }
}

fn keeping(not_after: Option<String>) -> String {
    not_after.map_or("having none".to_owned(), |until| format!("keeping the one that is valid until {until}"))
}

/// Reads a pair and holds it together.
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
    fn only_a_pair_that_fits_is_taken() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ((good, key), (old, old_key), (_, other_key)) = (pair(2999), pair(2020), pair(2999));
        let check = |desc: &str, entries: &[(&str, String)], expected: &str| {
            let result = load(&secret(entries), SystemTime::now()).map(|certificate| certificate.not_after);
            let text = result.unwrap_or_else(|error| error.to_string());
            assert!(text.contains(expected), "{desc}: {text}");
        };
        let (crt, tls_key) = ("tls.crt", "tls.key");
        check("good", &[(crt, good.clone()), (tls_key, key.clone())], "2999");
        check("nothing", &[], "no tls.crt");
        check("no key", &[(crt, good.clone())], "no tls.key");
        check("expired", &[(crt, old), (tls_key, old_key)], "valid until");
        check("another's key", &[(crt, good.clone()), (tls_key, other_key)], "together");
        check("no certificate", &[(crt, String::new()), (tls_key, key.clone())], "no certificate");
        check("no key in it", &[(crt, good), (tls_key, "x".to_owned())], "tls.key is not PEM");
    }

    #[tokio::test]
    async fn the_last_good_pair_stays() {
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
        assert!(!some && !ready && detail.contains("having none"), "{detail}");
        let (some, ready, detail) = run(vec![Event::InitApply(good.clone())]).await;
        assert!(some && ready && detail.contains("valid until"), "{detail}");
        let (some, ready, detail) =
            run(vec![Event::Apply(good.clone()), Event::Apply(secret(&[])), Event::Delete(good)]).await;
        assert!(some && ready && detail.contains("is gone, keeping the one"), "{detail}");
    }
}
