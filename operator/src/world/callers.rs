//! What the proxies of pods say of the clients that call them in plaintext, and who these clients are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use weft_config::PlaintextCallers;

use super::objects::{Key, Pod};
use super::{Touched, World};

/// The answer of a pod's proxy.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The pod.
    pub pod: Key,
    /// Its UID.
    pub uid: String,
    /// Its callers. None: it could not be asked.
    pub callers: Option<PlaintextCallers>,
}

/// What is known of the clients that call a pod in plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The pod could not be asked.
    Failed,
    /// Each client, with the port of the pod.
    Callers(BTreeSet<(u16, Caller)>),
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// Pods of a workload, by namespace and name of the workload.
    Workload(Key),
    /// A node, or a pod in its network.
    Node(IpAddr),
    /// An address that no pod has.
    Address(IpAddr),
}

/// By pod, with its UID.
pub(super) type Answers = BTreeMap<Key, (String, Asked)>;

// === impl World ===

impl World {
    /// What is known of a pod's callers. None: it was not asked yet.
    pub fn asked(&self, pod: &Pod) -> Option<&Asked> {
        self.asked.get(&pod.key).filter(|(uid, _)| *uid == pod.uid).map(|(_, asked)| asked)
    }

    /// Replaces what is known of all pods' callers.
    pub fn observe_callers(&mut self, answers: Vec<Answer>) -> Touched {
        let asked = self.named(answers);
        let before = std::mem::replace(&mut self.asked, asked);
        let changed = before.iter().filter(|(pod, known)| self.asked.get(*pod) != Some(known));
        let added = self.asked.iter().filter(|(pod, _)| !before.contains_key(*pod));
        let scopes = changed.chain(added).map(|(pod, _)| pod.namespace.clone()).collect();
        Touched { scopes, urgent: false }
    }

    /// The answers, with the names of callers.
    fn named(&self, answers: Vec<Answer>) -> Answers {
        let callers = answers.iter().filter_map(|answer| answer.callers.as_ref()).flat_map(|it| &it.callers);
        let mut known: HashMap<IpAddr, Caller> =
            callers.map(|caller| (caller.address, Caller::Address(caller.address))).collect();
        if !known.is_empty() {
            for pod in self.namespaces.values().flat_map(|namespace| namespace.pods.values()) {
                for address in &pod.addresses {
                    known.entry(*address).and_modify(|caller| *caller = Caller::of(pod, *address));
                }
            }
        }
        let asked = |callers: Option<PlaintextCallers>| match callers {
            None => Asked::Failed,
            Some(PlaintextCallers { callers, truncated: _ }) => {
                let named = callers.iter().filter_map(|it| Some((it.port, known.get(&it.address)?.clone())));
                Asked::Callers(named.collect())
            }
        };
        answers.into_iter().map(|Answer { pod, uid, callers }| (pod, (uid, asked(callers)))).collect()
    }
}

// === impl Caller ===

impl Caller {
    fn of(pod: &Pod, address: IpAddr) -> Self {
        if pod.host_network { Self::Node(address) } else { Self::Workload(Key::new(&pod.key.namespace, workload(pod))) }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload(key) => write!(f, "{key}"),
            Self::Node(address) => write!(f, "node {address}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// The name of the workload that a pod belongs to, by the labels that its controller gave it; else that of the pod.
fn workload(pod: &Pod) -> &str {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    let name = pod.key.name.as_str();
    let without_suffix = || name.rsplit_once('-').map(|(name, _)| name);
    let found = if let Some(hash) = label("pod-template-hash") {
        // Deployment: `name-hash-random`.
        without_suffix().and_then(|name| name.strip_suffix(hash)?.strip_suffix('-'))
    } else if let Some(job) = label("batch.kubernetes.io/job-name") {
        Some(job)
    } else if label("controller-revision-hash").is_some() {
        // StatefulSet: `name-number`; DaemonSet: `name-random`.
        without_suffix()
    } else {
        None
    };
    found.unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use weft_config::PlaintextCaller;

    use super::*;
    use crate::world::{Change, Event};

    fn pod(name: &str, address: &str, labels: &[(&str, &str)]) -> Pod {
        Pod {
            key: Key::new("shop", name),
            uid: format!("uid of {name}"),
            addresses: vec![address.parse().unwrap()],
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Pod::default()
        }
    }

    fn answer(pod: &Pod, callers: Option<&[(&str, u16)]>, connections: u64) -> Answer {
        let caller = |(address, port): &(&str, u16)| PlaintextCaller {
            address: address.parse().unwrap(),
            port: *port,
            connections,
            open: 0,
            seconds_ago: connections,
        };
        let callers =
            callers.map(|callers| PlaintextCallers { callers: callers.iter().map(caller).collect(), truncated: false });
        Answer { pod: pod.key.clone(), uid: pod.uid.clone(), callers }
    }

    #[test]
    fn callers_have_the_names_of_their_workloads() {
        let server = pod("web", "198.18.0.1", &[]);
        let template = [("pod-template-hash", "7d9f")];
        let revision = [("controller-revision-hash", "abc")];
        let node = Pod { host_network: true, ..pod("agent-x", "198.18.9.9", &revision) };
        let mut world = World::default();
        world.observe(Event::Pod(Change::Reset(vec![
            server.clone(),
            pod("legacy-7d9f-x2x4z", "198.18.0.2", &template),
            pod("legacy-7d9f-b5b7n", "198.18.0.3", &template),
            pod("db-0", "198.18.0.4", &revision),
            pod("report-x9x9x", "198.18.0.5", &[("batch.kubernetes.io/job-name", "report")]),
            pod("bare", "198.18.0.6", &[]),
            node,
        ])));
        let addresses: Vec<String> =
            (2..=6).map(|n| format!("198.18.0.{n}")).chain(["198.18.9.9".into(), "203.0.113.7".into()]).collect();
        let calls: Vec<(&str, u16)> = addresses.iter().map(|address| (address.as_str(), 8080)).collect();
        let touched = world.observe_callers(vec![answer(&server, Some(&calls), 1)]);
        assert_eq!(touched.scopes, BTreeSet::from(["shop".to_owned()]));
        let Some(Asked::Callers(callers)) = world.asked(&server) else { panic!("it was asked") };
        let names: Vec<String> = callers.iter().map(|(_, caller)| caller.to_string()).collect();
        let expected =
            ["shop/bare", "shop/db", "shop/legacy", "shop/report", "node 198.18.9.9", "203.0.113.7"].map(str::to_owned);
        assert_eq!(names, expected);
    }

    #[test]
    fn only_other_callers_touch_a_namespace() {
        let (one, two) = (pod("one", "198.18.0.1", &[]), pod("two", "198.18.0.2", &[]));
        let mut world = World::default();
        let mut touches = |answers: Vec<Answer>| !world.observe_callers(answers).scopes.is_empty();
        let calls = || Some(&[("198.18.7.7", 80)][..]);
        assert!(touches(vec![answer(&one, calls(), 1), answer(&two, None, 0)]));
        assert!(!touches(vec![answer(&one, calls(), 2), answer(&two, None, 0)]), "more connections of the same");
        assert!(touches(vec![answer(&one, calls(), 2), answer(&two, Some(&[]), 0)]), "it answers now");
        assert!(touches(vec![answer(&two, Some(&[]), 0)]), "the other is gone");
        assert!(world.asked(&one).is_none());
        let successor = Pod { uid: "other".into(), ..two.clone() };
        assert!(world.asked(&two).is_some() && world.asked(&successor).is_none(), "a pod of the same name is another");
    }
}
