//! Identity on a cluster: pods of a labelled namespace prove who they are, and connections between them are encrypted.
//! What replaces the certificate authority of all tests, or its settings, is in `authority.rs`.

mod callers;
mod databases;
mod strict;
mod wire;

use anyhow::{Result, ensure};
use weft_e2e::namespace::{Namespace, SOON};
use weft_e2e::traffic::{Answer, Client};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

/// The identity of a service account of the namespace.
fn id(ns: &Namespace, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{account}", ns.name)
}

/// What a pod's application reads about its caller: `x-forwarded-client-cert` with both identities.
fn forwarded(ns: &Namespace, server: &str, client: &str) -> String {
    format!("By={};URI={}", id(ns, server), id(ns, client))
}

/// Values of `x-forwarded-client-cert` that the server's application got.
fn received(answer: &Answer) -> Result<Vec<String>> {
    Ok(serde_json::from_value(answer.json()?["headers"]["x-forwarded-client-cert"].clone()).unwrap_or_default())
}

/// A server with a service account of its own name, and its Service.
fn server(name: &str) -> String {
    Service::new(name).yaml() + &App::server(name, "v1").service_account(name).yaml()
}

/// Deploys a client with a service account of its own name.
fn client(ns: &Namespace, name: &str) -> Result<Client> {
    ns.apply(&App::client(name).service_account(name).yaml())?;
    ns.wait_ready(&[name])?;
    Ok(Client::of(ns, name))
}

/// Waits until the server's application learns that this service account calls it. The client's proxy learns of the
/// server's identity a moment after the pod is ready.
fn identified(ns: &Namespace, client: &Client, url: &str, server: &str, account: &str) -> Result<()> {
    eventually(&format!("{url} to be called by {account}, encrypted"), SOON, || {
        let answer = client.get(url).send()?.expect_status(200)?;
        let (found, expected) = (received(&answer)?, forwarded(ns, server, account));
        ensure!(found == [expected.as_str()], "x-forwarded-client-cert is {found:?}, not {expected}");
        Ok(())
    })
}

/// A MeshPolicy with these fields of its spec beside `targetRef`.
fn policy(name: &str, target: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRef: {target}, \
         {fields}}}\n"
    )
}

/// Sets the whole namespace to Strict, and waits until the operator has written that.
fn make_strict(ns: &Namespace) -> Result<()> {
    ns.program(&policy("strict", "{kind: Namespace}", "mtls: {mode: Strict}"), &["meshpolicy/strict"])
}
