//! TLSRoutes (by SNI) and TCPRoutes (by weight).

use anyhow::{Result, ensure};
use weft_e2e::gateway_api::{PROGRAMMED, await_condition, route, route_of};
use weft_e2e::install;
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

#[test]
fn connections_are_routed_by_server_name_and_weight() -> Result<()> {
    in_mesh("gateway-streams", |ns| {
        install::ensure_gateway_api()?;
        // Each server sends its name first, then echoes.
        let mut yaml = Service::new("edge").port(8443, 7000).app_protocol("tls").yaml();
        for name in ["one", "two"] {
            yaml += &App::tcp(name, 7000, &format!("I am {name}. ")).yaml();
            yaml += &Service::new(name).port(7000, 7000).app_protocol("tcp").yaml();
        }
        ns.apply(&yaml)?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["one", "two"])?;
        let to = |backends: &str| format!("rules: [{{backendRefs: [{backends}]}}]\n");
        let [one, two] = ["one", "two"].map(|name| format!("{{name: {name}, port: 7000}}"));
        let edge = "[{group: \"\", kind: Service, name: edge}]";
        for (name, host, backend) in [("exact", "one.example", &one), ("wildcard", "\"*.two.example\"", &two)] {
            let fields = format!("hostnames: [{host}]\n{}", to(backend));
            ns.apply(&route_of("TLSRoute", name, edge, &fields))?;
            await_condition(ns, &format!("tlsroute/{name}"), PROGRAMMED, "True")?;
        }
        ns.apply(&route("TCPRoute", "one", &to(&format!("{{name: one, port: 7000, weight: 0}}, {two}"))))?;
        await_condition(ns, "tcproute/one", PROGRAMMED, "True")?;
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
        eventually("connections to Service one to reach pod two", SOON, || {
            let answer = client.tcp("one:7000", &["--expect-first", "--send", "ping"])?;
            ensure!(answer.error.is_none() && answer.first == "I am two. " && answer.received == "ping", "{answer:?}");
            Ok(())
        })?;
        // The share of a backend that does not exist is closed.
        ns.apply(&route("TCPRoute", "one", &to("{name: nowhere, port: 7000}")))?;
        let resolved = await_condition(ns, "tcproute/one", "ResolvedRefs", "False")?;
        ensure!(resolved.reason == "BackendNotFound" && resolved.message.contains("nowhere"), "{resolved:?}");
        eventually("connections to Service one to be closed", SOON, || {
            let answer = client.tcp("one:7000", &["--expect-first", "--timeout", "5s"])?;
            ensure!(answer.error.is_some() && answer.first.is_empty(), "{answer:?}");
            Ok(())
        })
    })
}
