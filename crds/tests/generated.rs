//! The committed definitions are the generated ones.

use std::path::Path;

use serde_json::Value;

#[test]
fn committed_definitions_are_current() {
    let crds = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in weft_crds::yaml() {
        // A link to the chart's file, so that `kubectl apply -f crds/` works as well.
        let path = crds.join(name);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, yaml, "{} is not current: run `make gen`", path.display());
    }
}

/// `kubectl get` fits a terminal and says whether an object is ready and why not; `-o wide` has the rest.
#[test]
fn default_columns_say_whether_an_object_is_ready() {
    for (name, yaml) in weft_crds::yaml() {
        let definition: Value = serde_saphyr::from_str(&yaml).expect("YAML");
        let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
        let (wide, default): (Vec<_>, Vec<_>) = columns.iter().partition(|column| column["priority"] == 1);
        let names = |columns: &[&Value]| -> Vec<String> {
            columns.iter().map(|column| column["name"].as_str().expect("a name").to_owned()).collect()
        };
        assert!(names(&default).ends_with(&["Ready", "Reason", "Age"].map(str::to_owned)), "{name}: {default:?}");
        // The Mesh refers to no object, and concerns all pods.
        let is_mesh = definition["spec"]["names"]["kind"] == "Mesh";
        let of_pods = if is_mesh { &[][..] } else { &["Resolved", "In-Effect"] };
        for column in ["Accepted", "Programmed", "Generation", "Observed", "Message"].iter().chain(of_pods) {
            assert!(names(&wide).contains(&(*column).to_owned()), "{name} has no column {column}");
        }
    }
}

/// What the API server writes into an object is a difference from its source, for tools that compare the two: an object
/// has what its author wrote. Only the key of a list has a default, which the API server requires of a key that may be
/// left out.
#[test]
fn schemas_have_no_defaults_but_those_of_keys() {
    fn check(schema: &Value, at: &str, keys: &[&str], found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            if !property["default"].is_null() {
                found.push(format!("{at}{}", if keys.contains(&name.as_str()) { " (key)" } else { "" }));
            }
            check(property, &at, &[], found);
        }
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        check_inner(&schema["items"], at, &keys.filter_map(Value::as_str).collect::<Vec<_>>(), found);
        check_inner(&schema["additionalProperties"], at, &[], found);
    }
    fn check_inner(schema: &Value, at: &str, keys: &[&str], found: &mut Vec<String>) {
        if schema.is_object() {
            assert!(schema["default"].is_null(), "{at}");
            check(schema, &format!("{at}[]"), keys, found);
        }
    }
    let mut found = Vec::new();
    for (_, yaml) in weft_crds::yaml() {
        let definition: Value = serde_saphyr::from_str(&yaml).expect("YAML");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        check(schema, definition["spec"]["names"]["kind"].as_str().expect("a kind"), &[], &mut found);
    }
    let expected = ["http", "tcp", "tls"].map(|list| format!("MeshRoute.spec.{list}[].name (key)"));
    assert_eq!(found, expected);
}

/// With server-side apply, several managers can share these lists: each owns the items that it applied. All other lists
/// are values as a whole. A backend alone means nothing, its weight is a share of a sum; filters and matches have no key
/// that is unique; and a list inside of such a list cannot be shared either.
#[test]
fn managers_can_share_lists_with_a_key() {
    fn check(schema: &Value, at: &str, shared: &mut Vec<String>, named: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            if property["x-kubernetes-list-type"] == "map" {
                shared.push(format!("{at} by {}", property["x-kubernetes-list-map-keys"]));
                check(&property["items"], &at, shared, named);
            } else if property["items"]["properties"]["name"].is_object() {
                named.push(at.clone());
            }
            check(property, &at, shared, named);
        }
    }
    let (mut shared, mut named) = (Vec::new(), Vec::new());
    for (_, yaml) in weft_crds::yaml() {
        let definition: Value = serde_saphyr::from_str(&yaml).expect("YAML");
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        check(spec, definition["spec"]["names"]["kind"].as_str().expect("a kind"), &mut shared, &mut named);
    }
    let by_key = ["MeshCluster.subsets by [\"name\"]", "MeshPolicy.mtls.ports by [\"port\"]"];
    let of_routes = ["http", "tcp", "tls"].map(|list| format!("MeshRoute.{list} by [\"name\"]"));
    assert_eq!(shared, [&by_key.map(str::to_owned)[..], &of_routes].concat());
    named.sort();
    let atomic = ["http.backendRefs", "parentRefs", "tcp.backendRefs", "tls.backendRefs"];
    assert_eq!(named, atomic.map(|list| format!("MeshRoute.{list}")));
}
