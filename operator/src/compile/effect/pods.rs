//! The pods of a namespace that may have traffic, by what selects them, and how messages name them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_crds::names;

use crate::world::{Namespace, Pod};

/// How many pods a message names; the others are counted.
const NAMED_MAX: usize = 5;

/// The pods of a namespace that may have traffic. Others come and go during a rollout, and do not count.
pub(super) struct Pods<'a> {
    pub(super) all: Vec<&'a Pod>,
    /// Whether the namespace has the injection label.
    pub(super) enabled: bool,
    labelled: HashMap<(&'a str, &'a str), Vec<&'a Pod>>,
    accounts: HashMap<&'a str, Vec<&'a Pod>>,
}

/// Why a pod has no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    NotRestarted,
    NotEnabled,
    OptedOut,
    HostNetwork,
}

// === impl Pods ===

impl<'a> Pods<'a> {
    /// Indexes the pods by service account, and by the labels with these keys.
    pub(super) fn new(namespace: &'a Namespace, keys: &BTreeSet<&str>) -> Self {
        let all: Vec<&Pod> = namespace.pods.values().filter(|pod| pod.counts()).collect();
        let mut labelled: HashMap<(&str, &str), Vec<&Pod>> = HashMap::new();
        let mut accounts: HashMap<&str, Vec<&Pod>> = HashMap::new();
        for pod in &all {
            for (key, value) in pod.labels.iter().filter(|(key, _)| keys.contains(key.as_str())) {
                labelled.entry((key, value)).or_default().push(pod);
            }
            accounts.entry(&pod.service_account).or_default().push(pod);
        }
        Self { all, enabled: namespace.meta.as_ref().is_some_and(|meta| meta.enabled), labelled, accounts }
    }

    /// The pods with these labels. Looks only at those with the rarest of them.
    pub(super) fn with_labels(&self, selector: &BTreeMap<String, String>) -> Vec<&'a Pod> {
        let lists = selector.iter().map(|(key, value)| self.labelled.get(&(key.as_str(), value.as_str())));
        let lists = lists.map(|pods| pods.map(Vec::as_slice).unwrap_or_default());
        let rarest = lists.min_by_key(|pods| pods.len()).unwrap_or_default();
        let is_selected = |pod: &&&Pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        rarest.iter().filter(is_selected).copied().collect()
    }

    /// The pods that run under a service account.
    pub(super) fn under(&self, account: &str) -> Vec<&'a Pod> {
        self.accounts.get(account).cloned().unwrap_or_default()
    }

    /// The pods that would have a proxy had they been restarted since the namespace was labelled.
    pub(super) fn not_restarted(&self) -> Vec<&'a Pod> {
        let is_forgotten = |pod: &&Pod| !pod.has_proxy && self.cause(pod) == Cause::NotRestarted;
        self.all.iter().copied().filter(is_forgotten).collect()
    }

    /// Which of these pods have no proxy, and what to do about it: `1 of 3 pods that it selects has no proxy:
    /// shop/web-7d9: restart it`. `None`: all have one. `which` continues `pods`.
    pub(super) fn without_proxy(&self, pods: &[&Pod], which: &str) -> Option<String> {
        let without: Vec<&Pod> = pods.iter().copied().filter(|pod| !pod.has_proxy).collect();
        let text = || format!("{}: {}", count(without.len(), pods.len(), which), self.remedies(&without));
        (!without.is_empty()).then(text)
    }

    /// What to do about pods without a proxy, by cause.
    pub(super) fn remedies(&self, without: &[&Pod]) -> String {
        let mut by_cause: BTreeMap<Cause, Vec<&Pod>> = BTreeMap::new();
        for pod in without {
            by_cause.entry(self.cause(pod)).or_default().push(pod);
        }
        let text = |(cause, pods): (Cause, Vec<&Pod>)| format!("{}: {}", list(&pods), remedy(cause, &pods));
        by_cause.into_iter().map(text).collect::<Vec<_>>().join("; ")
    }

    fn cause(&self, pod: &Pod) -> Cause {
        match () {
            () if pod.host_network => Cause::HostNetwork,
            () if pod.is_opted_out() => Cause::OptedOut,
            () if !self.enabled && !pod.is_opted_in() => Cause::NotEnabled,
            () => Cause::NotRestarted,
        }
    }
}

/// `1 of 3 pods that it selects has no proxy`.
pub(super) fn count(without: usize, all: usize, which: &str) -> String {
    match without {
        1 if all == 1 => format!("the only pod {which} has no proxy"),
        1 => format!("1 of {all} pods {which} has no proxy"),
        _ if without == all => format!("none of the {all} pods {which} has a proxy"),
        _ => format!("{without} of {all} pods {which} have no proxy"),
    }
}

fn remedy(cause: Cause, pods: &[&Pod]) -> String {
    let label = names::INJECT_LABEL;
    let restart =
        if pods.len() == 1 { "restart it (kubectl rollout restart)" } else { "restart them (kubectl rollout restart)" };
    match cause {
        Cause::NotRestarted => format!("{restart}, new pods get one"),
        Cause::NotEnabled => {
            let namespace = pods.first().map(|pod| pod.key.namespace.as_str()).unwrap_or_default();
            format!("{}, then {restart}", enable(namespace))
        }
        Cause::OptedOut => format!("the pod label {label}=false keeps it out, remove the label"),
        Cause::HostNetwork => "pods with hostNetwork get none, do without it".to_owned(),
    }
}

/// How a namespace becomes part of the mesh.
pub(super) fn enable(namespace: &str) -> String {
    format!("label namespace {namespace} with {}={}", names::INJECT_LABEL, names::INJECT_ENABLED)
}

/// The first pods by name, and how many more there are.
pub(super) fn list(pods: &[&Pod]) -> String {
    let named: Vec<String> = pods.iter().take(NAMED_MAX).map(|pod| pod.key.to_string()).collect();
    let more = match pods.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    named.join(", ") + &more
}
