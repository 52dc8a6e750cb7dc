//! Certificates as an attacker or a wrong authority might make them, by another library than the one under test, and
//! what becomes of each in both directions of a connection.

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;

use crate::bundle::TrustBundle;
use crate::verify::{Error, Purpose, verify};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// An authority with its key.
pub(crate) struct Ca {
    pub(crate) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn now() -> UnixTime {
    at(NOW)
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn date(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds.try_into().unwrap()).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn params_of_ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(NOW - 86_400);
    params.not_after = date(NOW + 864_000);
    params
}

fn params_of_leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(ID)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date(NOW - 60);
    params.not_after = date(NOW + 86_400);
    params
}

// === impl Ca ===

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    fn root_with(name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let (mut params, key) = (params_of_ca(name), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().into();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let (mut params, key) = (params_of_ca(name), KeyPair::generate().unwrap());
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().into();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate of a workload, and its key.
    pub(crate) fn leaf(&self, change: impl Fn(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
        let (mut params, key) = (params_of_leaf(), KeyPair::generate().unwrap());
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().into(), key)
    }

    /// Its private key, PKCS #8.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.issuer.key().serialize_der()).into()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new("cluster.local".parse().unwrap(), [self.certificate.clone()]).unwrap()
    }
}

/// The reasons as server and as client, `ok` if accepted.
fn verdicts(chain: &[CertificateDer<'_>], bundle: &TrustBundle, at: UnixTime) -> (&'static str, &'static str) {
    let verdict = |purpose| match verify(chain, bundle, purpose, at) {
        Ok(peer) => {
            assert_eq!(peer.id.to_string(), ID);
            "ok"
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.reason()
        }
    };
    (verdict(Purpose::Server), verdict(Purpose::Client))
}

/// Checks a leaf below root and intermediate, changed, in both directions.
#[track_caller]
fn check(desc: &str, change: impl Fn(&mut CertificateParams), server: &str, client: &str) {
    let root = Ca::root("root");
    let intermediate = root.below("intermediate", |_| {});
    let (leaf, _) = intermediate.leaf(change);
    let found = verdicts(&[leaf, intermediate.certificate], &root.bundle(), now());
    assert_eq!(found, (server, client), "{desc}");
}

#[test]
fn chain_of_a_workload_is_accepted_in_both_directions() {
    check("as issued", |_| {}, "ok", "ok");
}

/// ID-01: a root signs for its own trust domain only, in both directions.
#[test]
fn id_01_certificates_of_another_trust_domain_are_refused() {
    let other = "spiffe://other.example/ns/shop/sa/web";
    check("same authority", |leaf| leaf.subject_alt_names = vec![uri(other)], "trust-domain", "trust-domain");

    // Both domains are trusted, each with its own root.
    let (root, foreign) = (Ca::root("root"), Ca::root("foreign"));
    let document = |ca: &Ca| crate::pem::certificates([&ca.certificate]);
    let json =
        serde_json::json!({"domains": {"cluster.local": [document(&root)], "other.example": [document(&foreign)]}});
    let bundle: TrustBundle = serde_json::from_value(json).unwrap();
    let leaf = |ca: &Ca, id: &str| ca.leaf(|leaf| leaf.subject_alt_names = vec![uri(id)]).0;
    assert_eq!(verdicts(&[leaf(&root, other)], &bundle, now()), ("untrusted", "untrusted"), "by our root");
    assert_eq!(verdicts(&[leaf(&foreign, ID)], &bundle, now()), ("untrusted", "untrusted"), "ours, by their root");
    assert_eq!(verdicts(&[leaf(&root, ID)], &bundle, now()), ("ok", "ok"));
    let theirs = verify(&[leaf(&foreign, other)], &bundle, Purpose::Client, now()).unwrap();
    assert_eq!(theirs.id.to_string(), other);
}

/// ID-02: zero, two or three URIs are refused; a DNS name beside the one URI is ignored.
#[test]
fn id_02_exactly_one_uri_is_accepted_and_other_names_are_ignored() {
    let dns = || SanType::DnsName("web.shop.svc".try_into().unwrap());
    for (desc, names, verdict) in [
        ("no name", vec![], "no-identity"),
        ("a DNS name only", vec![dns()], "no-identity"),
        ("two URIs", vec![uri(ID), uri("spiffe://cluster.local/ns/shop/sa/admin")], "no-identity"),
        ("the same URI twice", vec![uri(ID), uri(ID)], "no-identity"),
        ("three URIs", vec![uri(ID), uri("https://web"), uri("urn:x")], "no-identity"),
        ("another URI", vec![uri("https://cluster.local/ns/shop/sa/web")], "no-identity"),
        ("a URI and a DNS name", vec![dns(), uri(ID)], "ok"),
        ("a URI and an address", vec![uri(ID), SanType::IpAddress("10.0.0.1".parse().unwrap())], "ok"),
    ] {
        check(desc, |leaf| leaf.subject_alt_names = names.clone(), verdict, verdict);
    }
}

/// ID-03: in DNS names, mail addresses and otherNames, with NUL bytes, wildcards, escapes, ports and paths.
#[test]
fn id_03_ids_in_other_names_and_in_other_spellings_are_refused() {
    let text = || ID.try_into().unwrap();
    for (desc, name) in [
        ("as a DNS name", SanType::DnsName(text())),
        ("as a mail address", SanType::Rfc822Name(text())),
        ("as an otherName", SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], ID.into()))),
    ] {
        check(desc, |leaf| leaf.subject_alt_names = vec![name.clone()], "no-identity", "no-identity");
    }
    for wrong in [
        "spiffe://cluster.local/ns/shop/sa/web\0evil",
        "spiffe://cluster.local\0.evil/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/*",
        "spiffe://*/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "spiffe://Cluster.Local/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop//sa/web",
        "spiffe://cluster.local/ns/x/../shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web?x",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "spiffe://root@cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://cluster.local",
    ] {
        check(wrong, |leaf| leaf.subject_alt_names = vec![uri(wrong)], "no-identity", "no-identity");
    }
    let common_name = |leaf: &mut CertificateParams| {
        leaf.subject_alt_names = Vec::new();
        leaf.distinguished_name.push(DnType::CommonName, ID);
    };
    check("as the common name", common_name, "no-identity", "no-identity");
}

/// ID-06: extended key usage, key usage, CA bit, expired, not yet valid.
#[test]
fn id_06_leafs_with_wrong_usages_or_dates_are_refused() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    for (desc, purposes, server, client) in [
        ("for servers only", vec![ServerAuth], "ok", "key-usage"),
        ("for clients only", vec![ClientAuth], "key-usage", "ok"),
        ("for code", vec![CodeSigning], "key-usage", "key-usage"),
        ("for anything", vec![Any], "key-usage", "key-usage"),
        ("for nothing that is said", vec![], "key-usage", "key-usage"),
    ] {
        check(desc, |leaf| leaf.extended_key_usages = purposes.clone(), server, client);
    }
    for (desc, usages, verdict) in [
        ("no key usage", vec![], "key-usage"),
        ("no digitalSignature", vec![KeyEncipherment], "key-usage"),
        ("keyCertSign", vec![DigitalSignature, KeyCertSign], "key-usage"),
        ("cRLSign", vec![DigitalSignature, CrlSign], "key-usage"),
        ("keyEncipherment too", vec![DigitalSignature, KeyEncipherment], "ok"),
    ] {
        check(desc, |leaf| leaf.key_usages = usages.clone(), verdict, verdict);
    }
    check("CA as leaf", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "key-usage", "key-usage");
    for (desc, not_before, not_after, verdict) in [
        ("expired", NOW - 3600, NOW - 21, "expired"),
        ("expired within the skew", NOW - 3600, NOW - 20, "ok"),
        ("not yet valid", NOW + 21, NOW + 3600, "not-yet-valid"),
        ("not yet valid within the skew", NOW + 20, NOW + 3600, "ok"),
        ("dates the wrong way round", NOW + 3600, NOW - 3600, "untrusted"),
    ] {
        let dates = |leaf: &mut CertificateParams| {
            (leaf.not_before, leaf.not_after) = (date(not_before), date(not_after));
        };
        check(desc, dates, verdict, verdict);
    }
}

/// ID-06: intermediates without CA bit, key usage or path length.
#[test]
fn id_06_authorities_that_must_not_issue_are_refused() {
    let root = Ca::root("root");
    let chain_of = |intermediate: &Ca| [intermediate.leaf(|_| {}).0, intermediate.certificate.clone()];
    let no_ca = root.below("intermediate", |ca| ca.is_ca = IsCa::NoCa);
    assert_eq!(verdicts(&chain_of(&no_ca), &root.bundle(), now()), ("key-usage", "key-usage"), "no CA bit");
    let no_sign = root.below("intermediate", |ca| ca.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(verdicts(&chain_of(&no_sign), &root.bundle(), now()), ("key-usage", "key-usage"), "no keyCertSign");
    let workload = root.below("intermediate", |ca| {
        ca.is_ca = IsCa::ExplicitNoCa;
        ca.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        ca.subject_alt_names = vec![uri(ID)];
    });
    assert_eq!(verdicts(&chain_of(&workload), &root.bundle(), now()), ("key-usage", "key-usage"), "a workload issues");
    let expired = root.below("intermediate", |ca| ca.not_after = date(NOW - 21));
    assert_eq!(verdicts(&chain_of(&expired), &root.bundle(), now()), ("expired", "expired"), "expired intermediate");
    let early = root.below("intermediate", |ca| ca.not_before = date(NOW + 21));
    assert_eq!(verdicts(&chain_of(&early), &root.bundle(), now()), ("not-yet-valid", "not-yet-valid"));

    let limited = root.below("one", |ca| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = limited.below("two", |_| {});
    let chain = [below.leaf(|_| {}).0, below.certificate.clone(), limited.certificate.clone()];
    assert_eq!(verdicts(&chain, &root.bundle(), now()), ("untrusted", "untrusted"), "path length 0 with one below");
    assert_eq!(verdicts(&chain_of(&limited), &root.bundle(), now()), ("ok", "ok"), "path length 0 with none below");

    let servers = root.below("servers", |ca| ca.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(verdicts(&chain_of(&servers), &root.bundle(), now()), ("ok", "untrusted"), "limited to servers");
}

/// ID-06: self-signed with the subject of the root, and damaged signatures.
#[test]
fn id_06_chains_without_a_trusted_root_are_refused() {
    let (root, imposter) = (Ca::root("root"), Ca::root("root"));
    let (leaf, key) = imposter.leaf(|_| {});
    assert_eq!(
        verdicts(std::slice::from_ref(&leaf), &root.bundle(), now()),
        ("untrusted", "untrusted"),
        "a root of the same name"
    );
    let chain = [leaf, imposter.certificate.clone()];
    assert_eq!(verdicts(&chain, &root.bundle(), now()), ("untrusted", "untrusted"), "with that root");
    let self_signed: CertificateDer<'_> = params_of_leaf().self_signed(&key).unwrap().into();
    assert_eq!(verdicts(&[self_signed], &root.bundle(), now()), ("untrusted", "untrusted"), "self-signed");
    let mut params = params_of_leaf();
    params.distinguished_name.push(DnType::CommonName, "root");
    let same_subject: CertificateDer<'_> = params.self_signed(&key).unwrap().into();
    assert_eq!(verdicts(&[same_subject], &root.bundle(), now()), ("untrusted", "untrusted"), "the root's subject");

    let intermediate = root.below("intermediate", |_| {});
    let (leaf, _) = intermediate.leaf(|_| {});
    assert_eq!(
        verdicts(std::slice::from_ref(&leaf), &root.bundle(), now()),
        ("untrusted", "untrusted"),
        "no intermediate"
    );
    let mut damaged = leaf.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let chain = [damaged.into(), intermediate.certificate.clone()];
    assert_eq!(verdicts(&chain, &root.bundle(), now()), ("untrusted", "untrusted"), "a damaged signature");
    let trailing = [leaf.to_vec(), vec![0]].concat();
    assert_eq!(verdicts(&[trailing.into()], &root.bundle(), now()), ("unreadable", "unreadable"), "trailing bytes");
    assert_eq!(verdicts(&[], &root.bundle(), now()), ("no-certificate", "no-certificate"));
    assert_eq!(verdicts(&[vec![0x30; 100].into()], &root.bundle(), now()), ("unreadable", "unreadable"));
    let long: Vec<_> = std::iter::once(leaf).chain(vec![intermediate.certificate.clone(); 8]).collect();
    assert_eq!(verdicts(&long, &root.bundle(), now()), ("unreadable", "unreadable"), "too many certificates");
}

/// ID-06: the end of a root counts too.
#[test]
fn id_06_root_that_expired_is_trusted_no_more() {
    let root = Ca::root_with("root", |root| root.not_after = date(NOW));
    let (leaf, _) = root.leaf(|_| {});
    assert_eq!(verdicts(std::slice::from_ref(&leaf), &root.bundle(), at(NOW + 20)), ("ok", "ok"));
    assert_eq!(verdicts(&[leaf], &root.bundle(), at(NOW + 21)), ("expired", "expired"));
}

/// ID-07: constraints on URIs are not what keeps trust domains apart.
#[test]
fn id_07_trust_domain_is_checked_here_and_uri_constraints_only_make_webpki_stricter() {
    // webpki does not implement constraints on URIs, and refuses what they apply to. Names of URIs are kept apart by
    // the choice of the roots, which id_01 tests.
    let constraints = rcgen::CustomExtension::from_oid_content(
        &[2, 5, 29, 30],
        // permittedSubtrees: uniformResourceIdentifier "cluster.local".
        [&[0x30, 0x13, 0xa0, 0x11, 0x30, 0x0f, 0x86, 0x0d][..], b"cluster.local"].concat(),
    );
    let root = Ca::root("root");
    let constrained = root.below("constrained", |ca| ca.custom_extensions = vec![constraints.clone()]);
    let chain = [constrained.leaf(|_| {}).0, constrained.certificate];
    let error = verify(&chain, &root.bundle(), Purpose::Server, now()).unwrap_err();
    let Error::Path(_, webpki::Error::NameConstraintViolation) = error else { panic!("{error}") };
}

#[test]
fn clock_that_is_off_by_a_day_is_told_with_the_offset() {
    let root = Ca::root("root");
    let (leaf, _) = root.leaf(|_| {});
    let error = |at| verify(std::slice::from_ref(&leaf), &root.bundle(), Purpose::Server, at).unwrap_err().to_string();
    assert!(
        verify(std::slice::from_ref(&leaf), &root.bundle(), Purpose::Server, at(NOW - 80)).is_ok(),
        "a minute is tolerated"
    );
    let early = error(at(NOW - 86_400));
    assert!(early.contains("2027-01-14T08:00:00Z: 86340 s earlier"), "{early}");
    let late = error(at(NOW + 2 * 86_400));
    assert!(late.contains("2027-01-16T08:00:00Z") && late.contains(": 86400 s later"), "{late}");
}

#[test]
fn certificates_of_workloads_sign_no_documents() {
    let root = Ca::root("root");
    let (leaf, _) = root.leaf(|_| {});
    let error = verify(&[leaf], &root.bundle(), Purpose::Documents, now()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
}

proptest! {
    #[test]
    fn damaged_chain_is_refused_or_proves_the_same(at in 0_usize..1000, bits in 1_u8..=255, second: bool) {
        let root = Ca::root("root");
        let intermediate = root.below("intermediate", |_| {});
        let mut chain = [intermediate.leaf(|_| {}).0.to_vec(), intermediate.certificate.to_vec()];
        let damaged = &mut chain[usize::from(second)];
        let at = at % damaged.len();
        damaged[at] ^= bits;
        let chain = chain.map(CertificateDer::from);
        let verified = verify(&chain, &root.bundle(), Purpose::Server, now());
        prop_assert!(verified.is_err() || verified.is_ok_and(|peer| peer.id.to_string() == ID));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(verify(&[bytes.clone().into()], &TrustBundle::default(), Purpose::Client, now()));
        drop(crate::request::read(&bytes));
        drop(crate::Root::new(bytes.into()));
    }
}
