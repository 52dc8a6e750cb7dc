//! MeshPolicies that say who may call.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_e2e::namespace::{Mesh, Namespace, SOON, in_mesh};
use weft_e2e::traffic::{Answer, Client};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

use super::{client, identified, policy, server};

/// Limit for open connections that are now denied to be closed.
const CLOSED: Duration = Duration::from_secs(2);
const ECHO: &str = "{kind: Service, name: echo}";
const WEB_ONLY: &str = "authorization: {default: Deny, rules: [{action: Allow, from: [{serviceAccounts: [web]}]}]}";

fn denied(answer: Answer) -> Result<Answer> {
    let answer = answer.expect_status(403)?;
    ensure!(answer.reason() == Some("policy-denied"), "{answer:?}");
    Ok(answer)
}

#[test]
fn only_the_named_service_accounts_may_call() -> Result<()> {
    let outside = Namespace::create("callers-outside", Mesh::Outside)?;
    let stranger = Client::deploy(&outside)?;
    in_mesh("callers", |ns| {
        ns.apply(&server("echo"))?;
        let (web, batch) = (client(ns, "web")?, client(ns, "batch")?);
        ns.wait_ready(&["echo-v1"])?;
        let url = format!("http://echo.{}:9080/", ns.name);
        identified(ns, &web, &url, "echo", "web")?;
        identified(ns, &batch, &url, "echo", "batch")?;

        ns.program(&policy("guard", ECHO, WEB_ONLY), &["meshpolicy/guard"])?;
        eventually("the policy to be in force", SOON, || denied(batch.get(&url).send()?).map(drop))?;
        let answer = denied(batch.get(&url).send()?)?;
        let source = format!("MeshPolicy/{}/guard", ns.name);
        ensure!(answer.source().is_some_and(|found| found.starts_with(&source)), "{answer:?}");
        denied(stranger.get(&url).send()?)?;
        web.load(&url).requests(100).run()?.expect_none_failed(100)?;

        // Names of other namespaces, and negated ones. What is not known of a caller is read against it.
        for (from, of_web, of_batch, of_stranger) in [
            (format!("{{serviceAccounts: [{}/batch]}}", ns.name), 403, 200, 403),
            (format!("{{namespaces: [{}]}}", ns.name), 200, 200, 403),
            (format!("{{namespaces: [{}], notServiceAccounts: [web]}}", ns.name), 403, 200, 403),
            ("{serviceAccounts: [elsewhere/web]}".to_owned(), 403, 403, 403),
            ("{notNamespaces: [elsewhere]}".to_owned(), 200, 200, 403),
        ] {
            let rule = format!("authorization: {{rules: [{{action: Allow, from: [{from}]}}]}}");
            ns.program(&policy("guard", ECHO, &rule), &["meshpolicy/guard"])?;
            eventually(&format!("from: [{from}]"), SOON, || {
                for (client, status) in [(&web, of_web), (&batch, of_batch), (&stranger, of_stranger)] {
                    client.get(&url).send()?.expect_status(status)?;
                }
                Ok(())
            })?;
        }
        let deny = "authorization: {rules: [{action: Deny, from: [{notServiceAccounts: [web]}]}]}";
        ns.program(&policy("guard", ECHO, deny), &["meshpolicy/guard"])?;
        eventually("a Deny for all others", SOON, || {
            web.get(&url).send()?.expect_status(200)?;
            denied(batch.get(&url).send()?)?;
            denied(stranger.get(&url).send()?).map(drop)
        })
    })
}

/// ID-11: open connections that are now denied are closed within two seconds, and no others.
#[test]
fn tightened_policies_close_connections_that_are_now_denied() -> Result<()> {
    in_mesh("callers-open", |ns| {
        let db = Service::new("echo").port(7000, 7000).app_protocol("tcp").yaml();
        ns.apply(&(db + &App::tcp("echo", 7000, "").service_account("echo").yaml()))?;
        let (web, batch) = (client(ns, "web")?, client(ns, "batch")?);
        ns.wait_ready(&["echo"])?;
        // Open until the server's side closes them.
        let open = |client: &Client| {
            client.tcp_reached("echo:7000", &["--send", "ping"])?;
            client.tcp_start("echo:7000", &["--send", "ping", "--until", "never", "--timeout", "40s"])
        };
        let (mut allowed, mut closed) = (open(&web)?, open(&batch)?);
        let both = "authorization: {default: Deny, rules: [{action: Allow, from: [{serviceAccounts: [web, batch]}]}]}";
        ns.program(&policy("guard", ECHO, both), &["meshpolicy/guard"])?;
        ns.await_condition("meshpolicy", "guard", "Ready", "True")?;
        ensure!(allowed.is_open()? && closed.is_open()?, "a policy that denies neither closed a connection");

        ns.apply(&policy("guard", ECHO, WEB_ONLY))?;
        let applied = Instant::now();
        eventually("the connection that is denied to be closed", SOON, || {
            ensure!(!closed.is_open()?, "it is open");
            Ok(())
        })?;
        let took = applied.elapsed();
        let answer = closed.finish()?;
        ensure!(answer.received == "ping" && answer.error.is_some(), "{answer:?}");
        println!("the connection that is now denied was closed after {} ms", took.as_millis());
        ensure!(took < CLOSED, "closed after {took:?}");
        ensure!(allowed.is_open()?, "the connection that is still allowed was closed: {:?}", allowed.finish());
        let refused = batch.tcp("echo:7000", &["--send", "ping", "--timeout", "5s"])?;
        ensure!(refused.error.is_some() && refused.received.is_empty(), "{refused:?}");
        Ok(())
    })
}
