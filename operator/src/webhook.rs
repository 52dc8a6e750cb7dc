//! The injector's certificate: issued, renewed and repaired here, and trusted by the API server because we say so.
//!
//! ```text
//! Secret weft-webhook-ca      ca.crt ca.key [previous.crt]     nobody but the operator reads it
//! Secret weft-injector-tls    ca.crt tls.crt tls.key           the injector serves with it
//! MutatingWebhookConfiguration weft-injector                   clientConfig.caBundle, and nothing else, is ours
//! ```
//!
//! Certificates are replaced after two thirds of their life. When the CA is, both the old and the new one are trusted until
//! the old one ends, and the leaf is issued anew only when the API server has had time to learn of the new one. All three
//! objects are watched by name, so what somebody deletes or edits is back at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_crds::names;

use crate::lease;
use crate::metrics::Metrics;
use crate::watch::one;

/// Secret with the CA and its key, in the system namespace.
const CA_SECRET: &str = "weft-webhook-ca";
/// Field manager of the changes to the webhook's configuration.
const MANAGER: &str = "weft-operator-webhook";

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CA_PREVIOUS: &str = "previous.crt";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";

const CA_LIFE: time::Duration = time::Duration::days(365);
const LEAF_LIFE: time::Duration = time::Duration::days(90);
/// Certificates are valid from a little earlier, for clocks that are behind.
const BACKDATE: time::Duration = time::Duration::hours(1);

/// How long the API server may take to learn of a new CA before the leaf is issued by it.
const SETTLE: Duration = Duration::from_secs(60);
/// How often certificates are looked at when nothing happens.
const LOOK: Duration = Duration::from_secs(60 * 60);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// One pass.
const PASS_MAX: Duration = Duration::from_secs(20);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("a certificate cannot be made")]
    Issue(#[from] rcgen::Error),
    #[error("the API server refused")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Late,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
}

/// All certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Certificates {
    ca: Pair,
    /// The CA before, as long as it is trusted.
    previous: Option<String>,
    leaf: Pair,
}

/// What was found.
#[derive(Clone, Debug, Default)]
struct Found {
    ca: Option<Pair>,
    previous: Option<String>,
    leaf: Option<Pair>,
    /// The API server may not know `ca` yet.
    unsettled: bool,
}

/// Keeps everything in order while this process holds the Lease.
pub async fn run(
    client: Client,
    namespace: String,
    mut lease: watch::Receiver<lease::State>,
    metrics: Metrics,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client);
    let (changed, mut changes) = mpsc::channel(1);
    one(secrets.clone(), names::WEBHOOK_SECRET, changed.clone(), stop.clone(), &tasks);
    one(secrets.clone(), CA_SECRET, changed.clone(), stop.clone(), &tasks);
    one(webhooks.clone(), names::WEBHOOK, changed, stop.clone(), &tasks);

    let hosts = hosts(&namespace);
    let mut bundled_at = None;
    let mut writing = false;
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            _ = changes.recv() => {}
            changed = lease.changed() => {
                if changed.is_err() {
                    return;
                }
                // It changes with every renewal; only taking it is news.
                let now = lease.borrow_and_update().epoch().is_some();
                if now == std::mem::replace(&mut writing, now) {
                    continue;
                }
            }
        }
        wait = LOOK;
        if lease.borrow().epoch().is_none() {
            continue;
        }
        let pass = pass(&secrets, &webhooks, &hosts, &mut bundled_at);
        let pass = tokio::time::timeout(PASS_MAX, pass).await.unwrap_or(Err(Error::Late));
        match pass {
            Ok(next) => {
                wait = next.wait;
                metrics.webhook_certificate_expiry.set(next.expiry);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "webhook certificates are not in order, trying again"
                );
                wait = RETRY;
            }
        }
    }
}

struct Next {
    wait: Duration,
    expiry: i64,
}

async fn pass(
    secrets: &Api<Secret>,
    webhooks: &Api<MutatingWebhookConfiguration>,
    hosts: &[String],
    bundled_at: &mut Option<(String, tokio::time::Instant)>,
) -> Result<Next, Error> {
    let now = OffsetDateTime::now_utc();
    let ca_secret = secrets.get_opt(CA_SECRET).await?;
    let tls_secret = secrets.get_opt(names::WEBHOOK_SECRET).await?;
    let found = Found {
        ca: ca_secret.as_ref().and_then(|secret| pair(secret, CA_CERT, CA_KEY)),
        previous: ca_secret.as_ref().and_then(|secret| text(secret, CA_PREVIOUS)),
        leaf: tls_secret.as_ref().and_then(|secret| pair(secret, TLS_CERT, TLS_KEY)),
        unsettled: bundled_at.as_ref().is_some_and(|(_, at)| at.elapsed() < SETTLE),
    };
    let (certificates, settling) = wanted(&found, hosts, now)?;
    let bundle = certificates.bundle();

    let mut ca_data =
        BTreeMap::from([(CA_CERT, certificates.ca.certificate.clone()), (CA_KEY, certificates.ca.key.clone())]);
    ca_data.extend(certificates.previous.clone().map(|previous| (CA_PREVIOUS, previous)));
    put(secrets, CA_SECRET, ca_secret, ca_data).await?;
    let expiry = validity(&certificates.leaf.certificate).map_or(0, |(_, end)| end);
    let tls_data = BTreeMap::from([
        (CA_CERT, bundle.clone()),
        (TLS_CERT, certificates.leaf.certificate),
        (TLS_KEY, certificates.leaf.key),
    ]);
    put(secrets, names::WEBHOOK_SECRET, tls_secret, tls_data).await?;
    trust(webhooks, &bundle).await?;
    if bundled_at.as_ref().is_none_or(|(known, _)| *known != bundle) {
        *bundled_at = Some((bundle, tokio::time::Instant::now()));
    }
    Ok(Next { wait: if settling { SETTLE } else { LOOK }, expiry })
}

/// What there should be, and whether the leaf is to be issued anew a little later. Keeps all that is good.
fn wanted(found: &Found, hosts: &[String], now: OffsetDateTime) -> Result<(Certificates, bool), Error> {
    let kept = found.ca.clone().filter(|ca| is_authority(ca, now));
    let (ca, previous, renewed) = match kept {
        Some(ca) if !is_due(&ca.certificate, now) => (ca, found.previous.clone(), false),
        // What the API server trusts today is trusted on.
        Some(ca) => (new_authority(now)?, Some(ca.certificate), true),
        None => (new_authority(now)?, None, true),
    };
    let previous = previous.filter(|previous| *previous != ca.certificate && !is_over(previous, now));
    let trusted: Vec<&str> = [Some(ca.certificate.as_str()), previous.as_deref()].into_iter().flatten().collect();
    let is_good = |leaf: &Pair, roots: &[&str]| !is_due(&leaf.certificate, now) && serves(leaf, roots, hosts, now);
    let (leaf, settling) = match &found.leaf {
        Some(leaf) if is_good(leaf, &[&ca.certificate]) => (leaf.clone(), false),
        // Good by the CA before: let the API server learn of the new one first.
        Some(leaf) if (renewed || found.unsettled) && is_good(leaf, &trusted) => (leaf.clone(), true),
        _ => (issue(&ca, hosts, now)?, false),
    };
    Ok((Certificates { ca, previous, leaf }, settling))
}

fn new_authority(now: OffsetDateTime) -> Result<Pair, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // A name of its own for each, so that a chain is never built through the wrong one.
    params.distinguished_name.push(DnType::CommonName, format!("Weft webhook CA {}", now.unix_timestamp()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFE;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn issue(ca: &Pair, hosts: &[String], now: OffsetDateTime) -> Result<Pair, Error> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, names::WEBHOOK);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = now - BACKDATE;
    params.not_after = now + LEAF_LIFE;
    Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

/// Names by which the API server calls the webhook.
fn hosts(namespace: &str) -> Vec<String> {
    let service = names::WEBHOOK;
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// Start and end, in seconds since 1970.
fn validity(pem: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Two thirds of its life are over, or it cannot be read.
fn is_due(pem: &str, now: OffsetDateTime) -> bool {
    validity(pem).is_none_or(|(start, end)| now.unix_timestamp() >= start + (end - start) / 3 * 2)
}

fn is_over(pem: &str, now: OffsetDateTime) -> bool {
    validity(pem).is_none_or(|(_, end)| now.unix_timestamp() >= end)
}

/// Whether certificate and key can issue: they belong together, and are in force.
fn is_authority(ca: &Pair, now: OffsetDateTime) -> bool {
    let host = ["probe".to_owned()];
    !is_over(&ca.certificate, now)
        && issue(ca, &host, now).is_ok_and(|leaf| serves(&leaf, &[&ca.certificate], &host, now))
}

/// Whether a client that trusts `roots` takes the leaf for each of `hosts`, and its key belongs to it.
fn serves(leaf: &Pair, roots: &[&str], hosts: &[String], now: OffsetDateTime) -> bool {
    let check = || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from_pem_slice(root.as_bytes()).ok()?).ok()?;
        }
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).ok()?;
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).ok()?;
        rustls::sign::CertifiedKey::from_der(vec![certificate.clone()], key, &provider).ok()?.keys_match().ok()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().ok()?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix_timestamp()).ok()?));
        for host in hosts {
            let name = ServerName::try_from(host.as_str()).ok()?;
            verifier.verify_server_cert(&certificate, &[], &name, &[], now).ok()?;
        }
        Some(())
    };
    check().is_some()
}

/// Writes a Secret, if it does not say so already.
async fn put(
    secrets: &Api<Secret>,
    name: &str,
    found: Option<Secret>,
    data: BTreeMap<&str, String>,
) -> Result<(), Error> {
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
    if found.as_ref().is_some_and(|found| found.data.as_ref() == Some(&data)) {
        return Ok(());
    }
    let labels = BTreeMap::from([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned())]);
    match found {
        Some(mut secret) => {
            secret.data = Some(data);
            secret.metadata.labels.get_or_insert_default().extend(labels);
            secret.metadata.managed_fields = None;
            secrets.replace(name, &PostParams::default(), &secret).await?;
        }
        None => {
            let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
            let secret = Secret { metadata, data: Some(data), ..Secret::default() };
            secrets.create(&PostParams::default(), &secret).await?;
        }
    }
    tracing::info!(secret = name, "webhook certificates written");
    Ok(())
}

/// Makes the API server trust the bundle. There may be no such webhook yet; the watch tells when there is.
async fn trust(webhooks: &Api<MutatingWebhookConfiguration>, bundle: &str) -> Result<(), Error> {
    let Some(found) = webhooks.get_opt(names::WEBHOOK).await? else { return Ok(()) };
    let wrong: Vec<_> = found
        .webhooks
        .iter()
        .flatten()
        .filter(|webhook| webhook.client_config.ca_bundle.as_ref().is_none_or(|held| held.0 != bundle.as_bytes()))
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": ByteString(bundle.as_bytes().to_vec()) } }))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    // A webhook that was removed meanwhile would come back half: the version makes that fail.
    let patch = json!({ "metadata": { "resourceVersion": found.metadata.resource_version }, "webhooks": wrong });
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    webhooks.patch(names::WEBHOOK, &parameters, &Patch::Strategic(&patch)).await?;
    tracing::info!(webhook = names::WEBHOOK, "caBundle written");
    Ok(())
}

fn pair(secret: &Secret, certificate: &str, key: &str) -> Option<Pair> {
    Some(Pair { certificate: text(secret, certificate)?, key: text(secret, key)? })
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

// === impl Certificates ===

impl Certificates {
    fn bundle(&self) -> String {
        format!("{}{}", self.ca.certificate, self.previous.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn make(found: &Found, at: OffsetDateTime) -> (Certificates, bool) {
        wanted(found, &hosts("weft-system"), at).unwrap()
    }

    fn found(certificates: &Certificates) -> Found {
        Found {
            ca: Some(certificates.ca.clone()),
            previous: certificates.previous.clone(),
            leaf: Some(certificates.leaf.clone()),
            unsettled: false,
        }
    }

    #[test]
    fn what_is_good_is_kept() {
        let (first, _) = make(&Found::default(), now());
        assert_eq!(make(&found(&first), now() + time::Duration::days(1)), (first, false));
    }

    #[test]
    fn the_leaf_is_renewed_at_two_thirds_of_its_life() {
        let (first, _) = make(&Found::default(), now());
        let (same, _) = make(&found(&first), now() + time::Duration::days(58));
        assert_eq!(same.leaf, first.leaf);
        let (next, _) = make(&found(&first), now() + time::Duration::days(61));
        assert_ne!(next.leaf, first.leaf);
        assert_eq!(next.ca, first.ca);
    }

    #[test]
    fn a_new_ca_is_trusted_before_it_issues() {
        let (first, _) = make(&Found::default(), now());
        let almost = now() + time::Duration::days(240);
        let (before, _) = make(&found(&first), almost);
        assert_eq!(before.ca, first.ca);

        let at = now() + time::Duration::days(245);
        let (rotated, settling) = make(&found(&before), at);
        assert_ne!(rotated.ca, first.ca);
        assert_eq!(rotated.previous.as_ref(), Some(&first.ca.certificate), "both are trusted");
        assert!(rotated.bundle().matches("BEGIN CERTIFICATE").count() == 2);
        assert_eq!((&rotated.leaf, settling), (&before.leaf, true), "the leaf waits");

        let (waiting, settling) = make(&Found { unsettled: true, ..found(&rotated) }, at);
        assert_eq!((&waiting.leaf, settling), (&before.leaf, true), "and waits");
        let (settled, settling) = make(&found(&rotated), at);
        assert!(!settling);
        assert_ne!(settled.leaf, before.leaf);
        assert!(serves(&settled.leaf, &[&settled.ca.certificate], &hosts("weft-system"), at));

        let (later, _) = make(&found(&settled), now() + time::Duration::days(366));
        assert_eq!(later.previous, None, "the old one ended");
    }

    #[test]
    fn damage_is_repaired() {
        let (first, _) = make(&Found::default(), now());
        let (other, _) = make(&Found::default(), now() + time::Duration::seconds(5));
        let hosts = hosts("weft-system");
        for (desc, damaged) in [
            ("no leaf", Found { leaf: None, ..found(&first) }),
            (
                "a key of another",
                Found { leaf: Some(Pair { key: other.leaf.key.clone(), ..first.leaf.clone() }), ..found(&first) },
            ),
            ("issued by another", Found { leaf: Some(other.leaf.clone()), ..found(&first) }),
            (
                "not a certificate",
                Found { leaf: Some(Pair { certificate: "x".into(), ..first.leaf.clone() }), ..found(&first) },
            ),
            (
                "the CA has another's key",
                Found { ca: Some(Pair { key: other.ca.key.clone(), ..first.ca.clone() }), ..found(&first) },
            ),
            (
                "the CA is not one",
                Found { ca: Some(Pair { certificate: "x".into(), key: "y".into() }), ..found(&first) },
            ),
        ] {
            let (repaired, _) = make(&damaged, now());
            assert!(serves(&repaired.leaf, &[&repaired.ca.certificate], &hosts, now()), "{desc}");
        }
        let elsewhere = super::hosts("elsewhere");
        assert!(
            !serves(&first.leaf, &[&first.ca.certificate], &elsewhere, now()),
            "another system namespace, another name"
        );
    }
}
