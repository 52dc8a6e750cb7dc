//! Which roots this proxy holds. It begins with the fingerprints that the injector gave to the pod, and takes other
//! roots only from somebody who proves an identity of the authority under a root that it holds: the authority itself,
//! as the server of a connection, or a signature of the document `trust`. Whoever may write ConfigMaps cannot make it
//! trust a root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_config::{Header, bootstrap as contract};
use weft_identity::sign::{self, Signature};
use weft_identity::{Fingerprint, SpiffeId, TrustBundle, TrustDomain, tls};

use crate::telemetry::identity::IdentityMetrics;

/// The file with the fingerprints of the roots held, in the folder of cached documents.
const FILE: &str = "roots.json";

/// The roots of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Fingerprints of the roots of the pod's own trust domain: at least one.
    roots: BTreeSet<Fingerprint>,
    /// All roots. None: only fingerprints are known yet.
    bundle: Option<Arc<TrustBundle>>,
    /// Whether the bundle is that of a signed document, and not of an answer of the authority.
    is_document: bool,
}

/// Keeps the roots.
#[derive(Debug)]
pub(crate) struct Trust {
    domain: TrustDomain,
    /// Who signs documents and certificates.
    authority: SpiffeId,
    /// The fingerprints that the pod was created with.
    first: BTreeSet<Fingerprint>,
    held: watch::Sender<Held>,
    file: Option<PathBuf>,
    metrics: IdentityMetrics,
}

/// What is on disk, so that a container that restarts holds what it held before, also when all roots with which the
/// pod was created are gone meanwhile. Only the proxy's container has the folder.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// What the pod was created with: with other ones, this is not the file of this pod.
    first: Vec<String>,
    held: Vec<String>,
}

/// Why a document is not taken. The last good one stays in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it has no root of trust domain {0}, which is that of this pod")]
    NoRoots(TrustDomain),
    #[error("it is not signed")]
    Unsigned,
    #[error("no root is known yet by which its signature could be verified")]
    NotYet,
    #[error(
        "none of the roots that this proxy holds ({held}) is in it or in use: if this change of the roots is intended, \
         restart the pod, which then begins with the new ones"
    )]
    NoneHeld { held: String },
    #[error(
        "no root that this proxy holds ({held}) vouches for it: {error}; if this change of the roots is intended, \
         restart the pod, which then begins with the new ones"
    )]
    Signature { held: String, error: Box<sign::Error> },
}

// === impl Trust ===

impl Trust {
    /// Trust that begins with the fingerprints `first`, or with what a process of the same pod has saved in `folder`.
    pub(crate) fn new(
        domain: TrustDomain,
        authority: SpiffeId,
        first: BTreeSet<Fingerprint>,
        folder: Option<&Path>,
        metrics: IdentityMetrics,
    ) -> Self {
        let file = folder.map(|folder| folder.join(FILE));
        let roots = file.as_deref().and_then(|file| load(file, &first)).unwrap_or_else(|| first.clone());
        let held = watch::Sender::new(Held { roots, bundle: None, is_document: false });
        Self { domain, authority, first, held, file, metrics }
    }

    /// The roots of now.
    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Hears of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Held> {
        self.held.subscribe()
    }

    /// Who signs documents and certificates.
    pub(crate) fn authority(&self) -> &SpiffeId {
        &self.authority
    }

    /// Whom a connection to the authority must prove itself by.
    pub(crate) fn of_authority(&self) -> tls::Trust {
        let Held { roots, bundle, .. } = self.held();
        match bundle {
            Some(bundle) => tls::Trust::Bundle(bundle),
            None => tls::Trust::Fingerprints(self.domain.clone(), roots),
        }
    }

    /// Whether the document `name` with this header was written by the authority. Nothing can be said before the roots
    /// are known.
    pub(crate) fn check(&self, name: &str, header: &Header, now: UnixTime) -> Result<(), Refusal> {
        let bundle = self.held().bundle.ok_or(Refusal::NotYet)?;
        self.check_signature(name, header, &bundle, now)
    }

    /// Whether the document `trust` with this header may be taken.
    pub(crate) fn check_roots(&self, header: &Header, bundle: &TrustBundle, now: UnixTime) -> Result<(), Refusal> {
        let checked = self.check_bundle(header, bundle, now);
        if let Err(refusal) = &checked {
            self.metrics.refuse_bundle(refusal.reason());
        }
        checked
    }

    fn check_bundle(&self, header: &Header, bundle: &TrustBundle, now: UnixTime) -> Result<(), Refusal> {
        if bundle.roots(&self.domain).is_empty() {
            return Err(Refusal::NoRoots(self.domain.clone()));
        }
        let held = self.held();
        let known = held.bundle.iter().flat_map(|bundle| bundle.roots(&self.domain));
        // A root whose fingerprint is held may come from anywhere, so also from the document itself.
        let roots = known.chain(bundle.roots(&self.domain)).filter(|root| held.roots.contains(&root.fingerprint()));
        let roots = TrustBundle::new(self.domain.clone(), roots.map(|root| root.certificate().clone()));
        let roots = roots.map_err(|_| Refusal::NoneHeld { held: list(&held.roots) })?;
        self.check_signature(contract::TRUST_NAME, header, &roots, now)
    }

    fn check_signature(&self, name: &str, header: &Header, roots: &TrustBundle, now: UnixTime) -> Result<(), Refusal> {
        if header.signature.is_empty() {
            return Err(Refusal::Unsigned);
        }
        (header.signature.parse::<Signature>())
            .and_then(|signature| signature.verify(&header.signed_bytes(name), &self.authority, roots, now))
            .map_err(|error| Refusal::Signature { held: list(&self.held().roots), error: Box::new(error) })
    }

    /// Takes the bundle of a document that was checked.
    pub(crate) fn hold(&self, bundle: TrustBundle) {
        self.replace(bundle, true);
    }

    /// Takes the bundle in an answer of the authority, until there is a document: documents are in an order, and an
    /// answer may be that of a replica that does not know the newest one.
    pub(crate) fn begin_with(&self, bundle: TrustBundle) {
        if !self.held.borrow().is_document && !bundle.roots(&self.domain).is_empty() {
            self.replace(bundle, false);
        }
    }

    fn replace(&self, bundle: TrustBundle, is_document: bool) {
        let roots: BTreeSet<Fingerprint> = bundle.fingerprints(&self.domain).collect();
        let next = Held { roots, bundle: Some(Arc::new(bundle)), is_document };
        let before = self.held();
        if before.roots != next.roots {
            tracing::info!(roots = list(&next.roots), before = list(&before.roots), "other roots are trusted now");
            self.save(&next.roots);
        }
        self.held.send_if_modified(|held| {
            let is_new = held.bundle != next.bundle;
            *held = next;
            is_new
        });
    }

    fn save(&self, roots: &BTreeSet<Fingerprint>) {
        let Some(file) = &self.file else { return };
        let texts = |roots: &BTreeSet<Fingerprint>| roots.iter().map(Fingerprint::to_string).collect();
        let saved = Saved { first: texts(&self.first), held: texts(roots) };
        let temporary = file.with_extension("new");
        let written = serde_json::to_vec(&saved).map_err(std::io::Error::from);
        let written = written.and_then(|text| std::fs::write(&temporary, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, file)) {
            tracing::warn!(%error, "cannot save which roots are trusted: a restart begins with those of the pod's creation");
        }
    }
}

/// What a process of this pod has saved.
fn load(file: &Path, first: &BTreeSet<Fingerprint>) -> Option<BTreeSet<Fingerprint>> {
    let parse = |texts: &[String]| texts.iter().map(|text| text.parse().ok()).collect::<Option<BTreeSet<_>>>();
    let saved: Saved = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let held = parse(&saved.held).filter(|held| !held.is_empty());
    held.filter(|_| parse(&saved.first).is_some_and(|saved| saved == *first))
}

fn list(roots: &BTreeSet<Fingerprint>) -> String {
    roots.iter().map(Fingerprint::to_string).collect::<Vec<_>>().join(", ")
}

// === impl Held ===

impl Held {
    /// All roots. None: only fingerprints are known yet.
    pub(crate) fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }
}

// === impl Refusal ===

impl Refusal {
    /// The label of the metric.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoRoots(_) => "no-roots",
            Self::Unsigned => "unsigned",
            Self::NotYet => "not-yet",
            Self::NoneHeld { .. } => "untrusted",
            Self::Signature { error, .. } => match &**error {
                sign::Error::Uncertified(error) => error.reason(),
                sign::Error::Unreadable | sign::Error::Wrong => "signature",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_config::{Envelope, Written};

    use super::super::fake::{OPERATOR, POD, Root, domain, id, machine_time};
    use super::*;

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(machine_time())
    }

    fn trust(first: BTreeSet<Fingerprint>, folder: Option<&Path>) -> Trust {
        Trust::new(domain(), id(OPERATOR), first, folder, IdentityMetrics::default())
    }

    /// A document as it is read: its header and its roots.
    fn document(signer: Option<(&Root, &str)>, name: &str, roots: &[&Root]) -> (Header, TrustBundle) {
        let sign = |message: &[u8]| signer.map(|(root, signer)| root.sign(signer, message)).unwrap_or_default();
        let written = Written { generation: 1, ..Written::default() };
        Envelope::write_signed(written, &Root::bundle(roots), name, sign).read().expect("a document")
    }

    fn offer(trust: &Trust, (header, bundle): (Header, TrustBundle)) -> Result<(), &'static str> {
        trust.check_roots(&header, &bundle, now()).map_err(|refusal| refusal.reason())?;
        trust.hold(bundle);
        Ok(())
    }

    /// ID-05, ID-10: new roots count only with a signature under one that is held.
    #[test]
    fn roots_are_taken_only_under_a_root_that_is_held() {
        let (held, other) = (Root::new(), Root::new());
        let good = |roots: &[&Root]| document(Some((&held, OPERATOR)), "trust", roots);
        let edited = || {
            let (header, bundle) = good(&[&held]);
            (Header { generation: 7, ..header }, bundle)
        };
        let foreign = || {
            let foreign = TrustBundle::new("other".parse().expect("a domain"), [held.root.certificate.clone()]);
            (good(&[&held]).0, foreign.expect("a bundle"))
        };
        for (desc, document, expected) in [
            ("not signed", document(None, "trust", &[&held, &other]), Err("unsigned")),
            ("without any root that is held", document(Some((&other, OPERATOR)), "trust", &[&other]), Err("untrusted")),
            (
                "signed under another root",
                document(Some((&other, OPERATOR)), "trust", &[&held, &other]),
                Err("untrusted"),
            ),
            ("signed by a pod", document(Some((&held, POD)), "trust", &[&held, &other]), Err("other-identity")),
            ("a copy of another document", document(Some((&held, OPERATOR)), "index", &[&held]), Err("signature")),
            ("with an edited header", edited(), Err("signature")),
            ("for another trust domain", foreign(), Err("no-roots")),
            ("good", good(&[&held, &other]), Ok(())),
        ] {
            let trust = trust(held.fingerprints(), None);
            let before = trust.held();
            assert_eq!(offer(&trust, document), expected, "{desc}");
            assert_eq!(trust.held() == before, expected.is_err(), "{desc}: what was held stays");
        }
    }

    /// CP-09: who can write ConfigMaps configures no proxy.
    #[test]
    fn documents_are_taken_only_with_a_signature_of_the_authority() {
        let (held, other) = (Root::new(), Root::new());
        let signed = |root: &Root, signer: &str, name: &str| document(Some((root, signer)), name, &[root]).0;
        let trust = trust(held.fingerprints(), None);
        let check = |header: &Header| trust.check("i.shop", header, now()).map_err(|refusal| refusal.reason());
        assert_eq!(check(&signed(&held, OPERATOR, "i.shop")), Err("not-yet"), "only a fingerprint is known");
        trust.hold(Root::bundle(&[&held]));
        let good = signed(&held, OPERATOR, "i.shop");
        for (desc, header, expected) in [
            ("good", good.clone(), Ok(())),
            ("another generation", Header { generation: 9, ..good.clone() }, Err("signature")),
            ("another body", Header { sha256: "0".repeat(64), ..good.clone() }, Err("signature")),
            ("the document of another namespace", signed(&held, OPERATOR, "i.bank"), Err("signature")),
            ("by a pod", signed(&held, POD, "i.shop"), Err("other-identity")),
            ("under another root", signed(&other, OPERATOR, "i.shop"), Err("untrusted")),
            ("not signed", Header { signature: String::new(), ..good.clone() }, Err("unsigned")),
            ("no signature", Header { signature: "x.y".to_owned(), ..good }, Err("signature")),
        ] {
            assert_eq!(check(&header), expected, "{desc}");
        }
    }

    #[test]
    fn root_is_replaced_in_two_steps_and_the_old_one_counts_no_more() {
        let (old, new) = (Root::new(), Root::new());
        let trust = trust(old.fingerprints(), None);
        let signed = |root: &Root, roots: &[&Root]| document(Some((root, OPERATOR)), "trust", roots);
        assert_eq!(offer(&trust, signed(&old, &[&old, &new])), Ok(()));
        assert_eq!(offer(&trust, signed(&new, &[&old, &new])), Ok(()), "signed again under the new root");
        assert_eq!(offer(&trust, signed(&new, &[&new])), Ok(()));
        assert_eq!(offer(&trust, signed(&old, &[&old, &new])), Err("untrusted"), "the old root cannot come back");
    }

    #[test]
    fn break_glass_pods_that_are_created_again_begin_with_the_new_root_and_others_keep_theirs() {
        let folder = std::env::temp_dir().join(format!("weft-trust-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (old, new) = (Root::new(), Root::new());
        let started_over = || document(Some((&new, OPERATOR)), "trust", &[&new]);
        let running = trust(old.fingerprints(), Some(&folder));
        assert_eq!(offer(&running, document(Some((&old, OPERATOR)), "trust", &[&old])), Ok(()));
        let refusal =
            running.check_roots(&started_over().0, &started_over().1, now()).expect_err("nothing vouches for it");
        assert!(refusal.to_string().contains("restart the pod"), "{refusal}");
        assert_eq!(running.held().roots, old.fingerprints());

        let again = trust(new.fingerprints(), Some(&folder));
        assert_eq!(again.held().roots, new.fingerprints(), "the file of another pod does not count");
        assert_eq!(offer(&again, started_over()), Ok(()));
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn container_that_restarts_holds_what_the_pod_has_learnt() {
        let folder = std::env::temp_dir().join(format!("weft-held-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (old, new) = (Root::new(), Root::new());
        let running = trust(old.fingerprints(), Some(&folder));
        for (root, roots) in [(&old, &[&old, &new][..]), (&new, &[&new])] {
            assert_eq!(offer(&running, document(Some((root, OPERATOR)), "trust", roots)), Ok(()));
        }
        let restarted = trust(old.fingerprints(), Some(&folder));
        assert_eq!(restarted.held().roots, new.fingerprints());
        std::fs::write(folder.join(FILE), "damaged").expect("written");
        assert_eq!(trust(old.fingerprints(), Some(&folder)).held().roots, old.fingerprints());
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
