//! The issuer in use: what becomes of it when the Secret changes. Each replica has one.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use weft_identity::{CertificateDer, Fingerprint, TrustBundle, TrustDomain, UnixTime};

use super::secret::{Invalid, Issuing, read_issuer};

/// The last good issuer, and what is wrong with the Secret since.
#[derive(Debug)]
pub struct Holder {
    domain: TrustDomain,
    further: Vec<CertificateDer<'static>>,
    current: Option<Arc<Issuing>>,
    problem: Option<Problem>,
}

/// Why the Secret as it is in the cluster is not in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In CamelCase.
    pub reason: &'static str,
    /// What is wrong, and the remedy.
    pub message: String,
}

/// What an observation changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Another issuer, or other roots, or a Secret that can be used again.
    Accepted,
    /// The Secret cannot be used, for another reason than before.
    Refused(Problem),
}

// === impl Holder ===

impl Holder {
    /// Without an issuer.
    pub fn new(domain: TrustDomain) -> Self {
        Self { domain, further: Vec::new(), current: None, problem: None }
    }

    /// Sets the roots that are trusted beside those of the Secret, from the next observation on.
    pub fn trust(&mut self, further: Vec<CertificateDer<'static>>) {
        self.further = further;
    }

    /// The issuer in use.
    pub fn current(&self) -> Option<&Arc<Issuing>> {
        self.current.as_ref()
    }

    /// What is wrong with the Secret now.
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Takes the Secret as it is now. `published` is what proxies trust: a new issuer must lead to a root among these.
    pub fn observe(&mut self, secret: Option<&Secret>, published: Option<&TrustBundle>, now: UnixTime) -> Change {
        let found = match secret {
            None => Err(self.missing(published)),
            Some(secret) => self
                .read(secret, published, now)
                .map_err(|invalid| Problem { reason: invalid.reason(), message: invalid.to_string() }),
        };
        match found {
            Ok(None) => {
                let recovered = self.problem.take().is_some();
                if recovered { Change::Accepted } else { Change::None }
            }
            Ok(Some(issuing)) => {
                self.problem = None;
                self.current = Some(Arc::new(issuing));
                Change::Accepted
            }
            Err(problem) if self.problem.as_ref() == Some(&problem) => Change::None,
            Err(problem) => {
                self.problem = Some(problem.clone());
                Change::Refused(problem)
            }
        }
    }

    /// The issuer of the Secret, if it differs from the current one.
    fn read(
        &self,
        secret: &Secret,
        published: Option<&TrustBundle>,
        now: UnixTime,
    ) -> Result<Option<Issuing>, Invalid> {
        if self.current.as_ref().is_some_and(|current| current.is_from(secret, &self.further)) {
            return Ok(None);
        }
        let issuing = read_issuer(secret, &self.domain, now)?.trusting(&self.domain, &self.further)?;
        let root = Fingerprint::of(issuing.issuer.root());
        if published.is_some_and(|published| !published.fingerprints(&self.domain).any(|trusted| trusted == root)) {
            return Err(Invalid::NotYetTrusted { root: root.to_string() });
        }
        Ok(Some(issuing).filter(|issuing| !self.current.as_ref().is_some_and(|current| current.is_same(issuing))))
    }

    fn missing(&self, published: Option<&TrustBundle>) -> Problem {
        let message = match (&self.current, published) {
            (Some(_), _) => "the Secret does not exist: the last good issuer stays in use; create it again",
            (None, Some(_)) => {
                "the Secret does not exist: no certificates are issued; create it again, or delete ConfigMap \
                 weft-config/trust to begin with a new root"
            }
            (None, None) => "the Secret does not exist: no certificates are issued until the leader has made it",
        };
        Problem { reason: "IssuerMissing", message: message.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use weft_identity::authority::Authority;
    use weft_identity::pem;

    use super::*;
    use crate::identity::secret;

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000))
    }

    fn new_root() -> Authority {
        Authority::root(&domain(), now()).unwrap()
    }

    /// The Secret of a new issuer below a root, with these roots in `ca.crt`.
    fn below(root: &Authority, roots: &[&Authority]) -> Secret {
        let mut secret = secret::issuer(root, &root.intermediate(&domain(), now()).unwrap(), None);
        set(&mut secret, "ca.crt", &pem::certificates(roots.iter().map(|root| &root.certificate)));
        secret
    }

    fn set(secret: &mut Secret, field: &str, text: &str) {
        secret.data.get_or_insert_default().insert(field.to_owned(), ByteString(text.as_bytes().to_vec()));
    }

    /// The Secret of an issuer that is valid, below a root that is not: another library makes it.
    fn below_expired_root() -> Secret {
        let authority = |name: &str, until| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(until, 1, 1));
            (params, rcgen::KeyPair::generate().unwrap())
        };
        let ((root, root_key), (own, own_key)) = (authority("root", 2021), authority("own", 2040));
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let own_pem = own.signed_by(&own_key, &rcgen::Issuer::new(root, root_key)).unwrap().pem();
        let mut secret = Secret::default();
        for (field, text) in [("tls.crt", own_pem), ("tls.key", own_key.serialize_pem()), ("ca.crt", root_pem)] {
            set(&mut secret, field, &text);
        }
        secret
    }

    fn bundle(roots: &[&Authority]) -> TrustBundle {
        TrustBundle::new(domain(), roots.iter().map(|root| root.certificate.clone())).unwrap()
    }

    fn serial(holder: &Holder) -> &str {
        holder.current().unwrap().issuer.serial()
    }

    /// A holder that has an issuer below a root, and its Secret.
    fn holding(root: &Authority) -> (Holder, Secret) {
        let (mut holder, secret) = (Holder::new(domain()), below(root, &[root]));
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::Accepted);
        (holder, secret)
    }

    #[test]
    fn twenty_issuers_in_a_row_are_accepted() {
        let root = new_root();
        let (mut holder, first) = holding(&root);
        let published = bundle(&[&root]);
        let mut serials = vec![serial(&holder).to_owned()];
        for _ in 0..20 {
            assert_eq!(holder.observe(Some(&below(&root, &[&root])), Some(&published), now()), Change::Accepted);
            serials.push(serial(&holder).to_owned());
        }
        serials.sort();
        serials.dedup();
        assert_eq!(serials.len(), 21);
        assert_eq!(holder.observe(Some(&first), Some(&published), now()), Change::Accepted, "back to the first");
    }

    #[test]
    fn same_certificates_in_another_order_are_no_change() {
        let (root, other) = (new_root(), new_root());
        let (mut holder, _) = holding(&root);
        let mut secret = below(&root, &[&root, &other]);
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::Accepted, "another root");
        let before = serial(&holder).to_owned();
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::None, "the same bytes");
        let roots: [&CertificateDer<'_>; 3] = [&other.certificate, &root.certificate, &other.certificate];
        set(&mut secret, "ca.crt", &format!("# comment\n{}", pem::certificates(roots)));
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::None, "the roots in another order");
        let issuer = holder.current().unwrap().issuer.chain()[0].clone();
        set(&mut secret, "tls.crt", &pem::certificates([&root.certificate, &issuer]));
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::None, "with the root before the issuer");
        assert_eq!(serial(&holder), before);
    }

    #[test]
    fn deleted_secret_changes_nothing_until_it_is_created_again() {
        let root = new_root();
        let (mut holder, secret) = holding(&root);
        let before = serial(&holder).to_owned();
        let Change::Refused(problem) = holder.observe(None, None, now()) else { panic!("it must be told") };
        assert!(problem.message.contains("does not exist: the last good issuer stays in use"), "{}", problem.message);
        assert_eq!(holder.observe(None, None, now()), Change::None, "it is told once");
        assert_eq!(serial(&holder), before);
        assert_eq!(holder.observe(Some(&secret), None, now()), Change::Accepted, "the same one again");
        assert_eq!(serial(&holder), before);
        holder.observe(None, None, now());
        assert_eq!(holder.observe(Some(&below(&root, &[&root])), None, now()), Change::Accepted, "another one");
        assert_ne!(serial(&holder), before);
        assert_eq!(holder.problem(), None);
    }

    #[test]
    fn secrets_that_cannot_be_used_are_refused_with_field_and_remedy() {
        let (root, other) = (new_root(), new_root());
        let good = below(&root, &[&root]);
        let change = |field: &str, text: &str| {
            let mut secret = good.clone();
            set(&mut secret, field, text);
            secret
        };
        let of_other = below(&other, &[&other]);
        let text =
            |secret: &Secret, field: &str| String::from_utf8(secret.data.as_ref().unwrap()[field].0.clone()).unwrap();
        let mut without = good.clone();
        without.data = None;
        let expired = {
            let long_ago = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000));
            let root = Authority::root(&domain(), long_ago).unwrap();
            secret::issuer(&root, &root.intermediate(&domain(), long_ago).unwrap(), None)
        };
        let cut = &text(&good, "tls.crt")[..200];
        for (desc, secret, expected) in [
            ("no data", without, "tls.crt is missing: an issuer has"),
            ("no roots", change("ca.crt", ""), "ca.crt is missing"),
            ("roots of another kind", change("ca.crt", "x"), "ca.crt: trust domain cluster.local has no root"),
            ("a damaged certificate", change("tls.crt", cut), "tls.crt is not PEM: put the whole file"),
            ("a damaged key", change("tls.key", "x"), "tls.key is not PEM: put the whole file"),
            ("the key of another", change("tls.key", &text(&of_other, "tls.key")), "both must be those of one issuer"),
            ("the certificate of another", change("tls.crt", &text(&of_other, "tls.crt")), "that of the private key"),
            (
                "the roots of another",
                change("ca.crt", &text(&of_other, "ca.crt")),
                "ca.crt must have the root of tls.crt",
            ),
            ("expired", expired, "expired at 2024-11-13T22:13:20Z; renew it"),
            ("a root that expired", below_expired_root(), "it expired at 2021-01-01T00:00:00Z"),
            ("the same, remedy", below_expired_root(), "bring an issuer below another one"),
            ("another root altogether", of_other.clone(), "put that root into ca.crt beside the old one first"),
        ] {
            let (mut holder, _) = holding(&root);
            let before = serial(&holder).to_owned();
            let change = holder.observe(Some(&secret), Some(&bundle(&[&root])), now());
            let Change::Refused(problem) = change else { panic!("{desc}: {change:?}") };
            assert!(problem.message.contains(expected), "{desc}: {}", problem.message);
            assert_eq!(serial(&holder), before, "{desc}: the last good one stays");
            assert!(!problem.message.contains("PRIVATE"), "{desc}: no key is told");
            assert_eq!(holder.observe(Some(&good), Some(&bundle(&[&root])), now()), Change::Accepted, "{desc}: mended");
        }
    }

    #[test]
    fn root_is_changed_in_three_steps() {
        let (old, new) = (new_root(), new_root());
        let (mut holder, _) = holding(&old);
        let refused = holder.observe(Some(&below(&new, &[&new])), Some(&bundle(&[&old])), now());
        assert!(matches!(refused, Change::Refused(Problem { reason: "IssuerNotYetTrusted", .. })), "{refused:?}");
        let both = holder.observe(Some(&below(&new, &[&old, &new])), Some(&bundle(&[&old])), now());
        assert_eq!(both, Change::None, "both at once, for the same reason");
        assert!(holder.problem().is_some());
        for (desc, secret, published) in [
            ("both roots", below(&old, &[&old, &new]), bundle(&[&old])),
            ("the new issuer", below(&new, &[&old, &new]), bundle(&[&old, &new])),
            ("the new root alone", below(&new, &[&new]), bundle(&[&old, &new])),
        ] {
            assert_eq!(holder.observe(Some(&secret), Some(&published), now()), Change::Accepted, "{desc}");
        }
    }
}
