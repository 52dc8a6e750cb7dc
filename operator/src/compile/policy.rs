//! MeshPolicies: their targets, rules and modes. A rejected policy is not applied, and its condition says so.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::{AuthorizationRule, Inbound, MtlsPolicy, Policy, PolicyAction, PortRef, Protocol, Source, Target};
use weft_crds::MeshPolicySpec;
use weft_crds::policy::{self, Action, Authorization};
use weft_crds::refs::{PolicyTargetKind, PolicyTargetRef};
use weft_crds::status::Reason;

use super::compiled::Outcome;
use super::diagnostic::Diagnostic;
use super::{missing, mtls, source, value};
use crate::world::{self, DocumentKind, Key, Kind, Namespace, ObjectId, Pod, Service, TargetPort, World};

/// What conditions on HTTP requests mean where the proxy sees none.
pub(super) const ON_OPAQUE_TCP: &str =
    "Deny rules with methods, paths or headers refuse every connection there, and such Allow rules match none";

/// What the accepted policies of a namespace say, each sorted by name.
#[derive(Default)]
pub(super) struct Accepted {
    pub(super) authorization: Vec<Policy>,
    pub(super) mtls: Vec<MtlsPolicy>,
}

/// Compiles the policies of a namespace.
pub(super) fn compile(world: &World, namespace: &Namespace, objects: &mut BTreeMap<ObjectId, Outcome>) -> Accepted {
    let mut accepted = Accepted::default();
    for policy in namespace.policies.values() {
        let outcome = objects.entry(ObjectId { kind: Kind::Policy, key: policy.meta.key.clone() }).or_default();
        match check(world, namespace, policy, &mut outcome.diagnostics) {
            Ok((authorization, mtls)) => {
                outcome.documents.insert(DocumentKind::Inbound);
                accepted.authorization.extend(authorization);
                accepted.mtls.extend(mtls);
            }
            Err(mut refused) => {
                refused.message.push_str(". The policy is not applied");
                outcome.diagnostics.push(refused);
            }
        }
    }
    accepted
}

/// Pods (by UID) with changed labels since injection that a policy selects by: the current values of all labels that
/// policies select by.
pub(super) fn relabelled(namespace: &Namespace, inbound: &Inbound) -> BTreeMap<String, BTreeMap<String, String>> {
    let keys: BTreeSet<&str> = targets(inbound).flat_map(selector_keys).collect();
    let labels = |pod: &Pod| {
        let selected_by = pod.labels.iter().filter(|(key, _)| keys.contains(key.as_str()));
        selected_by.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let relabelled = namespace.pods.values().filter(|pod| pod.relabelled.iter().any(|key| keys.contains(key.as_str())));
    relabelled.map(|pod| (pod.uid.clone(), labels(pod))).collect()
}

/// The targets of all policies.
pub(super) fn targets(inbound: &Inbound) -> impl Iterator<Item = &Target> {
    let of_authorization = inbound.policies.iter().map(|policy| &policy.target);
    of_authorization.chain(inbound.mtls.policies.iter().map(|policy| &policy.target))
}

fn check(
    world: &World,
    namespace: &Namespace,
    policy: &world::Policy,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<(Option<Policy>, Option<MtlsPolicy>), Diagnostic> {
    let spec = policy
        .spec
        .as_ref()
        .map_err(|error| Diagnostic::refused(Reason::Invalid, format!("the object cannot be parsed: {error}")))?;
    let MeshPolicySpec { target_ref, mtls, authorization } = spec;
    let Key { namespace: own, name } = &policy.meta.key;
    let rules = authorization.as_ref().map(|authorization| &authorization.rules[..]).unwrap_or_default();
    let mut compiled = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let rule = source::compile(world, own, rule.from.as_deref(), index, diagnostics)
            .and_then(|from| self::rule(rule, from))
            .map_err(|message| Diagnostic::refused(Reason::UnsupportedValue, format!("rule {index}: {message}")))?;
        compiled.push(rule);
    }
    let target = target(namespace, target_ref, looks_into_http(&compiled), diagnostics)?;
    let mtls = mtls.as_ref().map(|mtls| mtls::policy(name, &target, mtls, diagnostics));
    let authorization = authorization.as_ref().map(|Authorization { default, rules: _ }| {
        let default_deny = *default == Action::Deny;
        Policy { name: name.clone(), target, default_deny, rules: compiled }
    });
    Ok((authorization, mtls))
}

/// Keys of the labels that a target selects by.
pub(super) fn selector_keys(target: &Target) -> impl Iterator<Item = &str> {
    let selector = match target {
        Target::Service { selector, ports: _ } => Some(selector),
        Target::Namespace | Target::ServiceAccount(_) => None,
    };
    selector.into_iter().flat_map(|selector| selector.keys().map(String::as_str))
}

/// Whether a rule has conditions on HTTP requests.
pub(super) fn looks_into_http(rules: &[AuthorizationRule]) -> bool {
    rules.iter().any(|rule| !(rule.methods.is_empty() && rule.paths.is_empty() && rule.headers.is_empty()))
}

fn target(
    namespace: &Namespace,
    target_ref: &PolicyTargetRef,
    looks_into_http: bool,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<Target, Diagnostic> {
    let PolicyTargetRef { kind, name } = target_ref;
    let named = || {
        name.as_deref()
            .ok_or_else(|| Diagnostic::refused(Reason::Invalid, format!("targetRef of kind {kind:?} requires a name")))
    };
    match kind {
        PolicyTargetKind::Namespace => Ok(Target::Namespace),
        PolicyTargetKind::ServiceAccount => {
            let name = named()?;
            if !namespace.accounts.contains_key(name) {
                return Err(Diagnostic::refused(Reason::TargetNotFound, missing::account(namespace, name)));
            }
            Ok(Target::ServiceAccount(name.to_owned()))
        }
        PolicyTargetKind::Service => {
            let name = named()?;
            let service = namespace
                .services
                .get(name)
                .ok_or_else(|| Diagnostic::refused(Reason::TargetNotFound, missing::own_service(namespace, name)))?;
            service_target(service, looks_into_http, diagnostics)
        }
    }
}

fn service_target(
    service: &Service,
    looks_into_http: bool,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<Target, Diagnostic> {
    let name = &service.key.name;
    if service.external || service.selector.is_empty() {
        let message = format!(
            "Service {name} has no selector, by which a policy finds its pods: target a ServiceAccount or the Namespace"
        );
        return Err(Diagnostic::refused(Reason::UnsupportedTarget, message));
    }
    if service.ports.is_empty() {
        let message = format!(
            "Service {name} has no TCP port, and a policy applies to no other protocol: name a Service that has one"
        );
        return Err(Diagnostic::refused(Reason::UnsupportedTarget, message));
    }
    let opaque: Vec<u16> =
        service.ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.port).collect();
    if looks_into_http && !opaque.is_empty() {
        if opaque.len() == service.ports.len() {
            let message = format!(
                "every port of Service {name} is declared as opaque TCP (by appProtocol or port name), and a \
                 rule has methods, paths or headers: remove these, or the declaration"
            );
            return Err(Diagnostic::refused(Reason::UnsupportedTarget, message));
        }
        let ports: Vec<String> = opaque.iter().map(u16::to_string).collect();
        diagnostics.push(Diagnostic::note(format!(
            "ports {} of Service {name} carry opaque TCP: {ON_OPAQUE_TCP}",
            ports.join(", ")
        )));
    }
    let mut ports: Vec<PortRef> = service
        .ports
        .iter()
        .map(|port| match &port.target {
            TargetPort::Number(number) => PortRef::Number(*number),
            TargetPort::Name(name) => PortRef::Name(name.clone()),
        })
        .collect();
    ports.sort();
    ports.dedup();
    Ok(Target::Service { selector: service.selector.clone(), ports })
}

fn rule(rule: &policy::AuthorizationRule, from: Vec<Source>) -> Result<AuthorizationRule, String> {
    let policy::AuthorizationRule { action, from: _, methods, paths, headers, ports } = rule;
    Ok(AuthorizationRule {
        from,
        action: match action {
            Action::Allow => PolicyAction::Allow,
            Action::Deny => PolicyAction::Deny,
        },
        methods: methods.iter().map(|method| value::method(*method)).collect(),
        paths: paths.iter().map(value::path).collect::<Result<_, _>>()?,
        // Keep several conditions on one header name: dropping one would widen the rule.
        headers: headers.iter().map(value::header).collect::<Result<_, _>>()?,
        ports: ports.clone(),
    })
}
