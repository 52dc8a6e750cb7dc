//! Which pods get a proxy, and what that costs them: nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::mesh::reachable;
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::{Client, Report};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{self, App};

fn containers(pod: &Value) -> Vec<&str> {
    ["initContainers", "containers"]
        .iter()
        .flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
        .collect()
}

#[test]
fn pods_of_a_labelled_namespace_get_a_proxy() -> Result<()> {
    in_mesh("inject-labelled", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["echo-v1"])?;
        let pod = ns.get("pod", &ns.pod_of("echo")?)?;
        let containers = containers(&pod);
        for container in ["weft-init", "weft-proxy", "echo"] {
            ensure!(containers.contains(&container), "the pod has no container {container}: {containers:?}");
        }
        let version = pod["metadata"]["labels"]["weft.dev/proxy-version"].as_str();
        ensure!(
            version.is_some_and(|version| !version.is_empty()),
            "the pod does not say which proxy it has: {version:?}"
        );
        let hello = client.get("http://echo:9080/hello");
        let answer = eventually("the Service to answer", SOON, || hello.send()?.expect_status(200))?;
        ensure!(answer.told()?["service"] == "echo", "{answer:?}");
        client.load("http://echo:9080/hello").requests(100).run()?.expect_none_failed(100)
    })
}

#[test]
fn pods_of_other_namespaces_are_left_alone() -> Result<()> {
    let ns = Namespace::create("inject-outside", Mesh::Outside)?;
    ns.apply(&workload::server("echo", &["v1"]))?;
    let client = Client::deploy(&ns)?;
    ns.wait_ready(&["echo-v1"])?;
    let pod = ns.get("pod", &ns.pod_of("echo")?)?;
    assert_eq!(containers(&pod), ["echo"], "the namespace has no label");
    // Kubernetes' own Service leads to a pod a moment after that is ready.
    let hello = client.get("http://echo:9080/");
    eventually("the Service to answer", SOON, || hello.send()?.expect_status(200).map(drop))
}

#[test]
fn a_pods_own_label_wins() -> Result<()> {
    in_mesh("inject-pod-label", |ns| {
        ns.apply(&App::server("echo", "out").label("weft.dev/inject", "false").yaml())?;
        ns.wait_ready(&["echo-out"])?;
        let pod = ns.get("pod", &ns.pod_of("echo")?)?;
        ensure!(containers(&pod) == ["echo"], "the pod asked for no proxy: {:?}", containers(&pod));
        Ok(())
    })?;
    let outside = Namespace::create("inject-pod-label-in", Mesh::Outside)?;
    outside.apply(&App::server("echo", "in").label("weft.dev/inject", "true").yaml())?;
    outside.wait_ready(&["echo-in"])?;
    let pod = outside.get("pod", &outside.pod_of("echo")?)?;
    assert!(containers(&pod).contains(&"weft-proxy"), "the pod asked for a proxy: {:?}", containers(&pod));
    Ok(())
}

#[test]
fn clients_outside_the_mesh_reach_pods_inside() -> Result<()> {
    in_mesh("inject-from-outside", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        let outside = Namespace::create("inject-from-outside-client", Mesh::Outside)?;
        let client = Client::deploy(&outside)?;
        let url = format!("http://echo.{}:9080/", ns.name);
        eventually("the Service to answer", SOON, || client.get(&url).send()?.expect_status(200).map(drop))?;
        client.load(&url).requests(100).run()?.expect_none_failed(100)
    })
}

#[test]
fn a_bad_annotation_refuses_the_pod_with_a_reason() -> Result<()> {
    in_mesh("inject-bad-annotation", |ns| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bad\n  annotations: {config.weft.dev/workers: many}\nspec:\n  \
                   containers: [{name: app, image: localhost/weft-demo:dev, args: [idle]}]\n";
        let said = ns.apply_refused(pod)?;
        ensure!(
            said.contains("config.weft.dev/workers") && said.contains("many"),
            "the refusal names key and value: {said}"
        );
        Ok(())
    })
}

#[test]
fn a_pod_that_runs_as_the_proxys_user_is_refused() -> Result<()> {
    in_mesh("inject-proxy-uid", |ns| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bad\nspec:\n  securityContext: {runAsUser: 15015}\n  \
                   containers: [{name: app, image: localhost/weft-demo:dev, args: [idle]}]\n";
        let said = ns.apply_refused(pod)?;
        ensure!(said.contains("15015"), "the refusal names the user: {said}");
        Ok(())
    })
}

#[test]
fn a_job_with_a_proxy_completes() -> Result<()> {
    in_mesh("inject-job", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["echo-v1"])?;
        // What one proxy knows stands in a document; a pod that starts later reads that before it sends anything.
        reachable(&client, "echo")?;
        ns.apply(&workload::job("work", &["load", "--url", "http://echo:9080/", "--requests", "50"]))?;
        ns.wait("job/work", "condition=Complete", READY)?;
        let report = Report::parse(&ns.run(&["logs", "job/work", "-c", "work"])?)?;
        report.expect_none_failed(50)?;
        // Complete is said of the Job; the pod must have ended too, with its proxy.
        let pods = ns.list("pods", "app=work")?;
        let phase =
            pods.first().context("the Job has a pod")?["status"]["phase"].as_str().unwrap_or_default().to_owned();
        ensure!(phase == "Succeeded", "the pod is {phase}");
        Ok(())
    })
}

#[test]
fn a_pod_calls_its_own_service() -> Result<()> {
    in_mesh("inject-own-service", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        let pod = ns.pod_of("echo")?;
        for address in ["http://echo:9080/own", "http://127.0.0.1:9080/own"] {
            // A pod that is ready becomes an endpoint a moment later.
            eventually(&format!("the pod to reach itself at {address}"), READY, || {
                let printed =
                    ns.run(&["exec", &pod, "-c", "echo", "--", workload::PROGRAM, "request", "--url", address])?;
                let answer: Value = serde_json::from_str(&printed)?;
                ensure!(answer["status"] == 200, "{address}: {printed}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn probes_are_answered_by_the_application_not_the_proxy() -> Result<()> {
    in_mesh("inject-probes", |ns| {
        // Its probe asks for a path that answers 503: if the proxy answered in its stead, the pod would become ready.
        let sick = App::server("sick", "v1").yaml().replace("path: /healthz", "path: \"/sick?status=503\"");
        ns.apply(&(sick + &workload::server("well", &["v1"])))?;
        ns.wait_ready(&["well-v1"])?;
        eventually("the kubelet to hear what the application answers", READY, || {
            let events = ns.run(&["get", "events", "--field-selector", "reason=Unhealthy"])?;
            ensure!(events.contains("pod/sick-v1") && events.contains("statuscode: 503"), "{events}");
            Ok(())
        })?;
        let sick = ns.get("deployment", "sick-v1")?;
        ensure!(sick["status"]["readyReplicas"].is_null(), "a pod whose probe fails became ready: {}", sick["status"]);
        Ok(())
    })
}

#[test]
fn pods_meet_pod_security_restricted_but_for_the_init_container() -> Result<()> {
    in_mesh("inject-restricted", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        // `warn` tells what `enforce` would refuse, through the real admission.
        let said = ns
            .run_with(
                &[
                    "label",
                    "namespace",
                    &ns.name,
                    "pod-security.kubernetes.io/enforce=restricted",
                    "--dry-run=server",
                    "--overwrite",
                ],
                "",
                Duration::from_secs(30),
            )?
            .stderr;
        for violation in said.split(';') {
            ensure!(
                !violation.contains("weft-proxy"),
                "the proxy's container should meet Pod Security restricted: {violation}"
            );
        }
        Ok(())
    })
}

#[test]
fn users_namespaces_hold_no_objects_of_weft() -> Result<()> {
    in_mesh("inject-objects", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        let objects = ns.run(&["get", "configmaps,secrets,serviceaccounts,roles,rolebindings", "-o", "name"])?;
        let known = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
        let ours: Vec<&str> = objects.lines().filter(|name| !known.contains(name)).collect();
        ensure!(ours.is_empty(), "Weft put {ours:?} into a user's namespace");
        Ok(())
    })
}
