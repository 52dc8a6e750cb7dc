//! The permissions of the control plane: docs/reference/permissions.md lists what the chart grants, verb by verb, and is
//! generated from it. Needs no cluster. `WEFT_BLESS=1 cargo test -p weft-e2e --test rbac` writes it; review the diff as code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::cluster::checkout;
use weft_e2e::install::{SYSTEM, helm_offline};

const PAGE: &str = "docs/reference/permissions.md";

const INTRODUCTION: &str = "\
# Permissions

What a stolen token of the control plane is worth: all that the chart `weft` grants. The [threat model](../../THREAT_MODEL.md)
says what follows from it. Roles that are aggregated into `view`, `edit` and `admin` are for people. Each proxy may read the
ConfigMaps of `weft-config`, and in `weft-inbound` the one of its own namespace, for which the operator makes a Role each.

| role | namespace | held by | API group | resources | names | verbs |
|---|---|---|---|---|---|---|
";

/// Verbs that give more than they name.
const ESCALATING: [&str; 5] = ["bind", "deletecollection", "escalate", "impersonate", "approve"];
/// Resources that give control over other workloads.
const CONTROLLING: [&str; 6] = [
    "pods/exec",
    "pods/attach",
    "pods/portforward",
    "pods/ephemeralcontainers",
    "nodes/proxy",
    "serviceaccounts/token",
];

/// A rule of a role, for one API group.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    role: String,
    /// Empty: in all.
    namespace: String,
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
    verbs: Vec<String>,
}

/// The objects that the chart renders.
fn rendered(settings: &[&str]) -> Result<Vec<Value>> {
    let yaml = helm_offline(&[&["template", "weft", "charts/weft", "--namespace", SYSTEM], settings].concat())?;
    let objects: Result<Vec<Value>, _> = yaml.split("\n---\n").map(serde_saphyr::from_str).collect();
    Ok(objects?.into_iter().filter(|object| !object.is_null()).collect())
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn permissions(objects: &[Value]) -> BTreeSet<Permission> {
    let mut permissions = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole") {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in words(&rule["apiGroups"]) {
                permissions.insert(Permission {
                    role: format!("{} {}", text(role, "/kind"), text(role, "/metadata/name")),
                    namespace: text(role, "/metadata/namespace"),
                    group,
                    resources: words(&rule["resources"]),
                    names: words(&rule["resourceNames"]),
                    verbs: words(&rule["verbs"]),
                });
            }
        }
    }
    permissions
}

/// Who holds each role in each namespace.
fn holders(objects: &[Value]) -> BTreeMap<(String, String), String> {
    let bindings = objects.iter().filter(|object| text(object, "/kind").ends_with("RoleBinding"));
    let mut holders = BTreeMap::new();
    for binding in bindings {
        let role = format!("{} {}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let subjects: Vec<String> =
            subjects.map(|subject| format!("{} {}", text(subject, "/kind"), text(subject, "/name"))).collect();
        holders.insert((role, text(binding, "/metadata/namespace")), subjects.join(", "));
    }
    holders
}

fn page(objects: &[Value]) -> Result<String> {
    let holders = holders(objects);
    let mut page = INTRODUCTION.to_owned();
    for Permission { role, namespace, group, resources, names, verbs } in permissions(objects) {
        let holder = holders.get(&(role.clone(), namespace.clone())).map_or("people", String::as_str);
        let in_code = |words: &[String]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let namespace = if namespace.is_empty() { "all" } else { &namespace };
        let group = if group.is_empty() { "core" } else { &group };
        let names = if names.is_empty() { "any".to_owned() } else { in_code(&names) };
        let (resources, verbs) = (in_code(&resources), in_code(&verbs));
        writeln!(page, "| {role} | {namespace} | {holder} | {group} | {resources} | {names} | {verbs} |")?;
    }
    Ok(page)
}

/// CP-10: every permission is in a page that people review, with its exact verbs.
#[test]
fn page_lists_every_permission_of_the_chart() -> Result<()> {
    let objects = rendered(&[])?;
    let (path, page) = (checkout().join(PAGE), page(&objects)?);
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, &page)?;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    ensure!(found == page, "{PAGE} is not what the chart grants; WEFT_BLESS=1 writes it:\n{page}");
    let highly_available =
        rendered(&["--values", "charts/weft/values-ha.yaml", "--set", "networkPolicy.enabled=true"])?;
    ensure!(permissions(&objects) == permissions(&highly_available), "the permissions depend on values");
    Ok(())
}

/// CP-10: no permission gives more than it names: no wildcard, no other identity, no command in a pod, no Secret but by name.
#[test]
fn no_permission_gives_control_over_others() -> Result<()> {
    let permissions = permissions(&rendered(&[])?);
    ensure!(permissions.len() > 10, "{permissions:?}");
    for permission in &permissions {
        let Permission { role, group, resources, names, verbs, .. } = permission;
        let all = [resources, names, verbs].into_iter().flatten().chain([group]);
        for word in all {
            ensure!(!word.contains('*'), "{role}: a wildcard: {permission:?}");
        }
        for verb in verbs {
            ensure!(!ESCALATING.contains(&verb.as_str()), "{role}: the verb {verb}: {permission:?}");
        }
        for resource in resources {
            ensure!(!CONTROLLING.contains(&resource.as_str()), "{role}: the resource {resource}: {permission:?}");
        }
        let is_read = verbs.iter().any(|verb| verb != "create");
        if resources.iter().any(|resource| resource == "secrets") && is_read {
            ensure!(
                !names.is_empty() && !permission.namespace.is_empty(),
                "{role}: Secrets of any name: {permission:?}"
            );
        }
        // To write a Role is limited to what the operator may do itself, and to the one namespace.
        let is_rbac = group == "rbac.authorization.k8s.io";
        ensure!(!is_rbac || permission.namespace == "weft-inbound", "{role}: roles elsewhere: {permission:?}");
    }
    Ok(())
}

/// CP-01: what a pod that controls the injector can do at the API server: it reads namespaces, its certificate and the roots.
#[test]
fn injector_may_write_nothing() -> Result<()> {
    let objects = rendered(&[])?;
    let holders = holders(&objects);
    let is_injectors = |permission: &&Permission| {
        let key = (permission.role.clone(), permission.namespace.clone());
        holders.get(&key).is_some_and(|holder| holder == "ServiceAccount weft-injector")
    };
    let permissions = permissions(&objects);
    let of_injector: Vec<&Permission> = permissions.iter().filter(is_injectors).collect();
    ensure!(of_injector.len() == 3, "{of_injector:?}");
    for permission in of_injector {
        let reads = permission.verbs.iter().all(|verb| ["get", "list", "watch"].contains(&verb.as_str()));
        ensure!(reads, "{permission:?}");
    }
    let pods = objects.iter().filter(|object| object["kind"] == "Deployment");
    let accounts: BTreeSet<String> =
        pods.map(|deployment| text(deployment, "/spec/template/spec/serviceAccountName")).collect();
    ensure!(accounts == ["weft-injector", "weft-operator"].map(str::to_owned).into(), "{accounts:?}: each has its own");
    Ok(())
}
