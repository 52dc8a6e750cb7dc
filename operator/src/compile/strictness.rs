//! What the condition StrictReady is made of.

use std::collections::{BTreeMap, BTreeSet};

use weft_crds::status::Reason;

use super::diagnostic::{Diagnostic, Severity};
use crate::world::{Asked, Caller, Key, Pod};

/// How many callers or pods a message names; the others are counted.
const NAMED_MAX: usize = 5;

/// What the proxies of some pods say of plaintext callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strictness {
    /// Clients that Strict would refuse, with the ports of the pods.
    callers: BTreeMap<Caller, BTreeSet<u16>>,
    /// Pods that accept plaintext.
    pods: usize,
    /// Those of them that could not be asked, or were not yet.
    unknown: BTreeSet<Key>,
}

// === impl Strictness ===

impl Strictness {
    /// Adds a pod, with its callers at those of its ports that `concerns`.
    pub(super) fn add(&mut self, pod: &Pod, asked: Option<&Asked>, concerns: impl Fn(u16) -> bool) {
        self.pods += 1;
        match asked {
            None | Some(Asked::Failed) => drop(self.unknown.insert(pod.key.clone())),
            Some(Asked::Callers(callers)) => {
                for (port, caller) in callers.iter().filter(|(port, _)| concerns(*port)) {
                    self.callers.entry(caller.clone()).or_default().insert(*port);
                }
            }
        }
    }

    /// Adds what is known in another namespace.
    pub fn merge(&mut self, other: &Self) {
        self.pods += other.pods;
        self.unknown.extend(other.unknown.iter().cloned());
        for (caller, ports) in &other.callers {
            self.callers.entry(caller.clone()).or_default().extend(ports);
        }
    }

    /// The condition StrictReady.
    pub fn diagnostic(&self) -> Diagnostic {
        let Self { callers, pods, unknown } = self;
        let named = |names: Vec<String>, all: usize| match all.saturating_sub(NAMED_MAX) {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        };
        let not_asked = || {
            let first = unknown.iter().take(NAMED_MAX).map(Key::to_string).collect();
            format!(
                "{} of {pods} pods that accept plaintext could not be asked for their callers: {}",
                unknown.len(),
                named(first, unknown.len())
            )
        };
        let (reason, message) = if !callers.is_empty() {
            let caller = |(caller, ports): (&Caller, &BTreeSet<u16>)| {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                format!("{caller} (port {})", ports.join(", "))
            };
            let first = callers.iter().take(NAMED_MAX).map(caller).collect();
            let who = named(first, callers.len());
            let count = match callers.len() {
                1 => "a caller".to_owned(),
                count => format!("{count} callers"),
            };
            let mut message = format!("Strict would refuse {count} of the last 10 minutes: {who}");
            if !unknown.is_empty() {
                message = format!("{message}; {}", not_asked());
            }
            (Reason::PlaintextCallers, message)
        } else if !unknown.is_empty() {
            (Reason::PodsNotAsked, not_asked())
        } else if *pods == 0 {
            (Reason::NoPlaintextCallers, "no pod accepts plaintext that Strict would refuse".to_owned())
        } else {
            let message =
                format!("nobody has called the {pods} pods that accept plaintext in plaintext for 10 minutes");
            (Reason::NoPlaintextCallers, message)
        };
        Diagnostic { severity: Severity::StrictReady, reason, message }
    }
}
