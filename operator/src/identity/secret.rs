//! The Secrets of the authority: from their data to an issuer, and back. The layout is that of cert-manager and of
//! `kubernetes.io/tls`: `tls.crt` (the certificate and those above it), `tls.key`, `ca.crt` (the roots).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use weft_crds::names;
use weft_identity::authority::Authority;
use weft_identity::issue::{self, Issuer};
use weft_identity::{CertificateDer, TrustBundle, TrustDomain, UnixTime, bundle, pem, verify};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
/// The fields of an issuer's Secret.
pub const FIELDS: [&str; 3] = [CERTIFICATE, KEY, ROOTS];
const TYPE: &str = "kubernetes.io/tls";

/// An issuer, and the roots that are trusted with it.
#[derive(Debug)]
pub struct Issuing {
    /// What signs.
    pub issuer: Issuer,
    /// The roots of `ca.crt`, and further ones.
    pub bundle: TrustBundle,
    /// The data that it was read from.
    data: BTreeMap<String, ByteString>,
    /// Roots that are trusted beside those of `ca.crt`.
    further: Vec<CertificateDer<'static>>,
}

/// Why a Secret cannot be used: the field, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A field is missing or empty.
    #[error("{0} is missing: an issuer has tls.crt, tls.key and ca.crt, as cert-manager writes them")]
    Missing(&'static str),
    /// A field is no PEM.
    #[error("{0} is not PEM: put the whole file into it, with its BEGIN and END lines")]
    Pem(&'static str),
    /// A root is none.
    #[error("ca.crt: {0} (it must have the certificates of the roots)")]
    Roots(#[source] bundle::Error),
    /// The pair cannot issue under these roots.
    #[error("tls.crt and tls.key: {0}{remedy}", remedy = remedy(.0))]
    Issuer(#[source] issue::Error),
    /// Proxies do not trust the root.
    #[error(
        "tls.crt: it leads to the root {root}, which proxies do not trust yet: put that root into ca.crt beside the old \
         one first, while the old issuer stays in tls.crt"
    )]
    NotYetTrusted {
        /// Fingerprint of the root.
        root: String,
    },
}

/// What to do about a pair that cannot issue, if its error does not say it.
fn remedy(error: &issue::Error) -> &'static str {
    match error {
        issue::Error::Unreadable(_) => "; put the whole certificate into tls.crt",
        issue::Error::Pair => "; both must be those of one issuer",
        issue::Error::NotAnAuthority => "; request a certificate of an authority (isCA: true)",
        issue::Error::Expired(_) => "; renew it",
        issue::Error::Refused(verify::Error::Expired { .. }) => {
            "; if it is the root, bring an issuer below another one"
        }
        issue::Error::Refused(_) => "; ca.crt must have the root of tls.crt, and tls.crt all that is between them",
        issue::Error::Key | issue::Error::Sign(_) => "",
    }
}

/// Reads an issuer, and tries it.
pub fn read_issuer(secret: &Secret, domain: &TrustDomain, now: UnixTime) -> Result<Issuing, Invalid> {
    let (certificate, key, roots) = (field(secret, CERTIFICATE)?, field(secret, KEY)?, field(secret, ROOTS)?);
    let certificates = pem::read_certificates(certificate).map_err(|_| Invalid::Pem(CERTIFICATE))?;
    let key = pem::read_private_key(key).map_err(|_| Invalid::Pem(KEY))?;
    let roots = pem::read_certificates(roots).map_err(|_| Invalid::Pem(ROOTS))?;
    let bundle = TrustBundle::new(domain.clone(), roots).map_err(Invalid::Roots)?;
    let issuer = Issuer::new(&certificates, &key, domain.clone(), &bundle, now).map_err(Invalid::Issuer)?;
    Ok(Issuing { issuer, bundle, data: secret.data.clone().unwrap_or_default(), further: Vec::new() })
}

/// Reads the generated root.
pub fn read_root(secret: &Secret) -> Result<Authority, Invalid> {
    let certificates = pem::read_certificates(field(secret, CERTIFICATE)?).map_err(|_| Invalid::Pem(CERTIFICATE))?;
    let certificate = certificates.into_iter().next().ok_or(Invalid::Pem(CERTIFICATE))?;
    let key = pem::read_private_key(field(secret, KEY)?).map_err(|_| Invalid::Pem(KEY))?;
    Ok(Authority { certificate, key })
}

/// The Secret of a generated root.
pub fn root(root: &Authority) -> Secret {
    secret(names::ROOT_SECRET, [(CERTIFICATE, certificate(root)), (KEY, key(root))].into())
}

/// The Secret of a generated issuer below a root. Further roots of the Secret that it replaces are kept.
pub fn issuer(root: &Authority, issuer: &Authority, found: Option<&Secret>) -> Secret {
    let data = BTreeMap::from([(CERTIFICATE, certificate(issuer)), (KEY, key(issuer)), (ROOTS, certificate(root))]);
    let mut next = secret(names::ISSUER_SECRET, data);
    if let Some(found) = found {
        next.metadata.resource_version.clone_from(&found.metadata.resource_version);
        next.metadata.annotations.clone_from(&found.metadata.annotations);
        next.type_.clone_from(&found.type_);
        let roots = found.data.as_ref().and_then(|data| data.get(ROOTS)).cloned();
        next.data.get_or_insert_default().extend(roots.map(|roots| (ROOTS.to_owned(), roots)));
    }
    next
}

fn secret(name: &str, data: BTreeMap<&str, String>) -> Secret {
    let labels = BTreeMap::from([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned())]);
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        data: Some(data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()),
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    }
}

fn certificate(authority: &Authority) -> String {
    pem::certificates([&authority.certificate])
}

fn key(authority: &Authority) -> String {
    pem::private_key(&authority.key)
}

fn field<'a>(secret: &'a Secret, name: &'static str) -> Result<&'a [u8], Invalid> {
    let value = secret.data.as_ref().and_then(|data| data.get(name)).map(|value| value.0.as_slice());
    value.filter(|value| !value.is_empty()).ok_or(Invalid::Missing(name))
}

// === impl Issuing ===

impl Issuing {
    /// With further roots.
    pub fn trusting(self, domain: &TrustDomain, further: &[CertificateDer<'static>]) -> Result<Self, Invalid> {
        let own = self.bundle.roots(domain).iter().map(|root| root.certificate().clone());
        let bundle = TrustBundle::new(domain.clone(), own.chain(further.iter().cloned())).map_err(Invalid::Roots)?;
        Ok(Self { bundle, further: further.to_vec(), ..self })
    }

    /// Whether a Secret has the very data that this was read from, and these are the further roots.
    pub fn is_from(&self, secret: &Secret, further: &[CertificateDer<'static>]) -> bool {
        secret.data.as_ref() == Some(&self.data) && self.further == further
    }

    /// Whether another one signs with the same certificate under the same roots, in whatever order they are written.
    pub fn is_same(&self, other: &Self) -> bool {
        self.issuer.chain() == other.issuer.chain() && self.bundle == other.bundle
    }
}

// === impl Invalid ===

impl Invalid {
    /// The reason of the Event.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotYetTrusted { .. } => "IssuerNotYetTrusted",
            _ => "IssuerInvalid",
        }
    }
}
