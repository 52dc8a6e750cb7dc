//! Signs configuration documents: the other half of [`crate::sign`].

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, UnixTime, alg_id};
use rustls::sign::public_key_to_spki;

use crate::certificate::SignError;
use crate::id::SpiffeId;
use crate::issue::{IssueError, Issuer};
use crate::sign::Signature;

/// A key that signs documents, with its chain. It is nowhere but in memory.
pub struct Signer {
    key: Ed25519KeyPair,
    chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    /// A new key, certified for `id` for as long as the issuer is valid: a document may stay unchanged that long.
    pub fn new(issuer: &Issuer, id: &SpiffeId, now: UnixTime) -> Result<Self, IssueError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SignError)?;
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|_| SignError)?;
        let public_key = public_key_to_spki(&alg_id::ED25519, key.public_key());
        let issued = issuer.certify_documents(&public_key, id, now)?;
        Ok(Self { key, chain: issued.chain })
    }

    /// Signs the bytes of a document's header.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature { bytes: self.key.sign(message).as_ref().to_vec(), chain: self.chain.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::{Ca, at, now};
    use crate::sign::Error;
    use crate::verify::{self, Purpose, verify};

    const OPERATOR: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-operator";

    fn issuer(ca: &Ca) -> Issuer {
        let domain = "cluster.local".parse().unwrap();
        Issuer::new(std::slice::from_ref(&ca.certificate), &ca.key(), domain, &ca.bundle(), now()).unwrap()
    }

    #[test]
    fn signature_is_accepted_only_for_its_document_its_signer_and_its_roots() {
        let (ca, stranger) = (Ca::root("root"), Ca::root("stranger"));
        let operator: SpiffeId = OPERATOR.parse().unwrap();
        let signer = Signer::new(&issuer(&ca), &operator, now()).unwrap();
        let text = signer.sign(b"header").to_string();
        let signature: Signature = text.parse().unwrap();
        assert_eq!(signature, signer.sign(b"header"));
        assert_eq!(signature.verify(b"header", &operator, &ca.bundle(), now()), Ok(()));
        let after_months = at(crate::hostile::NOW + 8 * 86_400);
        assert_eq!(signature.verify(b"header", &operator, &ca.bundle(), after_months), Ok(()), "as long as the issuer");

        assert_eq!(signature.verify(b"Header", &operator, &ca.bundle(), now()), Err(Error::Wrong));
        let by_stranger = signature.verify(b"header", &operator, &stranger.bundle(), now());
        assert!(matches!(by_stranger, Err(Error::Uncertified(verify::Error::Path(..)))), "{by_stranger:?}");
        let other: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let by_pod = Signer::new(&issuer(&ca), &other, now()).unwrap().sign(b"header");
        let refused = by_pod.verify(b"header", &operator, &ca.bundle(), now());
        assert!(matches!(refused, Err(Error::Uncertified(verify::Error::OtherIdentity { .. }))), "{refused:?}");
        let another = Signer::new(&issuer(&ca), &operator, now()).unwrap().sign(b"header");
        let mixed = Signature { bytes: another.bytes, chain: signature.chain.clone() };
        assert_eq!(mixed.verify(b"header", &operator, &ca.bundle(), now()), Err(Error::Wrong), "another key");
        let bare = Signature { bytes: signature.bytes.clone(), chain: Vec::new() };
        assert!(bare.verify(b"header", &operator, &ca.bundle(), now()).is_err());
    }

    #[test]
    fn key_of_documents_is_refused_in_tls() {
        let ca = Ca::root("root");
        let signature = Signer::new(&issuer(&ca), &OPERATOR.parse().unwrap(), now()).unwrap().sign(b"");
        for purpose in [Purpose::Server, Purpose::Client] {
            let refused = verify(&signature.chain, &ca.bundle(), purpose, now());
            assert!(matches!(refused, Err(verify::Error::Usage(_))), "{refused:?}");
        }
    }

    #[test]
    fn texts_that_are_no_signatures_are_refused() {
        for text in ["", ".", "x", "AAAA", "AAAA.AAAA", "!", "AAAA.=", "AAAA..AAAA"] {
            let signature = text.parse::<Signature>();
            let ca = Ca::root("root");
            let refused =
                signature.and_then(|signature| signature.verify(b"", &OPERATOR.parse().unwrap(), &ca.bundle(), now()));
            assert!(refused.is_err(), "{text:?}");
        }
    }
}
