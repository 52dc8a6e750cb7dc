//! Golden pairs, and properties that hold for each of them.
//!
//! `golden/<case>.yaml` is a pod with, optionally, its namespace and the API server's version; `<case>.expected.yaml`
//! is the result. `golden/warn-<case>.yaml` has in place of the pod a workload or namespace, whose author is warned.
//! `WEFT_BLESS=1 cargo test -p weft-injector` writes the expected files; review the diff as code.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_identity::{SpiffeId, TrustDomain};
use weft_injector::decide::Skip;
use weft_injector::namespace::Namespace;
use weft_injector::settings::{Identity, Installation, Resources, ServerVersion, Trust};
use weft_injector::workload::Workload;
use weft_injector::{Outcome, inject, warn};

/// An input file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default = "enabled")]
    namespace: NamespaceFile,
    #[serde(default = "current")]
    server: String,
    /// Fingerprints of the roots, if pods have an identity.
    roots: Option<Vec<String>>,
    #[serde(default)]
    pod: Value,
    /// A workload or namespace.
    #[serde(default)]
    object: Value,
    /// The namespace before the change.
    #[serde(default)]
    old: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceFile {
    #[serde(default = "shop")]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An expected file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    injected: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refreshed: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn shop() -> String {
    "shop".to_owned()
}

fn current() -> String {
    "1.33".to_owned()
}

fn enabled() -> NamespaceFile {
    let labels = BTreeMap::from([("weft.dev/inject".to_owned(), "enabled".to_owned())]);
    NamespaceFile { name: shop(), labels, annotations: BTreeMap::new() }
}

fn installation(server: &str) -> Installation {
    let (major, minor) = server.split_once('.').unwrap();
    Installation {
        proxy_image: "weft.example/proxy:1".to_owned(),
        init_image: "weft.example/init:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        proxy_version: "0.0.0-golden".to_owned(),
        resources: Resources {
            cpu_request: Some("50m".to_owned()),
            memory_request: Some("64Mi".to_owned()),
            memory_limit: Some("512Mi".to_owned()),
            ..Resources::default()
        },
        server: ServerVersion::parse(major, minor).unwrap(),
        excluded_namespaces: vec!["monitoring".to_owned()],
        hook_secret: "0123456789abcdef".to_owned(),
        identity: None,
    }
}

impl Case {
    fn namespace(&self) -> Namespace {
        let NamespaceFile { name, labels, annotations } = &self.namespace;
        Namespace { name: name.clone(), labels: labels.clone(), annotations: annotations.clone() }
    }

    fn inject(&self, pod: &Value) -> Outcome {
        inject(&self.namespace(), pod, &self.installation())
    }

    fn installation(&self) -> Installation {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let identity = self.roots.clone().map(|roots| {
            let authority = SpiffeId::new(domain.clone(), "weft-system", "weft-operator").unwrap();
            let roots: BTreeSet<_> = roots.iter().map(|root| root.parse().unwrap()).collect();
            Identity {
                url: "https://weft-identity.weft-system.svc:15012/v1/certificates".to_owned(),
                trust: (!roots.is_empty()).then_some(Trust { domain, authority, roots }),
            }
        });
        Installation { identity, ..installation(&self.server) }
    }

    /// The warnings for the author of the object.
    fn warnings(&self) -> Vec<String> {
        let installation = self.installation();
        if self.object["kind"] == "Namespace" {
            let new = Namespace::parse(&self.object).unwrap();
            return warn::namespace(Namespace::parse(&self.old).as_ref(), &new, &installation);
        }
        let (api_version, kind) = (self.object["apiVersion"].as_str().unwrap(), self.object["kind"].as_str().unwrap());
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let workload = Workload::parse(group, &format!("{}s", kind.to_lowercase()), kind, &self.object);
        let workload = workload.filter(|workload| !workload.is_controlled());
        workload.map(|workload| warn::workload(&self.namespace(), &workload, &installation)).unwrap_or_default()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Names of all cases, of the input files or of the expected files.
fn names(expected: bool) -> Vec<String> {
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files
        .filter_map(|file| {
            let name = file.strip_suffix(".yaml").unwrap_or_else(|| panic!("{file} is no golden file"));
            let bare = name.strip_suffix(".expected");
            (bare.is_some() == expected).then(|| bare.unwrap_or(name).to_owned())
        })
        .collect();
    names.sort();
    names
}

fn cases() -> impl Iterator<Item = (String, Case)> {
    names(false).into_iter().map(|name| {
        let text = fs::read_to_string(directory().join(format!("{name}.yaml"))).unwrap();
        assert!(text.starts_with("# "), "{name}: the first line must be a comment that describes the case");
        let case = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, case)
    })
}

fn outcome(case: &Case) -> Expected {
    if !case.object.is_null() {
        return Expected { warnings: case.warnings(), ..Expected::default() };
    }
    match case.inject(&case.pod) {
        Outcome::Injected { pod, warnings, .. } => Expected { injected: Some(pod), warnings, ..Expected::default() },
        Outcome::Refreshed { pod, .. } => Expected { refreshed: Some(pod), ..Expected::default() },
        Outcome::Skipped { reason, why } => {
            Expected { skipped: Some(reason.code().to_owned()), message: why, ..Expected::default() }
        }
        Outcome::Refused(refusal) => Expected {
            refused: Some(refusal.code().to_owned()),
            message: Some(refusal.to_string()),
            ..Expected::default()
        },
    }
}

/// CP-07: one result for each way around the webhook, among 170 cases.
#[test]
fn golden_files_match() {
    let bless = std::env::var_os("WEFT_BLESS").is_some();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (name, case) in cases() {
        count += 1;
        let path = directory().join(format!("{name}.expected.yaml"));
        let found = outcome(&case);
        if bless {
            fs::write(&path, serde_saphyr::to_string(&found).unwrap()).unwrap();
        }
        let expected: Result<Expected, String> = fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_saphyr::from_str(&text).map_err(|error| error.to_string()));
        if expected.as_ref() != Ok(&found) {
            let found = serde_saphyr::to_string(&found).unwrap();
            wrong.push(format!("{}: {:?}, but found:\n{found}", path.display(), expected.err().unwrap_or_default()));
        }
    }
    let inputs = names(false);
    for name in names(true).into_iter().filter(|name| !inputs.contains(name)) {
        wrong.push(format!("{name}.expected.yaml is stale: there is no {name}.yaml"));
    }
    assert!(wrong.is_empty(), "{} of {count} differ; WEFT_BLESS=1 writes them\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 40, "only {count} cases");
}

/// The server truncates longer ones, which happens only to long names. `weft: ` precedes each.
#[test]
fn warnings_are_few_and_short() {
    for (name, case) in cases().filter(|(_, case)| !case.object.is_null()) {
        let warnings = case.warnings();
        assert!(warnings.len() <= 3, "{name}: {warnings:?}");
        for warning in warnings.iter().filter(|_| name != "warn-workload-long") {
            assert!(warning.len() <= 250, "{name}: {} bytes: {warning}", warning.len());
        }
    }
}

/// CP-07: f(f(x)) = f(x).
#[test]
fn patch_gives_the_injected_pod_and_a_second_injection_changes_nothing() {
    for (name, case) in cases() {
        let Outcome::Injected { pod, patch, .. } = case.inject(&case.pod) else { continue };
        let mut patched = case.pod.clone();
        json_patch::patch(&mut patched, &patch).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(patched, pod, "{name}: the patch gives a different pod");
        match case.inject(&pod) {
            Outcome::Skipped { reason: Skip::AlreadyInjected, why } => {
                assert_eq!(why, None, "{name}: no warning about an injected proxy");
            }
            other => panic!("{name}: injected twice: {other:?}"),
        }
    }
}

#[test]
fn containers_added_by_another_webhook_are_passed_to_the_proxy() {
    for (name, case) in cases() {
        let Outcome::Injected { pod, .. } = case.inject(&case.pod) else { continue };
        let Some(mut later) = pod["spec"]["containers"].as_array().cloned() else { continue };
        let late = json!({
            "name": "late",
            "image": "late:1",
            "ports": [{ "name": "late-http", "containerPort": 7777 }],
            "livenessProbe": { "httpGet": { "path": "/$(x)", "port": "late-http" }, "periodSeconds": 3 },
            "lifecycle": { "preStop": { "httpGet": { "path": "/stop", "port": "late-http" } } },
        });
        later.push(late);
        let mut added = pod.clone();
        added["spec"]["containers"] = later.clone().into();
        added["metadata"]["labels"]["late"] = "label".into();
        let Outcome::Refreshed { pod: refreshed, patch } = case.inject(&added) else {
            panic!("{name}: not updated");
        };
        let mut patched = added.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, refreshed, "{name}: the patch gives a different pod");
        let text = refreshed.to_string();
        assert!(
            text.contains("/probe/late/liveness") && text.contains("/hook/0123456789abcdef/late/preStop"),
            "{name}: {text}"
        );
        assert!(text.contains("/$$(x)"), "{name}: {text}");
        assert!(text.contains("late-http\\\":7777"), "{name}: {text}");
        assert!(text.contains("\\\"late\\\":\\\"label\\\""), "{name}: labels in the proxy's environment: {text}");
        let probes = |pod: &Value| pod.to_string().matches("timeoutSeconds\\\"").count();
        assert_eq!(probes(&refreshed), probes(&pod) + 1, "{name}: the earlier probes are kept");
        assert!(matches!(case.inject(&refreshed), Outcome::Skipped { .. }), "{name}: a second update changes nothing");

        later.last_mut().unwrap()["securityContext"] = json!({ "runAsUser": 15015 });
        added["spec"]["containers"] = later.into();
        match case.inject(&added) {
            Outcome::Refused(refusal) => assert_eq!(refusal.code(), "proxy-user", "{name}"),
            other => panic!("{name}: an added container with the proxy's user: {other:?}"),
        }
    }
}

#[test]
fn unknown_fields_are_kept() {
    let mut injected = 0;
    for (name, case) in cases() {
        let Outcome::Injected { pod: plain, .. } = case.inject(&case.pod) else { continue };
        injected += 1;
        let mut future = case.pod.clone();
        let added = add_unknown_fields(&mut future);
        assert!(added > 1, "{name}: {added}");
        let Outcome::Injected { mut pod, patch, .. } = case.inject(&future) else { panic!("{name}: not injected") };
        let mut patched = future.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, pod, "{name}: the patch gives a different pod");
        assert_eq!(remove_unknown_fields(&mut pod), added, "{name}: some were lost");
        assert_eq!(pod, plain, "{name}: something else changed");
    }
    assert!(injected >= 20, "only {injected} of the cases are injected");
}

const UNKNOWN_FIELD: &str = "unknownField";

/// Adds an unknown field to every object, but for maps and for the probes that are replaced as a whole; returns the
/// number.
fn add_unknown_fields(value: &mut Value) -> usize {
    match value {
        Value::Object(map) => {
            let maps = ["labels", "annotations", "nodeSelector", "requests", "limits", "httpGet", "tcpSocket", "grpc"];
            let below: usize = map
                .iter_mut()
                .filter(|(key, _)| !maps.contains(&key.as_str()))
                .map(|(_, it)| add_unknown_fields(it))
                .sum();
            map.insert(
                UNKNOWN_FIELD.to_owned(),
                json!({ "a": [1, null, { "b": "c" }], "big": 18_446_744_073_709_551_615_u64 }),
            );
            below + 1
        }
        Value::Array(items) => items.iter_mut().map(add_unknown_fields).sum(),
        _ => 0,
    }
}

fn remove_unknown_fields(value: &mut Value) -> usize {
    match value {
        Value::Object(map) => {
            usize::from(map.remove(UNKNOWN_FIELD).is_some())
                + map.values_mut().map(remove_unknown_fields).sum::<usize>()
        }
        Value::Array(items) => items.iter_mut().map(remove_unknown_fields).sum(),
        _ => 0,
    }
}

/// CP-06: whatever the pod asks for.
#[test]
fn injected_containers_use_known_fields_and_meet_pod_security_restricted() {
    for (name, case) in cases() {
        let Outcome::Injected { pod, .. } = case.inject(&case.pod) else { continue };
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        let typed = serde_json::to_value(typed).unwrap();
        for list in ["initContainers", "containers", "volumes"] {
            let (injected_items, known) = (injected_items(&pod, list), injected_items(&typed, list));
            assert_eq!(injected_items, known, "{name}: {list} has a field that Kubernetes does not know");
        }
        let proxies: Vec<Value> =
            ["initContainers", "containers"].iter().flat_map(|list| injected_items(&pod, list)).collect();
        let proxy = proxies.iter().find(|it| it["name"] == "weft-proxy").unwrap();
        let context = &proxy["securityContext"];
        for (pointer, expected) in [
            ("/runAsNonRoot", json!(true)),
            ("/runAsUser", json!(15015)),
            ("/allowPrivilegeEscalation", json!(false)),
            ("/readOnlyRootFilesystem", json!(true)),
            ("/capabilities", json!({ "drop": ["ALL"] })),
            ("/seccompProfile/type", json!("RuntimeDefault")),
        ] {
            assert_eq!(context.pointer(pointer), Some(&expected), "{name}: {pointer}");
        }
        assert_eq!(proxy["image"], "weft.example/proxy:1", "{name}: no annotation changes the image");
    }
}

/// The items of a list that the injector added.
fn injected_items(pod: &Value, list: &str) -> Vec<Value> {
    let items = pod["spec"][list].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(|item| item["name"].as_str().is_some_and(|name| name.starts_with("weft-"))).collect()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let key = prop_oneof![
            Just("metadata"),
            Just("spec"),
            Just("containers"),
            Just("initContainers"),
            Just("name"),
            Just("labels"),
            Just("annotations"),
            Just("livenessProbe"),
            Just("httpGet"),
            Just("port"),
            Just("volumes"),
            Just("x"),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.prop_map(str::to_owned), inner), 0..5)
                .prop_map(|pairs| pairs.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    /// CP-01: the answer is built from types, never from text.
    #[test]
    fn arbitrary_pods_do_not_panic_and_patches_apply(spec in any_json(), metadata in any_json(), whole in any_json()) {
        let namespace = Namespace { name: shop(), labels: enabled().labels, annotations: BTreeMap::new() };
        let deployment = json!({ "metadata": metadata, "spec": { "template": { "metadata": spec, "spec": whole } } });
        if let Some(workload) = Workload::parse("apps", "deployments", "Deployment", &deployment) {
            warn::workload(&namespace, &workload, &installation("1.33"));
        }
        for pod in [json!({ "metadata": metadata, "spec": spec }), json!({ "spec": { "containers": [spec] } }), whole] {
            if let Outcome::Injected { pod: mutated, patch, .. } = inject(&namespace, &pod, &installation("1.33")) {
                let mut patched = pod.clone();
                json_patch::patch(&mut patched, &patch).unwrap();
                prop_assert_eq!(patched, mutated);
            }
        }
    }

    /// CP-01, CP-06: quotes, newlines, `$()` and braces in keys and values.
    #[test]
    fn arbitrary_annotations_cannot_change_image_command_or_inject_arguments(key in "[a-z-]{1,24}|workers|opaque-ports|exclude-outbound-ips|proxy-cpu-limit|proxy-log-level", value in "\\PC{0,40}|[0-9,.:/a-fMGimk-]{0,20}|[$(){}'\";\n]{0,10}") {
        let namespace = Namespace { name: shop(), labels: enabled().labels, annotations: BTreeMap::new() };
        let pod = json!({
            "metadata": { "name": "web", "annotations": { format!("config.weft.dev/{key}"): value } },
            "spec": { "containers": [{ "name": "web", "image": "web" }] },
        });
        if let Outcome::Injected { pod, .. } = inject(&namespace, &pod, &installation("1.33")) {
            let init = &injected_items(&pod, "initContainers")[0];
            prop_assert_eq!(&init["image"], "weft.example/init:1");
            prop_assert!(init.get("command").is_none());
            for argument in init["args"].as_array().unwrap() {
                let argument = argument.as_str().unwrap();
                prop_assert!(argument.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-=,.:/".contains(&byte)), "{}", argument);
            }
        }
    }
}
