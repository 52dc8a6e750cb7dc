//! What holds for any bytes that an attacker may send: as names, signatures, requests and certificates.

use rustls::pki_types::CertificateDer;

use crate::sign::Signature;
use crate::verify::{self, Error, Purpose};
use crate::{Fingerprint, SpiffeId, TrustBundle, TrustDomain, UnixTime, pem, request};

/// Whatever is read is written as it was read, and nothing panics.
pub fn check_properties(bytes: &[u8], now: UnixTime) {
    check_certificates(bytes, now);
    if let Ok(key) = request::read(bytes) {
        assert!(bytes.windows(key.0.len()).any(|part| part == key.0), "the key is that of the request");
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    check_name::<SpiffeId>(text);
    check_name::<TrustDomain>(text);
    check_name::<Fingerprint>(text);
    if let Ok(signature) = text.parse::<Signature>() {
        assert_eq!(signature.to_string().parse(), Ok(signature));
    }
    if let Ok(chain) = pem::read_certificates(bytes) {
        let written = pem::certificates(&chain);
        assert_eq!(pem::read_certificates(written.as_bytes()).ok(), Some(chain));
    }
    let _ = pem::read_private_key(bytes);
}

/// A name has one spelling.
fn check_name<T: std::str::FromStr + std::fmt::Display>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        assert_eq!(name.to_string(), text);
    }
}

/// The first certificate as that of a peer, and the last one as the only root: an identity is one that stands in the
/// certificate, and is never accepted under a root that did not sign it.
fn check_certificates(bytes: &[u8], now: UnixTime) {
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    let mut rest = bytes;
    while let Some((certificate, after)) = element(rest) {
        chain.push(certificate.to_vec().into());
        rest = after;
    }
    let Some(leaf) = chain.first() else { return };
    let claimed = verify::identity(leaf);
    if let Ok(id) = &claimed {
        let text = id.to_string();
        assert!(leaf.windows(text.len()).any(|part| part == text.as_bytes()), "{text} is in the certificate");
        check_name::<SpiffeId>(&text);
    }
    let domain = claimed.as_ref().map_or_else(|_| "cluster.local".parse().ok(), |id| Some(id.trust_domain().clone()));
    let root = chain.last().cloned();
    let Some(bundle) = domain.zip(root).and_then(|(domain, root)| TrustBundle::new(domain, [root]).ok()) else {
        return;
    };
    for purpose in [Purpose::Server, Purpose::Client, Purpose::Documents] {
        match verify::verify(&chain, &bundle, purpose, now) {
            Ok(peer) => assert_eq!(Some(&peer.id), claimed.as_ref().ok()),
            Err(error) => assert!(!error.to_string().is_empty() && !error.reason().is_empty()),
        }
        let nobody = verify::verify(&chain, &TrustBundle::default(), purpose, now);
        assert!(
            nobody.is_err_and(|error| !matches!(error, Error::OtherIdentity { .. })),
            "nothing is trusted by nothing"
        );
    }
}

/// The first element of DER, and what follows it. Lengths of up to two bytes.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, length) = match *bytes {
        [0x30, length @ ..=0x7f, ..] => (2, usize::from(length)),
        [0x30, 0x81, length, ..] => (3, usize::from(length)),
        [0x30, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return None,
    };
    bytes.split_at_checked(header + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hostile::{Ca, ID, now};
    use crate::request::Pending;

    /// A chain with its root, a request, and the texts.
    fn seeds() -> Vec<Vec<u8>> {
        let root = Ca::root("root");
        let below = root.below("intermediate", |_| {});
        let (leaf, key) = below.leaf(|_| {});
        let chain = [leaf, below.certificate.clone(), root.certificate.clone()];
        let (short, _) = root.leaf(|_| {});
        vec![
            chain.iter().flat_map(|certificate| certificate.to_vec()).collect(),
            [short.to_vec(), root.certificate.to_vec()].concat(),
            Pending::generate().expect("a key").request().to_vec(),
            pem::certificates(&chain).into_bytes(),
            key.serialize_pem().into_bytes(),
            serde_json::to_vec(&root.bundle()).expect("JSON"),
            ID.as_bytes().to_vec(),
            b"cluster.local".to_vec(),
            Fingerprint::of(&root.certificate).to_string().into_bytes(),
            b"c2lnbmF0dXJl.Y2VydGlmaWNhdGU=".to_vec(),
        ]
    }

    #[test]
    fn properties_hold_for_known_inputs() {
        for seed in seeds() {
            check_properties(&seed, now());
        }
        let chain = &seeds()[0];
        let mut elements = Vec::new();
        let mut rest = &chain[..];
        while let Some((element, after)) = element(rest) {
            elements.push(CertificateDer::from(element.to_vec()));
            rest = after;
        }
        assert_eq!((elements.len(), rest.len()), (3, 0), "the elements are found");
    }

    proptest! {
        #[test]
        fn properties_hold_for_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            check_properties(&bytes, now());
        }

        #[test]
        fn properties_hold_for_damaged_inputs(
            seed in prop::sample::select(seeds()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            end in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
        ) {
            let mut bytes = seed;
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(end.index(bytes.len()));
            }
            check_properties(&bytes, now());
        }
    }
}
