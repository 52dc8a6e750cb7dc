//! Issues certificates to workloads. What is in one follows from the identity, the key, the time and the issuer.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::SigningKey;

use crate::bundle::{Root, TrustBundle};
use crate::certificate::{Certificate, SignError, Usage, key_id, serial};
use crate::date::rfc3339;
use crate::der;
use crate::id::{SpiffeId, TrustDomain};
use crate::parsed::{Parsed, Unreadable};
use crate::request::{self, Pending, PublicKey};
use crate::verify::{self, Purpose, verify};

/// Certificates are valid from this long before they are issued, for peers whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// A key that may sign certificates, with the chain that says so.
pub struct Issuer {
    signing: Signing,
    /// The root that its certificates lead to.
    root: CertificateDer<'static>,
    serial: String,
    not_before: UnixTime,
}

/// What signs a certificate.
struct Signing {
    key: Arc<dyn SigningKey>,
    trust_domain: TrustDomain,
    /// The issuer's certificate, then those above it, without the root.
    chain: Vec<CertificateDer<'static>>,
    subject: Vec<u8>,
    key_id: Vec<u8>,
    /// When the first certificate of the chain, root included, expires.
    not_after: UnixTime,
}

/// A certificate, as it is given to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, then those of its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// When it expires.
    pub not_after: UnixTime,
}

/// Why something cannot be an issuer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is of no kind that can be used.
    #[error("the private key cannot be used: it must be ECDSA P-256 or P-384, Ed25519, or RSA with 2048 bits or more")]
    Key,
    /// A certificate cannot be read.
    #[error("certificate {0} cannot be parsed")]
    Unreadable(usize),
    /// No certificate is that of the key.
    #[error("none of the certificates is that of the private key")]
    Pair,
    /// The certificate does not allow issuing.
    #[error("the certificate is not that of an authority: it lacks CA:TRUE or the key usage keyCertSign")]
    NotAnAuthority,
    /// It has expired.
    #[error("the certificate expired at {}", rfc3339(*.0))]
    Expired(UnixTime),
    /// What it issues would not be accepted.
    #[error("certificates that it issues are refused: {0}")]
    Refused(#[source] verify::Error),
    /// It cannot sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Why a certificate is not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer has expired.
    #[error("the issuer's certificate expired at {}", rfc3339(*.0))]
    Expired(UnixTime),
    /// It signs for another trust domain.
    #[error("the issuer signs for trust domain {0} only")]
    TrustDomain(TrustDomain),
    /// It cannot sign.
    #[error(transparent)]
    Sign(#[from] SignError),
}

// === impl Issuer ===

impl Issuer {
    /// An issuer of a key, its certificate and those above it in any order, and the roots of its trust domain. It is
    /// tried: a certificate that it issues must be accepted under these roots at `now`.
    pub fn new(
        certificates: &[CertificateDer<'static>],
        key: &PrivateKeyDer<'_>,
        trust_domain: TrustDomain,
        bundle: &TrustBundle,
        now: UnixTime,
    ) -> Result<Self, Error> {
        let key = any_supported_type(key).map_err(|_| Error::Key)?;
        let public_key = key.public_key().ok_or(Error::Key)?;
        let mut parsed = Vec::new();
        for (number, certificate) in (1..).zip(certificates) {
            parsed.push(Parsed::new(certificate).map_err(|Unreadable| Error::Unreadable(number))?);
        }
        let own = parsed.iter().position(|parsed| parsed.public_key() == public_key.as_ref()).ok_or(Error::Pair)?;
        let issuer = &parsed[own];
        if !issuer.is_authority().map_err(|Unreadable| Error::Unreadable(own + 1))? {
            return Err(Error::NotAnAuthority);
        }
        // Nothing that it issues may outlive any certificate above.
        let not_after = parsed.iter().map(Parsed::not_after).min().unwrap_or(issuer.not_after());
        if not_after <= now {
            return Err(Error::Expired(not_after));
        }
        let (before, from) = certificates.split_at(own);
        let (first, after) = from.split_at(1);
        let mut signing = Signing {
            chain: [first, before, after].concat(),
            subject: issuer.subject().to_vec(),
            key_id: issuer.key_id().map_or_else(|| key_id(&public_key).to_vec(), <[u8]>::to_vec),
            key: key.clone(),
            trust_domain,
            not_after,
        };
        let root = signing.find_root(bundle, now)?;
        signing.not_after = signing.not_after.min(root.not_after());
        let root = root.certificate().clone();
        signing.chain.retain(|certificate| *certificate != root);
        Ok(Self { signing, root, serial: issuer.serial(), not_before: issuer.not_before() })
    }

    /// Issues a certificate for a TLS peer. It ends with the issuer at the latest.
    pub fn issue(
        &self,
        key: &PublicKey,
        id: &SpiffeId,
        now: UnixTime,
        lifetime: Duration,
    ) -> Result<Issued, IssueError> {
        let end = Duration::from_secs(now.as_secs()).saturating_add(lifetime);
        self.signing.certify(&key.0, id, Usage::Tls, now, UnixTime::since_unix_epoch(end))
    }

    /// A certificate for a key that signs documents, for as long as the issuer is valid.
    pub(crate) fn certify_documents(&self, key: &[u8], id: &SpiffeId, now: UnixTime) -> Result<Issued, IssueError> {
        self.signing.certify(key, id, Usage::Documents, now, self.signing.not_after)
    }

    /// Its certificate, then those above it, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.signing.chain
    }

    /// The root of its chain.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.signing.trust_domain
    }

    /// The serial number of its certificate, in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Begin of its validity.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// When it, or a certificate above it, expires.
    pub fn not_after(&self) -> UnixTime {
        self.signing.not_after
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { serial, signing: Signing { trust_domain, not_after, .. }, .. } = self;
        write!(f, "Issuer {serial} for {trust_domain} until {}", rfc3339(*not_after))
    }
}

// === impl Signing ===

impl Signing {
    /// The root to which a certificate that is issued leads.
    fn find_root<'b>(&self, bundle: &'b TrustBundle, now: UnixTime) -> Result<&'b Root, Error> {
        let id = SpiffeId::new(self.trust_domain.clone(), "weft", "trial").expect("these are names");
        let trial = Pending::generate().map_err(|_| SignError)?;
        let key = request::read(trial.request()).map_err(|_| SignError)?;
        let issued = self.certify(&key.0, &id, Usage::Tls, now, self.not_after).map_err(|error| match error {
            IssueError::Sign(error) => Error::Sign(error),
            IssueError::Expired(at) => Error::Expired(at),
            IssueError::TrustDomain(domain) => Error::Refused(verify::Error::TrustDomain(domain)),
        })?;
        verify(&issued.chain, bundle, Purpose::Client, now).map_err(Error::Refused)?;
        let fingerprint = verify(&issued.chain, bundle, Purpose::Server, now).map_err(Error::Refused)?.root;
        let root = bundle.roots(&self.trust_domain).iter().find(|root| root.fingerprint() == fingerprint);
        root.ok_or_else(|| Error::Refused(verify::Error::TrustDomain(self.trust_domain.clone())))
    }

    fn certify(
        &self,
        public_key: &[u8],
        id: &SpiffeId,
        usage: Usage,
        now: UnixTime,
        not_after: UnixTime,
    ) -> Result<Issued, IssueError> {
        if *id.trust_domain() != self.trust_domain {
            return Err(IssueError::TrustDomain(self.trust_domain.clone()));
        }
        if self.not_after <= now {
            return Err(IssueError::Expired(self.not_after));
        }
        let not_after = not_after.min(self.not_after);
        let not_before = Duration::from_secs(now.as_secs()).saturating_sub(BACKDATE);
        let certificate = Certificate {
            serial: serial()?,
            issuer: &self.subject,
            issuer_key_id: &self.key_id,
            not_before: UnixTime::since_unix_epoch(not_before),
            not_after,
            subject: &der::sequence(&[]),
            public_key,
            uri: &id.to_string(),
            usage,
        };
        let certificate = certificate.sign(&*self.key)?;
        Ok(Issued { chain: std::iter::once(&certificate).chain(&self.chain).cloned().collect(), not_after })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::authority::Authority;
    use crate::hostile::{Ca, ID, NOW, at, now, params_of_ca};

    const DAY: Duration = Duration::from_secs(86_400);

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn id() -> SpiffeId {
        ID.parse().unwrap()
    }

    fn key() -> PublicKey {
        request::read(Pending::generate().unwrap().request()).unwrap()
    }

    fn of(ca: &Ca, root: &Ca) -> Result<Issuer, Error> {
        Issuer::new(std::slice::from_ref(&ca.certificate), &ca.key(), domain(), &root.bundle(), now())
    }

    #[test]
    fn certificate_is_an_x509_svid_for_the_key_and_the_id() {
        let root = Authority::root(&domain(), now()).unwrap();
        let intermediate = root.intermediate(&domain(), now()).unwrap();
        let bundle = TrustBundle::new(domain(), [root.certificate.clone()]).unwrap();
        let issuer =
            Issuer::new(std::slice::from_ref(&intermediate.certificate), &intermediate.key, domain(), &bundle, now())
                .unwrap();
        let key = key();
        let issued = issuer.issue(&key, &id(), now(), DAY).unwrap();
        assert_eq!(issued.chain[1..], [intermediate.certificate]);
        assert_eq!((issuer.root(), issued.not_after), (&root.certificate, at(NOW + 86_400)));
        for purpose in [Purpose::Server, Purpose::Client] {
            assert_eq!(verify(&issued.chain, &bundle, purpose, now()).unwrap().id, id());
        }
        let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
        assert!(leaf.subject().iter_rdn().next().is_none(), "no subject");
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical && names.value.general_names.len() == 1);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.flags == 1, "digitalSignature and nothing else");
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
        assert!(!leaf.is_ca());
        assert_eq!(leaf.public_key().raw, key.0);
        assert_eq!(leaf.validity().not_before.timestamp(), i64::try_from(NOW - 60).unwrap());
        assert_eq!(leaf.version().0, 2);
        assert!(leaf.raw_serial().len() == 16);
    }

    #[test]
    fn nothing_that_is_issued_outlives_a_certificate_above_it() {
        let root = Ca::root("root");
        let issuer = of(&root.below("issuer", |ca| ca.not_after = rcgen::date_time_ymd(2027, 1, 16)), &root).unwrap();
        let end = at(1_800_057_600);
        assert_eq!(issuer.not_after(), end);
        assert_eq!(issuer.issue(&key(), &id(), now(), DAY).unwrap().not_after, end);
        assert_eq!(issuer.issue(&key(), &id(), now(), Duration::MAX).unwrap().not_after, end);
        assert!(matches!(issuer.issue(&key(), &id(), end, DAY), Err(IssueError::Expired(_))));
        // The root ends before the intermediate.
        let late = root.below("issuer", |ca| ca.not_after = rcgen::date_time_ymd(2050, 1, 1));
        assert_eq!(of(&late, &root).unwrap().not_after(), at(NOW + 864_000));
        let other = "spiffe://other/ns/shop/sa/web".parse().unwrap();
        assert!(matches!(issuer.issue(&key(), &other, now(), DAY), Err(IssueError::TrustDomain(_))));
    }

    #[test]
    fn issuers_of_users_may_have_any_usual_key_and_their_certificates_any_order() {
        let algorithms = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ];
        for algorithm in algorithms {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateDer::from(params_of_ca("own").self_signed(&key).unwrap());
            let bundle = TrustBundle::new(domain(), [certificate.clone()]).unwrap();
            let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            let issuer = Issuer::new(&[certificate], &private, domain(), &bundle, now());
            let issued = issuer.unwrap_or_else(|error| panic!("{algorithm:?}: {error}")).issue(
                &super::tests::key(),
                &id(),
                now(),
                DAY,
            );
            assert_eq!(issued.unwrap().chain.len(), 1, "{algorithm:?}: the issuer is the root, which is not sent");
        }
        let root = Ca::root("root");
        let middle = root.below("middle", |_| {});
        let own = middle.below("own", |_| {});
        let [r, m, o] = [&root, &middle, &own].map(|ca| ca.certificate.clone());
        for certificates in
            [vec![o.clone(), m.clone()], vec![m.clone(), o.clone()], vec![r.clone(), m.clone(), o.clone()]]
        {
            let issuer = Issuer::new(&certificates, &own.key(), domain(), &root.bundle(), now()).unwrap();
            assert_eq!((issuer.chain(), issuer.root()), (&[o.clone(), m.clone()][..], &r));
        }
    }

    #[test]
    fn what_cannot_issue_is_refused_with_its_reason() {
        let (root, stranger) = (Ca::root("root"), Ca::root("stranger"));
        let good = root.below("issuer", |_| {});
        let check = |desc: &str, issuer: Result<Issuer, Error>, expected: &str| {
            let error = issuer.map(drop).unwrap_err().to_string();
            assert!(error.contains(expected), "{desc}: {error}");
        };
        let of_key = |key: PrivateKeyDer<'static>| {
            Issuer::new(std::slice::from_ref(&good.certificate), &key, domain(), &root.bundle(), now())
        };
        check("another key", of_key(root.key()), "none of the certificates is that of the private key");
        check("no key", of_key(PrivatePkcs8KeyDer::from(vec![0x30, 0]).into()), "private key cannot be used");
        check("no CA", of(&root.below("x", |ca| ca.is_ca = IsCa::NoCa), &root), "lacks CA:TRUE");
        let lists = root.below("x", |ca| ca.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign]);
        check("no keyCertSign", of(&lists, &root), "the key usage keyCertSign");
        check("another root", of(&good, &stranger), "does not lead to a root of trust domain cluster.local");
        let expired = root.below("x", |ca| ca.not_after = rcgen::date_time_ymd(2027, 1, 1));
        check("expired", of(&expired, &root), "expired at 2027-01-01T00:00:00Z");
        let early = root.below("x", |ca| {
            (ca.not_before, ca.not_after) = (rcgen::date_time_ymd(2027, 2, 1), rcgen::date_time_ymd(2028, 1, 1));
        });
        check("early", of(&early, &root), "valid from 2027-02-01T00:00:00Z on");
        let servers = root.below("x", |ca| ca.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        check("for servers only", of(&servers, &root), "RequiredEkuNotFound");
        let limited = root.below("limited", |ca| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let below = limited.below("below", |_| {});
        let chain = [below.certificate.clone(), limited.certificate.clone()];
        check("path length", Issuer::new(&chain, &below.key(), domain(), &root.bundle(), now()), "PathLen");
        check(
            "damaged",
            Issuer::new(&[vec![1].into()], &good.key(), domain(), &root.bundle(), now()),
            "certificate 1 cannot be parsed",
        );
        let other = "other.example".parse().unwrap();
        check(
            "other domain",
            Issuer::new(std::slice::from_ref(&good.certificate), &good.key(), other, &root.bundle(), now()),
            "trust domain other.example is not trusted",
        );
    }
}
