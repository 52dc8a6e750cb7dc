//! Properties of every document: reading and compiling it never panics, and a refusal has a message.

use http::{HeaderMap, Method};
use proptest::prelude::*;
use serde_json::{Value, json};
use weft_config as wire;

use super::{Inbound, Namespace};
use crate::bootstrap::Pod;
use crate::decide::decide;
use crate::matcher::RequestHead;

/// Backends with every kind of target and every filter.
fn backends() -> Value {
    let cluster = json!({"namespace": "n", "service": "s", "port": 80, "subset": "v1"});
    let filters = json!({
        "requestHeaders": {"remove": ["x-d"]}, "responseHeaders": {"add": [{"name": "x-e", "value": "1"}]},
        "rewrite": {"path": {"prefix": "/y"}},
        "cors": {"origins": [{"scheme": "https", "host": "*.h", "port": 443}], "maxAgeS": 1},
        "mirrors": [{"target": cluster, "share": {"numerator": 1, "denominator": 2}}]
    });
    json!([
        {"weight": 9, "target": {"cluster": cluster}, "filters": filters},
        {"weight": 1, "target": {"redirect": {"hostname": "h", "path": {"prefix": "/z"}, "status": 302}}},
        {"weight": 1, "target": {"invalid": "why"}}
    ])
}

/// A document that uses every field.
fn export() -> Value {
    json!({"services": [{
        "name": "reviews", "addresses": ["198.19.0.7", "fd00::7"],
        "settings": {"balancer": "leastRequest", "connectTimeoutMs": 250, "limits": {"maxConnections": 1, "maxRequests": 2, "maxPending": 3}, "subsets": ["v1"]},
        "ports": [{"port": 9080, "protocol": "http",
            "endpoints": [{"address": "198.18.128.2:8080", "subsets": ["v1"], "lost": true, "hasProxy": true}, {"address": "[fd00::2]:8080"}],
            "routes": {
                "matches": [
                    {"rule": 0, "path": {"exact": "/a"}, "method": "GET", "headers": [{"name": "x-a", "test": {"exact": "1"}}], "query": [{"name": "q", "test": {"regex": "[0-9]+"}}]},
                    {"rule": 1, "path": {"prefix": "/b"}, "headers": [{"name": "x-b", "test": "present"}, {"name": "x-c", "test": "absent"}]},
                    {"rule": 2, "path": {"regex": "/v[0-9]+"}}
                ],
                "rules": [
                    {"route": {"namespace": "n", "name": "r"}, "name": "0", "requestTimeoutMs": 1, "attemptTimeoutMs": 1,
                     "requestHeaders": {"remove": ["x-a"], "set": [{"name": "x-b", "value": "1"}], "add": [{"name": "x-c", "value": "1"}]}, "responseHeaders": {"remove": ["x-a"]},
                     "retry": {"attempts": 2, "codes": [503], "methods": ["GET"], "backoffMs": 25},
                     "action": {"forward": {"backends": backends(), "rewrite": {"hostname": "h", "path": {"prefix": "/x"}}}}},
                    {"route": {"namespace": "n", "name": "r"}, "name": "1", "action": {"redirect": {"scheme": "https", "hostname": "h", "port": 1, "path": {"full": "/"}, "status": 301}}},
                    {"route": {"namespace": "n", "name": "r"}, "name": "2", "action": {"respond": {"status": 418, "body": "tea"}}}
                ]
            }
        }]
    }]})
}

fn inbound() -> Value {
    json!({
        "policies": [{"name": "p", "target": {"service": {"selector": {"app": "a"}, "ports": [80, "web"]}}, "rules": [
            {"action": "deny", "methods": ["GET"], "paths": [{"prefix": "/a"}], "headers": [{"name": "x-a", "test": {"regex": "a|b"}}], "ports": [80]}
        ]}, {"name": "q", "target": "namespace", "rules": []}, {"name": "s", "target": {"serviceAccount": "a"}, "rules": [{"action": "allow"}]}],
        "routes": [{"service": {"namespace": "n", "name": "s"}, "port": 80, "table": {"matches": [], "rules": []}}],
        "dependencies": ["n"], "zones": {"a": ["node-1"]}
    })
}

/// Any JSON, small, with words that documents use.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[(a|*+?{1}\\[\\])^$.\\\\]{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "GET",
            "/",
            "x-a",
            "198.19.0.7",
            "::1",
            "namespace",
            "present",
            "absent",
            "http",
            "tcp",
            "deny"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec![
                "name", "rule", "path", "exact", "regex", "prefix", "forward", "status", "weight", "service", "port"
            ])
            .prop_map(str::to_owned),
            ".{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Replaces, removes or repeats the part of the document that `walk` leads to.
fn mutate(document: &mut Value, walk: &[u8], change: &Value) {
    let Some((step, rest)) = walk.split_first() else {
        *document = change.clone();
        return;
    };
    match document {
        Value::Array(items) if !items.is_empty() => {
            let at = usize::from(*step) % items.len();
            match step % 11 {
                0 => {
                    items.remove(at);
                }
                1 => items.push(items[at].clone()),
                _ => mutate(&mut items[at], rest, change),
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let key = fields.keys().nth(usize::from(*step) % fields.len()).cloned().unwrap_or_default();
            match step % 13 {
                0 => {
                    fields.remove(&key);
                }
                _ => mutate(&mut fields[&key], rest, change),
            }
        }
        other => *other = change.clone(),
    }
}

fn check_export(document: Value) -> bool {
    let Ok(export) = serde_json::from_value::<wire::Export>(document) else { return false };
    match Namespace::compile(&Pod::default(), "shop", export) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(namespace) => {
            for routes in namespace.ports.values().filter_map(|port| port.routes.as_ref()) {
                for path in ["/", "/a", "*", ""] {
                    let head =
                        RequestHead { method: &Method::GET, path, query: Some("q=1&q"), headers: &HeaderMap::new() };
                    let _ = decide(routes, &head);
                }
            }
        }
    }
    true
}

fn check_inbound(document: Value) -> bool {
    let Ok(inbound) = serde_json::from_value::<wire::Inbound>(document) else { return false };
    if let Err(error) = Inbound::compile(&Pod::default(), inbound) {
        assert!(!error.to_string().is_empty());
    }
    true
}

#[test]
fn properties_hold_for_seed_documents() {
    let documents: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/corpus/seeds/tables.json")).expect("a list of documents");
    for document in documents {
        check_export(document.clone());
        check_inbound(document);
    }
    assert!(check_export(export()) && check_inbound(inbound()), "the documents mutated below are valid");
}

proptest! {
    #[test]
    fn any_document_is_compiled_or_refused(document in any_json()) {
        check_export(document.clone());
        check_inbound(document);
    }

    #[test]
    fn mutated_documents_are_compiled_or_refused(
        changes in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..12), any_json()), 1..4)
    ) {
        let (mut export, mut inbound) = (export(), inbound());
        for (walk, change) in &changes {
            mutate(&mut export, walk, change);
            mutate(&mut inbound, walk, change);
        }
        check_export(export);
        check_inbound(inbound);
    }
}
