//! What the authority issues, judged by openssl, and how fast it issues.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use weft_identity::authority::Authority;
use weft_identity::issue::Issuer;
use weft_identity::request::{self, Pending};
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
