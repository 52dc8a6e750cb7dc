//! The examples of the user guide: every YAML block in `docs/*.md` is read without a field left over, and compiles without a
//! word to say about it, beside the Services and pods that it names.

#![expect(clippy::unwrap_used, reason = "a file or value that is not as expected fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use weft_crds::{MeshClusterSpec, MeshPolicySpec, MeshRouteSpec};
use weft_operator::compile::compile;

#[test]
fn examples_compile_without_a_word() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut pages: Vec<_> = std::fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let mut examples = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in text.split("\n```yaml\n").skip(1) {
            let example = block.split("\n```").next().unwrap();
            check(example, &page);
            examples += 1;
        }
    }
    assert!(examples > 0, "there are examples");
}

fn check(example: &str, page: &Path) {
    let manifests = support::manifests(example);
    for manifest in &manifests {
        let again = match manifest["kind"].as_str().unwrap() {
            "MeshCluster" => again::<MeshClusterSpec>(manifest),
            "MeshRoute" => again::<MeshRouteSpec>(manifest),
            "MeshPolicy" => again::<MeshPolicySpec>(manifest),
            other => panic!("{}: kind {other:?} is not ours:\n{example}", page.display()),
        };
        if let Some(field) = missing(&manifest["spec"], &again, "spec") {
            panic!("{}: {field} is no field, or says what is said anyway:\n{example}", page.display());
        }
    }
    let mut all = surroundings(&manifests);
    all.extend(manifests.iter().cloned());
    let world = support::world(&all);
    for namespace in namespaces(&manifests) {
        for (id, outcome) in compile(&world, &namespace).objects {
            assert!(outcome.diagnostics.is_empty(), "{}: {id}: {:?}\n{example}", page.display(), outcome.diagnostics);
        }
    }
}

/// What is left of a spec after it was read.
fn again<S: serde::de::DeserializeOwned + serde::Serialize>(manifest: &Value) -> Value {
    let spec: S =
        serde_json::from_value(manifest["spec"].clone()).unwrap_or_else(|error| panic!("{error}: {manifest}"));
    serde_json::to_value(spec).unwrap()
}

/// The first field that stands in `given` and not in `kept`.
fn missing(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match kept.get(name) {
                Some(kept) => missing(value, kept, &path),
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => (given.iter().zip(kept).enumerate())
            .find_map(|(at, (given, kept))| missing(given, kept, &format!("{path}[{at}]"))),
        _ => None,
    }
}

fn namespaces(manifests: &[Value]) -> BTreeSet<String> {
    manifests.iter().map(|manifest| support::key(manifest).namespace).collect()
}

/// Namespaces, Services and pods that the objects name. Every Service has a pod for each subset that somebody declares.
fn surroundings(manifests: &[Value]) -> Vec<Value> {
    let mut services: BTreeMap<(String, String), BTreeSet<u64>> = BTreeMap::new();
    let mut pods: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
    for manifest in manifests {
        let namespace = support::key(manifest).namespace;
        references(&manifest["spec"], &namespace, &mut services);
        for subset in manifest["spec"]["subsets"].as_array().into_iter().flatten() {
            let service = manifest["spec"]["targetRef"]["name"].as_str().unwrap().to_owned();
            pods.entry((namespace.clone(), service)).or_default().push(subset["labels"].clone());
        }
    }
    let mut all: Vec<Value> = services
        .keys()
        .map(|(namespace, _)| namespace.clone())
        .chain(namespaces(manifests))
        .collect::<BTreeSet<_>>()
        .iter()
        .map(|namespace| support::namespace(namespace))
        .collect();
    for (number, ((namespace, name), ports)) in services.iter().enumerate() {
        let ports: Vec<Value> =
            if ports.is_empty() { vec![json!(80)] } else { ports.iter().map(|p| json!(p)).collect() };
        let named: Vec<Value> =
            ports.iter().map(|port| json!({"name": format!("http-{port}"), "port": port})).collect();
        all.push(json!({
            "kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": format!("10.0.0.{}", number + 1), "selector": {"app": name}, "ports": named}
        }));
        let labels = pods.remove(&(namespace.clone(), name.clone())).unwrap_or_else(|| vec![json!({})]);
        let mut endpoints = Vec::new();
        for (at, labels) in labels.into_iter().enumerate() {
            let pod = format!("{name}-{at}");
            endpoints.push(json!({
                "addresses": [format!("10.1.{number}.{}", at + 1)], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}
            }));
            all.push(support::pod(namespace, &pod, labels));
        }
        all.push(json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": namespace, "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}
            },
            "ports": named, "endpoints": endpoints
        }));
    }
    all
}

/// Services that something in a spec names, with the ports that it names.
fn references(value: &Value, namespace: &str, services: &mut BTreeMap<(String, String), BTreeSet<u64>>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let refs = match (field.as_str(), value) {
                    ("parentRefs" | "backendRefs", Value::Array(refs)) => refs.as_slice(),
                    ("targetRef" | "backendRef", single) => std::slice::from_ref(single),
                    _ => &[],
                };
                for reference in
                    refs.iter().filter(|reference| reference["kind"].as_str().unwrap_or("Service") == "Service")
                {
                    let of = reference["namespace"].as_str().unwrap_or(namespace).to_owned();
                    let name = reference["name"].as_str().unwrap().to_owned();
                    services.entry((of, name)).or_default().extend(reference["port"].as_u64());
                }
                references(value, namespace, services);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, namespace, services)),
        _ => {}
    }
}
