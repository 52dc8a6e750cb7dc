//! Mutual TLS: what MeshPolicies and the Mesh say, for the proxies of the pods and for those of their clients.
//!
//! Of a pod's port: the entry of the port comes before a mode; a policy for a Service or ServiceAccount before one for
//! the Namespace, and the Mesh last. Of equal ones that disagree, Strict wins. The proxy resolves the same for its own
//! pod.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_config::{self as wire, Mtls, MtlsMode, MtlsPolicy, MtlsPort, PortRef, Target};
use weft_crds::mesh::Mode;
use weft_crds::policy::{MutualTls, PortTls};

use super::diagnostic::Diagnostic;
use crate::world::{ContainerPort, Namespace, Pod, Service, ServicePort, TargetPort};

/// A pod, as far as policies select it.
#[derive(Clone, Copy)]
pub(super) struct Workload<'a> {
    pub(super) labels: &'a BTreeMap<String, String>,
    /// None: not known.
    pub(super) account: Option<&'a str>,
    pub(super) ports: &'a [ContainerPort],
}

/// A mode, and the name of the policy that sets it. None: the Mesh does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision<'a> {
    pub(super) mode: MtlsMode,
    pub(super) by: Option<&'a str>,
}

/// A policy's part about mutual TLS. A block of addresses that cannot be read closes the port for plaintext.
pub(super) fn policy(name: &str, target: &Target, mtls: &MutualTls, diagnostics: &mut Vec<Diagnostic>) -> MtlsPolicy {
    let MutualTls { mode, ports } = mtls;
    let mut ports: Vec<MtlsPort> = ports.iter().map(|entry| port(entry, diagnostics)).collect();
    ports.sort_by_key(|entry| entry.port);
    MtlsPolicy { name: name.to_owned(), target: target.clone(), mode: mode.map(wire_mode), ports }
}

fn port(entry: &PortTls, diagnostics: &mut Vec<Diagnostic>) -> MtlsPort {
    let PortTls { port, mode, ip_blocks: texts } = entry;
    let mut ip_blocks = Vec::new();
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(block) => ip_blocks.push(block.trunc().to_string()),
            Err(_) => diagnostics.push(Diagnostic::partial(format!(
                "mtls: port {port}: ipBlocks: {text:?} is no block of addresses, and those that it means may use no \
                 plaintext: write an address and the length of a prefix, as in 198.18.0.0/15, 10.0.0.7/32 or 2001:db8::/32"
            ))),
        }
    }
    ip_blocks.sort();
    ip_blocks.dedup();
    // Without any block left, all addresses would be allowed.
    let is_closed = ip_blocks.is_empty() && !texts.is_empty();
    let mode = if is_closed { MtlsMode::Strict } else { wire_mode(*mode) };
    MtlsPort { port: *port, mode, ip_blocks }
}

/// What the pods of a namespace read.
pub(super) fn of_namespace(mesh: Mode, policies: Vec<MtlsPolicy>) -> Mtls {
    let of_namespace: Vec<&MtlsPolicy> = policies.iter().filter(|policy| is_for_namespace(policy)).collect();
    let mode = mode(&of_namespace, wire_mode(mesh)).mode;
    Mtls { inbound: mode, outbound: mode, policies }
}

/// Writes into the ports of Services what policies say about the ports of their pods: for clients.
pub(super) fn set_ports(namespace: &Namespace, policies: &[MtlsPolicy], mesh: Mode, services: &mut [wire::Service]) {
    if policies.is_empty() {
        return;
    }
    let mesh = wire_mode(mesh);
    for exported in services {
        let Some(service) = namespace.services.get(&exported.name) else { continue };
        for exported in &mut exported.ports {
            let port = service.ports.iter().find(|port| port.port == exported.port);
            exported.mtls = port.and_then(|port| of_service_port(namespace, service, port, policies, mesh));
        }
    }
}

/// What policies say about a Service port: what they say about each of its pods if that is the same, else what those for
/// the namespace say.
fn of_service_port(
    namespace: &Namespace,
    service: &Service,
    port: &ServicePort,
    policies: &[MtlsPolicy],
    mesh: MtlsMode,
) -> Option<MtlsMode> {
    let mut members = members(namespace, service, port);
    if members.is_empty() {
        let number = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(_) => 0,
        };
        members.push((Workload { labels: &service.selector, account: None, ports: &[] }, number));
    }
    let decide = |workload: &Workload<'_>, number: u16, among: fn(&MtlsPolicy) -> bool| {
        let policies = policies.iter().filter(|policy| among(policy) && workload.is_target(&policy.target, number));
        let decision = at(&policies.collect::<Vec<_>>(), number, mesh);
        decision.by.map(|_| decision.mode)
    };
    let mut of_pods = members.iter().map(|(workload, number)| decide(workload, *number, |_| true));
    let first = of_pods.next().flatten();
    if of_pods.all(|other| other == first) {
        return first;
    }
    members.first().and_then(|(workload, number)| decide(workload, *number, is_for_namespace))
}

/// The pods of a Service port, whether ready or not, each with the number of the port.
fn members<'a>(namespace: &'a Namespace, service: &Service, port: &ServicePort) -> Vec<(Workload<'a>, u16)> {
    let slices = namespace.slices_of(&service.key.name);
    let found = slices.filter_map(|slice| {
        let number = slice.ports.iter().find(|candidate| candidate.name == port.name)?.port;
        let pods = slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref());
        Some(pods.filter_map(move |(name, uid)| Some((Workload::from(namespace.pod(name, uid)?), number))))
    });
    found.flatten().collect()
}

/// What holds at a port for which these policies are.
pub(super) fn at<'a>(policies: &[&'a MtlsPolicy], port: u16, mesh: MtlsMode) -> Decision<'a> {
    let otherwise = mode(policies, mesh);
    let entries = |is_of: fn(&MtlsPolicy) -> bool| {
        let policies = policies.iter().filter(move |policy| is_of(policy));
        let entries = policies.flat_map(|policy| policy.ports.iter().map(|entry| (policy.name.as_str(), entry)));
        let entries = entries.filter(|(_, entry)| entry.port == port && counts(entry, otherwise.mode));
        strictest(entries.map(|(name, entry)| Decision { mode: entry.mode, by: Some(name) }))
    };
    entries(is_for_workload).or_else(|| entries(is_for_namespace)).unwrap_or(otherwise)
}

/// What holds without entries of ports.
pub(super) fn mode<'a>(policies: &[&'a MtlsPolicy], mesh: MtlsMode) -> Decision<'a> {
    let modes = |is_of: fn(&MtlsPolicy) -> bool| {
        let policies = policies.iter().filter(|policy| is_of(policy));
        strictest(policies.filter_map(|policy| Some(Decision { mode: policy.mode?, by: Some(policy.name.as_str()) })))
    };
    modes(is_for_workload).or_else(|| modes(is_for_namespace)).unwrap_or(Decision { mode: mesh, by: None })
}

/// Whether an entry has an effect: an exception to Strict must say for whom it is.
pub(super) fn counts(entry: &MtlsPort, otherwise: MtlsMode) -> bool {
    entry.mode == MtlsMode::Strict || otherwise == MtlsMode::Permissive || !entry.ip_blocks.is_empty()
}

fn strictest<'a>(decisions: impl Iterator<Item = Decision<'a>>) -> Option<Decision<'a>> {
    decisions.min_by_key(|decision| decision.mode != MtlsMode::Strict)
}

pub(super) fn is_for_namespace(policy: &MtlsPolicy) -> bool {
    policy.target == Target::Namespace
}

fn is_for_workload(policy: &MtlsPolicy) -> bool {
    !is_for_namespace(policy)
}

pub(super) fn wire_mode(mode: Mode) -> MtlsMode {
    match mode {
        Mode::Permissive => MtlsMode::Permissive,
        Mode::Strict => MtlsMode::Strict,
    }
}

// === impl Workload ===

impl<'a> From<&'a Pod> for Workload<'a> {
    fn from(pod: &'a Pod) -> Self {
        Self { labels: &pod.labels, account: Some(&pod.service_account), ports: &pod.ports }
    }
}

impl Workload<'_> {
    /// Whether policies with this target apply to a port of the pod.
    pub(super) fn is_target(&self, target: &Target, port: u16) -> bool {
        match target {
            Target::Namespace => true,
            Target::ServiceAccount(account) => self.account == Some(account),
            Target::Service { selector, ports } => {
                let has_label = |(key, value): (&String, &String)| self.labels.get(key) == Some(value);
                selector.iter().all(has_label) && ports.iter().any(|target| self.numbers(target).any(|n| n == port))
            }
        }
    }

    /// The numbers of a port.
    pub(super) fn numbers<'a>(&'a self, port: &'a PortRef) -> impl Iterator<Item = u16> + 'a {
        let (number, name) = match port {
            PortRef::Number(number) => (Some(*number), None),
            PortRef::Name(name) => (None, Some(name)),
        };
        let named = self.ports.iter().filter(move |port| Some(&port.name) == name).map(|port| port.port);
        number.into_iter().chain(named)
    }
}

#[cfg(test)]
mod tests {
    use MtlsMode::{Permissive, Strict};

    use super::*;

    fn policy(name: &str, target: &Target, mode: Option<MtlsMode>, ports: &[(u16, MtlsMode, &[&str])]) -> MtlsPolicy {
        let entry = |(port, mode, blocks): &(u16, MtlsMode, &[&str])| MtlsPort {
            port: *port,
            mode: *mode,
            ip_blocks: blocks.iter().map(|block| (*block).to_owned()).collect(),
        };
        MtlsPolicy { name: name.into(), target: target.clone(), mode, ports: ports.iter().map(entry).collect() }
    }

    #[test]
    fn the_entry_of_a_port_comes_before_a_mode_and_a_workload_before_its_namespace() {
        let (namespace, account) = (Target::Namespace, Target::ServiceAccount("web".into()));
        let blocks: &[&str] = &["10.0.0.0/8"];
        for (desc, mesh, policies, expected, by) in [
            ("the Mesh alone", Strict, vec![], Strict, None),
            ("the namespace", Strict, vec![policy("n", &namespace, Some(Permissive), &[])], Permissive, Some("n")),
            (
                "a workload before the namespace",
                Permissive,
                vec![policy("n", &namespace, Some(Strict), &[]), policy("w", &account, Some(Permissive), &[])],
                Permissive,
                Some("w"),
            ),
            (
                "Strict wins among equal ones",
                Permissive,
                vec![policy("a", &account, Some(Permissive), &[]), policy("b", &account, Some(Strict), &[])],
                Strict,
                Some("b"),
            ),
            (
                "a port of the namespace before a workload's mode",
                Permissive,
                vec![
                    policy("n", &namespace, None, &[(80, Permissive, blocks)]),
                    policy("w", &account, Some(Strict), &[]),
                ],
                Permissive,
                Some("n"),
            ),
            (
                "a workload's port before the namespace's",
                Permissive,
                vec![
                    policy("n", &namespace, None, &[(80, Permissive, blocks)]),
                    policy("w", &account, None, &[(80, Strict, &[])]),
                ],
                Strict,
                Some("w"),
            ),
            ("another port", Permissive, vec![policy("n", &namespace, None, &[(81, Strict, &[])])], Permissive, None),
            (
                "an exception to Strict for nobody in particular",
                Strict,
                vec![policy("n", &namespace, None, &[(80, Permissive, &[])])],
                Strict,
                None,
            ),
        ] {
            let decision = at(&policies.iter().collect::<Vec<_>>(), 80, mesh);
            assert_eq!(decision, Decision { mode: expected, by }, "{desc}");
        }
    }

    #[test]
    fn mode_of_a_namespace_is_that_of_its_policies_or_of_the_mesh() {
        let of = |mesh, policies: Vec<MtlsPolicy>| {
            let Mtls { inbound, outbound, .. } = of_namespace(mesh, policies);
            assert_eq!(inbound, outbound);
            inbound
        };
        let namespace = |mode| policy("n", &Target::Namespace, mode, &[(80, Strict, &[])]);
        let account = policy("w", &Target::ServiceAccount("web".into()), Some(Strict), &[]);
        assert_eq!(of(Mode::Strict, vec![]), Strict);
        assert_eq!(of(Mode::Strict, vec![namespace(Some(Permissive))]), Permissive);
        assert_eq!(of(Mode::Permissive, vec![namespace(Some(Strict))]), Strict);
        assert_eq!(of(Mode::Permissive, vec![namespace(None), account]), Permissive, "neither is about all pods");
    }

    #[test]
    fn blocks_that_cannot_be_read_close_the_port() {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let entry = |blocks| PortTls { port: 9090, mode: Mode::Permissive, ip_blocks: owned(blocks) };
        for (blocks, mode, expected, problems) in [
            (&[][..], Permissive, &[][..], 0),
            (&["198.18.7.9/15", "198.18.0.0/15", "2001:db8::/32"], Permissive, &["198.18.0.0/15", "2001:db8::/32"], 0),
            (&["10.0.0.7"], Strict, &[], 1),
            (&["10.0.0.0/33", "10.0.0.0/8"], Permissive, &["10.0.0.0/8"], 1),
            (&["::/129", "shop", ""], Strict, &[], 3),
        ] {
            let mut diagnostics = Vec::new();
            let found = port(&entry(blocks), &mut diagnostics);
            assert_eq!((found.mode, found.ip_blocks), (mode, owned(expected)), "{blocks:?}");
            assert_eq!(diagnostics.len(), problems, "{diagnostics:?}");
        }
    }
}
