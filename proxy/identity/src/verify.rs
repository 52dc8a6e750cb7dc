//! Whether a chain of certificates proves an identity. rustls-webpki builds the path and checks signatures, dates,
//! basic constraints and extended key usages; this module adds what SPIFFE requires and webpki does not check: exactly
//! one URI, a root *of the trust domain in that URI*, the key usages, and roots that have not expired.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use crate::bundle::{Fingerprint, Root, TrustBundle};
use crate::date::rfc3339;
use crate::id::{self, SpiffeId, TrustDomain};
use crate::parsed::{Parsed, Unreadable};
use crate::provider::SIGNATURES;

/// How far the clocks of two nodes may differ. Certificates of this mesh are backdated by more than that, so it counts
/// at their end and for those of other issuers. Source: the default of Linkerd.
pub const CLOCK_SKEW: Duration = Duration::from_secs(20);
/// Maximum number of certificates in a chain.
const CHAIN_MAX: usize = 8;

/// What a certificate is verified for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The peer is the server of a TLS connection.
    Server,
    /// The peer is the client of a TLS connection.
    Client,
    /// Signatures of documents. No TLS peer can make them, and their keys cannot be used in TLS.
    Documents,
}

/// Who was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The identity.
    pub id: SpiffeId,
    /// The root that the chain ends at.
    pub root: Fingerprint,
    /// When its own certificate expires.
    pub not_after: UnixTime,
}

/// Why a chain is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no certificate.
    #[error("the peer has no certificate")]
    Missing,
    /// There are too many certificates.
    #[error("the chain has more than {CHAIN_MAX} certificates")]
    TooLong,
    /// A certificate cannot be parsed.
    #[error("certificate {0} of the chain cannot be parsed")]
    Unreadable(usize),
    /// The certificate has no URI or several.
    #[error("the certificate has {0} URIs among its names; exactly one SPIFFE id is needed")]
    Uris(usize),
    /// The URI is no identity.
    #[error("the certificate has no valid SPIFFE id: {0}")]
    Id(#[source] id::Error),
    /// The bundle has no roots of the trust domain.
    #[error("trust domain {0} is not trusted here")]
    TrustDomain(TrustDomain),
    /// The key usages do not fit.
    #[error("{0}")]
    Usage(&'static str),
    /// The certificate, one above it, or all roots have expired.
    #[error("it expired at {}, and this clock says {}: {} s later; either it was not renewed, or a clock is wrong",
        rfc3339(*not_after), rfc3339(*now), now.as_secs().saturating_sub(not_after.as_secs()))]
    Expired {
        /// End of validity.
        not_after: UnixTime,
        /// Time of the verification.
        now: UnixTime,
    },
    /// The certificate or one above it is not valid yet.
    #[error("it is valid from {} on, and this clock says {}: {} s earlier; a clock is wrong",
        rfc3339(*not_before), rfc3339(*now), not_before.as_secs().saturating_sub(now.as_secs()))]
    NotYetValid {
        /// Begin of validity.
        not_before: UnixTime,
        /// Time of the verification.
        now: UnixTime,
    },
    /// There is no valid path to a root of the trust domain.
    #[error("the chain does not lead to a root of trust domain {0}: {1:?}")]
    Path(TrustDomain, webpki::Error),
    /// It is a valid identity, and not the one that is expected here.
    #[error("the peer is {presented}, and {expected} was expected")]
    OtherIdentity {
        /// Who should be there.
        expected: SpiffeId,
        /// Who is there.
        presented: SpiffeId,
    },
}

/// Verifies a chain, the peer's own certificate first.
pub fn verify(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    purpose: Purpose,
    now: UnixTime,
) -> Result<Peer, Error> {
    let (leaf, issuers) = chain.split_first().ok_or(Error::Missing)?;
    let parsed = Parsed::new(leaf).map_err(|Unreadable| Error::Unreadable(1))?;
    let id = identity_of(&parsed)?;
    check_usages(&parsed, issuers, purpose)?;
    let domain = id.trust_domain();
    let roots = bundle.roots(domain);
    let valid = |root: &&Root| root.not_after().as_secs() + CLOCK_SKEW.as_secs() >= now.as_secs();
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().filter(valid).map(|root| root.anchor().clone()).collect();
    if anchors.is_empty() {
        let last = roots.iter().map(Root::not_after).max().ok_or_else(|| Error::TrustDomain(domain.clone()))?;
        return Err(Error::Expired { not_after: last, now });
    }
    let found = match find_path(leaf, issuers, &anchors, purpose, now) {
        Err(webpki::Error::CertExpired { .. }) => find_path(leaf, issuers, &anchors, purpose, earlier(now)),
        Err(webpki::Error::CertNotValidYet { .. }) => find_path(leaf, issuers, &anchors, purpose, later(now)),
        found => found,
    };
    let anchor = found.map_err(|error| match error {
        webpki::Error::CertExpired { not_after, .. } => Error::Expired { not_after, now },
        webpki::Error::CertNotValidYet { not_before, .. } => Error::NotYetValid { not_before, now },
        error => Error::Path(domain.clone(), error),
    })?;
    let root = roots.iter().find(|root| *root.anchor() == anchor).map(Root::fingerprint);
    let root = root.ok_or_else(|| Error::Path(domain.clone(), webpki::Error::UnknownIssuer))?;
    let not_after = Parsed::new(leaf).map_err(|Unreadable| Error::Unreadable(1))?.not_after();
    Ok(Peer { id, root, not_after })
}

/// The identity that a certificate names. It is proven only if the chain was verified.
pub fn identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    identity_of(&Parsed::new(leaf).map_err(|Unreadable| Error::Unreadable(1))?)
}

fn identity_of(leaf: &Parsed<'_>) -> Result<SpiffeId, Error> {
    let uris = leaf.uris().map_err(|Unreadable| Error::Unreadable(1))?;
    let [uri] = uris[..] else { return Err(Error::Uris(uris.len())) };
    uri.parse().map_err(Error::Id)
}

/// The usages that SPIFFE requires and webpki does not check.
fn check_usages(leaf: &Parsed<'_>, issuers: &[CertificateDer<'_>], purpose: Purpose) -> Result<(), Error> {
    if issuers.len() >= CHAIN_MAX {
        return Err(Error::TooLong);
    }
    let unreadable = |Unreadable| Error::Unreadable(1);
    if leaf.is_ca().map_err(unreadable)? {
        return Err(Error::Usage("the certificate is that of an authority, which identifies no workload"));
    }
    if !leaf.is_for_signatures_only().map_err(unreadable)? {
        return Err(Error::Usage(
            "the key usage of the certificate is not digitalSignature without keyCertSign and cRLSign",
        ));
    }
    let purposes = leaf.purposes().map_err(unreadable)?;
    match purpose {
        Purpose::Server if !purposes.is_some_and(|purposes| purposes.server_auth) => {
            return Err(Error::Usage("the certificate has no extended key usage serverAuth"));
        }
        Purpose::Client if !purposes.is_some_and(|purposes| purposes.client_auth) => {
            return Err(Error::Usage("the certificate has no extended key usage clientAuth"));
        }
        Purpose::Documents if purposes.is_some() => {
            return Err(Error::Usage("the certificate has extended key usages, so it is not one for documents"));
        }
        _ => {}
    }
    for (number, issuer) in (2..).zip(issuers) {
        let is_authority = Parsed::new(issuer).and_then(|issuer| issuer.is_authority());
        if !is_authority.map_err(|Unreadable| Error::Unreadable(number))? {
            return Err(Error::Usage("a certificate above the first lacks CA:TRUE or the key usage keyCertSign"));
        }
    }
    Ok(())
}

/// The root at the end of a valid path.
fn find_path(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    purpose: Purpose,
    at: UnixTime,
) -> Result<TrustAnchor<'static>, webpki::Error> {
    let leaf = EndEntityCert::try_from(leaf)?;
    let path = leaf.verify_for_usage(SIGNATURES.all, anchors, issuers, at, purpose, None, None)?;
    Ok(path.anchor().to_owned())
}

fn earlier(at: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.as_secs()).saturating_sub(CLOCK_SKEW))
}

fn later(at: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.as_secs()).saturating_add(CLOCK_SKEW))
}

// === impl Purpose ===

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        match self {
            Self::Server => KeyUsage::server_auth().validate(purposes),
            Self::Client => KeyUsage::client_auth().validate(purposes),
            // An issuer that is limited to TLS may certify the key that signs documents.
            Self::Documents => purposes.try_for_each(|purpose| purpose.map(drop)),
        }
    }
}

// === impl Error ===

impl Error {
    /// A short form: the label of a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "no-certificate",
            Self::TooLong | Self::Unreadable(_) => "unreadable",
            Self::Uris(_) | Self::Id(_) => "no-identity",
            Self::TrustDomain(_) => "trust-domain",
            Self::Usage(_) => "key-usage",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::Path(..) => "untrusted",
            Self::OtherIdentity { .. } => "other-identity",
        }
    }

    /// The error of a verification inside an error of rustls, as it comes out of a handshake.
    pub fn of_handshake(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
            _ => None,
        }
    }
}

impl From<Error> for rustls::Error {
    fn from(error: Error) -> Self {
        rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))).into()
    }
}
