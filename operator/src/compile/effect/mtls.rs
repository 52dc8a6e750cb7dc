//! What policies about mutual TLS have to say because of each other and of the pods: which of two that disagree wins, which
//! exceptions to Strict are none, and how many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_config::{MtlsMode, MtlsPolicy, MtlsPort, Target};
use weft_crds::status::Reason;

use super::policy::Selection;
use crate::compile::diagnostic::{Diagnostic, Severity};
use crate::compile::mtls::{Decision, Workload, is_for_namespace, mode};
use crate::world::Pod;

/// What is found out about one policy.
#[derive(Default)]
struct Findings<'a> {
    /// Ports that take no plaintext because the entry does not say from whom, each with what makes them Strict.
    refused: BTreeMap<u16, Decision<'a>>,
    /// Ports that take plaintext although Strict holds otherwise.
    declared: BTreeSet<u16>,
    /// Policies that win, with the port if it is about an entry.
    winners: BTreeSet<(Option<u16>, &'a str)>,
}

/// Diagnostics by the name of the policy.
pub(super) fn check<'a>(
    policies: &'a [MtlsPolicy],
    mesh: MtlsMode,
    selections: &HashMap<&Target, Selection<'_>>,
) -> Vec<(&'a str, Vec<Diagnostic>)> {
    let mut findings: BTreeMap<&str, Findings<'_>> = BTreeMap::new();
    for (workload, policies) in groups(policies, selections) {
        for policy in &policies {
            find(policy, &workload, &policies, mesh, findings.entry(&policy.name).or_default());
        }
    }
    findings.into_iter().map(|(name, findings)| (name, findings.tell())).collect()
}

/// Each group of pods that the same policies select, as one of them, with these policies. Targets without a pod are held
/// against the policies that would select one for sure.
fn groups<'a, 'b>(
    policies: &'a [MtlsPolicy],
    selections: &'b HashMap<&Target, Selection<'b>>,
) -> Vec<(Workload<'b>, Vec<&'a MtlsPolicy>)>
where
    'a: 'b,
{
    let mut of_pods: HashMap<&str, (&Pod, Vec<usize>)> = HashMap::new();
    let mut without_pods: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, policy) in policies.iter().enumerate() {
        let pods = selections.get(&policy.target).map(|selection| &selection.pods[..]).unwrap_or_default();
        for pod in pods {
            of_pods.entry(&pod.uid).or_insert_with(|| (pod, Vec::new())).1.push(index);
        }
        if pods.is_empty() {
            let first = policies.iter().position(|other| other.target == policy.target).unwrap_or(index);
            without_pods.entry(first).or_default().push(index);
        }
    }
    let named = |indices: Vec<usize>| indices.into_iter().filter_map(|index| policies.get(index)).collect::<Vec<_>>();
    let mut groups: BTreeMap<(Vec<usize>, _), Workload<'_>> = BTreeMap::new();
    for (pod, indices) in of_pods.into_values() {
        groups.entry((indices, &pod.ports)).or_insert_with(|| Workload::from(pod));
    }
    let groups = groups.into_iter().map(|((indices, _), workload)| (workload, named(indices)));
    let unselected = without_pods.into_iter().filter_map(|(first, mut indices)| {
        let target = &policies.get(first)?.target;
        if *target != Target::Namespace {
            indices.extend((0..policies.len()).filter(|index| policies.get(*index).is_some_and(is_for_namespace)));
        }
        Some((imagined(target)?, named(indices)))
    });
    groups.chain(unselected).collect()
}

/// A pod that a target selects.
fn imagined(target: &Target) -> Option<Workload<'_>> {
    static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
    Some(match target {
        Target::Namespace => Workload { labels: &NO_LABELS, account: None, ports: &[] },
        Target::ServiceAccount(account) => Workload { labels: &NO_LABELS, account: Some(account), ports: &[] },
        Target::Service { selector, ports: _ } => Workload { labels: selector, account: None, ports: &[] },
    })
}

/// `policies`: all that select the pod.
fn find<'a>(
    policy: &'a MtlsPolicy,
    workload: &Workload<'_>,
    policies: &[&'a MtlsPolicy],
    mesh: MtlsMode,
    findings: &mut Findings<'a>,
) {
    let equals = || policies.iter().filter(|other| is_for_namespace(other) == is_for_namespace(policy));
    let is_permissive = |entry: &&MtlsPort| entry.mode == MtlsMode::Permissive;
    for MtlsPort { port, ip_blocks, .. } in policy.ports.iter().filter(is_permissive) {
        if !workload.is_target(&policy.target, *port) {
            continue;
        }
        let at_port: Vec<&MtlsPolicy> =
            policies.iter().copied().filter(|other| workload.is_target(&other.target, *port)).collect();
        let strict = |other: &&&MtlsPolicy| {
            let mut entries = other.ports.iter().filter(|entry| entry.port == *port);
            entries.any(|entry| entry.mode == MtlsMode::Strict) && workload.is_target(&other.target, *port)
        };
        findings.winners.extend(equals().filter(strict).map(|winner| (Some(*port), winner.name.as_str())));
        let otherwise = mode(&at_port, mesh);
        if otherwise.mode == MtlsMode::Strict && ip_blocks.is_empty() {
            findings.refused.insert(*port, otherwise);
        } else if otherwise.mode == MtlsMode::Strict {
            findings.declared.insert(*port);
        }
    }
    if policy.mode == Some(MtlsMode::Permissive) {
        let strict = |other: &&&MtlsPolicy| {
            other.mode == Some(MtlsMode::Strict) && have_a_port(workload, &policy.target, &other.target)
        };
        findings.winners.extend(equals().filter(strict).map(|winner| (None, winner.name.as_str())));
    }
}

/// Whether both targets, which select the pod, are about the same port of it.
fn have_a_port(workload: &Workload<'_>, one: &Target, other: &Target) -> bool {
    match (one, other) {
        _ if one == other => true,
        (Target::Service { ports, .. }, _) => {
            ports.iter().any(|port| workload.numbers(port).any(|number| workload.is_target(other, number)))
        }
        (_, Target::Service { .. }) => have_a_port(workload, other, one),
        _ => true,
    }
}

// === impl Findings ===

impl Findings<'_> {
    fn tell(self) -> Vec<Diagnostic> {
        let Self { refused, declared, winners } = self;
        let refused = refused.into_iter().map(|(port, Decision { mode: _, by })| {
            let by = by.map_or_else(|| "the Mesh".to_owned(), |name| format!("MeshPolicy {name}"));
            Diagnostic::partial(format!(
                "mtls: port {port} takes no plaintext: it is Strict otherwise, by {by}, so that the entry must say who may \
                 use plaintext: add ipBlocks"
            ))
        });
        let winners = winners.into_iter().map(|(port, name)| {
            let place = port.map_or_else(|| "mtls".to_owned(), |port| format!("mtls: port {port}"));
            let message = format!("{place}: MeshPolicy {name} is Strict for the same pods, and wins");
            Diagnostic { severity: Severity::Partial, reason: Reason::Conflicted, message }
        });
        let declared = match declared.len() {
            0 => None,
            1 => Some("1 port accepts plaintext by declaration".to_owned()),
            count => Some(format!("{count} ports accept plaintext by declaration")),
        };
        let declared = declared.map(|message| Diagnostic::limited(Reason::PlaintextDeclared, message));
        refused.chain(winners).chain(declared).collect()
    }
}
