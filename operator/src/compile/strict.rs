//! Whether the mode Strict would refuse clients that call pods today: the condition StrictReady of policies with `mtls` and
//! of the Mesh. It is made of what the pods' proxies have seen, and decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::{MtlsMode, MtlsPolicy, Target};
use weft_crds::status::Reason;

use super::compiled::Compiled;
use super::diagnostic::{Diagnostic, Severity};
use super::mtls::{self, Workload};
use crate::world::{Asked, Caller, Key, Kind, Namespace, ObjectId, Pod, World};

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

/// A port that no policy names.
const OTHER_PORT: u16 = 0;

/// Adds StrictReady to the outcomes of the namespace's policies with `mtls`, and finds what it is made of: the pods that
/// are to be asked for their callers, and what is known of those ports that only the Mesh is about.
pub(super) fn check(world: &World, name: &str, namespace: &Namespace, compiled: &mut Compiled) {
    let policies = &compiled.inbound.mtls.policies;
    let mesh = mtls::wire_mode(world.mode());
    let mut of_policies: Vec<Strictness> = policies.iter().map(|_| Strictness::default()).collect();
    for pod in namespace.pods.values().filter(|pod| pod.has_identity && pod.counts()) {
        let ports = Ports::new(pod, policies, mesh);
        if ports.permissive.is_empty() {
            continue;
        }
        compiled.permissive.push(pod.key.clone());
        let asked = world.asked(pod);
        let is_of_mesh = |port: u16| ports.mode(port) == (MtlsMode::Permissive, None);
        if ports.permissive.iter().any(|port| is_of_mesh(*port)) {
            compiled.strictness.add(pod, asked, is_of_mesh);
        }
        for (policy, strictness) in policies.iter().zip(&mut of_policies) {
            let is_target = |port: u16| ports.pod.is_target(&policy.target, port);
            if ports.permissive.iter().any(|port| is_target(*port)) {
                strictness.add(pod, asked, |port| is_target(port) && ports.mode(port).0 == MtlsMode::Permissive);
            }
        }
    }
    for (policy, strictness) in policies.iter().zip(of_policies) {
        let id = ObjectId { kind: Kind::Policy, key: Key::new(name, &policy.name) };
        compiled.objects.entry(id).or_default().diagnostics.push(strictness.diagnostic());
    }
}

/// The modes of a pod's ports.
struct Ports<'a> {
    pod: Workload<'a>,
    policies: Vec<&'a MtlsPolicy>,
    mesh: MtlsMode,
    /// Ports that accept plaintext of all clients, among those that policies name, and [`OTHER_PORT`].
    permissive: Vec<u16>,
}

// === impl Ports ===

impl<'a> Ports<'a> {
    fn new(pod: &'a Pod, policies: &'a [MtlsPolicy], mesh: MtlsMode) -> Self {
        let workload = Workload::from(pod);
        let mut named = BTreeSet::from([OTHER_PORT]);
        for policy in policies {
            named.extend(policy.ports.iter().map(|entry| entry.port));
            if let Target::Service { ports, .. } = &policy.target {
                named.extend(ports.iter().flat_map(|port| workload.numbers(port).collect::<Vec<_>>()));
            }
        }
        let mut of_pod = Self { pod: workload, policies: policies.iter().collect(), mesh, permissive: Vec::new() };
        let is_declared = |port: u16| {
            let entries = policies.iter().filter(|policy| workload.is_target(&policy.target, port));
            entries.flat_map(|policy| &policy.ports).any(|entry| entry.port == port && !entry.ip_blocks.is_empty())
        };
        let is_open = |port: &u16| of_pod.mode(*port).0 == MtlsMode::Permissive && !is_declared(*port);
        of_pod.permissive = named.into_iter().filter(is_open).collect();
        of_pod
    }

    /// The mode of a port, and the policy that sets it.
    fn mode(&self, port: u16) -> (MtlsMode, Option<&'a str>) {
        let policies = self.policies.iter().copied().filter(|policy| self.pod.is_target(&policy.target, port));
        let decision = mtls::at(&policies.collect::<Vec<_>>(), port, self.mesh);
        (decision.mode, decision.by)
    }
}

// === impl Strictness ===

impl Strictness {
    /// Adds a pod, with its callers at those of its ports that `concerns`.
    fn add(&mut self, pod: &Pod, asked: Option<&Asked>, concerns: impl Fn(u16) -> bool) {
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
