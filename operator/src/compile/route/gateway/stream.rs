//! The rule of a TLSRoute or TCPRoute.

use weft_config::{Backend, BackendTarget, StreamRule};
use weft_crds::route;
use weft_crds::status::Reason;
use weft_gateway_api::BackendRef;

use super::backend;
use crate::compile::diagnostic::Diagnostic;
use crate::compile::route::backend::{self as reference, OfBackend, Referrer, RuleKind};
use crate::world::World;

/// Compiles a rule. Connections for a backend that cannot be used are closed, as by the API.
pub(super) fn rule(
    world: &World,
    route: Referrer<'_>,
    name: &str,
    backend_refs: &[BackendRef],
    diagnostics: &mut Vec<Diagnostic>,
) -> StreamRule {
    let mut found: Vec<(Reason, String)> = Vec::new();
    let mut backends: Vec<Backend> = backend_refs
        .iter()
        .map(|backend_ref| {
            let weight = backend::weight(backend_ref.weight);
            match backend::service(&backend::of_stream(backend_ref)) {
                Ok(service) => {
                    let service = route::BackendRef { weight, ..service };
                    reference::backend(world, route, &service, OfBackend::default(), RuleKind::Stream, &mut found)
                }
                Err((reason, message)) => {
                    found.push((reason, format!("{message}: {}", reference::while_missing(route, RuleKind::Stream))));
                    Backend { weight, target: BackendTarget::Invalid(message), filters: None }
                }
            }
        })
        .collect();
    diagnostics.extend(reference::diagnostics(name, found));
    if backends.iter().all(|backend| backend.weight == 0) {
        let message = "it has no backend with a weight above 0";
        diagnostics.push(Diagnostic::partial(format!("rule {name}: {message}: its connections are closed")));
        backends = vec![Backend { weight: 1, target: BackendTarget::Invalid(message.to_owned()), filters: None }];
    }
    StreamRule { route: route.route_ref(), name: name.to_owned(), backends }
}
