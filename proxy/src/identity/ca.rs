//! The certificate authority as the source of this pod's identity: a new key for each certificate, which is requested
//! when half of the life of the last one is over, and as often as it takes. A failure never removes a certificate: it
//! is in use until it expires.

use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use weft_balance::Rng;
use weft_identity::request::{Answer, Pending};
use weft_identity::{SpiffeId, UnixTime, pem, rfc3339};
use weft_runtime::readiness::Part;

use super::authority::{self, Authority};
use super::schedule::Schedule;
use super::trust::Trust;
use super::{Error as IdentityError, Identity, Slot};
use crate::telemetry::identity::IdentityMetrics;

/// Time since the epoch, by the wall clock.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// Keeps the identity of this pod.
pub(crate) struct Ca {
    authority: Authority,
    id: SpiffeId,
    trust: Arc<Trust>,
    slot: Arc<Slot>,
    metrics: IdentityMetrics,
    part: Part,
    clock: Clock,
    rng: Rng,
    schedule: Schedule,
    /// The certificate in use with its key, for when the roots change.
    certified: Option<CertifiedKey>,
    /// Why the last request failed.
    failure: Option<Error>,
}

/// Why there is no new certificate. None of the texts has a token or a key.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot generate a key")]
    Key,
    #[error(transparent)]
    Request(#[from] authority::Error),
    #[error("the authority has issued no usable certificate: {0}")]
    Certificate(String),
    #[error("the authority has issued a certificate that is not usable: {0}")]
    Identity(#[from] IdentityError),
    #[error("the authority has issued a certificate for {0}, and this pod is another workload")]
    OtherIdentity(SpiffeId),
}

// === impl Ca ===

impl Ca {
    /// A source that requests certificates for `id`.
    pub(crate) fn new(
        authority: Authority,
        id: SpiffeId,
        trust: Arc<Trust>,
        slot: Arc<Slot>,
        metrics: IdentityMetrics,
        part: Part,
        clock: Clock,
    ) -> Self {
        part.report(false, &format!("no certificate for {id} yet"));
        // Pods that start together are told apart by their keys' source of randomness, and by nothing else.
        let mut seed = [0; 8];
        let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        if random.fill(&mut seed).is_err() {
            seed = std::process::id().to_be_bytes().repeat(2).try_into().unwrap_or_default();
        }
        Self {
            authority,
            id,
            trust,
            slot,
            metrics,
            part,
            clock,
            rng: Rng::new(u64::from_be_bytes(seed)),
            schedule: Schedule::default(),
            certified: None,
            failure: None,
        }
    }

    /// Keeps the identity up to date. Does not return.
    pub(crate) async fn run(mut self) {
        let mut trust = self.trust.subscribe();
        loop {
            if self.schedule.is_due(self.now()) {
                let renewed = self.renew().await;
                self.conclude(renewed);
            }
            tokio::select! {
                () = tokio::time::sleep(self.schedule.wait(self.now())) => {}
                Ok(()) = trust.changed() => self.use_new_roots(),
            }
        }
    }

    fn now(&self) -> Duration {
        (self.clock)()
    }

    async fn renew(&self) -> Result<(CertifiedKey, Identity), Error> {
        let pending = Pending::generate().map_err(|_| Error::Key)?;
        let answer =
            self.authority.request(self.trust.of_authority(), self.trust.authority(), pending.request()).await?;
        self.check(pending, answer)
    }

    /// The certificate of an answer, if it is for this key and this pod, and peers accept it.
    fn check(&self, pending: Pending, answer: Answer) -> Result<(CertifiedKey, Identity), Error> {
        let Answer { chain, bundle } = answer;
        let unusable = |error: &dyn std::fmt::Display| Error::Certificate(error.to_string());
        let chain = pem::read_certificates(chain.as_bytes()).map_err(|error| unusable(&error))?;
        let certified = pending.certified(chain).map_err(|error| unusable(&error))?;
        // The authority has proven itself under a root that is held, so it may add others.
        self.trust.begin_with(bundle);
        let bundle = self.trust.held().bundle().cloned().ok_or_else(|| unusable(&"there are no roots"))?;
        let identity = Identity::new(certified.clone(), bundle, unix(self.now()))?;
        if identity.id != self.id {
            return Err(Error::OtherIdentity(identity.id));
        }
        Ok((certified, identity))
    }

    fn conclude(&mut self, renewed: Result<(CertifiedKey, Identity), Error>) {
        let (now, random) = (self.now(), self.random());
        match renewed {
            Ok((certified, identity)) => {
                self.schedule.issued(now, since_epoch(identity.not_after), random);
                self.metrics.issued(identity.not_after);
                self.certified = Some(certified);
                self.slot.set(identity);
                self.failure = None;
            }
            Err(error) => {
                let not_after = self.slot.load().map(|identity| since_epoch(identity.not_after));
                self.schedule.failed(now, not_after, random);
                self.metrics.failed(error.outcome());
                let is_new = self.failure.as_ref().is_none_or(|failure| failure.outcome() != error.outcome());
                if is_new {
                    let in_use = self.in_use();
                    tracing::error!(%error, in_use, "no certificate for this pod, retrying");
                }
                self.failure = Some(error);
            }
        }
        self.report();
    }

    /// The same certificate with the roots of now.
    fn use_new_roots(&mut self) {
        let in_use = self.slot.load().map(|identity| identity.bundle.clone());
        let bundle = self.trust.held().bundle().cloned().filter(|bundle| in_use.as_ref() != Some(bundle));
        if let (Some(certified), Some(bundle)) = (&self.certified, bundle) {
            match Identity::new(certified.clone(), bundle, unix(self.now())) {
                Ok(identity) => self.slot.set(identity),
                // Its root is not trusted any more. With the old roots it may last until there is a new one.
                Err(error) => {
                    tracing::error!(%error, "the certificate of this pod does not fit the new roots, requesting another");
                    self.schedule.retry();
                }
            }
        }
        if self.failure.is_some() {
            self.schedule.retry();
        }
    }

    fn in_use(&self) -> String {
        let Some(identity) = self.slot.load() else { return "there is none yet".to_owned() };
        let until = rfc3339(identity.not_after);
        match since_epoch(identity.not_after) > self.now() {
            true => format!("the last one is in use until {until}"),
            false => format!("the last one expired at {until}"),
        }
    }

    /// Ready from the first certificate on. An outage of the authority, however long, does not take the pod out of its
    /// Services: all others would be out as well.
    fn report(&self) {
        let failure = self.failure.as_ref().map(|failure| format!("; no new one: {failure}")).unwrap_or_default();
        self.part.report(self.slot.load().is_some(), &format!("{}: {}{failure}", self.id, self.in_use()));
    }

    fn random(&mut self) -> f64 {
        f64::from(self.rng.below(u32::MAX)) / f64::from(u32::MAX)
    }
}

fn unix(since_epoch: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(since_epoch)
}

fn since_epoch(at: UnixTime) -> Duration {
    Duration::from_secs(at.as_secs())
}

// === impl Error ===

impl Error {
    /// The label of the metric.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Request(error) => error.outcome(),
            Self::Certificate(_) | Self::Identity(_) | Self::OtherIdentity(_) => "certificate",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use tokio::task::JoinHandle;
    use weft_runtime::readiness::Readiness;

    use super::super::fake::{Behaviour, Fake, OPERATOR, POD, Root, TOKEN, id, machine_time, token_file};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A pod whose clock can be moved.
    struct Pod {
        slot: Arc<Slot>,
        trust: Arc<Trust>,
        readiness: Readiness,
        registry: Registry,
        ahead: Arc<AtomicU64>,
        task: JoinHandle<()>,
    }

    impl Pod {
        fn start(url: &str, root: &Root, token: &Path) -> Self {
            let (mut registry, readiness) = (Registry::default(), Readiness::default());
            let metrics = IdentityMetrics::new(&mut registry);
            let pod = id(POD);
            let trust =
                Trust::new(pod.trust_domain().clone(), id(OPERATOR), root.fingerprints(), None, metrics.clone());
            let (trust, slot) = (Arc::new(trust), Arc::new(Slot::new(true)));
            let ahead: Arc<AtomicU64> = Arc::default();
            let seconds = ahead.clone();
            let clock = Box::new(move || machine_time() + Duration::from_secs(seconds.load(Ordering::Relaxed)));
            let authority = Authority::new(url, token.to_owned()).expect("a URL");
            let part = readiness.part("identity");
            let ca = Ca::new(authority, pod, trust.clone(), slot.clone(), metrics, part, clock);
            Self { slot, trust, readiness, registry, ahead, task: tokio::spawn(ca.run()) }
        }

        fn metrics(&self) -> String {
            let mut page = String::new();
            text::encode(&mut page, &self.registry).expect("encodes");
            page
        }

        fn renewals(&self, outcome: &str) -> u64 {
            let name = format!("weft_identity_renewals_total{{outcome=\"{outcome}\"}} ");
            let page = self.metrics();
            page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().expect("a number"))
        }

        fn not_after(&self) -> Option<u64> {
            self.slot.load().map(|identity| identity.not_after.as_secs())
        }

        async fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
            let begun = Instant::now();
            while !is_so(self) {
                assert!(begun.elapsed() < Duration::from_secs(5), "never {what}: {}", self.readiness.detail());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    impl Drop for Pod {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// ID-12
    #[tokio::test]
    async fn id_12_pod_is_not_ready_before_the_first_certificate_and_stays_ready_after_it() {
        let (root, token) = (Root::new(), token_file("first", TOKEN));
        let refusal = Some((503, "there is no issuer".to_owned()));
        let fake = Fake::start(&root, Behaviour { refusal: refusal.clone(), ..Behaviour::new(&root) }).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("refused", |pod| pod.renewals("unavailable") > 1).await;
        assert!(!pod.readiness.is_ready() && pod.slot.load().is_none());
        let detail = pod.readiness.detail();
        assert!(detail.contains("refuses with 503") && detail.contains("there is no issuer"), "{detail}");
        assert!(pod.metrics().contains("weft_identity_expiry_timestamp_seconds 0\n"), "{}", pod.metrics());

        fake.change(|behaviour| behaviour.refusal = None);
        pod.until("certified", |pod| pod.readiness.is_ready()).await;
        assert_eq!(pod.slot.load().map(|identity| identity.id.clone()), Some(id(POD)));
        let expiry = format!("weft_identity_expiry_timestamp_seconds {}\n", pod.not_after().expect("an identity"));
        assert!(pod.metrics().contains(&expiry), "{expiry}: {}", pod.metrics());

        fake.change(|behaviour| behaviour.refusal = refusal);
        pod.ahead.store(30 * DAY.as_secs(), Ordering::Relaxed);
        pod.until("refused", |pod| pod.readiness.detail().contains("expired at")).await;
        assert!(pod.readiness.is_ready(), "the pods of a Service are not all taken out of it");
    }

    /// ID-10
    #[tokio::test]
    async fn id_10_token_is_sent_only_to_the_authority_under_a_root_that_is_held() {
        let (root, stranger, token) = (Root::new(), Root::new(), token_file("stranger", TOKEN));
        let other = Behaviour { own_id: id("spiffe://cluster.local/ns/shop/sa/web"), ..Behaviour::new(&root) };
        for (desc, fake) in [
            ("another workload of the mesh", Fake::start(&root, other).await),
            ("the same name under another root", Fake::start(&stranger, Behaviour::new(&stranger)).await),
        ] {
            let pod = Pod::start(&fake.url(), &root, &token);
            pod.until(desc, |pod| pod.renewals("untrusted") > 0).await;
            assert_eq!((fake.requests(), pod.slot.load().is_none()), (0, true), "{desc}");
            let detail = pod.readiness.detail();
            assert!(detail.contains("does not prove to be the authority"), "{desc}: {detail}");
        }
    }

    /// ID-08
    #[tokio::test]
    async fn id_08_refused_token_is_told_and_the_file_is_read_again() {
        let (root, token) = (Root::new(), token_file("refused", "eyJ-of-somebody-else"));
        let fake = Fake::start(&root, Behaviour::new(&root)).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("refused", |pod| pod.renewals("refused") > 0).await;
        let detail = pod.readiness.detail();
        assert!(detail.contains("401") && detail.contains("the token is not accepted"), "{detail}");
        assert!(!detail.contains("eyJ"), "{detail}");
        std::fs::write(&token, TOKEN).expect("written");
        pod.until("certified", |pod| pod.readiness.is_ready()).await;
    }

    #[tokio::test]
    async fn certificates_for_others_or_for_other_keys_are_refused() {
        let (root, token) = (Root::new(), token_file("other", TOKEN));
        let other = Behaviour { issued_id: id("spiffe://cluster.local/ns/shop/sa/admin"), ..Behaviour::new(&root) };
        let fake = Fake::start(&root, other).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("refused", |pod| pod.renewals("certificate") > 0).await;
        assert!(pod.slot.load().is_none());
        let detail = pod.readiness.detail();
        assert!(detail.contains("spiffe://cluster.local/ns/shop/sa/admin"), "{detail}");
    }

    #[tokio::test]
    async fn authority_may_be_away_for_half_of_the_life_of_a_certificate() {
        let (root, token) = (Root::new(), token_file("away", TOKEN));
        let short = Behaviour { lifetime: Duration::from_secs(8), ..Behaviour::new(&root) };
        let fake = Fake::start(&root, short.clone()).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("certified", |pod| pod.slot.load().is_some()).await;
        let (first, key) = (pod.not_after().expect("an identity"), fake.keys()[0].clone());
        let address = fake.stop().await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let left = pod.not_after().expect("never dropped").saturating_sub(machine_time().as_secs());
            assert!(left > 0, "expired");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(pod.renewals("unreachable") > 0, "a renewal was due: {}", pod.metrics());
        let fake = Fake::start_at(address, &root, short).await;
        pod.until("renewed", |pod| pod.not_after() > Some(first)).await;
        assert!(machine_time().as_secs() < first, "before the first one expired");
        assert_ne!(fake.keys()[0], key, "with a key of its own");
    }

    #[tokio::test]
    async fn pod_that_slept_for_days_has_a_certificate_within_five_seconds() {
        let (root, token) = (Root::new(), token_file("slept", TOKEN));
        let fake = Fake::start(&root, Behaviour::new(&root)).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("certified", |pod| pod.slot.load().is_some()).await;
        let later = machine_time() + 3 * DAY;
        fake.change(|behaviour| behaviour.now = Some(later));
        pod.ahead.store(3 * DAY.as_secs(), Ordering::Relaxed);
        pod.until("certified again", |pod| pod.not_after() > Some(later.as_secs())).await;
        assert_eq!(pod.renewals("issued"), 2);
    }

    #[tokio::test]
    async fn clock_may_be_off_by_a_minute_and_an_error_names_the_offset_of_a_day() {
        let token = token_file("clock", TOKEN);
        let now = machine_time();
        let minute = Duration::from_secs(60);
        for (desc, of_authority, expected) in [
            ("a minute behind", now + minute, None),
            ("a minute ahead", now - minute, None),
            ("a day behind", now + DAY, Some(("earlier; a clock is wrong", DAY.as_secs() - 60))),
            ("two days ahead", now - 2 * DAY, Some(("later; either it was not renewed, or a clock", DAY.as_secs()))),
        ] {
            let root = Root::at(of_authority);
            let fake = Fake::start(&root, Behaviour { now: Some(of_authority), ..Behaviour::new(&root) }).await;
            let pod = Pod::start(&fake.url(), &root, &token);
            let Some((expected, seconds)) = expected else {
                pod.until(desc, |pod| pod.readiness.is_ready()).await;
                continue;
            };
            pod.until(desc, |pod| pod.renewals("untrusted") > 0).await;
            let detail = pod.readiness.detail();
            assert!(detail.contains(expected), "{desc}: {detail}");
            let offset = detail.split(" s ").next().and_then(|before| before.rsplit(' ').next());
            let offset: u64 = offset.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{desc}: {detail}"));
            assert!(offset.abs_diff(seconds) < 10, "{desc}: {offset}, not {seconds}: {detail}");
        }
    }

    #[tokio::test]
    async fn new_roots_are_used_with_the_same_certificate() {
        let (root, other, token) = (Root::new(), Root::new(), token_file("roots", TOKEN));
        let fake = Fake::start(&root, Behaviour::new(&root)).await;
        let pod = Pod::start(&fake.url(), &root, &token);
        pod.until("certified", |pod| pod.slot.load().is_some()).await;
        let both = Root::bundle(&[&root, &other]);
        pod.trust.hold(both.clone());
        pod.until("new roots", |pod| pod.slot.load().is_some_and(|identity| *identity.bundle == both)).await;
        assert_eq!(pod.renewals("issued"), 1);
        pod.trust.begin_with(Root::bundle(&[&root]));
        assert_eq!(pod.trust.held().bundle().map(|bundle| (**bundle).clone()), Some(both), "a document counts more");
    }
}
