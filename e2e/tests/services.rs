//! Fields of Services and EndpointSlices that select pods, and Services whose pods come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_e2e::mesh::{self, reachable};
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

/// The node of a pod.
fn node_of(ns: &Namespace, pod: &str) -> Result<String> {
    let pod = ns.get("pod", pod)?;
    pod["spec"]["nodeName"].as_str().map(str::to_owned).context("the pod is on a node")
}

fn patch(ns: &Namespace, object: &str, spec: &str) -> Result<()> {
    ns.run(&["patch", object, "--type=merge", "-p", &format!(r#"{{"spec":{spec}}}"#)]).map(drop)
}

/// Waits until requests are answered by all of these pods and by no other.
fn answered_by(client: &Client, pods: &[String]) -> Result<()> {
    eventually(&format!("{pods:?} and no others to answer"), SOON, || {
        let report = client.load("http://echo:9080/").requests(100).run()?;
        report.expect_none_failed(100)?;
        ensure!(report.by_pod.keys().eq(pods), "{}", report.summary());
        Ok(())
    })
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() -> Result<()> {
    in_mesh("services-local", |ns| {
        // One pod on each node.
        let servers = App::server("echo", "v1").yaml().replace("kind: Deployment", "kind: DaemonSet");
        ns.apply(&(Service::new("echo").yaml() + &servers.replace("  replicas: 1\n", "")))?;
        let client = Client::deploy(ns)?;
        ns.rolled_out("daemonset/echo-v1", READY)?;
        reachable(&client, "echo")?;
        let here = node_of(ns, &ns.pod_of("client")?)?;
        let (mut local, mut all) = (Vec::new(), ns.pods_of("echo")?);
        all.sort();
        for pod in &all {
            if node_of(ns, pod)? == here {
                local.push(pod.clone());
            }
        }
        answered_by(&client, &all)?;
        patch(ns, "service/echo", r#"{"trafficDistribution":"PreferSameNode"}"#)?;
        answered_by(&client, &local)?;
        patch(ns, "service/echo", r#"{"trafficDistribution":null,"internalTrafficPolicy":"Local"}"#)?;
        answered_by(&client, &local)?;
        let Some(elsewhere) = all.iter().find(|pod| !local.contains(pod)) else { return Ok(()) };
        let elsewhere = node_of(ns, elsewhere)?;
        let on_it =
            format!(r#"{{"template":{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{elsewhere}"}}}}}}}}"#);
        patch(ns, "daemonset/echo-v1", &on_it)?;
        eventually("the reason no-local-endpoints", READY, || {
            let answer = client.get("http://echo:9080/").send()?.expect_status(503)?;
            ensure!(answer.reason() == Some("no-local-endpoints"), "{answer:?}");
            Ok(())
        })?;
        patch(ns, "service/echo", r#"{"internalTrafficPolicy":"Cluster"}"#)?;
        reachable(&client, "echo")
    })
}

#[test]
fn session_affinity_pins_a_client_to_a_pod() -> Result<()> {
    in_mesh("services-client-ip", |ns| {
        let client = mesh::echo(ns)?;
        let pods = || -> Result<usize> {
            let report = client.load("http://echo:9080/").requests(60).run()?;
            report.expect_none_failed(60)?;
            Ok(report.by_pod.len())
        };
        ensure!(pods()? == 3, "without affinity all pods answer");
        patch(ns, "service/echo", r#"{"sessionAffinity":"ClientIP"}"#)?;
        eventually("one pod to answer", SOON, || {
            let count = pods()?;
            ensure!(count == 1, "{count} pods answer");
            Ok(())
        })?;
        patch(ns, "service/echo", r#"{"sessionAffinity":"None"}"#)?;
        eventually("all pods to answer", SOON, || {
            let count = pods()?;
            ensure!(count == 3, "{count} pods answer");
            Ok(())
        })
    })
}

#[test]
fn terminating_pod_serves_while_it_is_the_only_one() -> Result<()> {
    in_mesh("services-terminating", |ns| {
        let server = App::server("echo", "v1").arguments(&["--shutdown-delay", "15s"]);
        ns.apply(&(Service::new("echo").yaml() + &server.yaml()))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["echo-v1"])?;
        reachable(&client, "echo")?;
        // Started first, because starting `kubectl exec` takes a part of the pod's last 15 seconds.
        let load = client.load("http://echo:9080/").rate(50).duration(Duration::from_secs(12)).start()?;
        ns.run(&["scale", "deployment/echo-v1", "--replicas=0"])?;
        load.finish()?.expect_none_failed(300)
    })
}

#[test]
fn first_request_after_a_pod_is_ready_succeeds() -> Result<()> {
    in_mesh("services-ready", |ns| {
        ns.apply(&Service::new("echo").yaml())?;
        let client = Client::deploy(ns)?;
        for version in ["v1", "v2", "v3"] {
            ns.apply(&App::server("echo", version).yaml())?;
            ns.wait_ready(&[&format!("echo-{version}")])?;
            client.get("http://echo:9080/").send()?.expect_status(200)?;
            ns.delete("deployment", &format!("echo-{version}"))?;
            eventually("its pod to be gone", READY, || {
                let pods = ns.list("pods", "app=echo")?;
                ensure!(pods.is_empty(), "{} are left", pods.len());
                Ok(())
            })?;
        }
        // The proxy learns of the pod's end a moment later.
        eventually("the reason no-endpoints", SOON, || {
            let answer = client.get("http://echo:9080/").timeout(Duration::from_secs(10)).send()?.expect_status(503)?;
            ensure!(answer.reason() == Some("no-endpoints") && answer.ms < 6_000, "{answer:?}");
            Ok(())
        })?;
        let answer = client.get("http://echo:9080/").send()?.expect_status(503)?;
        ensure!(answer.ms < 2_000, "the second request should not wait for a pod again: {answer:?}");
        Ok(())
    })
}
