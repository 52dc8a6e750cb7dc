//! `kubectl` and GitOps tools find no difference between an object and its source, and can share objects. What they
//! compare is what the API server writes into an object, so these tests need a real one.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::Cluster;
use weft_e2e::command::{self, Output};
use weft_e2e::mesh::{SUBSETS, route};
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::Service;

/// Objects that leave out every field that has a default.
const SHORT: &str = r#"
---
apiVersion: weft.dev/v1alpha1
kind: MeshRoute
metadata: {name: echo}
spec:
  parentRefs: [{name: echo}]
  http:
  - name: filtered
    matches:
    - path: {value: /a}
      headers: [{name: x-user, value: a}]
      queryParams: [{name: v, value: "2"}]
    filters:
    - {type: CORS, cors: {allowOrigins: ["https://shop.example"]}}
    - {type: RateLimit, rateLimit: {requests: 10}}
    - {type: Fault, fault: {delay: {duration: 1s, fraction: {numerator: 1}}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 9080}}}
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}
    backendRefs: [{name: echo, port: 9080}, {name: echo, port: 9080, subset: v1}]
    retry: {}
    hedge: {after: 1s}
  - name: moved
    matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8443}}]
  tcp:
  - name: rest
    backendRefs: [{name: echo, port: 9080}]
---
apiVersion: weft.dev/v1alpha1
kind: MeshCluster
metadata: {name: echo}
spec:
  targetRef: {name: echo}
  subsets: [{name: v1, labels: {version: v1}}]
  loadBalancer: {stickySession: {}}
---
apiVersion: weft.dev/v1alpha1
kind: MeshPolicy
metadata: {name: echo}
spec:
  targetRef: {kind: Namespace}
  authorization:
    rules:
    - {action: Deny, methods: [PUT], paths: [{value: /admin}], headers: [{name: x-user, value: a}]}
"#;

/// Applies a manifest as one of several managers.
fn apply_as(ns: &Namespace, manager: &str, yaml: &str) -> Result<Output> {
    let manager = format!("--field-manager={manager}");
    ns.run_with(&["apply", "--server-side", &manager, "-f", "-"], yaml, READY)
}

/// Fails unless `kubectl diff` finds no difference.
fn expect_no_difference(ns: &Namespace, arguments: &[&str], yaml: &str) -> Result<()> {
    let output = ns.run_with(&[&["diff", "-f", "-"], arguments].concat(), yaml, READY)?;
    ensure!(output.success && output.stdout.is_empty(), "{arguments:?}: {}{}", output.stdout, output.stderr);
    Ok(())
}

/// The names of a route's HTTP rules.
fn rule_names(ns: &Namespace, name: &str) -> Result<Vec<String>> {
    let route = ns.get("meshroute", name)?;
    let rules = route["spec"]["http"].as_array().context("rules")?;
    Ok(rules.iter().filter_map(|rule| rule["name"].as_str()).map(str::to_owned).collect())
}

/// A rule that answers its own path.
fn answering(name: &str, status: u16) -> String {
    format!(
        "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  filters: [{{type: DirectResponse, directResponse: {{status: \
         {status}}}}}]\n"
    )
}

#[test]
fn applied_objects_are_what_was_written() -> Result<()> {
    let ns = Namespace::create("apply-same", Mesh::Outside)?;
    ns.apply(&(Service::new("echo").yaml() + SHORT))?;
    let objects =
        ["meshroute/echo", "meshcluster/echo", "meshpolicy/echo"].map(|object| object.split_once('/').unwrap());
    for (kind, name) in objects {
        eventually(&format!("the status of {kind}/{name}"), SOON, || ns.condition(kind, name, "Ready"))?;
    }
    let again = ns.apply(SHORT)?;
    ensure!(again.lines().count() == 3 && again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
    expect_no_difference(&ns, &[], SHORT)?;

    // The same by server-side apply, for a manager that has not applied them before.
    for _ in 0..2 {
        apply_as(&ns, "gitops", SHORT)?.stdout_of_success("kubectl apply --server-side")?;
        expect_no_difference(&ns, &["--server-side", "--field-manager=gitops"], SHORT)?;
    }
    for (kind, name) in objects {
        let object = ns.get(kind, name)?;
        ensure!(object["metadata"]["generation"] == 1, "{kind}/{name} was written again: {object}");
        let printed = object["spec"].to_string();
        for default in ["\"weight\"", "\"PeakEWMA\"", "\"Exact\"", "\"PathPrefix\"", "\"statusCode\"", "\"25ms\""] {
            ensure!(!printed.contains(default), "{kind}/{name} has {default}, which nobody wrote: {printed}");
        }
    }
    Ok(())
}

/// The one thing that the API server adds: the key of a rule without a name.
#[test]
fn rule_without_a_name_is_called_default() -> Result<()> {
    let ns = Namespace::create("apply-name", Mesh::Outside)?;
    let unnamed = "- backendRefs: [{name: echo, port: 9080}]\n";
    ns.apply(&route("echo", unnamed))?;
    ensure!(rule_names(&ns, "echo")? == ["default"]);
    expect_no_difference(&ns, &[], &route("echo", unnamed))?;
    ensure!(ns.apply(&route("echo", unnamed))?.contains("configured"), "kubectl compares lists as a whole");
    ensure!(ns.get("meshroute", "echo")?["metadata"]["generation"] == 1, "but writes nothing");

    // Both a new route and a changed one.
    for name in ["echo", "other"] {
        let stderr = ns.apply_refused(&route(name, &unnamed.repeat(2)))?;
        ensure!(stderr.contains("spec.http[1]: Duplicate value: {\"name\":\"default\"}"), "{stderr}");
        ensure!(
            stderr.contains("a rule without a name is called default: give each rule a name of its own"),
            "{stderr}"
        );
    }
    let refused = apply_as(&ns, "gitops", &route("other", &unnamed.repeat(2)))?;
    ensure!(!refused.success && refused.stderr.contains("duplicate entries for key [name=\"default\"]"), "{refused:?}");
    Ok(())
}

#[test]
fn two_managers_share_a_route() -> Result<()> {
    in_mesh("apply-shared", |ns| {
        ns.apply(&Service::new("echo").yaml())?;
        let client = Client::deploy(ns)?;
        let answers = |path: &str, status: u16| {
            eventually(&format!("{path} to be answered {status}"), SOON, || {
                client.get(&format!("http://echo:9080{path}")).send()?.expect_status(status)
            })
        };
        let apply = |manager: &str, rules: &str| {
            apply_as(ns, manager, &route("echo", rules))?.stdout_of_success("kubectl apply --server-side")
        };
        apply("team-a", &answering("a", 211))?;
        apply("team-b", &answering("b", 222))?;
        ensure!(rule_names(ns, "echo")? == ["a", "b"], "the rule of the second manager comes last");
        answers("/a", 211)?;
        answers("/b", 222)?;

        // Each changes its own rule, and keeps that of the other.
        apply("team-a", &answering("a", 233))?;
        answers("/a", 233)?;
        answers("/b", 222)?;
        for (manager, rules) in [("team-a", answering("a", 233)), ("team-b", answering("b", 222))] {
            let manager = format!("--field-manager={manager}");
            expect_no_difference(ns, &["--server-side", &manager], &route("echo", &rules))?;
        }

        // The rule of the other is refused, with its owner.
        let taken = apply_as(ns, "team-b", &route("echo", &(answering("b", 222) + &answering("a", 244))))?;
        ensure!(!taken.success, "{taken:?}");
        let expected = "conflict with \"team-a\": .spec.http[name=\"a\"].filters";
        ensure!(taken.stderr.contains(expected), "it should say {expected}: {}", taken.stderr);

        // Who no longer applies a rule removes it.
        apply("team-b", &answering("c", 255))?;
        ensure!(rule_names(ns, "echo")? == ["a", "c"]);
        answers("/c", 255)?;
        answers("/b", 404).map(drop)
    })
}

#[test]
fn two_managers_share_the_subsets_of_a_cluster() -> Result<()> {
    let ns = Namespace::create("apply-subsets", Mesh::Outside)?;
    let other = SUBSETS.split_once("  - {name: v1").context("subsets")?.0.to_owned()
        + "  - {name: canary, labels: {version: v9}}\n";
    for (manager, yaml) in [("team-a", SUBSETS), ("team-b", &other)] {
        apply_as(&ns, manager, yaml)?.stdout_of_success("kubectl apply --server-side")?;
    }
    let cluster = ns.get("meshcluster", "echo")?;
    let names: Vec<&Value> =
        cluster["spec"]["subsets"].as_array().into_iter().flatten().map(|item| &item["name"]).collect();
    ensure!(names == ["v1", "v2", "v3", "canary"], "{names:?}");
    Ok(())
}

#[test]
fn client_side_apply_becomes_server_side() -> Result<()> {
    let ns = Namespace::create("apply-migrate", Mesh::Outside)?;
    ns.apply(&route("echo", &(answering("a", 200) + &answering("b", 200))))?;
    let only_a = route("echo", &answering("a", 200));
    ns.run_with(&["apply", "--server-side", "-f", "-"], &only_a, READY)?.stdout_of_success("kubectl apply")?;
    ensure!(rule_names(&ns, "echo")? == ["a"], "what client-side apply owned, server-side apply removes");
    expect_no_difference(&ns, &["--server-side"], &only_a)
}

#[test]
fn objects_that_are_no_longer_applied_are_pruned() -> Result<()> {
    let ns = Namespace::create("apply-prune", Mesh::Outside)?;
    let labelled = |name: &str| {
        route(name, &answering("a", 200)).replace("metadata: {name:", "metadata: {labels: {app: shop}, name:")
    };
    let by_label = ["--prune", "-l", "app=shop", "--prune-allowlist=weft.dev/v1alpha1/MeshRoute"];
    // Kubernetes' list of what was applied together; kubectl has it behind a variable.
    let by_set = ["--prune", "--applyset=shop"];
    for arguments in [&by_label[..], &by_set] {
        for names in [&["one", "two"][..], &["one"]] {
            let yaml: String = names.iter().map(|name| labelled(name)).collect();
            let mut kubectl = Command::new(&Cluster::get()?.kubectl);
            kubectl.env("KUBECONFIG", &Cluster::get()?.kubeconfig).env("KUBECTL_APPLYSET", "true");
            kubectl.args(["-n", &ns.name, "apply", "-f", "-"]).args(arguments);
            command::run(&mut kubectl, &yaml, READY)?.stdout_of_success("kubectl apply --prune")?;
            let found = ns.run(&["get", "meshroutes", "-o", "name"])?;
            ensure!(found.lines().count() == names.len(), "{arguments:?} {names:?}: {found}");
        }
    }
    Ok(())
}

/// `kubectl` validates strictly by default; server-side apply always does, whoever uses it.
#[test]
fn misspelled_fields_are_refused_by_name() -> Result<()> {
    let ns = Namespace::create("apply-field", Mesh::Outside)?;
    let misspelled = route("echo", "- {name: a, backendRefs: [{name: echo, port: 9080, wieght: 1}]}\n");
    let stderr = ns.apply_refused(&misspelled)?;
    ensure!(stderr.contains("unknown field \"spec.http[0].backendRefs[0].wieght\""), "{stderr}");
    for validate in ["--validate=strict", "--validate=ignore"] {
        let output = ns.run_with(&["apply", "--server-side", validate, "-f", "-"], &misspelled, READY)?;
        let expected = ".spec.http[name=\"a\"].backendRefs[0].wieght: field not declared in schema";
        ensure!(!output.success && output.stderr.contains(expected), "{validate}: {output:?}");
    }
    let warned = ns.run_with(&["apply", "--validate=warn", "-f", "-"], &misspelled, READY)?;
    ensure!(
        warned.success && warned.stderr.contains("unknown field \"spec.http[0].backendRefs[0].wieght\""),
        "{warned:?}"
    );
    Ok(())
}
