//! What the proxies of pods say of the clients that call them in plaintext, and who these clients are.

use std::collections::HashMap;
use std::net::IpAddr;

use weft_config::PlaintextCallers;

use super::objects::{Answer, Answers, Asked, Caller, Pod};
use super::{Touched, World};

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weft_config::PlaintextCaller;

    use super::*;
    use crate::world::{Change, Event, Key};

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
