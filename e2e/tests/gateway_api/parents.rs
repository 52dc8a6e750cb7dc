//! Which Service, port and clients a route applies to, and backends in other namespaces.

use anyhow::{Result, ensure};
use weft_e2e::gateway_api::{PROGRAMMED, await_condition, await_conditions, route, route_of, servers};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::namespace::{Mesh, Namespace, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload;
use weft_e2e::{gateway_api, mesh};

/// Waits until a request is answered with this header `x-rule`, or without one.
fn await_rule(client: &Client, url: &str, rule: Option<&str>) -> Result<()> {
    eventually(&format!("{url} to be answered by rule {rule:?}"), SOON, || {
        let answer = client.get(url).send()?.expect_status(200)?;
        ensure!(answer.header("x-rule") == rule, "{answer:?}");
        Ok(())
    })
}

/// A rule whose responses have its name.
fn named(rule: &str, backend: &str) -> String {
    format!(
        "rules:\n- name: {rule}\n  filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: \
         x-rule, value: {rule}}}]}}}}]\n  backendRefs: [{{{backend}, port: 9080}}]\n"
    )
}

#[test]
fn port_and_section_name_choose_ports_of_the_parent() -> Result<()> {
    in_mesh("gateway-port", |ns| {
        let client = servers(ns)?;
        let port = |name: &str, port: u16| format!("{{name: {name}, port: {port}, targetPort: 9080}}");
        let ports = [port("main", 9080), port("other", 9090), port("both", 9091), port("rest", 9092)].join(", ");
        ns.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: ports}}\nspec: {{selector: {{app: two}}, ports: [{ports}]}}\n"
        ))?;
        let parent = |section: &str| format!("[{{group: \"\", kind: Service, name: ports, {section}}}]");
        let parents = [
            ("by-number", "port: 9080"),
            ("by-section", "sectionName: other"),
            ("by-both", "port: 9091, sectionName: both"),
        ];
        for (name, section) in parents {
            ns.apply(&route_of("HTTPRoute", name, &parent(section), &named(name, "name: one")))?;
            await_condition(ns, &format!("httproute/{name}"), PROGRAMMED, "True")?;
        }
        for (port, rule) in
            [(9080, Some("by-number")), (9090, Some("by-section")), (9091, Some("by-both")), (9092, None)]
        {
            await_rule(&client, &format!("http://ports:{port}/"), rule)?;
        }
        // Two sections of one Service.
        let two = parent("sectionName: other").replace(']', ", ") + parent("sectionName: rest").trim_start_matches('[');
        ns.apply(&route_of("HTTPRoute", "by-section", &two, &named("sections", "name: one")))?;
        await_conditions(ns, "httproute/by-section", PROGRAMMED, "True", 2)?;
        for port in [9090, 9092] {
            await_rule(&client, &format!("http://ports:{port}/"), Some("sections"))?;
        }
        // Number and name of different ports: no port is meant.
        ns.apply(&route_of(
            "HTTPRoute",
            "by-both",
            &parent("port: 9080, sectionName: both"),
            &named("never", "name: one"),
        ))?;
        let accepted = await_condition(ns, "httproute/by-both", "Accepted", "False")?;
        ensure!(accepted.message.contains("both") && accepted.message.contains("9080"), "{accepted:?}");
        await_rule(&client, "http://ports:9091/", None)
    })
}

#[test]
fn consumer_routes_apply_to_clients_of_their_namespace() -> Result<()> {
    in_mesh("gateway-consumer", |ns| {
        let client = servers(ns)?;
        let consumer = Namespace::create("gateway-consumer-client", Mesh::Inside)?;
        let consumer_client = Client::deploy(&consumer)?;
        let url = format!("http://echo.{}:9080/", ns.name);
        eventually("the Service to answer", SOON, || consumer_client.get(&url).send()?.expect_status(200))?;
        ns.apply(&route("HTTPRoute", "echo", &named("producer", "name: echo")))?;
        for client in [&client, &consumer_client] {
            await_rule(client, &url, Some("producer"))?;
        }
        // Its backend is the Service that the client has called, so it needs no ReferenceGrant.
        let parent = format!("[{{group: \"\", kind: Service, name: echo, namespace: {}}}]", ns.name);
        let backend = format!("name: echo, namespace: {}", ns.name);
        consumer.apply(&route_of("HTTPRoute", "mine", &parent, &named("consumer", &backend)))?;
        await_condition(&consumer, "httproute/mine", PROGRAMMED, "True")?;
        await_condition(&consumer, "httproute/mine", "ResolvedRefs", "True")?;
        await_rule(&consumer_client, &url, Some("consumer"))?;
        await_rule(&client, &url, Some("producer"))?;
        consumer.delete("httproute", "mine")?;
        await_rule(&consumer_client, &url, Some("producer"))
    })
}

#[test]
fn backends_in_another_namespace_need_a_grant() -> Result<()> {
    in_mesh("gateway-grant", |ns| {
        let client = servers(ns)?;
        let other = Namespace::create("gateway-grant-backend", Mesh::Inside)?;
        other.apply(&workload::server("away", &["v9"]))?;
        other.wait_ready(&["away-v9"])?;
        let rules = format!("rules:\n- backendRefs: [{{name: away, namespace: {}, port: 9080}}]\n", other.name);
        let statuses = |status: u16| {
            eventually(&format!("requests to be answered {status}"), SOON, || {
                client.get("http://echo:9080/").send()?.expect_status(status)
            })
        };
        let grant = |kind: &str, kubectl: &Kubectl| {
            kubectl.apply(&format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: routes}}\nspec:\n  from: \
                 [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {}}}]\n  to: [{{group: \"\", kind: Service, \
                 name: away}}]\n",
                ns.name
            ))
        };
        ns.apply(&route("HTTPRoute", "echo", &rules))?;
        let resolved = await_condition(ns, "httproute/echo", "ResolvedRefs", "False")?;
        ensure!(resolved.reason == "RefNotPermitted" && resolved.message.contains("away"), "{resolved:?}");
        statuses(500)?;
        // A grant for another kind of route changes nothing.
        grant("GRPCRoute", &other)?;
        grant("HTTPRoute", &other)?;
        await_condition(ns, "httproute/echo", "ResolvedRefs", "True")?;
        let answer = statuses(200)?;
        ensure!(answer.version() == Some("v9"), "{answer:?}");
        grant("GRPCRoute", &other)?;
        await_condition(ns, "httproute/echo", "ResolvedRefs", "False")?;
        statuses(500).map(drop)
    })
}

#[test]
fn requests_to_other_services_and_pods_are_not_routed() -> Result<()> {
    in_mesh("gateway-others", |ns| {
        let client = servers(ns)?;
        gateway_api::in_force(ns, &client, "echo", "- backendRefs: [{name: one, port: 9080}]\n")?;
        let pod = ns.pods_of("echo")?.remove(0);
        let address = ns.get("pod", &pod)?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        // The ClusterIP decides, not the Host.
        for (url, host, version) in [
            ("http://echo:9080/", "two:9080", "v1"),
            ("http://two:9080/", "echo:9080", "v2"),
            (&format!("http://{address}:9080/"), "echo:9080", "v0"),
        ] {
            let answer = client.get(url).header("host", host).send()?.expect_status(200)?;
            ensure!(answer.version() == Some(version), "{url} with the Host {host} should reach {version}: {answer:?}");
        }
        mesh::reachable(&client, "two")
    })
}
