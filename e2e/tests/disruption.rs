//! Traffic during outages of the control plane and the API server. These tests stop components that every other test
//! needs, so they run alone and one at a time: `cargo test -p weft-e2e --test disruption -- --test-threads 1`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_e2e::Cluster;
use weft_e2e::gateway_api::{self, await_condition};
use weft_e2e::install::{self, SYSTEM, without};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::mesh::{self, proxy_metrics, route_in_force};
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::{Client, Report};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{self, App, Service};

const TO_V1: &str = "- backendRefs: [{name: echo, port: 9080, subset: v1}]\n";
/// A different configuration with the same effect.
const TO_V1_RENAMED: &str = "- name: again\n  backendRefs: [{name: echo, port: 9080, subset: v1}]\n";
/// Duration of the API server's outage.
const OUTAGE: Duration = Duration::from_secs(60);
/// How soon after it a proxy without a certificate has one.
const CERTIFIED: Duration = Duration::from_secs(15);

fn system() -> Result<Kubectl> {
    Ok(Kubectl::within(Cluster::get()?, SYSTEM))
}

/// UID of a Job's only pod.
fn pod_uid(ns: &Namespace, app: &str) -> Result<String> {
    let pods = ns.list("pods", &format!("app={app}"))?;
    let pod = pods.first().with_context(|| format!("no pod has the label app={app}"))?;
    pod["metadata"]["uid"].as_str().map(str::to_owned).context("a pod has a UID")
}

/// Waits until the pod is Running, which includes that its proxy is ready.
fn await_running(ns: &Namespace, app: &str) -> Result<()> {
    eventually(&format!("the pod of {app} to run"), READY, || {
        let pods = ns.list("pods", &format!("app={app}"))?;
        let phase = pods.first().and_then(|pod| pod["status"]["phase"].as_str());
        ensure!(phase == Some("Running"), "it is {phase:?}");
        Ok(())
    })
}

#[test]
fn killing_the_operator_fails_no_request() -> Result<()> {
    in_mesh("disruption-operator", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let mut load =
            client.load("http://echo:9080/").requests(20_000).rate(700).concurrency(16).limit(READY * 2).start()?;
        let (system, mut killed) = (system()?, 0);
        while load.is_running()? && killed < 4 {
            system.run(&[
                "delete",
                "pods",
                "-l",
                "app.kubernetes.io/component=operator",
                "--grace-period=0",
                "--force",
            ])?;
            system.rolled_out("deployment/weft-operator", READY)?;
            killed += 1;
        }
        let report = load.finish()?;
        println!(
            "operator killed {killed} times: {} failed of {}, {}",
            report.failed,
            report.requests,
            report.summary()
        );
        ensure!(killed > 0, "the operator was not killed while the load ran");
        report.expect_none_failed(20_000)?;
        ensure!(report.share("v1") == 1.0, "the route stays in force: {}", report.summary());
        // The new operator programs changes.
        route_in_force(ns, &client, "echo", "- backendRefs: [{name: echo, port: 9080, subset: v2}]\n")
    })
}

/// A proxy that restarts has no certificate until the API server can say who it is: its key is nowhere but in memory.
#[test]
fn api_server_outage_fails_no_request_and_a_restarted_proxy_gets_its_certificate_after_it() -> Result<()> {
    let embedded = Cluster::get()?.embedded()?;
    in_mesh("disruption-api-server", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        // `kubectl exec` needs the API server, so these clients are Jobs, which report in their logs.
        let seconds = OUTAGE.as_secs() + 25;
        let job = |name: &str, rate: &str| {
            let duration = format!("{seconds}s");
            let arguments = [
                "load",
                "--url",
                "http://echo:9080/",
                "--rate",
                rate,
                "--duration",
                &duration,
                "--timeline",
                "--timeout",
                "5s",
            ];
            workload::job(name, &arguments)
        };
        ns.apply(&(job("steady", "100") + &job("restarted", "20")))?;
        for name in ["steady", "restarted"] {
            await_running(ns, name)?;
        }
        let began = Instant::now();
        let uid = pod_uid(ns, "restarted")?;
        let stopped = embedded.stop_api_server()?;
        let stopped_at = Instant::now();
        thread::sleep(OUTAGE / 4);
        embedded.kill_container(&uid, "weft-proxy")?;
        let killed = began.elapsed();
        thread::sleep(OUTAGE.saturating_sub(stopped_at.elapsed()));
        let until = began.elapsed();
        stopped.start()?;
        let restarted_at = Instant::now();
        println!("the API server was stopped for {:?}", stopped_at.elapsed());

        // A change applied right after the restart takes effect without a long wait. The rule of `route_in_force`
        // matches `/in-force` only; the Jobs' requests still go to v1.
        route_in_force(ns, &client, "echo", TO_V1_RENAMED)?;
        println!("a change applied right after the API server's restart took effect in {:?}", restarted_at.elapsed());

        for name in ["steady", "restarted"] {
            ns.wait(&format!("job/{name}"), "condition=Complete", READY)?;
        }
        let report = |name: &str| Report::parse(&ns.run(&["logs", &format!("job/{name}"), "-c", name])?);
        let steady = report("steady")?;
        println!("API server stopped: {} failed of {}, {}", steady.failed, steady.requests, steady.summary());
        steady.expect_none_failed(seconds * 50)?;
        ensure!(steady.share("v1") == 1.0, "the route stays in force: {}", steady.summary());

        let restarted = report("restarted")?;
        let failed: Vec<u64> =
            restarted.timeline.iter().filter(|(_, status, ..)| *status != 200).map(|(at, ..)| *at).collect();
        let (killed, until) = (killed.as_millis() as u64, until.as_millis() as u64);
        let last = failed
            .iter()
            .max()
            .copied()
            .context("killing a proxy should break its own pod's connections; none broke")?;
        println!(
            "proxy restarted with the API server stopped: {} of {} requests failed, the last {} ms after the kill",
            failed.len(),
            restarted.requests,
            last.saturating_sub(killed)
        );
        let limit = until + CERTIFIED.as_millis() as u64;
        ensure!(last < limit, "the proxy should serve again {limit} ms after the first request: {failed:?}");
        let after: Vec<_> = restarted.timeline.iter().filter(|(at, ..)| *at > last).collect();
        ensure!(after.len() > 100, "too few requests after the restart: {}", after.len());
        ensure!(
            after.iter().all(|(_, status, version, _)| *status == 200 && version == "v1"),
            "the route should be in force from the proxy's cached configuration"
        );
        await_endpoint_slices(ns)
    })
}

/// Waits until Kubernetes creates endpoints of pods again, which other tests need. After the API server's restart its
/// EndpointSlice controller takes up to a minute longer than Weft to see its own slices: until then it updates each
/// once, and after some attempts ignores the Service until the Service changes.
fn await_endpoint_slices(ns: &Namespace) -> Result<()> {
    for (pods, version) in [(4, "v4"), (5, "v5"), (6, "v6")] {
        ns.apply(&App::server("echo", version).yaml())?;
        ns.wait_ready(&[&format!("echo-{version}")])?;
        let mut looks = 0;
        eventually("Kubernetes to create an endpoint of a pod", READY, || {
            let slices = ns.list("endpointslices", "kubernetes.io/service-name=echo")?;
            let count: usize = slices.iter().filter_map(|slice| slice["endpoints"].as_array().map(Vec::len)).sum();
            if count != pods {
                looks += 1;
                ns.run(&["annotate", "--overwrite", "service/echo", &format!("e2e.weft.dev/looks={looks}")])?;
            }
            ensure!(count == pods, "{count} endpoints for {pods} pods");
            Ok(())
        })?;
    }
    Ok(())
}

/// New pods need a certificate, so the rollout waits, and goes on when the operator is back.
#[test]
fn rollout_without_the_operator_waits_and_fails_no_request() -> Result<()> {
    in_mesh("disruption-waits", |ns| {
        let server = App::server("echo", "v1").replicas(2).arguments(&["--shutdown-delay", "5s"]);
        ns.apply(&(Service::new("echo").yaml() + &server.yaml()))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["echo-v1"])?;
        mesh::reachable(&client, "echo")?;
        let before = ns.pods_of("echo")?;
        let load = client.load("http://echo:9080/").rate(50).duration(Duration::from_secs(60)).start()?;
        without("operator", || {
            ns.run(&["rollout", "restart", "deployment/echo-v1"])?;
            eventually("a new pod", SOON, || {
                let count = ns.list("pods", "app=echo")?.len();
                ensure!(count > before.len(), "{count} pods");
                Ok(())
            })?;
            // Longer than a pod takes to become ready otherwise.
            thread::sleep(Duration::from_secs(10));
            let pods = ns.list("pods", "app=echo")?;
            let is_old = |pod: &&serde_json::Value| before.iter().any(|name| pod["metadata"]["name"] == name.as_str());
            let serving = pods.iter().filter(is_old).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            ensure!(serving.count() == before.len(), "the old pods serve until new ones have a certificate");
            Ok(())
        })?;
        ns.run(&["rollout", "status", "deployment/echo-v1", "--timeout=60s"])?;
        load.finish()?.expect_none_failed(2_000)
    })
}

#[test]
fn corrupt_configuration_is_reported_until_repaired() -> Result<()> {
    in_mesh("disruption-damaged", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let exports = Kubectl::within(Cluster::get()?, "weft-config");
        let readiness = || ns.pod_get(&ns.pod_of("client")?, 15021, "readyz");
        let stale = || Ok::<f64, anyhow::Error>(proxy_metrics(ns, "client")?.sum("weft_config_documents_stale", &[]));
        let document = format!("x.{}", ns.name);
        let age = || {
            let labels = [("document", document.as_str())];
            Ok::<f64, anyhow::Error>(proxy_metrics(ns, "client")?.sum("weft_config_age_seconds", &labels))
        };
        let (text, before) = (readiness()?, stale()?);
        ensure!(text.contains("generation") && !text.contains("newest:"), "before the patch /readyz says: {text}");
        ensure!(before == 0.0 && age()? == 0.0, "before the patch the metrics are {before} and {}", age()?);
        without("operator", || {
            let patch = r#"{"data":{"header":"{}"}}"#;
            exports.run(&["patch", "configmap", &format!("x.{}", ns.name), "--type=merge", "-p", patch])?;
            eventually("the proxy to report the rejected configuration", SOON, || {
                let text = readiness()?;
                ensure!(text.contains(&ns.name) && text.contains("newest:"), "/readyz says: {text}");
                ensure!(stale()? == 1.0 && age()? > 0.0, "the metrics are {} and {}", stale()?, age()?);
                Ok(())
            })?;
            let report = client.load("http://echo:9080/").requests(300).run()?;
            report.expect_none_failed(300)?;
            ensure!(report.share("v1") == 1.0, "the last valid configuration stays in force: {}", report.summary());
            Ok(())
        })?;
        eventually("the operator to repair it", SOON, || {
            let text = readiness()?;
            ensure!(!text.contains("newest:") && stale()? == 0.0 && age()? == 0.0, "/readyz says: {text}");
            Ok(())
        })
    })
}

#[test]
fn pods_are_not_created_while_the_injector_is_down() -> Result<()> {
    in_mesh("disruption-injector", |ns| {
        without("injector", || {
            ns.apply(&workload::server("echo", &["v1"]))?;
            eventually("an event about the webhook on the ReplicaSet", READY, || {
                let events = ns.run(&["get", "events"])?;
                ensure!(events.contains("weft-injector"), "{events}");
                Ok(())
            })?;
            ensure!(ns.pods_of("echo")?.is_empty(), "a pod started without a proxy");
            Ok(())
        })?;
        ns.wait_ready(&["echo-v1"])
    })
}

/// Runs `work`, and installs the CRDs of the Gateway API again, also after a failure.
fn with_other_crds<T>(work: impl FnOnce(&Kubectl) -> Result<T>) -> Result<T> {
    let result = work(&Kubectl::new(Cluster::get()?));
    install::install_gateway_api()?;
    result
}

/// How often the operator's containers were started again.
fn operator_restarts() -> Result<u64> {
    let pods = system()?.list("pods", "app.kubernetes.io/component=operator")?;
    let statuses = pods.iter().filter_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
    Ok(statuses.filter_map(|status| status["restartCount"].as_u64()).sum())
}

#[test]
fn routes_of_the_gateway_api_stop_and_return_with_their_crds() -> Result<()> {
    in_mesh("disruption-gateway-api", |ns| {
        let client = gateway_api::servers(ns)?;
        let to_one = "- backendRefs: [{name: one, port: 9080}]\n";
        gateway_api::in_force(ns, &client, "echo", to_one)?;
        route_in_force(ns, &client, "one", "- backendRefs: [{name: two, port: 9080}]\n")?;
        let restarts = operator_restarts()?;
        let load = client.load("http://echo:9080/").rate(50).duration(Duration::from_secs(30)).start()?;
        with_other_crds(|kubectl| {
            kubectl.delete("crd", "httproutes.gateway.networking.k8s.io")?;
            eventually("requests to go to the Service's own pods", SOON, || {
                let answer = client.get("http://echo:9080/").send()?.expect_status(200)?;
                ensure!(answer.version() == Some("v0"), "{answer:?}");
                Ok(())
            })?;
            let answer = client.get("http://one:9080/").send()?.expect_status(200)?;
            ensure!(answer.version() == Some("v2"), "the MeshRoute stays in force: {answer:?}");
            Ok(())
        })?;
        gateway_api::in_force(ns, &client, "echo", to_one)?;
        load.finish()?.expect_none_failed(1_000)?;
        ensure!(operator_restarts()? == restarts, "the operator was restarted");
        Ok(())
    })
}

#[test]
fn versions_of_the_gateway_api_that_are_not_read_are_told() -> Result<()> {
    in_mesh("disruption-gateway-version", |ns| {
        install::ensure_gateway_api()?;
        ns.apply(&Service::new("db").yaml())?;
        ns.apply(&gateway_api::route("TCPRoute", "db", "rules: [{backendRefs: [{name: db, port: 9080}]}]\n"))?;
        // With a version, because kubectl keeps in a file which ones there were.
        let route = |version: &str| format!("tcproutes.{version}.gateway.networking.k8s.io/db");
        await_condition(ns, &route("v1"), gateway_api::PROGRAMMED, "True")?;
        with_other_crds(|kubectl| {
            let name = "tcproutes.gateway.networking.k8s.io";
            let versions = kubectl.get("crd", name)?["spec"]["versions"].take();
            let versions = versions.as_array().context("a CRD has versions")?;
            let serve = |(index, version): (usize, &serde_json::Value)| {
                let path = format!("/spec/versions/{index}/served");
                serde_json::json!({"op": "replace", "path": path, "value": version["name"] == "v1alpha2"})
            };
            let patch = serde_json::Value::from_iter(versions.iter().enumerate().map(serve)).to_string();
            kubectl.run(&["patch", "crd", name, "--type=json", "-p", &patch])?;
            let accepted = await_condition(ns, &route("v1alpha2"), "Accepted", "False")?;
            let says = &accepted.message;
            ensure!(says.contains("v1alpha2") && says.contains("install"), "{accepted:?}");
            eventually("an Event on the CRD", SOON, || {
                let events = Kubectl::within(Cluster::get()?, "default").run(&[
                    "get",
                    "events",
                    "--field-selector",
                    &format!("involvedObject.name={name}"),
                ])?;
                ensure!(events.contains("UnsupportedVersion"), "{events}");
                Ok(())
            })
        })?;
        await_condition(ns, &route("v1"), "Accepted", "True").map(drop)
    })
}

#[test]
fn demo_removes_the_gateway_api_if_it_added_it_and_nobody_uses_it() -> Result<()> {
    in_mesh("disruption-gateway-demo", |ns| {
        install::ensure_gateway_api()?;
        with_other_crds(|kubectl| {
            let crd = "crd/httproutes.gateway.networking.k8s.io";
            let is_there = || Ok::<bool, anyhow::Error>(!kubectl.run(&["get", crd, "--ignore-not-found"])?.is_empty());
            gateway_api::add()?;
            gateway_api::remove_added()?;
            ensure!(is_there()?, "it was there before");
            kubectl.run(&["delete", crd])?;
            gateway_api::add()?;
            ns.apply(&gateway_api::route("HTTPRoute", "r", "rules: [{backendRefs: [{name: r, port: 9080}]}]\n"))?;
            gateway_api::remove_added()?;
            ensure!(is_there()?, "it is used");
            ns.run(&["delete", "httproute", "r"])?;
            eventually("nobody to use it, and the CRDs to be removed", READY, || {
                gateway_api::remove_added()?;
                ensure!(!is_there()?, "it is still there");
                Ok(())
            })
        })
    })
}
