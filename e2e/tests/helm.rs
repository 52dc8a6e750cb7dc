//! The life of an installation, with Helm 3 and Helm 4. These tests remove and replace what every other test needs, so
//! they run alone and one at a time: `cargo test -p weft-e2e --test helm -- --test-threads 1`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::Cluster;
use weft_e2e::cluster::{self, checkout};
use weft_e2e::install::{self, SYSTEM};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::mesh::route;
use weft_e2e::namespace::{READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::Service;

const RELEASES: [&str; 2] = ["weft-crds", "weft"];
/// Timeout for a namespace to be gone.
const GONE: Duration = Duration::from_secs(120);

fn kubectl() -> Result<Kubectl> {
    Ok(Kubectl::new(Cluster::get()?))
}

/// The objects of a release that exist: kind, namespace and name, with the resourceVersion.
fn objects(helm: &Path, release: &str) -> Result<BTreeMap<String, String>> {
    let manifest = install::run(helm, &["get", "manifest", release, "--namespace", SYSTEM])?;
    existing(&manifest)
}

fn existing(manifest: &str) -> Result<BTreeMap<String, String>> {
    let arguments = ["get", "--ignore-not-found", "-o", "json", "-f", "-"];
    let printed = kubectl()?.run_with(&arguments, manifest, READY)?.stdout_of_success("kubectl get")?;
    let found: Value = if printed.is_empty() { Value::Null } else { serde_json::from_str(&printed)? };
    // kubectl prints a List, or the only object.
    let items =
        found["items"].as_array().cloned().unwrap_or_else(|| Vec::from_iter(Some(found).filter(Value::is_object)));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |object: &Value| {
        let metadata = &object["metadata"];
        format!("{}/{}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
    };
    Ok(items.iter().map(|object| (name(object), text(&object["metadata"]["resourceVersion"]))).collect())
}

/// An upgrade to the same version writes no object. It is tried again, because the status of Deployments may change
/// meanwhile.
fn expect_upgrade_writes_nothing(helm: &Path) -> Result<()> {
    eventually("an upgrade without a change to write nothing", READY, || {
        for release in RELEASES {
            let before = objects(helm, release)?;
            install::with(helm)?;
            let written: Vec<_> = objects(helm, release)?
                .into_iter()
                .filter(|(name, version)| before.get(name) != Some(version))
                .map(|(name, _)| name)
                .collect();
            ensure!(!before.is_empty() && written.is_empty(), "{release}: {written:?} were written");
        }
        Ok(())
    })
}

/// The operator has written the `caBundle` of each webhook, and owns it.
fn expect_ca_bundles() -> Result<()> {
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        eventually(&format!("the caBundle of each webhook of the {kind}"), SOON, || {
            let found = kubectl()?.run(&["get", kind, "weft-injector", "-o", "json", "--show-managed-fields"])?;
            let found: Value = serde_json::from_str(&found)?;
            let webhooks = found["webhooks"].as_array().context("webhooks")?;
            let bundles = webhooks.iter().filter_map(|webhook| webhook["clientConfig"]["caBundle"].as_str());
            ensure!(bundles.filter(|bundle| !bundle.is_empty()).count() == webhooks.len(), "{webhooks:?}");
            let entries = found["metadata"]["managedFields"].as_array().context("managedFields")?;
            let owners: Vec<&Value> = entries
                .iter()
                .filter(|entry| entry["fieldsV1"].to_string().contains("f:caBundle"))
                .map(|entry| &entry["manager"])
                .collect();
            ensure!(owners == ["weft-operator-webhook"], "{owners:?} own it");
            Ok(())
        })?;
    }
    Ok(())
}

/// Uninstalls Weft. What stays is what docs/operations.md says.
fn uninstall(helm: &Path) -> Result<()> {
    let mut manifests = Vec::new();
    for release in RELEASES {
        manifests.push(install::run(helm, &["get", "manifest", release, "--namespace", SYSTEM])?);
    }
    for release in RELEASES.iter().rev() {
        install::run(helm, &["uninstall", release, "--namespace", SYSTEM])?;
    }
    let kept = existing(&manifests[0])?;
    let crds = ["meshclusters", "meshes", "meshpolicies", "meshroutes"]
        .map(|kind| format!("CustomResourceDefinition//{kind}.weft.dev"));
    ensure!(kept.keys().eq(&crds), "the CRDs stay, and with them all objects: {kept:?}");
    eventually("the objects of the chart to be gone", GONE, || {
        let left = existing(&manifests[1])?;
        ensure!(left.is_empty(), "{left:?}");
        let kinds = "secrets,leases,configmaps,services,endpointslices,deployments,replicasets,pods,serviceaccounts,roles,\
                     rolebindings,networkpolicies,poddisruptionbudgets";
        let left = Kubectl::within(Cluster::get()?, SYSTEM).run(&["get", kinds, "-o", "name"])?;
        // These are in every namespace.
        let mut left: Vec<&str> = left
            .lines()
            .filter(|name| !["configmap/kube-root-ca.crt", "serviceaccount/default"].contains(name))
            .collect();
        left.sort_unstable();
        let documented = [
            "lease.coordination.k8s.io/weft-operator",
            "secret/weft-injector-tls",
            "secret/weft-issuer",
            "secret/weft-root",
            "secret/weft-webhook-ca",
        ];
        ensure!(left == documented, "{left:?}");
        Ok(())
    })
}

#[test]
fn helm_3_and_4_install_upgrade_and_uninstall() -> Result<()> {
    in_mesh("helm-life", |ns| {
        ns.apply(
            &(Service::new("echo").yaml() + &route("echo", "- {name: a, backendRefs: [{name: echo, port: 9080}]}\n")),
        )?;
        ns.await_condition("meshroute", "echo", "Programmed", "True")?;
        let before = ns.get("meshroute", "echo")?;
        let mut installed_by = cluster::helm()?;
        // The current Helm last: other tests upgrade with it.
        for helm in [cluster::build("helm3")?, cluster::helm()?] {
            uninstall(&installed_by)?;
            install::with(&helm)?;
            expect_ca_bundles()?;
            expect_upgrade_writes_nothing(&helm)?;
            expect_ca_bundles()?;
            installed_by = helm;
        }
        let after = ns.get("meshroute", "echo")?;
        ensure!(after["metadata"]["uid"] == before["metadata"]["uid"] && after["spec"] == before["spec"], "{after}");
        ns.await_condition("meshroute", "echo", "Programmed", "True").map(drop)
    })
}

/// A copy of the chart with the CRDs in which rules had no unique names, in `folder`.
fn chart_before_names(folder: &Path) -> Result<String> {
    let chart = checkout().join("charts/weft-crds");
    fs::create_dir_all(folder.join("templates"))?;
    for file in ["Chart.yaml", "values.yaml", "values.schema.json"] {
        fs::copy(chart.join(file), folder.join(file))?;
    }
    for kind in ["meshclusters", "meshes", "meshpolicies", "meshroutes"] {
        let file = format!("templates/{kind}.yaml");
        let yaml = fs::read_to_string(chart.join(&file))?;
        let arguments = ["create", "--dry-run=client", "-o", "json", "-f", "-"];
        let printed = kubectl()?.run_with(&arguments, &yaml, READY)?.stdout_of_success("kubectl create --dry-run")?;
        let mut definition: Value = serde_json::from_str(&printed)?;
        if kind == "meshroutes" {
            let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            for list in ["http", "tls", "tcp"] {
                let list = schema["properties"][list].as_object_mut().context("a list")?;
                for key in ["x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations"] {
                    list.remove(key);
                }
                list["items"]["properties"]["name"].as_object_mut().context("a name")?.remove("default");
            }
        }
        // JSON is YAML.
        fs::write(folder.join(file), definition.to_string())?;
    }
    Ok(folder.to_str().context("UTF-8")?.to_owned())
}

#[test]
fn routes_from_before_rules_had_unique_names_keep_working() -> Result<()> {
    in_mesh("helm-old", |ns| {
        ns.apply(&Service::new("echo").yaml())?;
        let client = Client::deploy(ns)?;
        let answered_by = |path: &str, status: u16, rule: &str| {
            eventually(&format!("{path} to be answered by the rule {rule}"), SOON, || {
                let answer = client.get(&format!("http://echo:9080{path}")).send()?.expect_status(status)?;
                let source = format!("MeshRoute/{}/echo/{rule}", ns.name);
                ensure!(answer.source() == Some(&source), "{answer:?}");
                Ok(())
            })
        };
        let rules = |prefix: &str| {
            format!(
                "- {prefix}matches: [{{path: {{value: /a}}}}]\n  filters: [{{type: DirectResponse, directResponse: {{status: \
                 418}}}}]\n- backendRefs: [{{name: later, port: 9080}}]\n"
            )
        };
        let (unnamed, named) = (route("echo", &rules("")), route("echo", &rules("name: a\n  ")));

        let before = chart_before_names(&ns.directory()?.join("weft-crds"))?;
        let helm = cluster::helm()?;
        let upgraded = install::run(&helm, &["upgrade", "weft-crds", &before, "--namespace", SYSTEM]).and_then(|_| {
            eventually("two rules without names to be accepted", SOON, || ns.apply(&unnamed))?;
            ns.await_condition("meshroute", "echo", "ResolvedRefs", "False")?;
            answered_by("/a", 418, "0")?;
            answered_by("/", 500, "1")
        });
        // In any case: every other test needs the CRDs of this checkout.
        install::with(&helm)?;
        upgraded?;

        // Conditions can still be written, and say what to do.
        ns.apply(&Service::new("later").yaml())?;
        ns.await_condition("meshroute", "echo", "ResolvedRefs", "True")?;
        let accepted = ns.await_condition("meshroute", "echo", "Accepted", "True")?;
        ensure!(accepted.message.contains("are called by their positions, 0, 1: give each a name"), "{accepted:?}");
        answered_by("/a", 418, "0")?;
        ns.run(&["label", "meshroute", "echo", "team=shop"])?;
        ns.apply(&unnamed)?;

        ns.apply(&named)?;
        answered_by("/a", 418, "a")?;
        answered_by("/", 503, "default")?;
        let accepted = ns.await_condition("meshroute", "echo", "Accepted", "True")?;
        ensure!(!accepted.message.contains("positions"), "{accepted:?}");
        let stderr = ns.apply_refused(&unnamed)?;
        ensure!(stderr.contains("give each rule a name of its own"), "{stderr}");
        Ok(())
    })
}
