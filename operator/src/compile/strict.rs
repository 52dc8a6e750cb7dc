//! Whether the mode Strict would refuse clients that call pods today: the condition StrictReady of policies with `mtls` and
//! of the Mesh. It is made of what the pods' proxies have seen, and decides nothing.

use std::collections::BTreeSet;

use weft_config::{MtlsMode, MtlsPolicy, Target};

use super::compiled::Compiled;
use super::mtls::{self, Workload};
use super::strictness::Strictness;
use crate::world::{Key, Kind, Namespace, ObjectId, Pod, World};

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
