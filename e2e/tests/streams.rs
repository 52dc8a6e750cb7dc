//! TLS rules (by SNI), TCP rules (by weight) and CONNECT tunnels.

use anyhow::{Result, ensure};
use weft_e2e::mesh::{self, proxy_metrics, route_in_force};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

#[test]
fn tls_routes_by_sni_and_tcp_by_weight() -> Result<()> {
    in_mesh("streams", |ns| {
        // Each server sends its name first, then echoes.
        let mut yaml = Service::new("edge").port(8443, 7000).app_protocol("tls").yaml();
        for name in ["one", "two"] {
            yaml += &App::tcp(name, 7000, &format!("I am {name}. ")).yaml();
            yaml += &Service::new(name).port(7000, 7000).app_protocol("tcp").yaml();
        }
        ns.apply(&yaml)?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["one", "two"])?;
        let route = "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {name: edge}\nspec:\n  parentRefs: [{name: edge}]\n  \
                     tls:\n  - name: one\n    matches: [{sni: [one.example]}]\n    backendRefs: [{name: one, port: 7000}]\n  - name: two\n    matches: [{sni: \
                     [\"*.two.example\"]}]\n    backendRefs: [{name: two, port: 7000}]\n---\napiVersion: weft.dev/v1alpha1\nkind: \
                     MeshRoute\nmetadata: {name: one}\nspec:\n  parentRefs: [{name: one}]\n  tcp:\n  - backendRefs: [{name: one, port: \
                     7000, weight: 0}, {name: two, port: 7000, weight: 1}]\n";
        ns.program(route, &["meshroute/edge", "meshroute/one"])?;
        for (name, greeting) in [("one.example", "I am one. "), ("a.b.two.example", "I am two. ")] {
            eventually(&format!("a TLS connection with SNI {name} to be routed"), SOON, || {
                let answer = client.tcp("edge:8443", &["--hello", name, "--until", name])?;
                ensure!(answer.error.is_none() && answer.received.starts_with(greeting), "{answer:?}");
                Ok(())
            })?;
        }
        for name in ["three.example", "two.example"] {
            let answer = client.tcp("edge:8443", &["--hello", name, "--until", "I am", "--timeout", "5s"])?;
            ensure!(answer.error.is_some() && !answer.received.contains("I am"), "{name}: {answer:?}");
        }
        eventually("both connections to be counted", SOON, || {
            let metrics = proxy_metrics(ns, "client")?;
            let closed =
                metrics.sum("weft_tcp_connections_total", &[("direction", "outbound"), ("reason", "no-route")]);
            ensure!(closed == 2.0, "{:?}", metrics.with_prefix("weft_tcp_connections"));
            Ok(())
        })?;
        eventually("connections to Service one to reach pod two", SOON, || {
            let answer = client.tcp("one:7000", &["--expect-first", "--send", "ping"])?;
            ensure!(answer.error.is_none() && answer.first == "I am two. " && answer.received == "ping", "{answer:?}");
            Ok(())
        })
    })
}

#[test]
fn connect_tunnels_need_a_route() -> Result<()> {
    in_mesh("streams-connect", |ns| {
        ns.apply(
            &(App::tcp("db", 7000, "I am db. ").yaml()
                + &Service::new("db").port(7000, 7000).app_protocol("tcp").yaml()),
        )?;
        let client = mesh::echo(ns)?;
        ns.wait_ready(&["db"])?;
        client.tcp_reached("db:7000", &["--expect-first", "--send", "ping"])?;
        let connect = |end: &str, until: &str| {
            let request = format!("CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n{end}");
            client.tcp("echo:9080", &["--send", &request, "--until", until, "--timeout", "5s"])
        };
        let refused = |end: &str| -> Result<()> {
            let answer = connect(end, "connect-refused")?;
            ensure!(answer.error.is_none() && answer.received.starts_with("HTTP/1.1 405 "), "{answer:?}");
            Ok(())
        };
        refused("\r\n")?;
        let to_echo = "- backendRefs: [{name: echo, port: 9080}]\n";
        route_in_force(ns, &client, "echo", to_echo)?;
        refused("\r\n")?;
        let tunnel = "- name: tunnel\n  matches: [{method: CONNECT, headers: [{name: x-team, value: a}]}]\n  backendRefs: [{name: \
                      db, port: 7000}]\n";
        route_in_force(ns, &client, "echo", &(tunnel.to_owned() + to_echo))?;
        refused("\r\n")?;
        // Bytes sent with the request are forwarded once the tunnel is open. A whole line, so that the proxy of the db
        // detects at once that it is not HTTP.
        let answer = connect("x-team: a\r\n\r\nping\n", "ping\n")?;
        ensure!(answer.error.is_none() && answer.received.starts_with("HTTP/1.1 200 "), "{answer:?}");
        ensure!(
            answer.received.ends_with("\r\n\r\nI am db. ping\n"),
            "only the pod's own bytes after the response head: {answer:?}"
        );
        let source = format!("MeshRoute/{}/echo/tunnel", ns.name);
        eventually("the tunnel to be counted", SOON, || {
            let metrics = proxy_metrics(ns, "client")?;
            let opened =
                metrics.sum("weft_requests_total", &[("source", &source), ("http_response_status_code", "200")]);
            ensure!(opened == 1.0, "{:?}", metrics.with_prefix("weft_requests"));
            Ok(())
        })?;
        client.load("http://echo:9080/").requests(50).run()?.expect_none_failed(50)
    })
}
