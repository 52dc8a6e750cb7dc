//! The route table of a Service port: precedence of matches, and conflicts between routes with equal matches.

use std::collections::BTreeMap;

use weft_config::{Match, RouteTable, ServerName};

use super::attached::AttachedRoute;
use super::port::ServicePortKey;
use crate::compile::diagnostic::Diagnostic;
use crate::compile::precedence::{self, Rank};

/// The route table of one Service port: the matches of all routes in order of precedence, and their rules.
pub(super) fn table(port_key: &ServicePortKey, attached: &mut [AttachedRoute<'_>]) -> RouteTable {
    // Indices: the route (sorted by age and name), its rule, the rule's match.
    let mut all: Vec<(Rank, [usize; 3])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.http_ports.contains(port_key)) {
        for (n, rule) in route.rules.iter().enumerate() {
            all.extend(rule.matches.iter().enumerate().map(|(m, (rank, _))| (*rank, [r, n, m])));
        }
    }
    all.sort();

    let mut table = RouteTable::default();
    let mut taken: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut rules: BTreeMap<[usize; 2], usize> = BTreeMap::new();
    for (_, [r, n, m]) in all {
        attached[r].attachment(port_key).matches += 1;
        let (_, condition) = &attached[r].rules[n].matches[m];
        let canonical = precedence::canonical(condition);
        if let Some(&[winner, winner_rule]) = taken.get(&canonical) {
            let what = precedence::describe(condition);
            let [by, of] = [[winner, winner_rule], [r, n]].map(|[r, n]| attached[r].rules[n].rule.name.clone());
            conflict(port_key, attached, [winner, r], [&by, &of], &what);
            continue;
        }
        taken.insert(canonical, [r, n]);
        let rule = *rules.entry([r, n]).or_insert_with(|| {
            table.rules.push(attached[r].rules[n].rule.clone());
            table.rules.len() - 1
        });
        table.matches.push(Match { rule, ..condition.clone() });
    }
    streams(port_key, attached, &mut table);
    table
}

/// The TLS and TCP rules of one Service port.
fn streams(port_key: &ServicePortKey, attached: &mut [AttachedRoute<'_>], table: &mut RouteTable) {
    // `None` is the TCP rule. Indices: the route (sorted by age and name), its rule.
    let mut all: Vec<(Option<String>, [usize; 2])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.stream_ports.contains(port_key)) {
        for (n, (_, names)) in route.streams.iter().enumerate() {
            all.extend(names.iter().map(|name| (Some(name.clone()), [r, n])));
            all.extend(names.is_empty().then_some((None, [r, n])));
        }
    }
    let mut taken: BTreeMap<Option<String>, [usize; 2]> = BTreeMap::new();
    let mut indices: BTreeMap<[usize; 2], usize> = BTreeMap::new();
    for (name, [r, n]) in all {
        attached[r].attachment(port_key).matches += 1;
        if let Some(&[winner, winner_rule]) = taken.get(&name) {
            let what = name.map_or_else(|| "TCP connections".to_owned(), |name| format!("server name {name}"));
            let [by, of] = [[winner, winner_rule], [r, n]].map(|[r, n]| attached[r].streams[n].0.name.clone());
            conflict(port_key, attached, [winner, r], [&by, &of], &what);
            continue;
        }
        taken.insert(name.clone(), [r, n]);
        let rule = *indices.entry([r, n]).or_insert_with(|| {
            table.streams.push(attached[r].streams[n].0.clone());
            table.streams.len() - 1
        });
        match name {
            Some(name) => table.tls.push(ServerName { rule, name }),
            None => table.tcp = Some(rule),
        }
    }
    table.tls.sort_by_cached_key(|server| precedence::server_rank(&server.name));
}

/// Adds a diagnostic to both routes with equal matches. `rules` are the names of their rules.
fn conflict(
    port_key: &ServicePortKey,
    attached: &mut [AttachedRoute<'_>],
    [winner, loser]: [usize; 2],
    [by, of]: [&str; 2],
    what: &str,
) {
    let [winner_name, loser_name] = [winner, loser].map(|r| attached[r].to_string());
    let attachment = attached[loser].attachment(port_key);
    attachment.conflicting += 1;
    if winner == loser {
        let message = format!(
            "rule {of} at {port_key}: {what}: rule {by} of the same route matches first; change one of these matches"
        );
        attachment.conflicts.push(Diagnostic::partial(message));
    } else {
        let message = format!(
            "rule {of} at {port_key}: {what}: {winner_name} (rule {by}) takes precedence; change one of these matches"
        );
        attachment.conflicts.push(Diagnostic::partial(message));
        let note = Diagnostic::note(format!("at {port_key}: {what}: takes precedence over {loser_name}"));
        attached[winner].attachment(port_key).conflicts.push(note);
    }
}
