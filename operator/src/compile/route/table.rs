//! The route table of a Service port: precedence of matches, and conflicts between routes with equal matches.

use std::collections::BTreeMap;

use weft_config::{Match, RouteTable, ServerName};

use super::attach::{AttachedRoute, ServicePortKey};
use crate::compile::diagnostic::Diagnostic;
use crate::compile::precedence::{self, Rank};

/// The route table of one Service port: the matches of all routes in order of precedence, and their rules.
pub(super) fn table(port_key: &ServicePortKey, attached: &mut [AttachedRoute<'_>]) -> RouteTable {
    // Indices: the route (sorted by age and name), its rule, the rule's match.
    let mut all: Vec<(Rank, [usize; 3])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.http_ports.contains(port_key)) {
        for (n, (_, matches)) in route.rules.iter().enumerate() {
            all.extend(matches.iter().enumerate().map(|(m, condition)| (precedence::rank(condition), [r, n, m])));
        }
    }
    all.sort();

    let mut table = RouteTable::default();
    let mut taken: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut rules: BTreeMap<[usize; 2], usize> = BTreeMap::new();
    for (_, [r, n, m]) in all {
        let (rule, matches) = &attached[r].rules[n];
        let condition = &matches[m];
        let rule_name = rule.name.clone();
        attached[r].matches += 1;
        match taken.get(&precedence::canonical(&attached[r].rules[n].1[m])) {
            None => {
                let condition = &attached[r].rules[n].1[m];
                taken.insert(precedence::canonical(condition), [r, n]);
                let index = *rules.entry([r, n]).or_insert_with(|| {
                    table.rules.push(attached[r].rules[n].0.clone());
                    table.rules.len() - 1
                });
                table.matches.push(Match { rule: index, ..condition.clone() });
            }
            Some(&[winner, winner_rule]) => {
                let what = precedence::describe(condition);
                let by = attached[winner].rules[winner_rule].0.name.clone();
                conflict(port_key, attached, [winner, r], [&by, &rule_name], &what);
            }
        }
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
        attached[r].matches += 1;
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
    let [winner_key, loser_key] = [winner, loser].map(|r| attached[r].route.meta.key.clone());
    attached[loser].conflicting += 1;
    if winner == loser {
        let message = format!(
            "rule {of} at {port_key}: {what}: rule {by} of the same route matches first; change one of these matches"
        );
        attached[loser].conflicts.push(Diagnostic::partial(message));
    } else {
        let message = format!(
            "rule {of} at {port_key}: {what}: MeshRoute {winner_key} (rule {by}) takes precedence; change one of these matches"
        );
        attached[loser].conflicts.push(Diagnostic::partial(message));
        let note = Diagnostic::note(format!("at {port_key}: {what}: takes precedence over MeshRoute {loser_key}"));
        attached[winner].conflicts.push(note);
    }
}
