//! What the authority issues, judged by openssl and by Go's crypto/x509, and how fast it issues.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};
use weft_identity::authority::Authority;
use weft_identity::issue::Issuer;
use weft_identity::request::{self, Pending};
use weft_identity::verify::{Purpose, verify};
use weft_identity::{CertificateDer, SpiffeId, TrustBundle, TrustDomain, UnixTime, pem};

const DAY: Duration = Duration::from_secs(86_400);
/// Signatures in a second of one core: what the operator must reach.
const RATE_MIN: f64 = 500.0;

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("a domain")
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id")
}

/// A generated root, and the issuer below it.
fn generated(now: UnixTime) -> (Authority, Issuer) {
    let root = Authority::root(&domain(), now).expect("a root");
    let own = root.intermediate(&domain(), now).expect("an intermediate");
    let bundle = TrustBundle::new(domain(), [root.certificate.clone()]).expect("a bundle");
    let issuer = Issuer::new(&[own.certificate], &own.key, domain(), &bundle, now).expect("an issuer");
    (root, issuer)
}

/// Runs openssl in a folder with these files; its output, if it succeeds.
fn openssl(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(text) }
}

fn folder(name: &str, files: &[(&str, Vec<&CertificateDer<'static>>)]) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("a folder");
    for (name, chain) in files {
        fs::write(folder.join(name), pem::certificates(chain.iter().copied())).expect("written");
    }
    folder
}

/// ID-02: critical name, empty subject, usages, and path length as SPIFFE says.
#[test]
fn openssl_accepts_what_is_issued() {
    let now = UnixTime::now();
    let (root, issuer) = generated(now);
    let pending = Pending::generate().expect("a key");
    let key = request::read(pending.request()).expect("a key");
    let issued = issuer.issue(&key, &id(), now, DAY).expect("issued");
    let files = [
        ("root.pem", vec![&root.certificate]),
        ("issuers.pem", issued.chain.iter().skip(1).collect()),
        ("leaf.pem", vec![&issued.chain[0]]),
    ];
    let folder = folder("issued", &files);
    for purpose in ["sslserver", "sslclient"] {
        let chain = ["-x509_strict", "-CAfile", "root.pem", "-untrusted", "issuers.pem"];
        openssl(&folder, &[&["verify", "-purpose", purpose][..], &chain, &["leaf.pem"]].concat()).expect(purpose);
    }
    openssl(&folder, &["verify", "-CAfile", "root.pem", "leaf.pem"]).expect_err("not without the intermediate");
    openssl(&folder, &["verify", "-x509_strict", "-CAfile", "root.pem", "root.pem", "issuers.pem"])
        .expect("the issuers");

    let text = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", "-text"]).expect("text");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for expected in [
        "Subject:",
        "X509v3 Subject Alternative Name: critical",
        "URI:spiffe://cluster.local/ns/shop/sa/web",
        "X509v3 Key Usage: critical",
        "Digital Signature",
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "Signature Algorithm: ecdsa-with-SHA256",
        "ASN1 OID: prime256v1",
    ] {
        assert!(lines.contains(&expected), "{expected}: {text}");
    }
    let text = openssl(&folder, &["x509", "-in", "issuers.pem", "-noout", "-text"]).expect("text");
    assert!(text.contains("CA:TRUE, pathlen:0") && text.contains("URI:spiffe://cluster.local\n"), "{text}");

    fs::write(folder.join("request.der"), pending.request()).expect("written");
    openssl(&folder, &["req", "-inform", "DER", "-in", "request.der", "-noout", "-verify"]).expect("our request");
}

/// A chain, and the root to verify it under.
struct Case {
    desc: &'static str,
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    at: u64,
    /// Whether it is accepted of a server, and of a client.
    expected: (bool, bool),
}

/// Go's judge, built from its source. Needs the standard library only.
fn go_judge() -> std::path::PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("x509");
    let mut build = Command::new("go");
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/x509"));
    build.env("GOWORK", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    let built = build.args(["build", "-o"]).arg(&program).arg("main.go").status();
    assert!(built.is_ok_and(|status| status.success()), "go is missing: run e2e/packages.sh, which installs it");
    program
}

/// A certificate by another library than the one under test, with its key as an issuer.
fn foreign(
    above: Option<&rcgen::Issuer<'static, KeyPair>>,
    change: impl Fn(&mut CertificateParams),
) -> (CertificateDer<'static>, rcgen::Issuer<'static, KeyPair>) {
    let (mut params, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, if above.is_some() { "below" } else { "root" });
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    change(&mut params);
    let certificate = match above {
        Some(above) => params.signed_by(&key, above),
        None => params.self_signed(&key),
    };
    (certificate.expect("a certificate").into(), rcgen::Issuer::new(params, key))
}

/// Changes the parameters to those of a workload.
fn as_workload(params: &mut CertificateParams, usages: &[ExtendedKeyUsagePurpose]) {
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(id().to_string().try_into().expect("ASCII"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
}

fn cases(now: UnixTime) -> Vec<Case> {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (root, issuer) = generated(now);
    let issue = |issuer: &Issuer| {
        let key = request::read(Pending::generate().expect("a key").request()).expect("a key");
        issuer.issue(&key, &id(), now, DAY).expect("issued").chain
    };
    let chain = issue(&issuer);
    let mut damaged = chain.clone();
    let mut bytes = damaged[0].to_vec();
    *bytes.last_mut().expect("bytes") ^= 1;
    damaged[0] = bytes.into();
    // An issuer that ends in an hour: so does what it issues.
    let year = Duration::from_secs(365 * 86_400 - 3600);
    let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) - year);
    let old_root = Authority::root(&domain(), long_ago).expect("a root");
    let old = old_root.intermediate(&domain(), long_ago).expect("an intermediate");
    let bundle = TrustBundle::new(domain(), [old_root.certificate.clone()]).expect("a bundle");
    let old_issuer = Issuer::new(&[old.certificate], &old.key, domain(), &bundle, now).expect("an issuer");

    let (foreign_root, above) = foreign(None, |_| {});
    let (no_authority, of_workload) = foreign(Some(&above), |params| {
        as_workload(params, &[ServerAuth, ClientAuth]);
        params.distinguished_name.push(rcgen::DnType::CommonName, "workload");
    });
    let workload =
        |above, usages: &[ExtendedKeyUsagePurpose]| foreign(Some(above), |params| as_workload(params, usages)).0;
    let ended = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let (ended_root, above_ended) = foreign(None, ended);
    let below_ended = workload(&above_ended, &[ServerAuth, ClientAuth]);

    let now = now.as_secs();
    let case = |desc, chain: &[CertificateDer<'static>], root: &CertificateDer<'static>, at, expected| Case {
        desc,
        chain: chain.to_vec(),
        root: root.clone(),
        at,
        expected: (expected, expected),
    };
    vec![
        case("as issued", &chain, &root.certificate, now, true),
        case("by an issuer that ends in an hour", &issue(&old_issuer), &old_root.certificate, now, true),
        case("and an hour later", &issue(&old_issuer), &old_root.certificate, now + 3700, false),
        case("without the intermediate", &chain[..1], &root.certificate, now, false),
        case("under another root", &chain, &generated(UnixTime::now()).0.certificate, now, false),
        case("a day after its end", &chain, &root.certificate, now + 2 * 86_400, false),
        case("a day before its begin", &chain, &root.certificate, now - 86_400, false),
        case("with a damaged signature", &damaged, &root.certificate, now, false),
        case("of another library", &[workload(&above, &[ServerAuth, ClientAuth])], &foreign_root, now, true),
        case(
            "by a workload",
            &[workload(&of_workload, &[ServerAuth, ClientAuth]), no_authority],
            &foreign_root,
            now,
            false,
        ),
        case("under a root that ended", &[below_ended], &ended_root, now, false),
        Case {
            expected: (true, false),
            ..case("for servers", &[workload(&above, &[ServerAuth])], &foreign_root, now, true)
        },
        Case {
            expected: (false, true),
            ..case("for clients", &[workload(&above, &[ClientAuth])], &foreign_root, now, true)
        },
    ]
}

/// ID-06, ID-07: chains that must be accepted and chains that must not, in the judgement of three implementations.
#[test]
fn openssl_and_go_accept_and_refuse_what_we_do() {
    let go = go_judge();
    for Case { desc, chain, root, at, expected } in cases(UnixTime::now()) {
        let files = [
            ("root.pem", vec![&root]),
            ("chain.pem", chain.iter().collect()),
            ("leaf.pem", vec![&chain[0]]),
            // Not empty, because openssl demands one: the root is never one of the others.
            ("issuers.pem", chain.iter().skip(1).chain([&root]).collect()),
        ];
        let folder = folder("agreed", &files);
        let at_text = at.to_string();
        for (purpose, role, of_openssl, expected) in
            [(Purpose::Server, "server", "sslserver", expected.0), (Purpose::Client, "client", "sslclient", expected.1)]
        {
            let bundle = TrustBundle::new(domain(), [root.clone()]).expect("a bundle");
            let ours = verify(&chain, &bundle, purpose, UnixTime::since_unix_epoch(Duration::from_secs(at)));
            assert_eq!(ours.is_ok(), expected, "{desc}, {role}: we: {ours:?}");
            let arguments = ["verify", "-attime", &at_text, "-purpose", of_openssl, "-CAfile", "root.pem"];
            let theirs = openssl(&folder, &[&arguments[..], &["-untrusted", "issuers.pem", "leaf.pem"]].concat());
            assert_eq!(theirs.is_ok(), expected, "{desc}, {role}: openssl: {theirs:?}");
            let output =
                Command::new(&go).args(["root.pem", "chain.pem", role, &at_text]).current_dir(&folder).output();
            let output = output.expect("it runs");
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), expected, "{desc}, {role}: Go: {error}");
            if expected {
                let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                let usages = if desc.starts_with("for ") { 1 } else { 2 };
                let spiffe = json!({
                    "uris": [id().to_string()], "otherNames": 0, "namesAreCritical": true, "subject": "",
                    "isAuthority": false, "signsOnly": true, "usages": usages, "endsWithin": true, "unhandled": 0,
                });
                assert_eq!(found, spiffe, "{desc}");
            }
        }
    }
}

/// Issuers as openssl makes them: with names that occur twice, and keys of every kind.
#[test]
fn openssl_accepts_what_issuers_of_its_own_making_issue() {
    let folder = folder("foreign", &[]);
    let keys: [&[&str]; 4] = [
        &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["ED25519"],
        &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    ];
    let config = "[req]\ndistinguished_name = dn\nx509_extensions = ca\nprompt = no\nstring_mask = default\n\
                  [dn]\n0.DC = corp\n1.DC = example\n0.OU = One\n1.OU = Two\n+1.O = Multi\nCN = Example Issuing CA\n\
                  [ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\n";
    fs::write(folder.join("ca.cnf"), config).expect("written");
    for (number, key) in keys.into_iter().enumerate() {
        let arguments = [&["genpkey", "-out", "ca.key", "-algorithm"], key].concat();
        openssl(&folder, &arguments).expect("a key");
        let make = ["req", "-x509", "-new", "-key", "ca.key", "-out", "ca.pem", "-days", "30", "-config", "ca.cnf"];
        openssl(&folder, &make).expect("a certificate");
        let certificates = pem::read_certificates(&fs::read(folder.join("ca.pem")).expect("readable")).expect("PEM");
        let bundle = TrustBundle::new(domain(), certificates.clone()).expect("a bundle");
        let private = pem::read_private_key(&fs::read(folder.join("ca.key")).expect("readable")).expect("a key");
        let now = UnixTime::now();
        let issuer = Issuer::new(&certificates, &private, domain(), &bundle, now);
        let issuer = issuer.unwrap_or_else(|error| panic!("{number}: {error}"));
        let key = request::read(Pending::generate().expect("a key").request()).expect("a key");
        let issued = issuer.issue(&key, &id(), now, DAY).expect("issued");
        fs::write(folder.join("leaf.pem"), pem::certificates(&issued.chain)).expect("written");
        openssl(&folder, &["verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem"])
            .unwrap_or_else(|error| panic!("{number}: {error}"));
    }
}

/// By CPU time of this thread, so that other work on the machine does not count.
#[test]
fn one_core_issues_500_certificates_a_second() {
    let now = UnixTime::now();
    let (_, issuer) = generated(now);
    let requests: Vec<Pending> = (0..1000).map(|_| Pending::generate().expect("a key")).collect();
    let time = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"));
    let start = time();
    let mut bytes = 0;
    for pending in &requests {
        let key = request::read(pending.request()).expect("a key");
        bytes += pem::certificates(&issuer.issue(&key, &id(), now, DAY).expect("issued").chain).len();
    }
    let taken = time().saturating_sub(start).as_secs_f64();
    let rate = 1000.0 / taken;
    assert!(bytes > 1000 && rate >= RATE_MIN, "{rate:.0} certificates a second");
    // With --nocapture.
    eprintln!("{rate:.0} certificates a second on one core, request checked and answer written");
}
