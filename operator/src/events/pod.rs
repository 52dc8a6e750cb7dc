//! Events about pods that run without a proxy in a namespace with the injection label, and about their workloads.
//!
//! A pod that opts out by label gets none. Each pod and workload is reported once; after a restart of the operator an
//! Event that still exists is left alone (Kubernetes keeps Events for an hour).

use std::collections::{BTreeMap, BTreeSet};

use weft_crds::names;

use super::event::{Event, Object, Severity};
use crate::world::{Key, Namespace, Owner, Pod, WithoutProxy};

/// Prefix of the names of Kubernetes' own namespaces, which are not injected.
const KUBERNETES_PREFIX: &str = "kube-";
/// Label of the pods of a Deployment; a ReplicaSet's name is the Deployment's with its value.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

const HOST_NETWORK: &str = "hostNetwork: pods with hostNetwork get no proxy, and no route or policy applies to them; \
                            label the pods weft.dev/inject=false if that is intended";

/// Events about pods and workloads that are not in `reported`, workloads first; `reported` has their UIDs from then on.
pub fn events(namespace: Option<&Namespace>, reported: &mut BTreeSet<String>) -> Vec<Event> {
    let events = namespace.map(without_proxy).unwrap_or_default();
    let before = std::mem::replace(reported, events.keys().map(|(_, uid)| uid.clone()).collect());
    events.into_iter().filter(|((_, uid), _)| !before.contains(uid)).map(|(_, event)| event).collect()
}

/// Events by level (workloads, pods) and UID.
fn without_proxy(namespace: &Namespace) -> BTreeMap<(u8, String), Event> {
    let mut events = BTreeMap::new();
    let enabled = namespace.meta.as_ref().filter(|meta| meta.enabled && !meta.name.starts_with(KUBERNETES_PREFIX));
    if enabled.is_none() {
        return events;
    }
    for pod in namespace.pods.values() {
        let Some(WithoutProxy { owner }) = &pod.without_proxy else { continue };
        let (reason, note) = match pod.host_network {
            true => ("HostNetwork", HOST_NETWORK.to_owned()),
            false => ("NoProxy", note(pod, owner.as_ref())),
        };
        let object =
            Object { api_version: "v1".to_owned(), kind: "Pod".to_owned(), key: pod.key.clone(), uid: pod.uid.clone() };
        if let Some(Owner { api_version, kind, name, uid }) = owner {
            let workload = Object {
                api_version: api_version.clone(),
                kind: kind.clone(),
                key: Key::new(pod.key.namespace.clone(), name),
                uid: uid.clone(),
            };
            let event = event(workload, Some(object.clone()), reason, note.clone());
            events.entry((0, uid.clone())).or_insert(event);
        }
        events.insert((1, pod.uid.clone()), event(object, None, reason, note));
    }
    events
}

fn event(regarding: Object, related: Option<Object>, reason: &str, note: String) -> Event {
    Event {
        regarding,
        related,
        severity: Severity::Warning,
        reason: reason.to_owned(),
        action: "Inject",
        note,
        repeats: false,
    }
}

/// Why the pod has no proxy, and how it gets one.
fn note(pod: &Pod, owner: Option<&Owner>) -> String {
    let Key { namespace, name } = &pod.key;
    let restart = |kind: &str, name: &str| format!("restart it: kubectl -n {namespace} rollout restart {kind}/{name}");
    let remedy = match owner.map(|owner| (owner.kind.as_str(), owner.name.as_str())) {
        Some(("ReplicaSet", set)) if deployment(pod, set).is_some() => {
            restart("deployment", deployment(pod, set).unwrap_or_default())
        }
        Some(("StatefulSet", set)) => restart("statefulset", set),
        Some(("DaemonSet", set)) => restart("daemonset", set),
        Some(("Job", job)) => {
            format!("delete Job {job} and create it again; the next Job of a CronJob has a proxy")
        }
        Some((kind, owner)) => {
            format!("delete the pod, {kind} {owner} creates another one: kubectl -n {namespace} delete pod {name}")
        }
        None => "delete it and create it again".to_owned(),
    };
    format!(
        "runs without a proxy: created before the namespace had the label {}={}, or while no injector answered: {remedy}",
        names::INJECT_LABEL,
        names::INJECT_ENABLED
    )
}

/// The name of the Deployment of a ReplicaSet.
fn deployment<'a>(pod: &Pod, replica_set: &'a str) -> Option<&'a str> {
    let hash = pod.labels.get(TEMPLATE_HASH_LABEL)?;
    replica_set.strip_suffix(hash.as_str())?.strip_suffix('-')
}
