//! The page of docs that is generated from the table.

use std::fmt::Write;

use super::{Mistake, Place, groups};

const INTRODUCTION: &str = "\
# Mistakes, and where they are told

Each row is a mistake, and what Weft or the API server says about it within two seconds: what is wrong, and the remedy.
`kubectl` prints warnings and refusals while it does what it was told. `kubectl get` shows the columns READY and REASON
of an object, and with `-o wide` the message ([conditions.md](conditions.md)). Routes of the Gateway API have conditions
for each parent, in `status.parents`. `kubectl describe` shows Events ([events.md](events.md)). What was applied before
what it needs becomes ready as soon as that is there.

Names are those of the tests: `make e2e` makes each of these mistakes on a cluster.
";

/// The page.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for group in groups() {
        let _ = write!(page, "\n## {}\n\n| mistake | told by | says |\n|---|---|---|\n", group.title);
        group.mistakes.iter().for_each(|mistake| rows(mistake, &mut page));
    }
    page
}

/// A row for each place in which the mistake is told.
fn rows(mistake: &Mistake, page: &mut String) {
    let mut name = mistake.name.as_str();
    for told in &mistake.told {
        let place = match &told.place {
            Place::Warning => "`kubectl`, as a warning".to_owned(),
            Place::Refusal => "`kubectl`: refused".to_owned(),
            Place::Columns { object, ready, reason } => {
                format!("`kubectl get {}`: READY {ready}, `{reason}`", kind(object))
            }
            Place::Parent { object, condition, status, reason } => {
                format!("`status.parents` of the `{}`: {condition} {status}, `{reason}`", kind(object))
            }
            Place::Event { object, reason } => format!("Event on the `{}`: `{reason}`", kind(object)),
        };
        let says = told.says.iter().map(|part| format!("`{part}`")).collect::<Vec<_>>().join(" … ");
        let says = says.replace("{ns}", "shop").replace("{other}", "stock");
        let _ = writeln!(page, "{}", format!("| {name} | {place} | {says} |").replace("|  |", "| |"));
        name = "";
    }
}

fn kind(object: &str) -> &str {
    object.split_once('/').map_or(object, |(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::cluster::checkout;

    const PAGE: &str = "docs/mistakes.md";

    /// `WEFT_BLESS=1 cargo test -p weft-e2e --lib` writes the page.
    #[test]
    fn page_is_generated_from_the_table() {
        let (path, page) = (checkout().join(PAGE), page());
        if std::env::var_os("WEFT_BLESS").is_some() {
            fs::write(&path, &page).expect("writable");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page, "{PAGE} is not what the table says; WEFT_BLESS=1 writes it");
    }

    #[test]
    fn every_mistake_has_a_name_of_its_own_and_is_told() {
        for group in groups() {
            let mut names = BTreeSet::new();
            for Mistake { name, told, .. } in &group.mistakes {
                assert!(names.insert(name), "{}: two mistakes are called {name}", group.name);
                assert!(!told.is_empty(), "{name} is told nowhere");
                assert!(told.iter().all(|told| !told.says.is_empty()), "{name}: no text");
            }
        }
    }

    #[test]
    fn every_annotation_has_a_mistake() {
        let page = fs::read_to_string(checkout().join("docs/reference/annotations.md")).expect("a reference");
        let names: Vec<String> =
            groups().into_iter().flat_map(|group| group.mistakes).map(|mistake| mistake.name).collect();
        let mut annotations = 0;
        for key in page.split("`config.weft.dev/").skip(1).filter_map(|rest| rest.split('`').next()) {
            annotations += 1;
            assert!(names.iter().any(|name| name.starts_with(&format!("`{key}: "))), "no mistake with {key}");
        }
        assert!(annotations >= 13, "{annotations} annotations in the reference");
    }
}
