//! One kind of route for a Service port. GEP-1294: if routes of several kinds are attached to a port, those of one kind
//! apply; the others are told. docs/adr says why MeshRoute comes first.

use std::collections::{BTreeMap, BTreeSet};

use super::attached::AttachedRoute;
use super::port::ServicePortKey;
use crate::compile::diagnostic::Diagnostic;
use crate::world::Kind;

/// The kinds in order of precedence: MeshRoute, then the order of GEP-1294.
const ORDER: [Kind; 5] = [Kind::Route, Kind::GrpcRoute, Kind::HttpRoute, Kind::TlsRoute, Kind::TcpRoute];

/// Takes the routes off ports where routes of a kind that comes before theirs are attached too.
pub(super) fn settle(attached: &mut [AttachedRoute<'_>]) {
    let mut routes: BTreeMap<ServicePortKey, Vec<usize>> = BTreeMap::new();
    for (index, route) in attached.iter().enumerate() {
        for port_key in route.port_keys() {
            routes.entry(port_key.clone()).or_default().push(index);
        }
    }
    for (port_key, indices) in routes {
        let kinds: BTreeSet<Kind> = indices.iter().map(|index| attached[*index].kind).collect();
        let Some(first) = ORDER.into_iter().find(|kind| kinds.contains(kind)) else { continue };
        let (winners, losers): (Vec<usize>, Vec<usize>) =
            indices.into_iter().partition(|index| attached[*index].kind == first);
        let names = |attached: &[AttachedRoute<'_>], indices: &[usize]| {
            indices.iter().map(|index| attached[*index].to_string()).collect::<Vec<_>>().join(", ")
        };
        if losers.is_empty() {
            continue;
        }
        let (by, of) = (names(attached, &winners), names(attached, &losers));
        for index in losers {
            let why = format!(
                "it does not apply to {port_key}: {by} takes precedence, because a port has routes of one kind (MeshRoute, \
                 else GRPCRoute, HTTPRoute, TLSRoute, TCPRoute); delete one of them, or attach it to another port"
            );
            attached[index].detach(&port_key, why);
        }
        for index in winners {
            let note = Diagnostic::note(format!("at {port_key}: takes precedence over {of}"));
            attached[index].attachment(&port_key).conflicts.push(note);
        }
    }
}
