//! What `status.parents` says, of one route and of routes that exclude one another.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::gateway_api::{
    CONTROLLER, PROGRAMMED, Parent, await_condition, await_conditions, parents, route, route_of, servers,
};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::wait::eventually;
use weft_e2e::{gateway_api, install, mesh, workload};

const RULES: &str = "rules:\n- backendRefs: [{name: echo, port: 9080}]\n";

/// Weft's entry about a parent of that name.
fn entry<'a>(parents: &'a [Parent], name: &str) -> Result<&'a Parent> {
    let found = parents.iter().find(|parent| parent.is_own() && parent.parent_ref["name"] == name);
    found.with_context(|| format!("no entry of {CONTROLLER} about {name}: {parents:?}"))
}

#[test]
fn each_service_has_an_entry_and_those_of_others_stay() -> Result<()> {
    in_mesh("gateway-status", |ns| {
        install::ensure_gateway_api()?;
        ns.apply(&(workload::server("echo", &["v0"]) + &workload::Service::new("second").yaml()))?;
        let service = |name: &str| format!("{{group: \"\", kind: Service, name: {name}}}");
        let gateway = "{name: edge}";
        let all = format!("[{}, {gateway}, {}, {}]", service("echo"), service("second"), service("nowhere"));
        ns.apply(&route_of("HTTPRoute", "r", &all, RULES))?;
        let expected =
            [("echo", "True", "Accepted"), ("second", "True", "Accepted"), ("nowhere", "False", "NoMatchingParent")];
        eventually("an entry for each Service", SOON, || {
            let parents = parents(ns, "httproute/r")?;
            ensure!(parents.len() == 3, "none for the Gateway: {parents:?}");
            for (name, accepted, reason) in expected {
                let entry = entry(&parents, name)?;
                let found = entry.condition("Accepted")?;
                ensure!(found.status == accepted && found.reason == reason, "{name}: {found:?}");
                let programmed = entry.condition(PROGRAMMED)?;
                ensure!(programmed.status == accepted, "{name}: {programmed:?}");
                ensure!(entry.condition("ResolvedRefs")?.status == "True", "{name}: {entry:?}");
            }
            let refused = entry(&parents, "nowhere")?.condition("Accepted")?;
            ensure!(refused.message.contains("/nowhere does not exist"), "{refused:?}");
            Ok(())
        })?;

        // The controller of the Gateway adds its entry.
        let foreign = json!({
            "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
            "controllerName": "shop.example/gateway",
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "mine",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
            }],
        });
        let patch = json!([{"op": "add", "path": "/status/parents/0", "value": foreign}]).to_string();
        ns.run(&["patch", "httproute", "r", "--subresource=status", "--type=json", "-p", &patch])?;
        let foreign_stays = |count: usize| {
            eventually(&format!("{count} entries, one of them foreign"), SOON, || {
                let parents = parents(ns, "httproute/r")?;
                ensure!(parents.len() == count, "{parents:?}");
                let entries: Value = ns.get("httproute", "r")?["status"]["parents"].take();
                let kept = entries.as_array().is_some_and(|entries| entries.contains(&foreign));
                ensure!(kept, "the foreign entry should stay as it is: {entries}");
                Ok(parents)
            })
        };
        foreign_stays(4)?;
        // A new generation, which Weft observes, and a parent less.
        let fewer = format!("[{}, {gateway}, {}]", service("echo"), service("nowhere"));
        ns.apply(&route_of("HTTPRoute", "r", &fewer, &RULES.replace("name: echo", "name: gone")))?;
        let found = foreign_stays(3)?;
        let resolved = entry(&found, "echo")?.condition("ResolvedRefs")?;
        ensure!(resolved.status == "False" && resolved.reason == "BackendNotFound", "{resolved:?}");
        ensure!(resolved.observed_generation == Some(2), "{resolved:?}");
        // Without a Service as parent, nothing of Weft is left.
        ns.apply(&route_of("HTTPRoute", "r", &format!("[{gateway}]"), RULES))?;
        foreign_stays(1).map(drop)
    })
}

#[test]
fn one_kind_of_route_applies_to_a_port_and_the_others_name_it() -> Result<()> {
    in_mesh("gateway-kinds", |ns| {
        let client = servers(ns)?;
        // From the last kind to the first: each takes precedence over those before.
        let to_one = "rules:\n- backendRefs: [{name: one, port: 9080}]\n";
        let kinds = [
            ("TCPRoute", to_one.to_owned()),
            ("TLSRoute", format!("hostnames: [shop.example]\n{to_one}")),
            ("HTTPRoute", to_one.to_owned()),
            ("GRPCRoute", to_one.to_owned()),
        ];
        // A message alone is updated every 10 seconds.
        let names = |loser: &str, kind: &str| {
            let winner = format!("{kind} {}/echo", ns.name);
            eventually(&format!("the {loser} to name {winner}"), SOON, || {
                let lost = gateway_api::condition(ns, &format!("{}/echo", loser.to_lowercase()), "Accepted")?;
                let is_told = lost.reason == "Conflicted" && lost.message.contains(&winner);
                ensure!(lost.status == "False" && is_told, "{lost:?}");
                Ok(())
            })
        };
        for (index, (kind, fields)) in kinds.iter().enumerate() {
            ns.apply(&route(kind, "echo", fields))?;
            await_condition(ns, &format!("{}/echo", kind.to_lowercase()), "Accepted", "True")?;
            for (loser, _) in &kinds[..index] {
                names(loser, kind)?;
                await_condition(ns, &format!("{}/echo", loser.to_lowercase()), PROGRAMMED, "False")?;
            }
        }
        let rules = "- backendRefs: [{name: two, port: 9080}]\n";
        mesh::route_in_force(ns, &client, "echo", rules)?;
        let answered_by = |version: &str| {
            eventually(&format!("{version} to answer"), SOON, || {
                let answer = client.get("http://echo:9080/").send()?.expect_status(200)?;
                ensure!(answer.version() == Some(version), "{answer:?}");
                Ok(())
            })
        };
        answered_by("v2")?;
        for (kind, _) in &kinds {
            names(kind, "MeshRoute")?;
        }
        // Each deletion brings the next kind into force.
        ns.delete("meshroute", "echo")?;
        await_condition(ns, "grpcroute/echo", "Accepted", "True")?;
        ns.delete("grpcroute", "echo")?;
        await_condition(ns, "httproute/echo", PROGRAMMED, "True")?;
        answered_by("v1")
    })
}

#[test]
fn hostnames_have_no_effect_and_the_status_says_so() -> Result<()> {
    in_mesh("gateway-hostnames", |ns| {
        let client = servers(ns)?;
        let fields = "hostnames: [shop.example]\nrules:\n- backendRefs: [{name: one, port: 9080}]\n";
        ns.apply(&route("HTTPRoute", "echo", fields))?;
        let accepted = await_conditions(ns, "httproute/echo", "Accepted", "True", 1)?;
        ensure!(accepted.message.contains("hostnames"), "{accepted:?}");
        eventually("requests of any host to be routed", SOON, || {
            let answer = client.get("http://echo:9080/").send()?.expect_status(200)?;
            ensure!(answer.version() == Some("v1"), "{answer:?}");
            Ok(())
        })
    })
}
