//! Signatures of configuration documents. The operator signs with an Ed25519 key that its issuer certifies, for its own
//! identity and without an extended key usage: such a certificate is not accepted in TLS, and none of TLS here. So the
//! same roots that a proxy has for its peers tell it whether a document is the operator's.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use crate::bundle::TrustBundle;
use crate::id::SpiffeId;
use crate::verify::{self, Purpose, verify};

/// A signature, and the chain that certifies its key. As text: the base64 of the signature and of each certificate,
/// the signer's own first, separated by dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub(crate) bytes: Vec<u8>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Why a document is not accepted. The reader keeps the one that it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no signature.
    #[error("the signature cannot be read")]
    Unreadable,
    /// Its key is not certified.
    #[error("the key of the signature is not certified: {0}")]
    Uncertified(#[source] verify::Error),
    /// It was made with another key or for other bytes.
    #[error("the signature is not that of this document: it was edited or damaged")]
    Wrong,
}

// === impl Signature ===

impl Signature {
    /// The certificates that certify its key: the issuer's, then those above it, without the root.
    pub fn issuers(&self) -> &[CertificateDer<'static>] {
        self.chain.get(1..).unwrap_or_default()
    }

    /// Checks that `signer` has signed `message`.
    pub fn verify(&self, message: &[u8], signer: &SpiffeId, bundle: &TrustBundle, now: UnixTime) -> Result<(), Error> {
        let peer = verify(&self.chain, bundle, Purpose::Documents, now).map_err(Error::Uncertified)?;
        if peer.id != *signer {
            let other = verify::Error::OtherIdentity { expected: signer.clone(), presented: peer.id };
            return Err(Error::Uncertified(other));
        }
        let leaf = self.chain.first().ok_or(Error::Unreadable)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| Error::Unreadable)?;
        leaf.verify_signature(webpki::aws_lc_rs::ED25519, message, &self.bytes).map_err(|_| Error::Wrong)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(&self.bytes))?;
        self.chain.iter().try_for_each(|certificate| write!(f, ".{}", STANDARD.encode(certificate)))
    }
}

impl FromStr for Signature {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('.').map(|part| STANDARD.decode(part).map_err(|_| Error::Unreadable));
        let bytes = parts.next().ok_or(Error::Unreadable)??;
        let chain = parts.map(|part| part.map(CertificateDer::from)).collect::<Result<_, _>>()?;
        Ok(Self { bytes, chain })
    }
}
