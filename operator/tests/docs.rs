//! Every example in the documentation parses and compiles without errors. docs/services.md covers every field of
//! Services and EndpointSlices, docs/gateway-api.md every field of the Gateway API's routes.
//!
//! An example is a block of YAML with complete objects. Services that its objects reference but that it does not
//! define are added to the World. A block whose fence begins with [`FOREIGN`] has objects of another mesh, which are not
//! compiled.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::{Value, json};
use weft_crds::status::Reason;
use weft_crds::{Mesh, MeshCluster, MeshPolicy, MeshRoute};
use weft_gateway_api as gateway;
use weft_identity::UnixTime;
use weft_operator::compile::{self, Severity};

/// The fence of an example of Weft.
const OWN: &str = "```yaml";

/// The fence of an example of another mesh.
const FOREIGN: &str = "```yaml foreign";

/// Pages with examples: the README and all of `docs/`.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = ["docs", "docs/guides"].map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    let docs = docs.into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    pages.push(root.join("README.md"));
    pages.sort();
    pages
}

/// The blocks of a page with this fence, each with the number of its first line.
fn blocks(page: &str, fence: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim_start() == fence {
            let text: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim_start() != "```").collect();
            blocks.push((number + 2, text.join("\n")));
        }
    }
    blocks
}

/// Fails if the example has an unknown field, which an API server would reject.
fn check_fields(manifest: &Value) {
    fn read<T: serde::Serialize + serde::de::DeserializeOwned>(manifest: &Value) -> Value {
        let object: T = serde_json::from_value(manifest.clone()).unwrap_or_else(|error| panic!("{error}: {manifest}"));
        serde_json::to_value(object).expect("plain data")
    }
    fn contains(known: &Value, given: &Value, at: &str) {
        match (known, given) {
            (Value::Object(known), Value::Object(given)) => {
                for (name, value) in given {
                    let known = known.get(name).unwrap_or_else(|| panic!("{at}.{name}: unknown field"));
                    contains(known, value, &format!("{at}.{name}"));
                }
            }
            (Value::Array(known), Value::Array(given)) => {
                for (index, (known, given)) in known.iter().zip(given).enumerate() {
                    contains(known, given, &format!("{at}[{index}]"));
                }
            }
            _ => {}
        }
    }
    let known = match manifest["kind"].as_str().unwrap_or_default() {
        "Mesh" => read::<Mesh>(manifest),
        "MeshRoute" => read::<MeshRoute>(manifest),
        "MeshCluster" => read::<MeshCluster>(manifest),
        "MeshPolicy" => read::<MeshPolicy>(manifest),
        _ => return,
    };
    contains(&known["spec"], &manifest["spec"], "spec");
}

/// Services that a part of an object in the namespace references, with their ports.
fn services(part: &Value, namespace: &str, found: &mut BTreeMap<(String, String), BTreeSet<u64>>) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                let refs: &[Value] = match (name.as_str(), value) {
                    ("parentRefs" | "backendRefs", Value::Array(refs)) => refs,
                    ("backendRef" | "targetRef", value)
                        if value["kind"].as_str().is_none_or(|kind| kind == "Service") =>
                    {
                        std::slice::from_ref(value)
                    }
                    _ => &[],
                };
                for reference in refs {
                    let namespace = reference["namespace"].as_str().unwrap_or(namespace).to_owned();
                    let service = reference["name"].as_str().expect("a reference has a name").to_owned();
                    found.entry((namespace, service)).or_default().extend(reference["port"].as_u64());
                }
                services(value, namespace, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| services(item, namespace, found)),
        _ => {}
    }
}

fn check(block: &str) {
    let manifests = support::manifests(block);
    for manifest in &manifests {
        assert!(
            manifest["kind"].is_string() && manifest["apiVersion"].is_string(),
            "not a complete object: {manifest}"
        );
        check_fields(manifest);
    }
    let ours: Vec<&Value> = manifests.iter().filter(|manifest| is_read(manifest)).collect();
    let mut named = BTreeMap::new();
    for manifest in &ours {
        services(&manifest["spec"], &support::key(manifest).namespace, &mut named);
    }
    let of_objects = ours.iter().map(|manifest| support::key(manifest).namespace);
    let namespaces: BTreeSet<String> = named.keys().map(|(namespace, _)| namespace.clone()).chain(of_objects).collect();
    let mut world: Vec<Value> = namespaces.iter().map(|namespace| support::namespace(namespace)).collect();
    for (number, ((namespace, name), ports)) in named.iter().enumerate() {
        let ports = if ports.is_empty() { &BTreeSet::from([9080]) } else { ports };
        let ports: Vec<Value> = ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let mut service = support::service(namespace, name, &format!("10.0.0.{}", number + 1));
        service["spec"]["ports"] = ports.into();
        world.push(service);
    }
    // Objects of the example come later, and so replace the generated ones.
    for (number, service) in manifests.iter().filter(|manifest| manifest["kind"] == "Service").enumerate() {
        let mut service = service.clone();
        // As the API server does.
        if service["spec"]["clusterIP"].is_null() {
            service["spec"]["clusterIP"] = format!("10.0.1.{}", number + 1).into();
        }
        world.push(service);
    }
    world.extend(ours.iter().copied().cloned());
    world.extend(manifests.iter().filter(|manifest| manifest["kind"] == "ReferenceGrant").cloned());
    let world = support::world(&world);
    let mut compiled = 0;
    let of_namespaces = namespaces.iter().map(|namespace| compile::compile(&world, namespace).objects);
    for objects in of_namespaces.chain([compile::mesh(&world, UnixTime::now())]) {
        for (id, outcome) in objects {
            compiled += 1;
            let of_parents = outcome.parents.into_iter().flat_map(|parent| parent.diagnostics);
            for diagnostic in outcome.diagnostics.into_iter().chain(of_parents) {
                // Subsets select no pod, and callers are no service accounts: there are none.
                let bad = match diagnostic.severity {
                    Severity::Refused | Severity::Partial => true,
                    Severity::Unresolved => {
                        !matches!(diagnostic.reason, Reason::SubsetNotFound | Reason::CallerNotFound)
                    }
                    Severity::Ineffective | Severity::Limited | Severity::Note | Severity::StrictReady => false,
                };
                assert!(!bad, "{id}: {}", diagnostic.message);
            }
        }
    }
    assert_eq!(compiled, ours.len(), "an object has no parent or target that Weft knows: {block}");
}

/// Whether Weft compiles the object.
fn is_read(manifest: &Value) -> bool {
    let kind = manifest["kind"].as_str().unwrap_or_default();
    match manifest["apiVersion"].as_str().unwrap_or_default() {
        "weft.dev/v1alpha1" => true,
        "gateway.networking.k8s.io/v1" => ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"].contains(&kind),
        _ => false,
    }
}

/// The serialised names of the fields of a Kubernetes type.
fn fields<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
    let mut fields = Vec::new();
    // `FieldNames` records the names and then returns an error.
    let _ = T::deserialize(FieldNames(&mut fields));
    assert!(!fields.is_empty(), "{} is not a struct", std::any::type_name::<T>());
    fields
}

/// A deserializer that records the fields of a struct.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields);
        Err(serde::de::Error::custom("fields recorded"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The words in backquotes in one cell of a table.
fn words(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The cells of each row of a table whose first cell begins with a word in backquotes.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").collect()).collect()
}

/// Names of fields with a prefix.
fn slice(prefix: &str, fields: Vec<&str>) -> Vec<String> {
    fields.iter().map(|field| format!("{prefix}{field}")).collect()
}

#[test]
fn gateway_api_page_covers_every_field_and_names_a_test_for_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/gateway-api.md")).expect("readable");
    let (_, table) = page.split_once("## Fields").expect("the table");
    let (table, _) = table.split_once("## Status").expect("the next part");
    let rows = rows(table);
    let named: BTreeSet<&str> = rows.iter().flat_map(|row| words(row[0])).collect();
    let backend = fields::<gateway::HttpBackendRef>();
    let mut wanted: Vec<String> = Vec::new();
    for (prefix, fields) in [
        ("", fields::<gateway::HttpRouteSpec>()),
        ("", fields::<gateway::GrpcRouteSpec>()),
        ("", fields::<gateway::TlsRouteSpec>()),
        ("", fields::<gateway::TcpRouteSpec>()),
        ("parentRefs.", fields::<gateway::ParentReference>()),
        ("", fields::<gateway::HttpRouteRule>()),
        ("", fields::<gateway::GrpcRouteRule>()),
        ("", fields::<gateway::TlsRouteRule>()),
        ("", fields::<gateway::TcpRouteRule>()),
        ("backendRefs.", backend),
        ("backendRefs.", fields::<gateway::GrpcBackendRef>()),
        ("backendRefs.", fields::<gateway::BackendRef>()),
        ("matches.", fields::<gateway::HttpRouteMatch>()),
        ("matches.", fields::<gateway::GrpcRouteMatch>()),
        ("headers.", fields::<gateway::HttpHeaderMatch>()),
        ("headers.", fields::<gateway::GrpcHeaderMatch>()),
        ("queryParams.", fields::<gateway::HttpQueryParamMatch>()),
        ("path.", fields::<gateway::HttpPathMatch>()),
        ("path.", fields::<gateway::HttpPathModifier>()),
        ("method.", fields::<gateway::GrpcMethodMatch>()),
        ("filters.", fields::<gateway::HttpRouteFilter>()),
        ("filters.", fields::<gateway::GrpcRouteFilter>()),
        ("", fields::<gateway::HttpHeaderFilter>()),
        ("requestMirror.", fields::<gateway::HttpRequestMirrorFilter>()),
        ("fraction.", fields::<gateway::Fraction>()),
        ("requestRedirect.", fields::<gateway::HttpRequestRedirectFilter>()),
        ("urlRewrite.", fields::<gateway::HttpUrlRewriteFilter>()),
        ("cors.", fields::<gateway::HttpCorsFilter>()),
        ("timeouts.", fields::<gateway::HttpRouteTimeouts>()),
        ("retry.", fields::<gateway::HttpRouteRetry>()),
    ] {
        wanted.extend(slice(prefix, fields));
    }
    // Fields with a row for each of their own fields; `name` is that of a rule.
    let inner = ["timeouts", "retry", "name"];
    for field in wanted.iter().filter(|field| !inner.contains(&field.as_str())) {
        assert!(named.contains(field.as_str()), "docs/gateway-api.md has no row for {field}");
    }
    for row in rows.iter().filter(|row| row.len() == 3) {
        let tests: Vec<&str> = words(row[2]).collect();
        assert!(!tests.is_empty(), "no test holds the row {}", row[0]);
        for test in tests {
            let is_golden = root.join(format!("operator/tests/golden/{test}.yaml")).is_file();
            assert!(is_golden, "{}: there is no test {test}", row[0]);
        }
    }
}

#[test]
fn services_page_covers_every_field_and_names_a_test_for_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let page = read("docs/services.md");
    let rows = rows(&page);
    let named: BTreeSet<&str> = rows.iter().flat_map(|row| words(row[0])).collect();
    let conditions = slice("endpoints.conditions.", fields::<discovery::EndpointConditions>());
    let hints = slice("endpoints.hints.", fields::<discovery::EndpointHints>());
    let mut wanted = slice("", fields::<core::ServiceSpec>());
    wanted.extend(slice("ports.", fields::<core::ServicePort>()));
    wanted.extend(slice("", fields::<discovery::EndpointSlice>()));
    wanted.extend(slice("ports.", fields::<discovery::EndpointPort>()));
    wanted.extend(slice("endpoints.", fields::<discovery::Endpoint>()));
    wanted.extend(conditions.into_iter().chain(hints));
    // Fields with a row for each of their own fields, and fields that every object has.
    let inner = ["endpoints.conditions", "endpoints.hints", "apiVersion", "kind"];
    for field in wanted.iter().filter(|field| !inner.contains(&field.as_str())) {
        assert!(named.contains(field.as_str()), "docs/services.md has no row for {field}");
    }
    let sources =
        ["outbound/services.rs", "corpus/responses.rs"].map(|file| read(&format!("proxy/tests/{file}"))).concat();
    // Rows that only start a group have one cell.
    for row in rows.iter().filter(|row| row.len() == 3) {
        let tests: Vec<&str> = words(row[2]).collect();
        assert!(!tests.is_empty(), "no test holds the row {}", row[0]);
        for test in tests {
            let is_golden = root.join(format!("operator/tests/golden/{test}.yaml")).is_file();
            assert!(is_golden || sources.contains(&format!("fn {test}(")), "{}: there is no test {test}", row[0]);
        }
    }
}

#[test]
fn examples_in_docs_compile() {
    let mut count = 0;
    for path in pages() {
        let page = std::fs::read_to_string(&path).expect("readable");
        for (line, block) in blocks(&page, OWN) {
            println!("{}:{line}", path.display());
            check(&block);
            count += 1;
        }
    }
    assert!(count > 0, "no page has an example");
}

/// So that no example of Weft is exempt, and each foreign one is YAML.
#[test]
fn foreign_examples_are_of_other_meshes() {
    let mut count = 0;
    for path in pages() {
        let page = std::fs::read_to_string(&path).expect("readable");
        let fences = page.lines().map(str::trim).filter(|line| line.starts_with(OWN));
        for fence in fences {
            assert!([OWN, FOREIGN].contains(&fence), "{}: {fence} is neither {OWN} nor {FOREIGN}", path.display());
        }
        for (line, block) in blocks(&page, FOREIGN) {
            let at = format!("{}:{line}", path.display());
            for manifest in support::manifests(&block) {
                assert!(
                    manifest["kind"].is_string() && manifest["apiVersion"] != "weft.dev/v1alpha1",
                    "{at}: {manifest}"
                );
                let marks = ["istio.io/", "linkerd.io/"];
                let text = manifest.to_string();
                assert!(marks.iter().any(|mark| text.contains(mark)), "{at}: nothing of another mesh: {manifest}");
            }
            count += 1;
        }
    }
    assert!(count > 10, "{count} foreign examples");
}

#[test]
fn conditions_page_names_every_condition_and_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (page, source) = (read("docs/conditions.md"), read("crds/src/status.rs"));
    for name in ["ConditionType", "Reason"] {
        let body = source.split_once(&format!("pub enum {name} {{")).and_then(|(_, rest)| rest.split_once('}'));
        let variants = body.expect("the enum").0.lines().filter_map(|line| line.trim().strip_suffix(','));
        for variant in variants {
            let names = page.lines().filter(|line| line.starts_with("| `")).flat_map(words);
            assert!(names.into_iter().any(|name| name == variant), "docs/conditions.md has no row for {variant}");
        }
    }
}
