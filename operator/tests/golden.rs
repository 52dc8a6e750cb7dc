//! Golden tests of whole documents: `golden/<case>.yaml` has the input objects, `golden/<case>.expected.yaml` the
//! compiled documents and conditions. `WEFT_BLESS=1 cargo test -p weft-operator --test golden` writes the
//! expectations; review them as code.

#![expect(clippy::unwrap_used, reason = "a file or value that is not as expected fails the test")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use weft_config::{Envelope, Export, Inbound, Pods, Written};
use weft_crds::{Condition, Status};
use weft_operator::compile::{self, Compiled};
use weft_operator::status::{self, Delivery};
use weft_operator::world::{DocumentKind, OwnStatus, ParentStatus, World};

const EXPECTED: &str = ".expected.yaml";

#[test]
fn compiled_documents_match_goldens() {
    let bless = std::env::var_os("WEFT_BLESS").is_some_and(|value| value == "1");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files: BTreeSet<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let is_expected = |path: &Path| path.to_str().unwrap().ends_with(EXPECTED);
    let cases: Vec<&PathBuf> = files.iter().filter(|path| !is_expected(path)).collect();
    assert!(cases.len() >= 25, "{} cases", cases.len());

    let mut wrong = Vec::new();
    for case in &cases {
        let input = std::fs::read_to_string(case).unwrap();
        let text = outcome(&input, case);
        let expected = PathBuf::from(case.to_str().unwrap().replace(".yaml", EXPECTED));
        if bless {
            std::fs::write(&expected, text).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{} differs from the output:\n{text}", expected.display()));
        }
    }
    for expected in files.iter().filter(|path| is_expected(path)) {
        let case = PathBuf::from(expected.to_str().unwrap().replace(EXPECTED, ".yaml"));
        if !files.contains(&case) {
            wrong.push(format!("{} has no input file", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn outcome(input: &str, case: &Path) -> String {
    let mut manifests = support::manifests(input);
    let text = describe(&support::world(&manifests));
    manifests.reverse();
    assert_eq!(
        text,
        describe(&support::world(&manifests)),
        "{}: the output depends on the order of input",
        case.display()
    );
    text
}

fn describe(world: &World) -> String {
    let mut namespaces = Map::new();
    for name in world.mesh() {
        let compiled = compile::compile(world, &name);
        let Compiled {
            export,
            inbound,
            export_requires,
            inbound_requires,
            objects,
            permissive: _,
            strictness: _,
            rejected_addresses,
        } = &compiled;
        let written = Written { namespace: name.clone(), ..Written::default() };
        assert_eq!(Envelope::write(written.clone(), export).read::<Export>().unwrap().1, *export, "reads back");
        assert_eq!(Envelope::write(written, inbound).read::<Inbound>().unwrap().1, *inbound, "reads back");

        let mut shown = Map::new();
        shown.insert("export".into(), serde_json::to_value(export).unwrap());
        shown.insert("inbound".into(), serde_json::to_value(inbound).unwrap());
        for (key, requires) in [("exportRequires", export_requires), ("inboundRequires", inbound_requires)] {
            if !requires.is_empty() {
                shown.insert(key.into(), json!(requires));
            }
        }
        if !rejected_addresses.is_empty() {
            shown.insert("rejectedAddresses".into(), json!(rejected_addresses));
        }
        let mut conditions = Map::new();
        for (id, outcome) in objects {
            let Some(route) = world.gateway_route(id) else {
                let delivery = written_in(&outcome.documents);
                let status =
                    status::next(&Status::default(), 1, &outcome.diagnostics, &delivery, Timestamp::UNIX_EPOCH)
                        .unwrap();
                conditions.insert(id.to_string(), lines(&status.conditions));
                continue;
            };
            let outcomes: Vec<_> =
                outcome.parents.iter().map(|parent| (parent, written_in(&parent.documents))).collect();
            for entry in status::parents::next(route, &outcomes, Timestamp::UNIX_EPOCH).unwrap_or_default() {
                let ParentStatus::Own(OwnStatus { parent_ref: parent, conditions: found }) = entry else { continue };
                let namespace = parent.namespace.as_deref().unwrap_or(&id.key.namespace);
                let section = parent.section_name.iter().cloned().chain(parent.port.map(|port| port.to_string()));
                let section: String = section.map(|part| format!(" {part}")).collect();
                conditions.insert(format!("{id} at {namespace}/{}{section}", parent.name), lines(&found));
            }
        }
        if !conditions.is_empty() {
            shown.insert("conditions".into(), Value::Object(conditions));
        }
        namespaces.insert(name, Value::Object(shown));
    }
    let index = serde_json::to_value(compile::index(world)).unwrap();
    let mut shown = json!({ "index": index["namespaces"], "namespaces": namespaces });
    let pods = world.prefixes().into_iter().map(|prefix| {
        let body = compile::pods(world, prefix);
        assert_eq!(Envelope::write(Written::default(), &body).read::<Pods>().unwrap().1, body, "reads back");
        (prefix.to_string(), serde_json::to_value(body).unwrap()["pods"].clone())
    });
    let pods: Map<String, Value> = pods.collect();
    if !pods.is_empty() {
        assert_eq!(index["prefixes"], json!(pods.keys().collect::<Vec<_>>()), "the index lists them");
        shown["pods"] = Value::Object(pods);
    }
    serde_saphyr::to_string(&shown).unwrap()
}

fn written_in(documents: &BTreeSet<DocumentKind>) -> Delivery {
    let documents: Vec<&str> = documents.iter().map(|kind| kind.as_str()).collect();
    Delivery::Written(format!("in {}", documents.join(" and ")))
}

fn lines(conditions: &[Condition]) -> Value {
    let lines: Vec<String> = conditions
        .iter()
        // Most cases have no pods; tests/effect.rs has those about pods.
        .filter(|condition| !["Ready", "InEffect", "weft.dev/InEffect"].contains(&condition.type_.as_str()))
        .map(|condition| {
            format!("{} {} {}: {}", condition.type_, condition.status, condition.reason, condition.message)
        })
        .collect();
    json!(lines)
}
