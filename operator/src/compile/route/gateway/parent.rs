//! The parentRefs of a route that are Services, each with a status of its own.

use std::collections::BTreeSet;

use weft_crds::status::Reason;
use weft_gateway_api::ParentReference;

use crate::compile::compiled::{Outcome, ParentOutcome};
use crate::compile::diagnostic::{Diagnostic, Severity};
use crate::compile::route::attached::{AttachedParent, AttachedRoute};
use crate::compile::route::backend::RuleKind;
use crate::compile::route::port::{Parent, PortKeys, ServicePortKey};
use crate::world::{Key, World};

/// Finds the ports of a parent of a route in namespace `own`. `can_attach`: the route has rules. `diagnostics`: what
/// is to be said about the route itself.
pub(super) fn attach(
    world: &World,
    own: &str,
    parent: &ParentReference,
    kind: RuleKind,
    can_attach: bool,
    mut diagnostics: Vec<Diagnostic>,
) -> AttachedParent {
    let remedy = match kind {
        RuleKind::Http => "only TLSRoutes and TCPRoutes apply to it",
        RuleKind::Stream => "only HTTPRoutes and GRPCRoutes apply to it",
    };
    let found = named(own, parent).port_keys(world, kind, remedy);
    let mut port_keys = BTreeSet::new();
    match found {
        Ok(PortKeys { found, others }) => {
            port_keys.extend(found.into_iter().filter(|_| can_attach));
            diagnostics.extend(others.iter().map(ServicePortKey::is_of_another_protocol));
        }
        Err((reason, message)) => diagnostics.push(Diagnostic::refused(reason, message)),
    }
    AttachedParent { parent: parent.clone(), port_keys, diagnostics }
}

/// The outcome at a parent, after the ports of all routes were settled. `own`: the route's namespace.
fn outcome_at(parent: AttachedParent, own: &str, route: &AttachedRoute<'_>) -> ParentOutcome {
    let AttachedParent { parent, port_keys, mut diagnostics } = parent;
    let kept: BTreeSet<&ServicePortKey> = route.port_keys().filter(|key| port_keys.contains(key)).collect();
    let attachments = || port_keys.iter().filter_map(|port_key| route.attachments.get(port_key));
    let outranked: Vec<String> = attachments().filter_map(|attachment| attachment.outranked.clone()).collect();
    let conflicts: Vec<Diagnostic> = attachments().flat_map(|attachment| &attachment.conflicts).cloned().collect();
    let (matches, conflicting) =
        attachments().fold((0, 0), |(all, lost), attachment| (all + attachment.matches, lost + attachment.conflicting));
    let mut documents = BTreeSet::new();
    if !port_keys.is_empty() && kept.is_empty() {
        refuse(&mut diagnostics, &outranked);
    } else if matches > 0 && matches == conflicting {
        // All its matches conflict: only the conflicts are reported.
        let lost = conflicts.into_iter().filter(|conflict| conflict.severity == Severity::Partial);
        refuse(&mut diagnostics, &lost.map(|conflict| conflict.message).collect::<Vec<_>>());
    } else {
        diagnostics.extend(outranked.into_iter().map(Diagnostic::partial));
        diagnostics.extend(conflicts);
        documents.extend(kept.into_iter().map(|port_key| port_key.document(own)));
    }
    ParentOutcome { parent, documents, diagnostics }
}

/// The outcome of a route, with one for each of its parents.
pub(in crate::compile::route) fn outcome(mut route: AttachedRoute<'_>) -> Outcome {
    let own = &route.meta.key.namespace;
    let parents = std::mem::take(&mut route.parents);
    let parents: Vec<ParentOutcome> = parents.into_iter().map(|parent| outcome_at(parent, own, &route)).collect();
    let documents = parents.iter().flat_map(|parent| &parent.documents).copied().collect();
    Outcome { documents, diagnostics: Vec::new(), parents }
}

/// Routes that take precedence leave nothing of it: what else there is to say is about references only.
fn refuse(diagnostics: &mut Vec<Diagnostic>, messages: &[String]) {
    diagnostics.retain(|diagnostic| diagnostic.severity == Severity::Unresolved);
    diagnostics.push(Diagnostic::refused(Reason::Conflicted, messages.join("; ")));
}

/// The Service that a parentRef of a route in namespace `own` names.
pub(super) fn service(own: &str, parent: &ParentReference) -> Key {
    Key::new(parent.namespace.as_deref().unwrap_or(own), &parent.name)
}

fn named<'a>(own: &str, parent: &'a ParentReference) -> Parent<'a> {
    let ParentReference { group: _, kind: _, namespace: _, name: _, port, section_name } = parent;
    Parent {
        service: service(own, parent),
        // The schema allows no other numbers. 0 is no port of any Service.
        port: port.map(|port| u16::try_from(port).unwrap_or_default()),
        port_name: section_name.as_deref(),
    }
}
