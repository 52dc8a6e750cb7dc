//! Authorities that the mesh makes by itself: a root, and below it an intermediate that issues to workloads.

use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::certificate::{Certificate, SignError, Usage, key_id, name, serial};
use crate::id::TrustDomain;
use crate::parsed::Parsed;
use crate::request::{KeyError, generate_p256};

/// Lifetime of a root: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY);
/// Lifetime of an intermediate: a year.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * DAY);
/// Both are valid from this long before they are made, for peers whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(60 * 60);
const DAY: u64 = 24 * 60 * 60;

/// A certificate and its private key.
pub struct Authority {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Why an authority could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The certificate of the root cannot be parsed, or is not that of its key.
    #[error("the root's certificate is not that of its private key")]
    Root,
}

// === impl Authority ===

impl Authority {
    /// A new root.
    pub fn root(domain: &TrustDomain, now: UnixTime) -> Result<Self, Error> {
        let key = PrivateKeyDer::Pkcs8(generate_p256()?);
        let signing = any_supported_type(&key).map_err(|_| KeyError)?;
        let public_key = signing.public_key().ok_or(KeyError)?;
        let serial = serial()?;
        let subject = name(&common_name("root", serial));
        let certificate = Certificate {
            serial,
            issuer: &subject,
            issuer_key_id: &key_id(&public_key),
            not_before: backdated(now),
            not_after: after(now, ROOT_LIFETIME),
            subject: &subject,
            public_key: &public_key,
            uri: &format!("spiffe://{domain}"),
            usage: Usage::Authority(1),
        };
        Ok(Self { certificate: certificate.sign(&*signing)?, key })
    }

    /// A new intermediate below this root, which it does not outlive.
    pub fn intermediate(&self, domain: &TrustDomain, now: UnixTime) -> Result<Self, Error> {
        let root = Parsed::new(&self.certificate).map_err(|_| Error::Root)?;
        let signing = any_supported_type(&self.key).map_err(|_| Error::Root)?;
        if signing.public_key().is_none_or(|key| key.as_ref() != root.public_key()) {
            return Err(Error::Root);
        }
        let key = PrivateKeyDer::Pkcs8(generate_p256()?);
        let public_key = any_supported_type(&key).ok().and_then(|key| Some(key.public_key()?.into_owned()));
        let public_key = public_key.ok_or(KeyError)?;
        let serial = serial()?;
        let certificate = Certificate {
            serial,
            issuer: root.subject(),
            issuer_key_id: &root.key_id().map_or_else(|| key_id(root.public_key()).to_vec(), <[u8]>::to_vec),
            not_before: backdated(now),
            not_after: after(now, INTERMEDIATE_LIFETIME).min(root.not_after()),
            subject: &name(&common_name("issuer", serial)),
            public_key: &public_key,
            uri: &format!("spiffe://{domain}"),
            usage: Usage::Authority(0),
        };
        Ok(Self { certificate: certificate.sign(&*signing)?, key })
    }
}

/// A name of its own for each authority, so that a chain is never built through the wrong one.
fn common_name(role: &str, serial: [u8; 16]) -> String {
    let unique: String = serial[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Weft {role} {unique}")
}

fn backdated(now: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_sub(BACKDATE))
}

fn after(now: UnixTime, lifetime: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_add(lifetime))
}
