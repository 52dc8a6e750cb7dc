//! GRPCRoutes: matches, filters, and the gRPC statuses of calls that reach no backend.

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::gateway_api::{PROGRAMMED, await_condition, route, servers};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::traffic::{Client, Request};
use weft_e2e::wait::eventually;

const UNIMPLEMENTED: &str = "12";
const UNAVAILABLE: &str = "14";

/// A call of a method. The server answers it with a description of the request, not with a message.
fn call(client: &Client, method: &str) -> Request {
    let request = client.get(&format!("http://echo:9080/{method}")).http2().method("POST");
    request.header("content-type", "application/grpc").header("te", "trailers")
}

#[test]
fn calls_are_matched_by_service_method_and_headers() -> Result<()> {
    in_mesh("gateway-grpc", |ns| {
        let client = servers(ns)?;
        let rules = [
            ("both", "method: {service: shop.Books, method: Get}"),
            ("service", "method: {service: shop.Books}"),
            ("method", "method: {method: Ping}"),
            ("regex", "method: {type: RegularExpression, service: \"shop\\\\.(A|B).*\", method: \"List.*\"}"),
            ("header", "method: {service: shop.Books}, headers: [{name: X-User, value: beta}]"),
            ("h-regex", "headers: [{type: RegularExpression, name: x-agent, value: \"bot-.*\"}]"),
        ];
        let rule = |(name, matches): (&str, &str)| {
            format!(
                "- name: {name}\n  matches: [{{{matches}}}]\n  filters:\n  - type: RequestHeaderModifier\n    \
                 requestHeaderModifier: {{set: [{{name: x-to, value: {name}}}], remove: [x-gone]}}\n  - type: \
                 ResponseHeaderModifier\n    responseHeaderModifier: {{add: [{{name: x-rule, value: {name}}}]}}\n  \
                 backendRefs: [{{name: one, port: 9080}}]\n"
            )
        };
        ns.apply(&route("GRPCRoute", "echo", &("rules:\n".to_owned() + &rules.map(rule).concat())))?;
        await_condition(ns, "grpcroute/echo", PROGRAMMED, "True")?;
        eventually("the client's proxy to use the route", SOON, || {
            let answer = call(&client, "shop.Books/Get").send()?;
            ensure!(answer.header("x-rule") == Some("both"), "{answer:?}");
            Ok(())
        })?;
        let bot = |method: &str| call(&client, method).header("x-agent", "bot-7");
        for (desc, request, rule) in [
            ("service and method", call(&client, "shop.Books/Get"), Some("both")),
            ("the service", call(&client, "shop.Books/Put"), Some("service")),
            ("another service that begins alike", call(&client, "shop.Bookshelf/Put"), None),
            ("the method of any service", call(&client, "other.Service/Ping"), Some("method")),
            ("the expressions", call(&client, "shop.Authors/ListAll"), Some("regex")),
            ("expressions are anchored", call(&client, "my.shop.Authors/ListAll"), None),
            ("more headers win", call(&client, "shop.Books/Put").header("x-user", "beta"), Some("header")),
            ("the header's expression", bot("other.Service/Call"), Some("h-regex")),
            ("a method wins over a header", bot("shop.Books/Put"), Some("service")),
            ("no rule", call(&client, "other.Service/Call"), None),
        ] {
            let answer = request.header("x-gone", "1").send()?.expect_status(200)?;
            match rule {
                Some(rule) => {
                    ensure!(answer.header("x-rule") == Some(rule), "{desc}: rule {rule} should match: {answer:?}");
                    let headers = &answer.json()?["headers"];
                    ensure!(headers["x-to"] == json!([rule]) && headers["x-gone"].is_null(), "{desc}: {headers}");
                }
                None => {
                    ensure!(answer.header("grpc-status") == Some(UNIMPLEMENTED), "{desc}: {answer:?}");
                    ensure!(answer.reason() == Some("no-route"), "{desc}: {answer:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn calls_without_a_backend_get_unavailable() -> Result<()> {
    in_mesh("gateway-grpc-invalid", |ns| {
        let client = servers(ns)?;
        let extension = "filters: [{type: ExtensionRef, extensionRef: {group: shop.example, kind: Magic, name: wand}}]";
        let with_extension = format!("{extension}\n  backendRefs: [{{name: one, port: 9080}}]");
        let bad = [
            ("none", "backendRefs: []"),
            ("zero", "backendRefs: [{name: one, port: 9080, weight: 0}]"),
            ("missing", "backendRefs: [{name: nowhere, port: 9080}]"),
            ("extension", &with_extension),
        ];
        let rule = |name: &str, fields: &str| {
            format!("- name: {name}\n  matches: [{{method: {{service: shop.{name}}}}}]\n  {fields}\n")
        };
        let rules = bad.map(|(name, fields)| rule(name, fields)).concat()
            // A backend of weight 0 need not exist.
            + &rule("good", "backendRefs: [{name: one, port: 9080}, {name: nowhere, port: 9080, weight: 0}]")
            + &rule("mirrored", "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 9080}}}]\n  \
                                 backendRefs: [{name: one, port: 9080}]");
        ns.apply(&route("GRPCRoute", "echo", &format!("rules:\n{rules}")))?;
        await_condition(ns, "grpcroute/echo", PROGRAMMED, "True")?;
        for name in ["good", "mirrored"] {
            eventually(&format!("rule {name} to be used"), SOON, || {
                let answer = call(&client, &format!("shop.{name}/Call")).send()?.expect_status(200)?;
                ensure!(answer.version() == Some("v1"), "{answer:?}");
                Ok(())
            })?;
        }
        for (name, _) in bad {
            let answer = call(&client, &format!("shop.{name}/Call")).send()?.expect_status(200)?;
            ensure!(answer.header("grpc-status") == Some(UNAVAILABLE), "{name}: {answer:?}");
            let source = format!("GRPCRoute/{}/echo/{name}", ns.name);
            ensure!(answer.source() == Some(&source), "the answer names {source}: {answer:?}");
        }
        eventually("the mirror to get the call", SOON, || {
            let seen = client.get("http://two:9080/_seen").send()?.expect_status(200)?.json()?;
            ensure!(seen["by_path"]["POST /shop.mirrored"].as_u64().is_some_and(|count| count > 0), "{seen}");
            Ok(())
        })
    })
}
