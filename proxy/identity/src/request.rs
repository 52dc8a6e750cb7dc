//! Certificate signing requests (RFC 2986). A proxy makes one with a new key for each certificate. For an authority
//! only two things count: the public key, and the signature that proves possession of the private key. Whatever else
//! a request asks for is ignored: who the requester is follows from its token.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, alg_id};
use rustls::sign::{CertifiedKey, SigningKey};
use serde::{Deserialize, Serialize};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

use crate::bundle::TrustBundle;
use crate::der::{self, sequence, value};

/// Maximum size of a request in bytes: ours have 200.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// A key that waits for its certificate. It is nowhere but in memory.
pub struct Pending {
    key: Arc<dyn SigningKey>,
    request: Vec<u8>,
}

/// A public key whose owner has proven possession of the private key: SubjectPublicKeyInfo, DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(pub(crate) Vec<u8>);

/// What an authority answers, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The certificate, then those of its issuers without the root, PEM.
    pub chain: String,
    /// The roots that the authority trusts.
    pub bundle: TrustBundle,
}

/// Why a key pair or a request could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot generate a key")]
pub struct KeyError;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is too large.
    #[error("the request has more than {REQUEST_BYTES_MAX} bytes: one with a key of ECDSA P-256 has some hundred")]
    TooLarge,
    /// It cannot be parsed.
    #[error("the body is not a certificate signing request in DER")]
    Unreadable,
    /// The key is of another kind.
    #[error("the key of the request is not of the kind ECDSA P-256 with SHA-256")]
    Key,
    /// The signature does not fit the key.
    #[error("the signature of the request was not made with its key")]
    Possession,
}

/// The certificate is not that of the key that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not for the key that it was requested for")]
pub struct OtherKey;

/// A new key for ECDSA P-256, as PKCS #8.
pub(crate) fn generate_p256() -> Result<PrivatePkcs8KeyDer<'static>, KeyError> {
    let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    pair.map(|pair| pair.as_ref().to_vec().into()).map_err(|_| KeyError)
}

/// Reads a request, and checks that its sender has the key.
pub fn read(request: &[u8]) -> Result<PublicKey, Error> {
    if request.len() > REQUEST_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let Ok(([], request)) = X509CertificationRequest::from_der(request) else { return Err(Error::Unreadable) };
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    // Before anything is calculated: other algorithms have keys for which that takes long.
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(OID_EC_P256)
        || request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
    {
        return Err(Error::Key);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.subject_public_key.data)
        .verify(request.certification_request_info.raw, &request.signature_value.data)
        .map_err(|_| Error::Possession)?;
    Ok(PublicKey(key.raw.to_vec()))
}

// === impl Pending ===

impl Pending {
    /// A new key, and a request for it.
    pub fn generate() -> Result<Self, KeyError> {
        let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(generate_p256()?)).map_err(|_| KeyError)?;
        let public_key = key.public_key().ok_or(KeyError)?;
        let version = value(der::INTEGER, &[&[0]]);
        let attributes = value(der::context_constructed(0), &[]);
        let content = sequence(&[&version, &sequence(&[]), &public_key, &attributes]);
        let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).ok_or(KeyError)?;
        let signature = signer.sign(&content).map_err(|_| KeyError)?;
        let request = sequence(&[&content, &sequence(&[&alg_id::ECDSA_SHA256]), &der::bit_string(&signature)]);
        Ok(Self { key, request })
    }

    /// The request, DER.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The key with its certificate, followed by those of its issuers.
    pub fn certified(self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, OtherKey> {
        let certified = CertifiedKey::new(chain, self.key);
        certified.keys_match().map_err(|_| OtherKey)?;
        Ok(certified)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    fn rcgen_request(
        algorithm: &'static rcgen::SignatureAlgorithm,
        change: impl Fn(&mut CertificateParams),
    ) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        change(&mut params);
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn request_is_read_and_its_certificate_must_be_for_its_key() {
        let (one, other) = (Pending::generate().unwrap(), Pending::generate().unwrap());
        assert_ne!(read(one.request()), read(other.request()));
        assert!(read(one.request()).is_ok());
        let ca = crate::hostile::Ca::root("root");
        assert_eq!(one.certified(vec![ca.leaf(|_| {}).0]).map(drop), Err(OtherKey));
    }

    /// ID-09: bad signatures, RSA keys of any size, weak and unknown curves.
    #[test]
    fn id_09_requests_without_proof_of_possession_or_with_other_keys_are_refused() {
        let good = Pending::generate().unwrap().request().to_vec();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_4096).unwrap();
        let rsa = CertificateParams::default().serialize_request(&rsa).unwrap().der().to_vec();
        for (desc, request, expected) in [
            ("empty", vec![], Error::Unreadable),
            ("text", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), Error::Unreadable),
            ("cut", good[..good.len() - 1].to_vec(), Error::Unreadable),
            ("trailing bytes", [&good[..], &[0]].concat(), Error::Unreadable),
            ("wrong signature", forged, Error::Possession),
            ("RSA", rsa, Error::Key),
            ("P-384", rcgen_request(&rcgen::PKCS_ECDSA_P384_SHA384, |_| {}), Error::Key),
            ("Ed25519", rcgen_request(&rcgen::PKCS_ED25519, |_| {}), Error::Key),
            ("16 MiB", vec![0x30; 16 << 20], Error::TooLarge),
        ] {
            assert_eq!(read(&request), Err(expected), "{desc}");
        }
        // The key of one request with the signature of another.
        let other = Pending::generate().unwrap().request().to_vec();
        if good.len() == other.len() {
            let content = 100;
            assert!(read(&[&good[..content], &other[content..]].concat()).is_err());
        }
    }

    /// ID-09, ID-02: names, extensions and CA:TRUE of a request.
    #[test]
    fn id_09_whatever_else_a_request_asks_for_is_ignored() {
        let request = rcgen_request(&rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.distinguished_name.push(DnType::CommonName, "spiffe://cluster.local/ns/kube-system/sa/admin");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.subject_alt_names =
                vec![SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap())];
        });
        assert!(read(&request).is_ok(), "only its key is used: see the tests of `issue`");
    }

    proptest! {
        #[test]
        fn damaged_request_is_refused_or_has_the_same_key(at in 0_usize..200, bits in 1_u8..=255) {
            let mut request = Pending::generate().unwrap().request().to_vec();
            let key = read(&request).unwrap();
            let at = at % request.len();
            request[at] ^= bits;
            // Some bits of DER mean nothing, such as the number of unused bits in a signature.
            prop_assert!(read(&request).is_err() || read(&request) == Ok(key));
        }
    }
}
