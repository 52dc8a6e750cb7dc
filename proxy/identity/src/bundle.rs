//! Trust bundles: for each trust domain the roots that may sign for it. The document of a bundle is JSON,
//! `{"domains": {"cluster.local": ["<PEM>", ...]}}`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::{Deserialize, Serialize};

use crate::id::TrustDomain;
use crate::parsed::{Parsed, Unreadable};
use crate::pem;

/// Maximum number of roots of a trust domain: each may be tried when a peer is verified. A rotation needs two.
const ROOTS_MAX: usize = 16;
/// Maximum number of trust domains in a bundle.
const DOMAINS_MAX: usize = 64;

/// SHA-256 of a certificate's DER, in hexadecimal as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// A root: a certificate that is trusted by itself.
#[derive(Clone, Debug)]
pub struct Root {
    fingerprint: Fingerprint,
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_after: UnixTime,
}

/// Roots by trust domain. Two bundles are equal if they have the same roots, in whatever order they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct TrustBundle {
    /// Each list has at least one root, and is sorted by fingerprint.
    domains: BTreeMap<TrustDomain, Vec<Root>>,
}

/// What a bundle looks like as JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    domains: BTreeMap<TrustDomain, Vec<String>>,
}

/// Why a bundle cannot be used. The reader keeps the one that it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something that is not a root is among the roots.
    #[error("root {number} of trust domain {domain}: {problem}")]
    Root {
        /// The trust domain.
        domain: TrustDomain,
        /// Which root, from 1.
        number: usize,
        /// What is wrong with it.
        problem: RootError,
    },
    /// A text has something other than certificates in PEM.
    #[error("the roots of trust domain {0} are not certificates in PEM")]
    Pem(TrustDomain),
    /// There is no root.
    #[error("trust domain {0} has no root: at least one is needed")]
    Empty(TrustDomain),
    /// There is nothing to trust.
    #[error("there is no trust domain: at least one with a root is needed")]
    NoDomains,
    /// There are too many roots.
    #[error("trust domain {0} has more than {ROOTS_MAX} roots: remove those that are not needed any more")]
    TooManyRoots(TrustDomain),
    /// There are too many trust domains.
    #[error("there are more than {DOMAINS_MAX} trust domains")]
    TooManyDomains,
}

/// Why a certificate is not a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The text has no certificate, or something that is none.
    #[error("it is no certificate in PEM")]
    Pem,
    /// It is a certificate of something else than an authority.
    #[error("it is not the certificate of an authority: it lacks CA:TRUE or the key usage keyCertSign")]
    NotAnAuthority,
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let error = || FingerprintError(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| error())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

/// The text is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a fingerprint: 64 digits of a SHA-256 in hexadecimal, in lower case")]
pub struct FingerprintError(String);

// === impl Root ===

impl Root {
    /// A root of a certificate, whose dates are not checked: they are when something is verified.
    pub fn new(certificate: CertificateDer<'static>) -> Result<Self, RootError> {
        let parsed = Parsed::new(&certificate)?;
        if !parsed.is_authority()? {
            return Err(RootError::NotAnAuthority);
        }
        let not_after = parsed.not_after();
        let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|_| Unreadable)?.to_owned();
        Ok(Self { fingerprint: Fingerprint::of(&certificate), certificate, anchor, not_after })
    }

    /// The roots of a text in PEM: at least one.
    pub fn read(text: &str) -> Result<Vec<Self>, RootError> {
        let certificates = pem::read_certificates(text.as_bytes()).map_err(|_| RootError::Pem)?;
        let roots: Vec<Self> = certificates.into_iter().map(Self::new).collect::<Result<_, _>>()?;
        if roots.is_empty() { Err(RootError::Pem) } else { Ok(roots) }
    }

    /// Its fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When it expires.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    pub(crate) fn anchor(&self) -> &TrustAnchor<'static> {
        &self.anchor
    }
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Root {}

// === impl TrustBundle ===

impl TrustBundle {
    /// A bundle of one trust domain.
    pub fn new(
        domain: TrustDomain,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let mut bundle = Self::default();
        bundle.add(domain, certificates)?;
        Ok(bundle)
    }

    /// Adds a trust domain.
    fn add(
        &mut self,
        domain: TrustDomain,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<(), Error> {
        let mut roots = BTreeMap::new();
        for (number, certificate) in (1..).zip(certificates) {
            let root =
                Root::new(certificate).map_err(|problem| Error::Root { domain: domain.clone(), number, problem })?;
            roots.insert(root.fingerprint, root);
            if roots.len() > ROOTS_MAX {
                return Err(Error::TooManyRoots(domain));
            }
        }
        if roots.is_empty() {
            return Err(Error::Empty(domain));
        }
        self.domains.insert(domain, roots.into_values().collect());
        Ok(())
    }

    /// The trust domain, if it is the only one.
    pub fn only_domain(&self) -> Option<&TrustDomain> {
        Some(self.domains.keys().next()?).filter(|_| self.domains.len() == 1)
    }

    /// The roots of a trust domain; none if it is unknown.
    pub fn roots(&self, domain: &TrustDomain) -> &[Root] {
        self.domains.get(domain).map_or(&[], Vec::as_slice)
    }

    /// The fingerprints of all roots of a trust domain.
    pub fn fingerprints(&self, domain: &TrustDomain) -> impl Iterator<Item = Fingerprint> {
        self.roots(domain).iter().map(Root::fingerprint)
    }
}

impl TryFrom<Document> for TrustBundle {
    type Error = Error;

    fn try_from(document: Document) -> Result<Self, Error> {
        if document.domains.len() > DOMAINS_MAX {
            return Err(Error::TooManyDomains);
        }
        if document.domains.is_empty() {
            return Err(Error::NoDomains);
        }
        let mut bundle = Self::default();
        for (domain, texts) in document.domains {
            let mut certificates = Vec::new();
            for text in texts {
                let read = pem::read_certificates(text.as_bytes()).map_err(|_| Error::Pem(domain.clone()))?;
                certificates.extend(read);
            }
            bundle.add(domain, certificates)?;
        }
        Ok(bundle)
    }
}

impl From<TrustBundle> for Document {
    fn from(bundle: TrustBundle) -> Self {
        let text = |root: &Root| pem::certificates([root.certificate()]);
        let domains = bundle.domains.iter().map(|(domain, roots)| (domain.clone(), roots.iter().map(text).collect()));
        Self { domains: domains.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::Ca;

    fn domain(text: &str) -> TrustDomain {
        text.parse().unwrap()
    }

    #[test]
    fn bundles_with_the_same_roots_are_equal_in_any_order() {
        let roots = [Ca::root("a"), Ca::root("b"), Ca::root("c")].map(|ca| ca.certificate);
        let [a, b, c] = roots.clone();
        let bundle = TrustBundle::new(domain("td"), roots).unwrap();
        let other = TrustBundle::new(domain("td"), [c.clone(), a.clone(), b.clone(), a.clone()]).unwrap();
        assert_eq!(bundle, other);
        assert_eq!(serde_json::to_string(&bundle).unwrap(), serde_json::to_string(&other).unwrap());
        assert_ne!(bundle, TrustBundle::new(domain("td"), [a, b]).unwrap());
        assert_ne!(bundle, TrustBundle::new(domain("other"), [c]).unwrap());
    }

    #[test]
    fn roots_of_a_text_are_read_or_it_has_none() {
        let [a, b] = [Ca::root("a"), Ca::root("b")];
        let text = |certificates: &[&CertificateDer<'static>]| pem::certificates(certificates.iter().copied());
        let leaf = a.leaf(|_| {}).0;
        for (desc, text, expected) in [
            ("one", text(&[&a.certificate]), Ok(1)),
            ("two", text(&[&a.certificate, &b.certificate]), Ok(2)),
            ("none", String::new(), Err(RootError::Pem)),
            ("another text", "shop".to_owned(), Err(RootError::Pem)),
            ("broken", "-----BEGIN CERTIFICATE-----\n".to_owned(), Err(RootError::Pem)),
            ("a leaf beside a root", text(&[&a.certificate, &leaf]), Err(RootError::NotAnAuthority)),
        ] {
            assert_eq!(Root::read(&text).map(|roots| roots.len()), expected, "{desc}");
        }
    }

    #[test]
    fn only_trust_domain_is_named_and_one_of_several_is_not() {
        let mut bundle = TrustBundle::new(domain("one"), [Ca::root("a").certificate]).unwrap();
        assert_eq!(bundle.only_domain(), Some(&domain("one")));
        bundle.add(domain("two"), [Ca::root("b").certificate]).unwrap();
        assert_eq!(bundle.only_domain(), None);
        assert_eq!(TrustBundle::default().only_domain(), None);
    }

    #[test]
    fn document_of_a_bundle_is_read_as_it_was_written() {
        let roots = [Ca::root("a"), Ca::root("b")].map(|ca| ca.certificate);
        let mut bundle = TrustBundle::new(domain("cluster.local"), roots).unwrap();
        bundle.add(domain("other"), [Ca::root("c").certificate]).unwrap();
        let text = serde_json::to_string(&bundle).unwrap();
        assert!(text.starts_with(r#"{"domains":{"cluster.local":["-----BEGIN CERTIFICATE-----\n"#), "{text}");
        assert_eq!(serde_json::from_str::<TrustBundle>(&text).unwrap(), bundle);
    }

    /// ID-05: empty, damaged or without a root for the trust domain.
    #[test]
    fn id_05_bundles_without_usable_roots_are_refused() {
        let ca = Ca::root("a");
        let pem = |certificate: &CertificateDer<'_>| serde_json::to_string(&pem::certificates([certificate])).unwrap();
        let (leaf, root) = (pem(&ca.leaf(|_| {}).0), pem(&ca.certificate));
        let many = [root.as_str(); 3].join(",");
        for (desc, text, expected) in [
            ("nothing", String::new(), "EOF"),
            ("damaged", format!(r#"{{"domains":{{"td":[{root}]"#), "EOF"),
            ("no domain", r#"{"domains":{}}"#.to_owned(), "no trust domain"),
            ("no roots", r#"{"domains":{"td":[]}}"#.to_owned(), "trust domain td has no root"),
            ("an empty text", r#"{"domains":{"td":[""]}}"#.to_owned(), "trust domain td has no root"),
            ("no PEM", r#"{"domains":{"td":["x"]}}"#.to_owned(), "trust domain td has no root"),
            (
                "broken PEM",
                r#"{"domains":{"td":["-----BEGIN CERTIFICATE-----\n"]}}"#.to_owned(),
                "not certificates in PEM",
            ),
            ("a leaf among roots", format!(r#"{{"domains":{{"td":[{root},{leaf}]}}}}"#), "root 2 of trust domain td"),
            ("an invalid domain", format!(r#"{{"domains":{{"TD":[{root}]}}}}"#), "\"TD\" is invalid"),
            ("another field", format!(r#"{{"domains":{{"td":[{root}]}},"x":1}}"#), "unknown field"),
        ] {
            let error = serde_json::from_str::<TrustBundle>(&text).map(drop).unwrap_err().to_string();
            assert!(error.contains(expected), "{desc}: {error}");
        }
        let equal = serde_json::from_str::<TrustBundle>(&format!(r#"{{"domains":{{"td":[{many}]}}}}"#)).unwrap();
        assert_eq!(equal.roots(&domain("td")).len(), 1, "a root that occurs several times is one");
        let roots = (0..=ROOTS_MAX).map(|number| Ca::root(&number.to_string()).certificate);
        assert_eq!(TrustBundle::new(domain("td"), roots), Err(Error::TooManyRoots(domain("td"))));
    }

    #[test]
    fn fingerprints_have_one_spelling() {
        let fingerprint = Fingerprint::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(fingerprint.to_string(), text);
        assert_eq!(text.parse(), Ok(fingerprint));
        for wrong in
            ["", "e3", &text.to_uppercase(), &text.replace('e', "g"), &format!("{text}0"), &text.replace('4', "ä")]
        {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
