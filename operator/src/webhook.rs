//! The injector's serving certificate and its CA: issued, renewed and repaired here, with the CA in the `caBundle` of
//! its webhooks.
//!
//! ```text
//! Secret weft-webhook-ca      ca.crt ca.key [previous.crt]     read by the operator only
//! Secret weft-injector-tls    ca.crt tls.crt tls.key           the injector serves with it
//! MutatingWebhookConfiguration weft-injector
//! ValidatingWebhookConfiguration weft-injector                 only clientConfig.caBundle is written
//! ```
//!
//! Certificates are renewed after two thirds of their lifetime. After a new CA is made, both CAs are trusted until
//! the old one expires, and the leaf is issued by the new one only when the API server has had time to load it. All
//! four objects are watched by name, so edits and deletions are repaired immediately.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
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
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_crds::names;

use crate::lease;
use crate::metrics::Metrics;
use crate::watch::watch_one;

/// Secret with the CA and its key, in the system namespace.
const CA_SECRET: &str = "weft-webhook-ca";
/// Field manager of the `caBundle`.
const MANAGER: &str = "weft-operator-webhook";

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CA_PREVIOUS: &str = "previous.crt";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";

const CA_LIFE: time::Duration = time::Duration::days(365);
const LEAF_LIFE: time::Duration = time::Duration::days(90);
/// `notBefore` is this long in the past, for clients whose clock is behind.
const BACKDATE: time::Duration = time::Duration::hours(1);

/// Time for the API server to load a new CA before the leaf is issued by it.
const CA_PROPAGATION: Duration = Duration::from_secs(60);
/// Interval of checks without events.
const CHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Timeout of one reconciliation.
const RECONCILE_MAX: Duration = Duration::from_secs(20);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot issue a certificate")]
    Issue(#[from] rcgen::Error),
    #[error("the API server returned an error")]
    Api(#[from] kube::Error),
    #[error("the API server did not respond in time")]
    Timeout,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
}

/// The CA and the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Certificates {
    ca: Pair,
    /// Certificate of the previous CA, until it expires.
    previous: Option<String>,
    leaf: Pair,
}

/// The certificates in the cluster.
#[derive(Clone, Debug, Default)]
struct Found {
    ca: Option<Pair>,
    previous: Option<String>,
    leaf: Option<Pair>,
    /// `ca` was written to the `caBundle` only just now: the API server may not have loaded it.
    ca_is_new: bool,
}

/// A webhook configuration, mutating or validating.
trait Configuration: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    /// The webhooks' names and clients.
    fn clients(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

/// Reconciles the four objects while this process holds the Lease.
pub async fn run(
    client: Client,
    namespace: String,
    mut lease: watch::Receiver<lease::State>,
    metrics: Metrics,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let (changed, mut changes) = mpsc::channel(1);
    watch_one(secrets.clone(), names::WEBHOOK_SECRET, changed.clone(), stop.clone(), &tasks);
    watch_one(secrets.clone(), CA_SECRET, changed.clone(), stop.clone(), &tasks);
    watch_one(mutating.clone(), names::WEBHOOK, changed.clone(), stop.clone(), &tasks);
    watch_one(validating.clone(), names::WEBHOOK, changed, stop.clone(), &tasks);

    let hosts = hosts(&namespace);
    let mut bundled_at = None;
    let mut writing = false;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
            _ = changes.recv() => {}
            changed = lease.changed() => {
                if changed.is_err() {
                    return;
                }
                // The value changes with every renewal; only an acquisition or loss matters.
                let now = lease.borrow_and_update().epoch().is_some();
                if now == std::mem::replace(&mut writing, now) {
                    continue;
                }
            }
        }
        next = Instant::now() + CHECK_INTERVAL;
        if lease.borrow().epoch().is_none() {
            continue;
        }
        let result = reconcile(&secrets, &mutating, &validating, &hosts, &mut bundled_at);
        let result = tokio::time::timeout(RECONCILE_MAX, result).await.unwrap_or(Err(Error::Timeout));
        match result {
            Ok(reconciled) => {
                next = Instant::now() + reconciled.wait;
                metrics.webhook_certificate_expiry.set(reconciled.expiry);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot reconcile webhook certificates, retrying"
                );
                next = Instant::now() + RETRY;
            }
        }
    }
}

struct Next {
    wait: Duration,
    expiry: i64,
}

async fn reconcile(
    secrets: &Api<Secret>,
    mutating: &Api<MutatingWebhookConfiguration>,
    validating: &Api<ValidatingWebhookConfiguration>,
    hosts: &[String],
    bundled_at: &mut Option<(String, Instant)>,
) -> Result<Next, Error> {
    let now = OffsetDateTime::now_utc();
    let ca_secret = secrets.get_opt(CA_SECRET).await?;
    let tls_secret = secrets.get_opt(names::WEBHOOK_SECRET).await?;
    let found = Found {
        ca: ca_secret.as_ref().and_then(|secret| pair(secret, CA_CERT, CA_KEY)),
        previous: ca_secret.as_ref().and_then(|secret| text(secret, CA_PREVIOUS)),
        leaf: tls_secret.as_ref().and_then(|secret| pair(secret, TLS_CERT, TLS_KEY)),
        ca_is_new: bundled_at.as_ref().is_some_and(|(_, at)| at.elapsed() < CA_PROPAGATION),
    };
    let (certificates, leaf_pending) = desired(&found, hosts, now)?;
    let bundle = certificates.bundle();

    let mut ca_data =
        BTreeMap::from([(CA_CERT, certificates.ca.certificate.clone()), (CA_KEY, certificates.ca.key.clone())]);
    ca_data.extend(certificates.previous.clone().map(|previous| (CA_PREVIOUS, previous)));
    write_secret(secrets, CA_SECRET, ca_secret, ca_data).await?;
    let expiry = validity(&certificates.leaf.certificate).map_or(0, |(_, end)| end);
    let tls_data = BTreeMap::from([
        (CA_CERT, bundle.clone()),
        (TLS_CERT, certificates.leaf.certificate),
        (TLS_KEY, certificates.leaf.key),
    ]);
    write_secret(secrets, names::WEBHOOK_SECRET, tls_secret, tls_data).await?;
    patch_ca_bundle(mutating, &bundle).await?;
    patch_ca_bundle(validating, &bundle).await?;
    if bundled_at.as_ref().is_none_or(|(known, _)| *known != bundle) {
        *bundled_at = Some((bundle, Instant::now()));
    }
    Ok(Next { wait: if leaf_pending { CA_PROPAGATION } else { CHECK_INTERVAL }, expiry })
}

/// The desired certificates, and whether the leaf will be issued again a little later. Valid ones are kept.
fn desired(found: &Found, hosts: &[String], now: OffsetDateTime) -> Result<(Certificates, bool), Error> {
    let valid_ca = found.ca.clone().filter(|ca| is_valid_ca(ca, now));
    let (ca, previous, renewed) = match valid_ca {
        Some(ca) if !is_renewal_due(&ca.certificate, now) => (ca, found.previous.clone(), false),
        // Keep the CA that the API server trusts now in the bundle.
        Some(ca) => (new_ca(now)?, Some(ca.certificate), true),
        None => (new_ca(now)?, None, true),
    };
    let previous = previous.filter(|previous| *previous != ca.certificate && !is_expired(previous, now));
    let trusted: Vec<&str> = [Some(ca.certificate.as_str()), previous.as_deref()].into_iter().flatten().collect();
    let is_good =
        |leaf: &Pair, roots: &[&str]| !is_renewal_due(&leaf.certificate, now) && is_valid_leaf(leaf, roots, hosts, now);
    let (leaf, leaf_pending) = match &found.leaf {
        Some(leaf) if is_good(leaf, &[&ca.certificate]) => (leaf.clone(), false),
        // Valid by the previous CA: wait until the API server has loaded the new one.
        Some(leaf) if (renewed || found.ca_is_new) && is_good(leaf, &trusted) => (leaf.clone(), true),
        _ => (issue(&ca, hosts, now)?, false),
    };
    Ok((Certificates { ca, previous, leaf }, leaf_pending))
}

fn new_ca(now: OffsetDateTime) -> Result<Pair, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // A unique name for each CA, so that a chain is never built through the wrong one.
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

/// DNS names of the webhook's Service.
fn hosts(namespace: &str) -> Vec<String> {
    let service = names::WEBHOOK;
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// `notBefore` and `notAfter`, in seconds since 1970.
fn validity(pem: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Whether two thirds of its lifetime are over, or it does not parse.
fn is_renewal_due(pem: &str, now: OffsetDateTime) -> bool {
    validity(pem).is_none_or(|(start, end)| now.unix_timestamp() >= start + (end - start) / 3 * 2)
}

fn is_expired(pem: &str, now: OffsetDateTime) -> bool {
    validity(pem).is_none_or(|(_, end)| now.unix_timestamp() >= end)
}

/// Whether the CA can issue: certificate and key match, and it has not expired.
fn is_valid_ca(ca: &Pair, now: OffsetDateTime) -> bool {
    let host = ["probe".to_owned()];
    !is_expired(&ca.certificate, now)
        && issue(ca, &host, now).is_ok_and(|leaf| is_valid_leaf(&leaf, &[&ca.certificate], &host, now))
}

/// Whether the leaf is valid for each of `hosts` under `roots`, and its key matches.
fn is_valid_leaf(leaf: &Pair, roots: &[&str], hosts: &[String], now: OffsetDateTime) -> bool {
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

/// Writes a Secret, if its data differs.
async fn write_secret(
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

/// Sets the `caBundle` of each webhook. If the configuration does not exist yet, the watch triggers this again.
async fn patch_ca_bundle<K: Configuration>(configurations: &Api<K>, bundle: &str) -> Result<(), Error> {
    let Some(found) = configurations.get_opt(names::WEBHOOK).await? else { return Ok(()) };
    let wrong: Vec<_> = found
        .clients()
        .into_iter()
        .filter(|(_, client)| client.ca_bundle.as_ref().is_none_or(|current| current.0 != bundle.as_bytes()))
        .map(
            |(name, _)| json!({ "name": name, "clientConfig": { "caBundle": ByteString(bundle.as_bytes().to_vec()) } }),
        )
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    // A strategic patch would create a removed webhook again, incomplete: the resourceVersion makes it fail instead.
    let patch = json!({ "metadata": { "resourceVersion": found.meta().resource_version }, "webhooks": wrong });
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    configurations.patch(names::WEBHOOK, &parameters, &Patch::Strategic(&patch)).await?;
    tracing::info!(kind = %K::kind(&()), name = names::WEBHOOK, "caBundle written");
    Ok(())
}

fn pair(secret: &Secret, certificate: &str, key: &str) -> Option<Pair> {
    Some(Pair { certificate: text(secret, certificate)?, key: text(secret, key)? })
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

// === impl Configuration ===

impl Configuration for MutatingWebhookConfiguration {
    fn clients(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn clients(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
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
        desired(found, &hosts("weft-system"), at).unwrap()
    }

    fn found(certificates: &Certificates) -> Found {
        Found {
            ca: Some(certificates.ca.clone()),
            previous: certificates.previous.clone(),
            leaf: Some(certificates.leaf.clone()),
            ca_is_new: false,
        }
    }

    #[test]
    fn valid_certificates_are_kept() {
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
    fn new_ca_is_trusted_before_it_issues() {
        let (first, _) = make(&Found::default(), now());
        let almost = now() + time::Duration::days(240);
        let (before, _) = make(&found(&first), almost);
        assert_eq!(before.ca, first.ca);

        let at = now() + time::Duration::days(245);
        let (rotated, leaf_pending) = make(&found(&before), at);
        assert_ne!(rotated.ca, first.ca);
        assert_eq!(rotated.previous.as_ref(), Some(&first.ca.certificate), "both are trusted");
        assert!(rotated.bundle().matches("BEGIN CERTIFICATE").count() == 2);
        assert_eq!((&rotated.leaf, leaf_pending), (&before.leaf, true), "the leaf waits");

        let (waiting, leaf_pending) = make(&Found { ca_is_new: true, ..found(&rotated) }, at);
        assert_eq!((&waiting.leaf, leaf_pending), (&before.leaf, true), "and waits");
        let (settled, leaf_pending) = make(&found(&rotated), at);
        assert!(!leaf_pending);
        assert_ne!(settled.leaf, before.leaf);
        assert!(is_valid_leaf(&settled.leaf, &[&settled.ca.certificate], &hosts("weft-system"), at));

        let (later, _) = make(&found(&settled), now() + time::Duration::days(366));
        assert_eq!(later.previous, None, "the old one has expired");
    }

    #[test]
    fn damaged_certificates_are_repaired() {
        let (first, _) = make(&Found::default(), now());
        let (other, _) = make(&Found::default(), now() + time::Duration::seconds(5));
        let hosts = hosts("weft-system");
        for (desc, damaged) in [
            ("no leaf", Found { leaf: None, ..found(&first) }),
            (
                "key of another certificate",
                Found { leaf: Some(Pair { key: other.leaf.key.clone(), ..first.leaf.clone() }), ..found(&first) },
            ),
            ("issued by another CA", Found { leaf: Some(other.leaf.clone()), ..found(&first) }),
            (
                "leaf that does not parse",
                Found { leaf: Some(Pair { certificate: "x".into(), ..first.leaf.clone() }), ..found(&first) },
            ),
            (
                "CA with the key of another",
                Found { ca: Some(Pair { key: other.ca.key.clone(), ..first.ca.clone() }), ..found(&first) },
            ),
            (
                "CA that does not parse",
                Found { ca: Some(Pair { certificate: "x".into(), key: "y".into() }), ..found(&first) },
            ),
        ] {
            let (repaired, _) = make(&damaged, now());
            assert!(is_valid_leaf(&repaired.leaf, &[&repaired.ca.certificate], &hosts, now()), "{desc}");
        }
        let elsewhere = super::hosts("elsewhere");
        assert!(
            !is_valid_leaf(&first.leaf, &[&first.ca.certificate], &elsewhere, now()),
            "the leaf is not valid for another system namespace"
        );
    }
}
