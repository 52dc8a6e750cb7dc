//! Injection: which pods get a proxy, and that those pods work as before.

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
            "the pod has no label with the proxy's version: {version:?}"
        );
        let hello = client.get("http://echo:9080/hello");
        let answer = eventually("the Service to answer", SOON, || hello.send()?.expect_status(200))?;
        ensure!(answer.json()?["service"] == "echo", "{answer:?}");
        client.load("http://echo:9080/hello").requests(100).run()?.expect_none_failed(100)
    })
}

#[test]
fn pods_of_unlabelled_namespaces_get_no_proxy() -> Result<()> {
    let ns = Namespace::create("inject-outside", Mesh::Outside)?;
    ns.apply(&workload::server("echo", &["v1"]))?;
    let client = Client::deploy(&ns)?;
    ns.wait_ready(&["echo-v1"])?;
    let pod = ns.get("pod", &ns.pod_of("echo")?)?;
    assert_eq!(containers(&pod), ["echo"], "the namespace has no label");
    // kube-proxy routes the Service to a pod a moment after the pod is ready.
    let hello = client.get("http://echo:9080/");
    eventually("the Service to answer", SOON, || hello.send()?.expect_status(200).map(drop))
}

#[test]
fn pods_created_before_the_label_are_told_with_the_command_that_restarts_them() -> Result<()> {
    let ns = Namespace::create("inject-events", Mesh::Outside)?;
    ns.apply(&workload::client())?;
    ns.wait_ready(&["client"])?;
    let pod = ns.pod_of("client")?;
    ns.run(&["label", "namespace", &ns.name, "weft.dev/inject=enabled"])?;
    let command = format!("kubectl -n {} rollout restart deployment/client", ns.name);
    for object in [&format!("pod/{pod}"), "deployment/client"] {
        eventually(&format!("an Event on {object}"), SOON, || {
            let events = ns.events(object)?;
            ensure!(events.contains("NoProxy") && events.contains(&command), "{events}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn pod_label_overrides_the_namespace() -> Result<()> {
    in_mesh("inject-pod-label", |ns| {
        ns.apply(&App::server("echo", "out").label("weft.dev/inject", "false").yaml())?;
        ns.wait_ready(&["echo-out"])?;
        let pod = ns.get("pod", &ns.pod_of("echo")?)?;
        ensure!(containers(&pod) == ["echo"], "the pod opted out: {:?}", containers(&pod));
        Ok(())
    })?;
    let outside = Namespace::create("inject-pod-label-in", Mesh::Outside)?;
    outside.apply(&App::server("echo", "in").label("weft.dev/inject", "true").yaml())?;
    outside.wait_ready(&["echo-in"])?;
    let pod = outside.get("pod", &outside.pod_of("echo")?)?;
    assert!(containers(&pod).contains(&"weft-proxy"), "the pod opted in: {:?}", containers(&pod));
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

/// CP-06: on a cluster.
#[test]
fn invalid_annotation_refuses_the_pod() -> Result<()> {
    in_mesh("inject-bad-annotation", |ns| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bad\n  annotations: {config.weft.dev/workers: many}\nspec:\n  \
                   containers: [{name: app, image: localhost/weft-demo:dev, args: [idle]}]\n";
        let stderr = ns.apply_refused(pod)?;
        ensure!(
            stderr.contains("config.weft.dev/workers") && stderr.contains("many"),
            "the refusal should name key and value: {stderr}"
        );
        Ok(())
    })
}

/// What kubectl prints of Weft's when a manifest is applied, on stderr.
fn warned(ns: &Namespace, yaml: &str) -> Result<String> {
    let output = ns.run_with(&["apply", "--dry-run=server", "-f", "-"], yaml, READY)?;
    let stderr = output.stderr.clone();
    output.stdout_of_success("kubectl apply --dry-run=server")?;
    Ok(stderr.lines().filter(|line| line.contains("weft: ")).collect::<Vec<_>>().join("\n"))
}

/// Pods of a Deployment are created by its controller, to which the warnings about them go.
#[test]
fn kubectl_apply_warns_about_pods_that_will_have_no_proxy() -> Result<()> {
    let app = || App::server("echo", "v1");
    let check = |ns: &Namespace, desc: &str, yaml: &str, expected: &str| {
        // A change of the namespace reaches the injector a moment later.
        eventually(desc, SOON, || {
            let printed = warned(ns, yaml)?;
            ensure!(printed.contains(expected), "{desc}: {printed:?} should contain {expected:?}");
            ensure!(printed.is_empty() == expected.is_empty(), "{desc}: {printed:?}");
            Ok(())
        })
    };
    in_mesh("inject-warned", |ns| {
        check(ns, "pods that get a proxy", &app().yaml(), "")?;
        let host = app().yaml().replace("\n    spec:\n", "\n    spec:\n      hostNetwork: true\n");
        check(ns, "hostNetwork", &host, "Deployment echo-v1: no proxy will be added: the pod uses the node's network")?;
        let value = app().annotation("config.weft.dev/workers", "many").yaml();
        check(
            ns,
            "an invalid value",
            &value,
            "Deployment echo-v1: its pods will be refused: annotation config.weft.dev",
        )?;
        let key = app().annotation("config.weft.dev/worker", "2").yaml();
        check(ns, "an unknown annotation", &key, "did you mean config.weft.dev/workers?")?;
        let job = workload::job("work", &["idle"]).replace("\n    spec:", "\n    spec:\n      hostNetwork: true");
        check(ns, "hostNetwork in a Job", &job, "Job work: no proxy will be added")
    })?;
    let outside = Namespace::create("inject-warned-outside", Mesh::Outside)?;
    check(&outside, "a namespace outside the mesh", &app().yaml(), "")?;
    let misspelled = app().label("weft.dev/injcet", "true").yaml();
    check(&outside, "a misspelled label", &misspelled, "did you mean the label weft.dev/inject=true?")?;
    let own = app()
        .yaml()
        .replace("metadata: {name: echo-v1}", "metadata: {name: echo-v1, labels: {weft.dev/inject: \"true\"}}");
    check(&outside, "a label on the Deployment", &own, "set it in metadata.labels of the pod template")?;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {weft.dev/injection: \"true\"}}\nspec:\n  \
               containers: [{name: app, image: localhost/weft-demo:dev, args: [idle]}]\n";
    check(&outside, "a misspelled label on a pod", pod, "did you mean the label weft.dev/inject=true?")
}

#[test]
fn kubectl_label_namespace_warns_about_the_label() -> Result<()> {
    let ns = Namespace::create("inject-warned-label", Mesh::Outside)?;
    for (label, expected) in [
        ("weft.dev/inject=true", "use \"enabled\" or \"disabled\""),
        ("weft.dev/injection=enabled", "did you mean the label weft.dev/inject=enabled?"),
        ("istio-injection=enabled", "did you mean the label weft.dev/inject=enabled?"),
        ("weft.dev/inject=enabled", "rollout restart deployment,statefulset,daemonset"),
    ] {
        let arguments = ["label", "namespace", &ns.name, label, "--dry-run=server"];
        let output = ns.run_with(&arguments, "", READY)?;
        ensure!(output.success, "{label}: {}", output.stderr);
        ensure!(output.stderr.contains(expected), "{label}: {:?} should contain {expected:?}", output.stderr);
    }
    Ok(())
}

#[test]
fn pod_with_the_proxys_user_is_refused() -> Result<()> {
    in_mesh("inject-proxy-uid", |ns| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bad\nspec:\n  securityContext: {runAsUser: 15015}\n  \
                   containers: [{name: app, image: localhost/weft-demo:dev, args: [idle]}]\n";
        let stderr = ns.apply_refused(pod)?;
        ensure!(stderr.contains("15015"), "the refusal should name the user: {stderr}");
        Ok(())
    })
}

#[test]
fn jobs_complete_with_a_proxy() -> Result<()> {
    in_mesh("inject-job", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["echo-v1"])?;
        // Configuration that one proxy has is in the namespace's document, which a later proxy reads before it is
        // ready.
        reachable(&client, "echo")?;
        ns.apply(&workload::job("work", &["load", "--url", "http://echo:9080/", "--requests", "50"]))?;
        ns.wait("job/work", "condition=Complete", READY)?;
        let report = Report::parse(&ns.run(&["logs", "job/work", "-c", "work"])?)?;
        report.expect_none_failed(50)?;
        // The condition is the Job's; the pod must have completed too, with its proxy.
        let pods = ns.list("pods", "app=work")?;
        let phase =
            pods.first().context("the Job has a pod")?["status"]["phase"].as_str().unwrap_or_default().to_owned();
        ensure!(phase == "Succeeded", "the pod is {phase}");
        Ok(())
    })
}

#[test]
fn pod_can_call_its_own_service() -> Result<()> {
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
        // The probe's path is answered 503 by the application: if the proxy answered instead, the pod would become
        // ready.
        let failing = App::server("failing", "v1").yaml().replace("path: /healthz", "path: \"/failing?status=503\"");
        ns.apply(&(failing + &workload::server("healthy", &["v1"])))?;
        ns.wait_ready(&["healthy-v1"])?;
        eventually("an event with the application's 503", READY, || {
            let events = ns.run(&["get", "events", "--field-selector", "reason=Unhealthy"])?;
            ensure!(events.contains("pod/failing-v1") && events.contains("statuscode: 503"), "{events}");
            Ok(())
        })?;
        let status = &ns.get("deployment", "failing-v1")?["status"];
        ensure!(status["readyReplicas"].is_null(), "a pod whose probe fails became ready: {status}");
        Ok(())
    })
}

#[test]
fn proxy_meets_pod_security_restricted() -> Result<()> {
    in_mesh("inject-restricted", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        // Labelling the namespace prints a warning for each pod that the level would refuse.
        let stderr = ns
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
        for violation in stderr.split(';') {
            ensure!(
                !violation.contains("weft-proxy"),
                "the proxy's container should meet Pod Security restricted: {violation}"
            );
        }
        Ok(())
    })
}

#[test]
fn user_namespaces_contain_no_weft_objects() -> Result<()> {
    in_mesh("inject-objects", |ns| {
        ns.apply(&workload::server("echo", &["v1"]))?;
        ns.wait_ready(&["echo-v1"])?;
        let objects = ns.run(&["get", "configmaps,secrets,serviceaccounts,roles,rolebindings", "-o", "name"])?;
        let known = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
        let ours: Vec<&str> = objects.lines().filter(|name| !known.contains(name)).collect();
        ensure!(ours.is_empty(), "Weft created {ours:?} in a user's namespace");
        Ok(())
    })
}
