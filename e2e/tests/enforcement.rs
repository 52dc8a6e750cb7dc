//! Policies during restarts and deletions: a denied client hammers the server all the time. These tests restart the operator,
//! so they run alone and one at a time, as those of `disruption.rs`.
//!
//! `WEFT_DENIED_REQUESTS=1000000` is the whole of CP-11.

use anyhow::{Context, Result, ensure};
use weft_e2e::Cluster;
use weft_e2e::install::SYSTEM;
use weft_e2e::kubectl::Kubectl;
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, PORT, Service};

/// Denied requests during restarts.
const REQUESTS: u64 = 100_000;
const DENY: &str = "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: guard}\nspec:\n  targetRef: {kind: Namespace}\n  \
                        authorization: {rules: [{action: Deny, paths: [{type: PathPrefix, value: /no}]}]}\n";

/// A server whose namespace denies the path `/no`, and a client outside of the mesh, whose connections go from
/// the kernel's Service address directly to the pods.
fn denied(ns: &Namespace, outside: &Namespace, server: App) -> Result<Client> {
    ns.apply(&(Service::new("echo").yaml() + &server.yaml()))?;
    let client = Client::deploy(outside)?;
    ns.wait_ready(&["echo-v1"])?;
    ns.program(DENY, &["meshpolicy/guard"])?;
    let request = client.get(&url(ns));
    eventually("the policy to be in force", SOON, || {
        // In both pods.
        (0..8).try_for_each(|_| request.send()?.expect_status(403).map(drop))
    })?;
    Ok(client)
}

fn url(ns: &Namespace) -> String {
    format!("http://echo.{}:9080/no", ns.name)
}

/// CP-11: 0 requests pass while proxies are killed, pods are replaced (with new iptables rules) and the operator is killed.
#[test]
fn denied_requests_stay_denied_during_restarts() -> Result<()> {
    let requests = std::env::var("WEFT_DENIED_REQUESTS").map_or(Ok(REQUESTS), |number| number.parse())?;
    let embedded = Cluster::get()?.embedded()?;
    in_mesh("enforcement-restarts", |ns| {
        let outside = Namespace::create("enforcement-client", Mesh::Outside)?;
        let client = denied(ns, &outside, App::server("echo", "v1").replicas(2))?;
        let system = Kubectl::within(Cluster::get()?, SYSTEM);
        let mut load = client.load(&url(ns)).requests(requests).concurrency(16).limit(READY * 10).start()?;
        let mut restarts = 0;
        while load.is_running()? {
            match restarts % 3 {
                0 => {
                    let pods = ns.list("pods", "app=echo")?;
                    let uid = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
                    let uid = uid.and_then(|pod| pod["metadata"]["uid"].as_str()).context("a pod has a UID")?;
                    embedded.kill_container(uid, "weft-proxy")?;
                }
                1 => {
                    let selector = "app.kubernetes.io/component=operator";
                    system.run(&["delete", "pods", "-l", selector, "--grace-period=0", "--force"])?;
                    system.rolled_out("deployment/weft-operator", READY)?;
                }
                _ => {
                    ns.run(&["rollout", "restart", "deployment/echo-v1"])?;
                }
            }
            ns.wait_ready(&["echo-v1"])?;
            restarts += 1;
        }
        let report = load.finish()?;
        println!("{restarts} restarts: {} of {} passed, {}", report.status(200), requests, report.summary());
        ensure!(restarts >= 3, "only {restarts} restarts while the requests were sent");
        ensure!(report.status(200) == 0, "{} denied requests passed: {}", report.status(200), report.summary());
        ensure!(report.status(403) > requests / 2, "most should reach a proxy: {}", report.summary());
        Ok(())
    })
}

/// CP-12: deleting the namespace with its policy opens nothing. The pod serves for 15 s more. Kubernetes deletes the other
/// objects after the pods since 1.33, and before, in any order.
#[test]
fn denied_requests_stay_denied_until_the_last_pod_of_a_deleted_namespace_is_gone() -> Result<()> {
    let outside = Namespace::create("enforcement-deleted-client", Mesh::Outside)?;
    let ns = Namespace::create("enforcement-deleted", Mesh::Inside)?;
    let server = App::server("echo", "v1").arguments(&["--shutdown-delay", "15s"]);
    let client = denied(&ns, &outside, server)?;
    // By its address: the Service may be deleted before the pod.
    let pod = ns.pod_of("echo")?;
    let address = ns.get("pod", &pod)?["status"]["podIP"].as_str().context("the pod has an address")?.to_owned();
    let direct = format!("http://{address}:{PORT}/no");
    client.get(&direct).send()?.expect_status(403)?;
    let load = client.load(&direct).rate(100).duration(READY / 2).start()?;
    Kubectl::new(Cluster::get()?).run(&["delete", "namespace", &ns.name, "--wait=false"])?;
    let report = load.finish()?;
    println!("namespace deleted: {}", report.summary());
    ensure!(report.status(200) == 0, "{} denied requests passed: {}", report.status(200), report.summary());
    ensure!(report.status(403) > 100, "the pod should have answered for seconds: {}", report.summary());
    Ok(())
}
