//! The certificate authority on a cluster: certificates of a minute, an authority that is away, and roots that are lost.
//! These tests replace what all others use, so they run alone and one at a time: `cargo test -p weft-e2e --test authority
//! -- --test-threads 1`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::Cluster;
use weft_e2e::install::{SYSTEM, with_settings, without};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::mesh::{proxy_metrics, requests, sum};
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

/// Lifetime of certificates in these tests: the shortest that the chart allows.
const LIFETIME: Duration = Duration::from_secs(60);
/// More than two lifetimes: each pod renews its certificate three times or more.
const TRAFFIC: Duration = Duration::from_secs(130);
/// Less than the two fifths of a lifetime that are left when a certificate is to be renewed.
const AWAY: Duration = Duration::from_secs(20);
const EXPIRY: &str = "weft_identity_expiry_timestamp_seconds";
const RENEWALS: &str = "weft_identity_renewals_total";
const MTLS: (&str, &str) = ("security", "mtls");

fn system() -> Result<Kubectl> {
    Ok(Kubectl::within(Cluster::get()?, SYSTEM))
}

/// Deploys Service `echo`, and a client whose requests to it are encrypted.
fn echo(ns: &Namespace) -> Result<Client> {
    ns.apply(&(Service::new("echo").yaml() + &App::server("echo", "v1").service_account("echo").yaml()))?;
    let client = Client::deploy(ns)?;
    ns.wait_ready(&["echo-v1"])?;
    encrypted(ns, &client)?;
    Ok(client)
}

/// Waits until a request is encrypted.
fn encrypted(ns: &Namespace, client: &Client) -> Result<()> {
    eventually("a request to be encrypted", SOON, || {
        let before = requests(ns, "echo", &[MTLS])?;
        client.get("http://echo:9080/").send()?.expect_status(200)?;
        ensure!(requests(ns, "echo", &[MTLS])? > before, "it was not");
        Ok(())
    })
}

/// The line `identity` of `/readyz` of the only pod of an app.
fn identity_line(ns: &Namespace, app: &str) -> Result<String> {
    let text = ns.pod_get(&ns.pod_of(app)?, 15021, "readyz")?;
    let line = text.lines().find(|line| line.starts_with("identity: "));
    line.map(str::to_owned).with_context(|| format!("/readyz has no line identity: {text}"))
}

#[test]
fn certificates_of_a_minute_are_renewed_and_no_request_fails() -> Result<()> {
    with_settings(&["identity.certificateSeconds=60"], || {
        in_mesh("authority-renewal", |ns| {
            let client = echo(ns)?;
            for app in ["echo", "client"] {
                let left = proxy_metrics(ns, app)?.sum(EXPIRY, &[]) - now();
                ensure!(left > 0.0 && left <= LIFETIME.as_secs_f64(), "the certificate of {app} has {left} s left");
            }
            let seconds = format!("{}", TRAFFIC.as_secs());
            // A response that takes as long as everything else, on one stream.
            let url = format!("http://echo:9080/large?bytes={seconds}&each=1s");
            let stream = client.load(&url).with(&["--http2", "--concurrency", "1", "--timeout", "200s"]).requests(1);
            let stream = stream.limit(TRAFFIC * 2).start()?;
            let requests_of =
                |client: &Client| client.load("http://echo:9080/").rate(50).concurrency(4).duration(TRAFFIC);
            let (kept, anew) =
                (requests_of(&client), requests_of(&client).with(&["--connection-per-request", "--http2"]));
            let (kept, anew) = (kept.start()?, anew.start()?);
            without("operator", || {
                std::thread::sleep(AWAY);
                Ok(())
            })?;
            for (what, load) in [("requests", kept), ("requests on new connections", anew)] {
                let report = load.finish()?;
                println!("{what} during {TRAFFIC:?}, {AWAY:?} of it without an authority: {}", report.summary());
                report.expect_none_failed(5_000)?;
            }
            stream.finish()?.expect_none_failed(1)?;
            for app in ["echo", "client"] {
                let renewed = sum(ns, app, RENEWALS, &[("outcome", "issued")])?;
                println!("{app} got {renewed} certificates");
                ensure!(renewed >= 4.0, "{app} got {renewed}");
            }
            let plaintext = requests(ns, "echo", &[("direction", "inbound"), ("security", "plaintext")])?;
            ensure!(plaintext == 0.0, "{plaintext} requests were not encrypted");
            Ok(())
        })
    })
}

/// The steps are those of docs/identity.md, "If no root that is held can sign any more".
#[test]
fn pods_trust_new_roots_after_the_documented_steps() -> Result<()> {
    in_mesh("authority-roots", |ns| {
        let client = echo(ns)?;
        let (system, config) = (system()?, Kubectl::within(Cluster::get()?, "weft-config"));
        let trust = || Ok::<Value, anyhow::Error>(config.get("configmap", "trust")?["data"].clone());
        let before = trust()?;
        system.run(&["delete", "secret", "weft-root", "weft-issuer"])?;
        system.run(&["rollout", "restart", "deployment/weft-operator"])?;
        system.rolled_out("deployment/weft-operator", READY)?;
        config.run(&["delete", "configmap", "trust"])?;
        let roots = eventually("the operator to write the new roots", SOON, || {
            let roots = trust()?;
            ensure!(roots != before, "the roots are the old ones");
            Ok(roots)
        })?;
        println!("the new document has {} bytes", roots.to_string().len());

        // A pod that runs refuses them, says so, and is served as before.
        eventually("the pods to refuse roots that no root of theirs has signed", SOON, || {
            let refused = sum(ns, "client", "weft_identity_bundles_refused_total", &[])?;
            ensure!(refused >= 1.0, "{refused}");
            Ok(())
        })?;
        let line = identity_line(ns, "client")?;
        ensure!(line.starts_with("identity: ready"), "{line}");
        client.load("http://echo:9080/").requests(100).run()?.expect_none_failed(100)?;

        await_new_roots_of_the_injector(&system, ns)?;
        ns.run(&["rollout", "restart", "deployment"])?;
        ns.wait_ready(&["echo-v1", "client"])?;
        eventually("the old pods to be gone", READY, || {
            ns.pod_of("echo")?;
            ns.pod_of("client").map(drop)
        })?;
        encrypted(ns, &client)?;
        for app in ["echo", "client"] {
            let refused = sum(ns, app, "weft_identity_bundles_refused_total", &[])?;
            ensure!(refused == 0.0, "{app} refused {refused}: {}", identity_line(ns, app)?);
        }
        Ok(())
    })
}

/// Waits until a pod that is created gets a certificate: until the injector has read the new roots, it gets none.
fn await_new_roots_of_the_injector(system: &Kubectl, ns: &Namespace) -> Result<()> {
    let injectors = system.list("pods", "app.kubernetes.io/component=injector")?;
    let injector =
        injectors.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("there is an injector")?;
    let _ = ns;
    eventually("the injector to have the new roots", SOON, || {
        let text = system.pod_get(injector, 15020, "readyz")?;
        ensure!(text.lines().any(|line| line.starts_with("trust: ready")), "{text}");
        Ok(())
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
