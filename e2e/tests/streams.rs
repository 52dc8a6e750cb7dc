//! Rules for connections: TLS by server name, bytes by weight.

use anyhow::{Result, ensure};
use weft_e2e::mesh::proxy_metrics;
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

#[test]
fn tls_goes_by_server_name_and_bytes_by_weight() -> Result<()> {
    in_mesh("streams", |ns| {
        // Each server says its name first, and then what it was sent.
        let mut yaml = Service::new("edge").port(8443, 7000).app_protocol("tls").yaml();
        for name in ["one", "two"] {
            yaml += &App::tcp(name, 7000, &format!("I am {name}. ")).yaml();
            yaml += &Service::new(name).port(7000, 7000).app_protocol("tcp").yaml();
        }
        ns.apply(&yaml)?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["one", "two"])?;
        let route = "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {name: edge}\nspec:\n  parentRefs: [{name: edge}]\n  \
                     tls:\n  - matches: [{sni: [one.example]}]\n    backendRefs: [{name: one, port: 7000}]\n  - matches: [{sni: \
                     [\"*.two.example\"]}]\n    backendRefs: [{name: two, port: 7000}]\n---\napiVersion: weft.dev/v1alpha1\nkind: \
                     MeshRoute\nmetadata: {name: one}\nspec:\n  parentRefs: [{name: one}]\n  tcp:\n  - backendRefs: [{name: one, port: \
                     7000, weight: 0}, {name: two, port: 7000, weight: 1}]\n";
        ns.program(route, &["meshroute/edge", "meshroute/one"])?;
        for (name, greeting) in [("one.example", "I am one. "), ("a.b.two.example", "I am two. ")] {
            eventually(&format!("a TLS client that asks for {name} to be greeted"), SOON, || {
                let answer = client.tcp("edge:8443", &["--hello", name, "--until", name])?;
                ensure!(answer.error.is_none() && answer.received.starts_with(greeting), "{answer:?}");
                Ok(())
            })?;
        }
        for name in ["three.example", "two.example"] {
            let answer = client.tcp("edge:8443", &["--hello", name, "--until", "I am", "--timeout", "5s"])?;
            ensure!(answer.error.is_some() && !answer.received.contains("I am"), "{name}: {answer:?}");
        }
        let metrics = proxy_metrics(ns, "client")?;
        let closed = metrics.sum("weft_tcp_connections_total", &[("direction", "outbound"), ("reason", "no-route")]);
        ensure!(closed == 2.0, "{:?}", metrics.beginning("weft_tcp_connections"));
        eventually("the Service one to lead to the pod two", SOON, || {
            let answer = client.tcp("one:7000", &["--expect-first", "--send", "ping"])?;
            ensure!(answer.error.is_none() && answer.first == "I am two. " && answer.received == "ping", "{answer:?}");
            Ok(())
        })
    })
}
