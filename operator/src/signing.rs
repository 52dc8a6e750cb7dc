//! Signs documents with a key that the issuer in use certifies for the operator. The key lives as long as the process
//! or the issuer; a signature is accepted for as long as the issuer is.

use weft_config::Header;
use weft_identity::issue::{IssueError, Issuer};
use weft_identity::sign::Signature;
use weft_identity::signer::Signer;
use weft_identity::{CertificateDer, SpiffeId, TrustBundle, UnixTime};

/// A key that signs documents, and how its signatures are known.
pub struct Signing {
    signer: Signer,
    own_id: SpiffeId,
    issuers: Vec<CertificateDer<'static>>,
    bundle: TrustBundle,
}

// === impl Signing ===

impl Signing {
    /// A new key for the operator's identity, certified by an issuer under these roots.
    pub fn new(issuer: &Issuer, bundle: &TrustBundle, own_id: &SpiffeId, now: UnixTime) -> Result<Self, IssueError> {
        let signer = Signer::new(issuer, own_id, now)?;
        Ok(Self { signer, own_id: own_id.clone(), issuers: issuer.chain().to_vec(), bundle: bundle.clone() })
    }

    /// A signature, as it is in a header.
    pub fn sign(&self, message: &[u8]) -> String {
        self.signer.sign(message).to_string()
    }

    /// Whether a document is signed by an operator whose key this issuer has certified, so that it needs no other
    /// signature. One under an earlier issuer would expire with that one.
    pub fn has_signed(&self, document: &str, header: &Header, now: UnixTime) -> bool {
        header.signature.parse::<Signature>().is_ok_and(|signature| {
            signature.issuers() == self.issuers
                && signature.verify(&header.signed_bytes(document), &self.own_id, &self.bundle, now).is_ok()
        })
    }
}
