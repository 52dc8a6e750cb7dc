//! What rules are called in conditions, logs and metrics.

use crate::compile::diagnostic::Diagnostic;

/// The rules of one list of a route: their field, and what their positions are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    field: &'static str,
    prefix: &'static str,
}

pub(super) const HTTP: List = List { field: "http", prefix: "" };
pub(super) const TLS: List = List { field: "tls", prefix: "tls-" };

/// What each rule of a list is called: its name, or its position if others have the same name. The schema refuses that,
/// but routes that are older than the schema may have several rules without a name; a note tells their owner.
pub(super) fn names(list: List, given: &[&str], diagnostics: &mut Vec<Diagnostic>) -> Vec<String> {
    let List { field, prefix } = list;
    let is_unique = |name: &str| given.iter().filter(|other| **other == name).count() == 1;
    let called: Vec<String> = given
        .iter()
        .enumerate()
        .map(|(index, name)| if is_unique(name) { (*name).to_owned() } else { format!("{prefix}{index}") })
        .collect();
    let repeated: Vec<&str> =
        called.iter().zip(given).filter(|(called, name)| called != *name).map(|(called, _)| called.as_str()).collect();
    if !repeated.is_empty() {
        diagnostics.push(Diagnostic::note(format!(
            "{field} rules without a name of their own are called by their positions, {}: give each a name, as the schema \
             requires of new routes",
            repeated.join(", ")
        )));
    }
    called
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_share_a_name_are_called_by_their_positions() {
        let check = |list: List, given: &[&str], expected: &[&str], told: &str| {
            let mut diagnostics = Vec::new();
            assert_eq!(names(list, given, &mut diagnostics), expected, "{given:?}");
            let told_of = diagnostics.first().map(|note| note.message.as_str()).unwrap_or_default();
            assert_eq!(told_of.is_empty(), told.is_empty(), "{given:?}: {told_of}");
            assert!(told_of.contains(told), "{given:?}: {told_of}");
        };
        check(HTTP, &[], &[], "");
        check(HTTP, &["default"], &["default"], "");
        check(HTTP, &["default", "api"], &["default", "api"], "");
        check(HTTP, &["default", "api", "default"], &["0", "api", "2"], "http rules without a name of their own");
        check(TLS, &["tls-default", "tls-default"], &["tls-0", "tls-1"], "by their positions, tls-0, tls-1: give each");
    }
}
