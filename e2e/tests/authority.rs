//! The certificate authority on a cluster: certificates of a minute, an authority that is away, and roots that are lost.
//! These tests replace what all others use, so they run alone and one at a time: `cargo test -p weft-e2e --test authority
//! -- --test-threads 1`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::Cluster;
use weft_e2e::command;
use weft_e2e::install::{SYSTEM, with_settings, without};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::mesh::{proxy_metrics, requests, sum};
use weft_e2e::metrics::Metrics;
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
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
            // A response that takes as long as everything else, on one stream.
            let url = format!("http://echo:9080/large?bytes={}&each=1s", TRAFFIC.as_secs());
            let stream = client.load(&url).with(&["--http2", "--concurrency", "1", "--timeout", "200s"]).requests(1);
            let stream = stream.limit(TRAFFIC * 2).start()?;
            let requests_of =
                |client: &Client| client.load("http://echo:9080/").rate(50).concurrency(4).duration(TRAFFIC);
            let (kept, anew) =
                (requests_of(&client), requests_of(&client).with(&["--connection-per-request", "--http2"]));
            let (kept, anew) = (kept.start()?, anew.start()?);
            without("operator", || {
                thread::sleep(AWAY);
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
        let (before, old) = (trust()?, roots_of_the_injector(&system)?);
        system.run(&["delete", "secret", "weft-root", "weft-issuer"])?;
        system.run(&["rollout", "restart", "deployment/weft-operator"])?;
        system.rolled_out("deployment/weft-operator", READY)?;
        config.run(&["delete", "configmap", "trust"])?;
        eventually("the operator to write the new roots", SOON, || {
            ensure!(trust()? != before, "the roots are the old ones");
            Ok(())
        })?;

        // A pod that runs refuses them, says so, and is served as before.
        eventually("the pods to refuse roots that no root of theirs has signed", SOON, || {
            let refused = sum(ns, "client", "weft_identity_bundles_refused_total", &[])?;
            ensure!(refused >= 1.0, "{refused}");
            Ok(())
        })?;
        let line = identity_line(ns, "client")?;
        ensure!(line.starts_with("identity: ready"), "{line}");
        client.load("http://echo:9080/").requests(100).run()?.expect_none_failed(100)?;

        eventually("the injector to have the new roots", SOON, || {
            let found = roots_of_the_injector(&system)?;
            ensure!(found != old, "it has {found}");
            Ok(())
        })?;
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

/// A Secret that cannot be used is told where its author looks, the last good issuer goes on, and the Secret is kept.
#[test]
fn bad_issuers_are_told_and_the_last_good_one_goes_on() -> Result<()> {
    in_mesh("authority-issuer", |ns| {
        let client = echo(ns)?;
        let system = system()?;
        let good = system.get("secret", "weft-issuer")?["data"].clone();
        let foreign = foreign_issuer(&ns.directory()?)?;
        let cases = [
            ("IssuerInvalid", json!({"stringData": {"tls.crt": "no certificate"}})),
            ("IssuerInvalid", json!({"stringData": {"tls.key": ""}})),
            ("IssuerNotYetTrusted", json!({"stringData": foreign})),
        ];
        let result = cases.iter().try_for_each(|(reason, patch)| -> Result<()> {
            system.run(&["patch", "secret", "weft-issuer", "--type=merge", "-p", &patch.to_string()])?;
            await_issuer(&system, 1.0).with_context(|| reason.to_string())?;
            eventually(&format!("an Event {reason}"), SOON, || {
                let events = system.run(&["events", "--for", "secret/weft-issuer"])?;
                ensure!(events.contains(reason), "{events}");
                Ok(())
            })?;
            // A pod that is created now still gets a certificate.
            ns.run(&["rollout", "restart", "deployment/echo-v1"])?;
            ns.wait_ready(&["echo-v1"])?;
            client.load("http://echo:9080/").requests(100).run()?.expect_none_failed(100)?;
            system.run(&[
                "patch",
                "secret",
                "weft-issuer",
                "--type=merge",
                "-p",
                &json!({"data": good}).to_string(),
            ])?;
            await_issuer(&system, 0.0)
        });
        system.run(&["patch", "secret", "weft-issuer", "--type=merge", "-p", &json!({"data": good}).to_string()])?;
        result
    })
}

/// The Mesh is the default of all namespaces, and cannot change the trust domain.
#[test]
fn mesh_sets_the_default_mode_but_not_another_trust_domain() -> Result<()> {
    let outside = Namespace::create("authority-stranger", Mesh::Outside)?;
    let stranger = Client::deploy(&outside)?;
    in_mesh("authority-mesh", |ns| {
        let client = echo(ns)?;
        let url = format!("http://echo.{}:9080/", ns.name);
        stranger.get(&url).send()?.expect_status(200)?;
        let mesh = |spec: &str| {
            format!("apiVersion: weft.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: weft}}\nspec: {{{spec}}}\n")
        };
        let result = (|| {
            ns.program(&mesh("mtls: {mode: Strict}"), &["mesh/weft"])?;
            eventually("plaintext to be refused everywhere", SOON, || {
                stranger.get(&url).send()?.expect_status(403).map(drop)
            })?;
            encrypted(ns, &client)?;

            ns.apply(&mesh("trustDomain: shop.example, mtls: {mode: Permissive}"))?;
            let accepted = ns.await_condition("mesh", "weft", "Accepted", "False")?;
            let expected = "spec.trustDomain: shop.example is not in force, but cluster.local";
            ensure!(accepted.message.contains(expected), "{accepted:?}");
            client.load("http://echo:9080/").requests(100).run()?.expect_none_failed(100)?;
            encrypted(ns, &client)
        })();
        ns.run(&["delete", "mesh", "weft", "--ignore-not-found"])?;
        result?;
        eventually("plaintext to be accepted again", SOON, || stranger.get(&url).send()?.expect_status(200).map(drop))
    })
}

/// Waits until the operator refuses the issuer's Secret (1), or uses it (0).
fn await_issuer(system: &Kubectl, refused: f64) -> Result<()> {
    eventually(&format!("weft_operator_issuer_refused to be {refused}"), SOON, || {
        let operators = system.list("pods", "app.kubernetes.io/component=operator")?;
        let operator =
            operators.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("no operator runs")?;
        let metrics = Metrics::parse(&system.pod_get(operator, 15020, "metrics")?);
        let found = metrics.sum("weft_operator_issuer_refused", &[]);
        ensure!(found == refused, "it is {found}");
        Ok(())
    })
}

/// The content of a Secret with a root that no pod trusts.
fn foreign_issuer(folder: &Path) -> Result<Value> {
    let (key, certificate) = (folder.join("tls.key"), folder.join("tls.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "30", "-subj", "/CN=foreign", "-addext", "keyUsage=critical,keyCertSign"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    command::run(&mut openssl, "", SOON)?.stdout_of_success("openssl req")?;
    let certificate = fs::read_to_string(certificate)?;
    Ok(json!({"tls.crt": certificate, "ca.crt": certificate, "tls.key": fs::read_to_string(key)?}))
}

/// The line `trust` of `/readyz` of the injector, with the fingerprints of the roots that new pods get.
fn roots_of_the_injector(system: &Kubectl) -> Result<String> {
    let injectors = system.list("pods", "app.kubernetes.io/component=injector")?;
    let injector = injectors.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("no injector runs")?;
    let text = system.pod_get(injector, 15020, "readyz")?;
    let line = text.lines().find(|line| line.starts_with("trust: ready")).map(str::to_owned);
    line.with_context(|| format!("the injector has no roots: {text}"))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
