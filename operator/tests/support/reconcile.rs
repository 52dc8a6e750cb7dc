//! The reconcile loop of a leader.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::{Api, Client};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_operator::events::Recorder;
use weft_operator::lease::State;
use weft_operator::metrics::Metrics;
use weft_operator::reconcile::Reconciler;
use weft_operator::world::{AccessKind, Availability, Change, DocumentKind, Event, Kind, WatchedKind};
use weft_runtime::readiness::Readiness;

/// A loop that runs.
pub(crate) struct Running {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) lease: watch::Sender<State>,
    pub(crate) stop: CancellationToken,
}

/// Starts the loop, as the leader of epoch 1.
pub(crate) fn run(client: &Client) -> Running {
    let metrics = Metrics::register(&mut Registry::default());
    let (lease, leads) = watch::channel(leader(1));
    let (stop, tasks, readiness) = (CancellationToken::new(), TaskTracker::new(), Readiness::default());
    let recorder = Recorder::start(client.clone(), "o".into(), leads.clone(), metrics.clone(), stop.clone(), &tasks);
    let reconciler = Reconciler {
        leases: Api::namespaced(client.clone(), "weft-system"),
        client: client.clone(),
        identity: "o".into(),
        lease: leads,
        signing: watch::channel(None).1,
        metrics,
        recorder,
        to_ask: watch::Sender::new(Vec::new()),
        answers: mpsc::channel(1).1,
        excluded_namespaces: BTreeSet::new(),
        world_part: readiness.part("world"),
        writer_part: readiness.part("writer"),
        stop: stop.clone(),
    };
    let (events, received) = mpsc::channel(64);
    tokio::spawn(reconciler.run(received));
    Running { events, lease, stop }
}

/// A leader's lease.
pub(crate) fn leader(epoch: u64) -> State {
    State::Leader { epoch, until: Instant::now() + Duration::from_secs(600) }
}

/// The events of a cluster that has nothing.
pub(crate) fn nothing() -> Vec<Event> {
    let missing = |kind: WatchedKind| Event::Availability(kind, Availability::Missing);
    let mut events = vec![
        Event::Namespace(Change::Reset(vec![])),
        Event::Service(Change::Reset(vec![])),
        Event::Pod(Change::Reset(vec![])),
        Event::Slice(Change::Reset(vec![])),
        Event::Account(Change::Reset(vec![])),
        Event::Node(Change::Reset(vec![])),
        Event::Mesh(Change::Reset(vec![])),
        Event::Route(Change::Reset(vec![])),
        Event::Cluster(Change::Reset(vec![])),
        Event::Policy(Change::Reset(vec![])),
        Event::Document(DocumentKind::Export, Change::Reset(vec![])),
        Event::Document(DocumentKind::Inbound, Change::Reset(vec![])),
        Event::Access(AccessKind::Role, Change::Reset(vec![])),
        Event::Access(AccessKind::Binding, Change::Reset(vec![])),
        missing(WatchedKind::ReferenceGrants),
    ];
    events.extend(Kind::GATEWAY.map(|kind| missing(kind.watched())));
    events
}

/// Waits.
pub(crate) async fn until(what: &str, reached: impl Fn() -> bool) {
    let reached = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}");
}
