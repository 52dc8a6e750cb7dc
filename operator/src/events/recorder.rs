//! Writes Events to the API server, in a task of its own.
//!
//! Bounded three times: queues that drop what does not fit, a number of Events for each object, and a pace. All of them
//! are counted in `weft_operator_events_total`. Only the leader writes. Events about conditions overtake those about
//! pods, of which there are many when a large namespace is labelled or an operator starts.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::events::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::event::{Event, Object};
use crate::apply::{Error, call};
use crate::lease;
use crate::metrics::{Metrics, OutcomeLabel};
use crate::world::Key;

/// Maximum Events that wait in each queue; further ones are dropped.
const QUEUE_MAX: usize = 1024;
/// Time between two Events: at most 20 a second.
const PACE: Duration = Duration::from_millis(50);

/// The way to the task that writes Events. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    conditions: mpsc::Sender<Event>,
    pods: mpsc::Sender<Event>,
    metrics: Metrics,
}

struct Writer {
    client: Client,
    instance: String,
    lease: watch::Receiver<lease::State>,
    metrics: Metrics,
    budget: Budget,
    pace: Interval,
}

// === impl Recorder ===

impl Recorder {
    /// Starts the task. `instance` is the name of this operator.
    pub fn start(
        client: Client,
        instance: String,
        lease: watch::Receiver<lease::State>,
        metrics: Metrics,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (conditions, of_conditions) = mpsc::channel(QUEUE_MAX);
        let (pods, of_pods) = mpsc::channel(QUEUE_MAX);
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let budget = Budget::new(Instant::now());
        let writer = Writer { client, instance, lease, metrics: metrics.clone(), budget, pace };
        tasks.spawn(async move {
            tokio::select! { () = writer.run(of_conditions, of_pods) => {}, () = stop.cancelled() => {} }
        });
        Self { conditions, pods, metrics }
    }

    /// Queues Events about conditions. Never waits.
    pub fn record(&self, events: Vec<Event>) {
        self.queue(&self.conditions, events);
    }

    /// Queues Events about pods, which are written when no other ones wait. Never waits.
    pub fn record_pods(&self, events: Vec<Event>) {
        self.queue(&self.pods, events);
    }

    fn queue(&self, queue: &mpsc::Sender<Event>, events: Vec<Event>) {
        for event in events {
            if queue.try_send(event).is_err() {
                self.metrics.events.get_or_create(&OutcomeLabel { outcome: "dropped" }).inc();
            }
        }
    }
}

// === impl Writer ===

impl Writer {
    async fn run(mut self, mut conditions: mpsc::Receiver<Event>, mut pods: mpsc::Receiver<Event>) {
        loop {
            let event = tokio::select! {
                biased;
                Some(event) = conditions.recv() => event,
                Some(event) = pods.recv() => event,
                else => return,
            };
            let outcome = self.handle(event).await;
            self.metrics.events.get_or_create(&OutcomeLabel { outcome }).inc();
        }
    }

    async fn handle(&mut self, event: Event) -> &'static str {
        if self.lease.borrow().epoch().is_none() {
            return "standby";
        }
        if !self.budget.spend(&event.regarding.uid, Instant::now()) {
            return "limited";
        }
        self.pace.tick().await;
        let regarding = workload(&self.client, event.regarding).await;
        let event = Event { regarding, ..event };
        match write(&self.client, &event, &self.instance).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // An Event is a hint: what it says is in a condition or a metric too.
                let Object { kind, key, .. } = &event.regarding;
                tracing::debug!(%kind, object = %key, reason = event.reason, %error, "cannot write Event");
                error.reason()
            }
        }
    }
}

/// Creates the Event, or counts up an equal one.
async fn write(client: &Client, event: &Event, instance: &str) -> Result<&'static str, Error> {
    let api: Api<v1::Event> = Api::namespaced(client.clone(), event.namespace());
    match call(api.create(&PostParams::default(), &event.render(instance, Timestamp::now()))).await {
        Ok(_) => Ok("written"),
        // It exists.
        Err(Error::Conflict) if event.repeats => repeat(&api, &event.name()).await,
        Err(Error::Conflict) => Ok("known"),
        Err(error) => Err(error),
    }
}

/// Counts an Event up: the API calls that a series.
async fn repeat(api: &Api<v1::Event>, name: &str) -> Result<&'static str, Error> {
    let found = call(api.get(name)).await?;
    let count = found.series.map_or(1, |series| series.count) + 1;
    let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(Timestamp::now()) } });
    call(api.patch(name, &PatchParams::default(), &Patch::Merge(&series))).await?;
    Ok("repeated")
}

/// The Deployment of a ReplicaSet, which is the object that users know; any other object is returned as it is.
/// ReplicaSets are read one by one because to watch them costs more memory than all other kinds together.
async fn workload(client: &Client, object: Object) -> Object {
    if object.kind != "ReplicaSet" {
        return object;
    }
    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &object.key.namespace);
    let Ok(found) = call(api.get_metadata(&object.key.name)).await else { return object };
    let owners = found.metadata.owner_references.unwrap_or_default();
    match owners.into_iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => Object {
            api_version: owner.api_version,
            kind: owner.kind,
            key: Key::new(object.key.namespace, owner.name),
            uid: owner.uid,
        },
        None => object,
    }
}
