//! Follows the Secrets of the authority and the trust document, in every replica, and writes them while this process is
//! the leader. All three are watched by name, so that edits and deletions count within a second. An issuer that is in the
//! files of a directory is never generated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_config::bootstrap;
use weft_crds::names;
use weft_identity::authority::{self, Authority};
use weft_identity::{SpiffeId, TrustBundle, TrustDomain, UnixTime, rfc3339};
use weft_runtime::readiness::Part;

use super::domain;
use super::files;
use super::holder::{Change, Holder, Problem};
use super::lifecycle::{self, Action, Found};
use super::secret::{self, Issuing};
use super::trust;
use crate::apply::{self, call};
use crate::events::{Event, Object, Recorder, Severity};
use crate::lease;
use crate::metrics::Metrics;
use crate::signing::Signing;
use crate::watch::watch_one;
use crate::world::objects::RawMeshObject;
use crate::world::{Document, Key};

/// Interval of checks without events: of the issuer's dates.
const CHECK_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// What the store needs.
pub struct Store {
    /// Client of the API server.
    pub client: Client,
    /// Namespace of the Secrets.
    pub namespace: String,
    /// Where the issuer is, if not in its Secret.
    pub directory: Option<PathBuf>,
    /// Trust domain of the cluster.
    pub domain: TrustDomain,
    /// The operator's own identity, which signs the trust document.
    pub own_id: SpiffeId,
    /// Whether this process is the leader.
    pub lease: watch::Receiver<lease::State>,
    /// Where Events go.
    pub recorder: Recorder,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Readiness of this part: there is an issuer.
    pub part: Part,
    /// The issuer in use, for the server.
    pub issuing: watch::Sender<Option<Arc<Issuing>>>,
    /// What signs documents, for the writer.
    pub signing: watch::Sender<Option<Arc<Signing>>>,
}

/// Why a round failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read Secret {0}")]
    Read(&'static str, #[source] apply::Error),
    #[error("cannot write Secret {0}")]
    Write(&'static str, #[source] apply::Error),
    #[error("cannot read or write the trust document")]
    Trust(#[source] apply::Error),
    #[error("cannot read the Mesh")]
    Mesh(#[source] apply::Error),
    #[error("trust domain {in_force} is in force, and this process started with {own}")]
    OtherDomain { in_force: TrustDomain, own: TrustDomain },
    #[error("cannot make a root or an issuer")]
    Make(#[from] authority::Error),
    #[error("Secret {} cannot be used", names::ROOT_SECRET)]
    Root(#[source] secret::Invalid),
}

// === impl Store ===

impl Store {
    /// Follows until `stop`.
    pub async fn run(mut self, stop: CancellationToken, tasks: TaskTracker) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let documents: Api<ConfigMap> = Api::namespaced(self.client.clone(), bootstrap::EXPORT_NAMESPACE);
        let (changed, mut changes) = mpsc::channel(1);
        let files =
            self.directory.clone().map(|directory| files::follow(directory, changed.clone(), stop.clone(), &tasks));
        if files.is_none() {
            watch_one(secrets.clone(), names::ISSUER_SECRET, changed.clone(), stop.clone(), &tasks);
            watch_one(secrets.clone(), names::ROOT_SECRET, changed.clone(), stop.clone(), &tasks);
        }
        watch_one(documents.clone(), bootstrap::TRUST_NAME, changed.clone(), stop.clone(), &tasks);
        let meshes: Api<RawMeshObject<weft_crds::Mesh>> = Api::all(self.client.clone());
        watch_one(meshes, weft_crds::mesh::NAME, changed, stop.clone(), &tasks);
        self.part.report(false, "there is no issuer yet");

        let mut holder = Holder::new(self.domain.clone());
        let mut told = false;
        let mut leading = false;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => {}
                _ = changes.recv() => {}
                changed = self.lease.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The value changes with every renewal; only an acquisition or loss matters.
                    let now = self.lease.borrow_and_update().epoch().is_some();
                    if now == std::mem::replace(&mut leading, now) {
                        continue;
                    }
                }
            }
            let files = files.as_ref().map(|files| files.borrow().clone());
            let round = self.round(&secrets, files, &documents, &mut holder, &mut told).await;
            let wait = match round {
                Ok(()) => CHECK_INTERVAL,
                // All that this process has is of its own trust domain.
                Err(error @ Error::OtherDomain { .. }) => {
                    tracing::error!(%error, "stopping, to begin again with the trust domain in force");
                    stop.cancel();
                    return;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot reconcile the certificate authority, retrying");
                    RETRY
                }
            };
            next = Instant::now() + wait;
        }
    }

    /// `files`: the issuer, if it is in a directory; `Some(None)` before that was read.
    async fn round(
        &self,
        secrets: &Api<Secret>,
        files: Option<Option<Secret>>,
        documents: &Api<ConfigMap>,
        holder: &mut Holder,
        told: &mut bool,
    ) -> Result<(), Error> {
        let is_generated = files.is_none();
        let found = match files {
            Some(None) => return Ok(()),
            Some(files) => files,
            None => read(secrets, names::ISSUER_SECRET).await?,
        };
        let document = call(documents.get_opt(bootstrap::TRUST_NAME)).await.map_err(Error::Trust)?.map(Document::from);
        let published = document.as_ref().and_then(trust::read);

        let other = published.as_ref().and_then(TrustBundle::only_domain).filter(|in_force| **in_force != self.domain);
        // The leader that has issued certificates has written the domain: somebody else has changed the document since.
        let is_mine = holder.current().is_some() && self.lease.borrow().epoch().is_some();
        if let Some(in_force) = other.filter(|_| !is_mine) {
            return Err(Error::OtherDomain { in_force: in_force.clone(), own: self.domain.clone() });
        }
        let mesh = domain::read_mesh(&self.client).await.map_err(Error::Mesh)?;
        let in_use = holder.current().map(|current| &current.bundle).or(published.as_ref());
        let further = trust::further_roots(mesh.as_ref(), in_use, &self.domain);
        holder.trust(further);

        let now = UnixTime::now();
        match holder.observe(found.as_ref(), published.as_ref(), now) {
            Change::None => {}
            Change::Accepted => self.accepted(holder, found.as_ref(), std::mem::take(told)),
            Change::Refused(problem) => *told |= self.refused(holder, found.as_ref(), &problem),
        }
        let epoch = self.lease.borrow().epoch();
        self.report(holder, found.is_none() && epoch.is_none(), now);

        let Some(epoch) = epoch else { return Ok(()) };
        let current = holder.current().cloned();
        if is_generated {
            let is_current = holder.problem().is_none();
            self.generate(secrets, found.as_ref(), current.as_deref(), is_current, published.as_ref(), now).await?;
        }

        let Some(current) = current else { return Ok(()) };
        let Some(signing) = self.signing.borrow().clone() else { return Ok(()) };
        if let Some(next) = trust::plan(&current.bundle, &signing, document.as_ref(), epoch, now) {
            apply::document(&self.client, next, document.as_ref()).await.map_err(Error::Trust)?;
            tracing::info!(document = bootstrap::TRUST_NAME, "trust bundle written");
        }
        Ok(())
    }

    /// Makes the root or the issuer, where nobody else may.
    async fn generate(
        &self,
        secrets: &Api<Secret>,
        found: Option<&Secret>,
        current: Option<&Issuing>,
        is_current: bool,
        published: Option<&TrustBundle>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let root = read(secrets, names::ROOT_SECRET).await?;
        let root = root.as_ref().map(secret::read_root).transpose();
        // Without its key the issuer lives on: the root is needed only to renew it.
        let root = if found.is_some() { root.ok().flatten() } else { root.map_err(Error::Root)? };
        let decision = lifecycle::decide(
            &Found {
                domain: &self.domain,
                has_issuer: found.is_some(),
                current: current.map(|current| &current.issuer),
                is_current,
                root: root.as_ref().map(|root| &root.certificate),
                published,
            },
            now,
        );
        match (decision, root) {
            (Action::MakeRoot, _) => {
                let root = Authority::root(&self.domain, now)?;
                self.write(secrets, names::ROOT_SECRET, secret::root(&root)).await?;
                self.make_issuer(secrets, &root, None, now).await
            }
            (Action::MakeIssuer, Some(root)) => self.make_issuer(secrets, &root, found, now).await,
            _ => Ok(()),
        }
    }

    /// Makes an issuer. The watch of its Secret brings it into use, here and in the other replicas.
    async fn make_issuer(
        &self,
        secrets: &Api<Secret>,
        root: &Authority,
        found: Option<&Secret>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let issuer = root.intermediate(&self.domain, now)?;
        self.write(secrets, names::ISSUER_SECRET, secret::issuer(root, &issuer, found)).await
    }

    /// Creates a Secret, or replaces the version of it that was read.
    async fn write(&self, secrets: &Api<Secret>, name: &'static str, secret: Secret) -> Result<(), Error> {
        let written = match &secret.metadata.resource_version {
            Some(_) => call(secrets.replace(name, &PostParams::default(), &secret)).await,
            None => call(secrets.create(&PostParams::default(), &secret)).await,
        };
        written.map_err(|error| Error::Write(name, error))?;
        tracing::info!(secret = name, "generated and written");
        Ok(())
    }

    /// Brings the issuer into use; says so in an Event if a problem was `told` before.
    fn accepted(&self, holder: &Holder, found: Option<&Secret>, told: bool) {
        let Some(current) = holder.current() else { return };
        let (issuer, until) = (&current.issuer, rfc3339(current.issuer.not_after()));
        tracing::info!(serial = issuer.serial(), not_after = until, "issuer in use");
        self.metrics.issuer_certificate_expiry.set(i64::try_from(issuer.not_after().as_secs()).unwrap_or(i64::MAX));
        let is_new = self.issuing.send_if_modified(|sent| {
            let is_new = sent.as_ref().is_none_or(|sent| !Arc::ptr_eq(sent, current));
            sent.clone_from(&Some(current.clone()));
            is_new
        });
        if is_new {
            match Signing::new(issuer, &current.bundle, &self.own_id, UnixTime::now()) {
                Ok(signing) => drop(self.signing.send_replace(Some(Arc::new(signing)))),
                Err(error) => tracing::error!(%error, "the issuer cannot certify the key that signs documents"),
            }
        }
        if told {
            let note = format!("certificates are issued by {} until {until}", issuer.serial());
            self.tell(found, Severity::Normal, "IssuerAccepted", note);
        }
    }

    /// Tells a problem. False: there is nobody to tell it to.
    fn refused(&self, holder: &Holder, found: Option<&Secret>, problem: &Problem) -> bool {
        let Problem { reason, message } = problem;
        // At the first start there is no Secret until the leader makes it.
        if holder.current().is_none() && found.is_none() {
            tracing::info!(reason, message, "no issuer yet");
            return false;
        }
        tracing::error!(place = self.place(), reason, message, "issuer refused, the last good one stays in use");
        let in_use = holder.current().map_or("no certificates are issued".to_owned(), |current| {
            let issuer = &current.issuer;
            format!("the last good issuer {} stays in use until {}", issuer.serial(), rfc3339(issuer.not_after()))
        });
        self.tell(found, Severity::Warning, reason, format!("{message} ({in_use})"))
    }

    /// Records an Event on the Secret. False: there is none.
    fn tell(&self, found: Option<&Secret>, severity: Severity, reason: &str, note: String) -> bool {
        let Some(uid) = found.and_then(|secret| secret.metadata.uid.clone()) else { return false };
        let regarding = Object {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            key: Key::new(&*self.namespace, names::ISSUER_SECRET),
            uid,
        };
        let reason = reason.to_owned();
        let event = Event { regarding, related: None, severity, reason, action: "ReadIssuer", note, repeats: true };
        self.recorder.record(vec![event]);
        true
    }

    /// Where the issuer is, for people.
    fn place(&self) -> String {
        match &self.directory {
            Some(directory) => format!("directory {}", directory.display()),
            None => format!("Secret {}/{}", self.namespace, names::ISSUER_SECRET),
        }
    }

    /// `waits`: a standby before the leader has made an issuer. It is ready: the leader may be an operator of a version
    /// that makes none, which is replaced only when this one is ready.
    fn report(&self, holder: &Holder, waits: bool, now: UnixTime) {
        self.metrics.issuer_refused.set(i64::from(holder.problem().is_some()));
        let problem =
            holder.problem().map_or(String::new(), |problem| format!("{} refused: {}", self.place(), problem.message));
        match holder.current() {
            Some(current) => {
                let until = rfc3339(current.issuer.not_after());
                let state = format!("issuer {} until {until}", current.issuer.serial());
                let detail = if problem.is_empty() { state } else { format!("{state}; {problem}") };
                // One that has expired cannot issue.
                self.part.report(current.issuer.not_after() > now, &detail);
            }
            None => self.part.report(waits, &problem),
        }
    }
}

async fn read(secrets: &Api<Secret>, name: &'static str) -> Result<Option<Secret>, Error> {
    call(secrets.get_opt(name)).await.map_err(|error| Error::Read(name, error))
}
