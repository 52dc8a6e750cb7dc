//! Whether the pods that a policy selects enforce it: each has a proxy, through which connections to the policy's ports
//! go, and has these ports.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::{AuthorizationRule, MtlsMode, MtlsPolicy, Policy, PortRef, Protocol, Target};
use weft_crds::status::Reason;
use weft_crds::suggest::did_you_mean;

use super::pods::{Pods, enable, list};
use crate::compile::diagnostic::Diagnostic;
use crate::compile::policy::{ON_OPAQUE_TCP, looks_into_http};
use crate::world::{Namespace, Pod, Service, TargetPort};

/// How many Services a message names.
const SERVICES_MAX: usize = 5;

/// An accepted policy.
pub(super) struct Checked<'a> {
    pub(super) name: &'a str,
    pub(super) target: &'a Target,
    pub(super) authorization: Option<&'a Policy>,
    pub(super) mtls: Option<&'a MtlsPolicy>,
}

/// A port that a policy names, and where.
struct NamedPort {
    place: String,
    port: u16,
}

/// The pods that a target selects, and what policies with this target have in common.
pub(super) struct Selection<'a> {
    pub(super) pods: Vec<&'a Pod>,
    without_proxy: Option<String>,
    /// Pods with a proxy that has no identity.
    without_identity: Vec<&'a Pod>,
    /// TCP ports that containers declare, and their names.
    declared: BTreeSet<u16>,
    named: BTreeMap<&'a str, BTreeSet<u16>>,
    /// Pods with a proxy that is not in the way of all ports, and pods with opaque ports.
    excluding: Vec<&'a Pod>,
    opaque: Vec<&'a Pod>,
}

// === impl Checked ===

impl Checked<'_> {
    fn rules(&self) -> &[AuthorizationRule] {
        self.authorization.map(|policy| &policy.rules[..]).unwrap_or_default()
    }

    /// The ports that it names.
    fn ports(&self) -> Vec<NamedPort> {
        let rules = self.rules().iter().enumerate();
        let of_rules = rules.flat_map(|(index, rule)| {
            rule.ports.iter().map(move |port| NamedPort { place: format!("rule {index}"), port: *port })
        });
        let entries = self.mtls.into_iter().flat_map(|mtls| &mtls.ports);
        of_rules.chain(entries.map(|entry| NamedPort { place: "mtls".to_owned(), port: entry.port })).collect()
    }

    /// Whether it is about all ports of its target.
    fn is_about_all_ports(&self) -> bool {
        let is_of_rules = self
            .authorization
            .is_some_and(|policy| policy.default_deny || policy.rules.iter().any(|rule| rule.ports.is_empty()));
        is_of_rules || self.mtls.is_some_and(|mtls| mtls.mode.is_some())
    }

    /// Whether it demands mutual TLS anywhere.
    fn is_strict(&self) -> bool {
        let strict = |mtls: &MtlsPolicy| {
            let of_ports = mtls.ports.iter().map(|entry| entry.mode);
            mtls.mode.into_iter().chain(of_ports).any(|mode| mode == MtlsMode::Strict)
        };
        self.mtls.is_some_and(strict)
    }
}

// === impl Selection ===

impl<'a> Selection<'a> {
    pub(super) fn new(pods: &Pods<'a>, target: &Target) -> Self {
        let selected = match target {
            Target::Namespace => pods.all.clone(),
            Target::ServiceAccount(account) => pods.under(account),
            Target::Service { selector, ports: _ } => pods.with_labels(selector),
        };
        let mut named: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
        for port in selected.iter().flat_map(|pod| &pod.ports) {
            named.entry(&port.name).or_default().insert(port.port);
        }
        let proxied = |holds: fn(&Pod) -> bool| {
            let proxied = selected.iter().copied().filter(|pod| pod.has_proxy);
            proxied.filter(|pod| holds(pod)).collect()
        };
        Self {
            without_proxy: pods.without_proxy(&selected, "that it selects"),
            declared: named.values().flatten().copied().collect(),
            named,
            excluding: proxied(|pod| !pod.excluded.is_empty()),
            without_identity: proxied(|pod| !pod.has_identity),
            opaque: proxied(|pod| pod.opaque.as_ref().is_none_or(|ports| !ports.is_empty())),
            pods: selected,
        }
    }
}

/// Why pods that the policy selects do not enforce it. `service` is the target, if that is a Service.
pub(super) fn check(
    namespace: &Namespace,
    pods: &Pods<'_>,
    policy: &Checked<'_>,
    service: Option<&Service>,
    selection: &Selection<'_>,
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    if selection.pods.is_empty() {
        found.push(no_pods(namespace, pods, policy.target, service));
    }
    found.extend(selection.without_proxy.iter().map(|message| Diagnostic::ineffective(Reason::NoProxy, message)));
    if policy.is_strict() && !selection.without_identity.is_empty() {
        found.push(no_identity(&selection.without_identity));
    }
    let named = policy.ports();
    let ports = match (policy.target, service) {
        (Target::Service { ports, .. }, Some(service)) => {
            Some(target_ports(ports, service, selection, &named, &mut found))
        }
        _ => {
            named_ports(namespace, &named, selection, &mut found);
            None
        }
    };
    let ports = if policy.is_about_all_ports() { ports } else { Some(concerned(ports, &named)) };
    found.extend(excluded(ports.as_ref(), selection));
    if looks_into_http(policy.rules()) {
        found.extend(opaque(ports.as_ref(), selection));
        if *policy.target == Target::Namespace {
            found.extend(declared_opaque(namespace));
        }
    }
    found
}

/// Ports of Services that carry opaque TCP, for a policy with conditions on HTTP that is about all of them.
fn declared_opaque(namespace: &Namespace) -> Option<Diagnostic> {
    let is_opaque = |service: &&Service| service.ports.iter().any(|port| port.protocol == Protocol::Tcp);
    let mut services = namespace.services.values().filter(is_opaque).map(|service| service.key.name.as_str());
    let named: Vec<&str> = services.by_ref().take(SERVICES_MAX).collect();
    let more = match services.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!("Services have ports that carry opaque TCP: {}{more}: {ON_OPAQUE_TCP}", named.join(", "));
    (!named.is_empty()).then(|| Diagnostic::note(message))
}

fn no_pods(namespace: &Namespace, pods: &Pods<'_>, target: &Target, service: Option<&Service>) -> Diagnostic {
    let text = match target {
        Target::Namespace => "the namespace has no ready pod".to_owned(),
        Target::ServiceAccount(account) => format!("no ready pod runs under ServiceAccount {account}"),
        Target::Service { selector, .. } => {
            let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let service = service.map(|service| service.key.name.as_str()).unwrap_or_default();
            format!("no ready pod has the labels {} that Service {service} selects", labels.join(","))
        }
    };
    let name = namespace.meta.as_ref().map(|meta| meta.name.as_str()).unwrap_or_default();
    let hint = if pods.enabled { String::new() } else { format!("; {}, so that they get one", enable(name)) };
    let message = format!("{text}: the policy applies to such pods with a proxy as soon as they start{hint}");
    Diagnostic::limited(Reason::NoPods, message)
}

/// Mutual TLS is demanded of pods that cannot prove who they are: nobody can connect to them.
fn no_identity(pods: &[&Pod]) -> Diagnostic {
    let restart = if pods.len() == 1 { "restart it" } else { "restart them" };
    let message = format!(
        "mtls: {} created without identity, and nobody can connect to ports where Strict holds: {restart} (kubectl rollout \
         restart)",
        if pods.len() == 1 { format!("{} was", list(pods)) } else { format!("{} were", list(pods)) }
    );
    Diagnostic::ineffective(Reason::NoIdentity, message)
}

/// The ports of the pods that a policy for a Service applies to. Reports target ports that the pods do not have, and
/// ports of rules that are no target port.
fn target_ports(
    targets: &[PortRef],
    service: &Service,
    selection: &Selection<'_>,
    ports: &[NamedPort],
    found: &mut Vec<Diagnostic>,
) -> BTreeSet<u16> {
    let name = &service.key.name;
    let mut resolved = BTreeSet::new();
    let mut is_complete = true;
    for target in targets {
        match target {
            PortRef::Number(number) => drop(resolved.insert(*number)),
            PortRef::Name(port) => match selection.named.get(port.as_str()) {
                Some(numbers) => resolved.extend(numbers),
                None if selection.pods.is_empty() => is_complete = false,
                None => found.push(Diagnostic::ineffective(
                    Reason::PortNotFound,
                    format!(
                        "no pod that it selects has a container port with the name {port}, the targetPort of Service \
                         {name}{}",
                        did_you_mean(port, selection.named.keys().copied().filter(|name| !name.is_empty()))
                    ),
                )),
            },
        }
    }
    for NamedPort { place, port } in missing(ports, &resolved).filter(|_| is_complete) {
        let mut meant = service.port(*port).map(|port| &port.target).into_iter().flat_map(|target| match target {
            TargetPort::Number(number) => vec![*number],
            TargetPort::Name(name) => selection.named.get(name.as_str()).into_iter().flatten().copied().collect(),
        });
        let message = if selection.declared.contains(port) {
            format!(
                "{place}: port {port} is no targetPort of Service {name} ({}), to which a policy for a Service is \
                 limited: target the ServiceAccount or the Namespace",
                numbers(&resolved)
            )
        } else {
            no_pod_listens(place, *port, meant.next(), &resolved)
        };
        found.push(Diagnostic::ineffective(Reason::PortNotFound, message));
    }
    resolved
}

/// Reports named ports that no pod declares, for targets that are not limited to ports. Pods may listen on ports that
/// they do not declare: it is a mistake only if a Service has the port under another number.
fn named_ports(namespace: &Namespace, ports: &[NamedPort], selection: &Selection<'_>, found: &mut Vec<Diagnostic>) {
    if selection.declared.is_empty() {
        return;
    }
    let services = || namespace.services.values().flat_map(|service| &service.ports);
    for NamedPort { place, port } in missing(ports, &selection.declared) {
        if services().any(|candidate| candidate.target == TargetPort::Number(*port)) {
            continue;
        }
        let meant =
            services().filter(|candidate| candidate.port == *port).find_map(|candidate| match candidate.target {
                TargetPort::Number(number) => Some(number),
                TargetPort::Name(ref name) => selection.named.get(name.as_str())?.first().copied(),
            });
        found.push(match meant.filter(|meant| selection.declared.contains(meant)) {
            Some(meant) => {
                let message = no_pod_listens(place, *port, Some(meant), &selection.declared);
                Diagnostic::ineffective(Reason::PortNotFound, message)
            }
            None => Diagnostic::limited(
                Reason::PortNotFound,
                format!("{place}: no pod that it selects declares port {port}, only {}", numbers(&selection.declared)),
            ),
        });
    }
}

/// The named ports that are not among `known`.
fn missing<'a>(ports: &'a [NamedPort], known: &'a BTreeSet<u16>) -> impl Iterator<Item = &'a NamedPort> + 'a {
    ports.iter().filter(|named| !known.contains(&named.port))
}

fn no_pod_listens(place: &str, port: u16, meant: Option<u16>, known: &BTreeSet<u16>) -> String {
    let only = known.first().copied().filter(|_| known.len() == 1);
    let hint = match meant.or(only) {
        Some(meant) => format!("; did you mean {meant}?"),
        None if known.is_empty() => String::new(),
        None => format!(" (they listen on {})", numbers(known)),
    };
    format!("{place}: no pod listens on {port}: policies name ports of pods{hint}")
}

/// Those of the named ports that are among `ports`. `None`: all.
fn concerned(ports: Option<BTreeSet<u16>>, named: &[NamedPort]) -> BTreeSet<u16> {
    let named = named.iter().map(|named| named.port);
    named.filter(|port| ports.as_ref().is_none_or(|ports| ports.contains(port))).collect()
}

/// Ports that bypass the proxy. If the policy is about all ports, an exclusion is no mistake but a limit of it.
fn excluded(ports: Option<&BTreeSet<u16>>, selection: &Selection<'_>) -> Option<Diagnostic> {
    let annotation = "config.weft.dev/exclude-inbound-ports";
    let Some(ports) = ports else {
        let pods = list(&selection.excluding);
        let message = format!("it does not apply to ports that pods exclude from their proxy ({annotation}): {pods}");
        return (!selection.excluding.is_empty()).then(|| Diagnostic::limited(Reason::PortExcluded, message));
    };
    let (ports, pods) = holding(ports, &selection.excluding, Pod::excludes)?;
    let message = format!(
        "connections to port {} do not go through the proxy of {pods}: remove the port from the annotation {annotation}",
        numbers(&ports)
    );
    Some(Diagnostic::ineffective(Reason::PortExcluded, message))
}

/// Ports on which the proxy sees no HTTP.
fn opaque(ports: Option<&BTreeSet<u16>>, selection: &Selection<'_>) -> Option<Diagnostic> {
    let (ports, pods) = holding(ports.unwrap_or(&selection.declared), &selection.opaque, Pod::is_opaque)?;
    Some(Diagnostic::note(format!(
        "port {} of {pods} carries opaque TCP (annotation config.weft.dev/opaque-ports, or its default): {ON_OPAQUE_TCP}",
        numbers(&ports)
    )))
}

/// The ports that hold for some of the pods, and these pods.
fn holding(ports: &BTreeSet<u16>, pods: &[&Pod], holds: fn(&Pod, u16) -> bool) -> Option<(BTreeSet<u16>, String)> {
    let held = |pod: &Pod| ports.iter().copied().filter(|port| holds(pod, *port)).collect::<Vec<_>>();
    let all: BTreeSet<u16> = pods.iter().flat_map(|pod| held(pod)).collect();
    let pods: Vec<&Pod> = pods.iter().copied().filter(|pod| !held(pod).is_empty()).collect();
    (!all.is_empty()).then(|| (all, list(&pods)))
}

fn numbers(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}
