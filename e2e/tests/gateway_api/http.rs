//! Filters of HTTPRoutes: every filter with every field.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_e2e::gateway_api::{in_force, servers};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::{mesh, workload};

const TO_ONE: &str = "  backendRefs: [{name: one, port: 9080}]\n";

/// A filter's type, and the field that configures it.
type Filter = [&'static str; 2];

const CORS: Filter = ["CORS", "cors"];
const MIRROR: Filter = ["RequestMirror", "requestMirror"];
const REDIRECT: Filter = ["RequestRedirect", "requestRedirect"];
const REQUEST_HEADERS: Filter = ["RequestHeaderModifier", "requestHeaderModifier"];
const RESPONSE_HEADERS: Filter = ["ResponseHeaderModifier", "responseHeaderModifier"];
const REWRITE: Filter = ["URLRewrite", "urlRewrite"];

/// A rule for a path prefix with one filter, configured by these fields.
fn rule(prefix: &str, [kind, field]: Filter, fields: &str) -> String {
    format!("- matches: [{{path: {{value: {prefix}}}}}]\n  filters: [{{type: {kind}, {field}: {{{fields}}}}}]\n")
}

/// The request as the pod that answered describes it.
fn seen(client: &Client, path: &str) -> Result<Value> {
    client.get(&format!("http://echo:9080{path}")).send()?.expect_status(200)?.json()
}

#[test]
fn redirects_have_every_field() -> Result<()> {
    in_mesh("gateway-redirect", |ns| {
        let client = servers(ns)?;
        let full = "path: {type: ReplaceFullPath, replaceFullPath: /new}";
        let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}";
        let root = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}";
        let all = format!("scheme: https, hostname: shop.example, port: 8443, {prefix}, statusCode: 308");
        // The prefix, the fields of the redirect, its status, and its Location for PREFIX/a?x=1.
        let cases = [
            ("/host", "hostname: shop.example", 302, "http://shop.example:9080/host/a?x=1"),
            ("/https", "scheme: https, statusCode: 302", 302, "https://echo/https/a?x=1"),
            ("/http", "scheme: http", 302, "http://echo/http/a?x=1"),
            ("/port", "port: 8443", 302, "http://echo:8443/port/a?x=1"),
            ("/port-80", "port: 80", 302, "http://echo/port-80/a?x=1"),
            ("/port-443", "scheme: https, port: 443", 302, "https://echo/port-443/a?x=1"),
            ("/port-tls", "scheme: https, port: 8443", 302, "https://echo:8443/port-tls/a?x=1"),
            ("/full", full, 302, "http://echo:9080/new?x=1"),
            ("/prefix", prefix, 302, "http://echo:9080/new/a?x=1"),
            ("/root", root, 302, "http://echo:9080/a?x=1"),
            ("/301", "statusCode: 301, port: 1", 301, "http://echo:1/301/a?x=1"),
            ("/303", "statusCode: 303, port: 1", 303, "http://echo:1/303/a?x=1"),
            ("/307", "statusCode: 307, port: 1", 307, "http://echo:1/307/a?x=1"),
            ("/308", "statusCode: 308, port: 1", 308, "http://echo:1/308/a?x=1"),
            ("/all", &all, 308, "https://shop.example:8443/new/a?x=1"),
        ];
        let rules: String = cases.iter().map(|(path, fields, ..)| rule(path, REDIRECT, fields)).collect();
        in_force(ns, &client, "echo", &rules)?;
        for (path, fields, status, location) in cases {
            let answer = client.get(&format!("http://echo:9080{path}/a?x=1")).send()?;
            ensure!(answer.status == status, "{{{fields}}} should answer {status}: {answer:?}");
            ensure!(answer.header("location") == Some(location), "{{{fields}}} should lead to {location}: {answer:?}");
            ensure!(answer.reason() == Some("redirect"), "{{{fields}}}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn rewrites_change_host_and_path_and_keep_the_query() -> Result<()> {
    in_mesh("gateway-rewrite", |ns| {
        let client = servers(ns)?;
        let full = "path: {type: ReplaceFullPath, replaceFullPath: /whole}";
        let host = "hostname: shop.example";
        let both = "hostname: shop.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}";
        let rules = [("/full", full), ("/host", host), ("/both", both)];
        let rules: String = rules.map(|(path, fields)| rule(path, REWRITE, fields) + TO_ONE).concat();
        // The table in the documentation of ReplacePrefixMatch.
        let replaced = [
            ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
            ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz", "/foo", "/xyz"),
            ("/foo", "/xyz", "/foo/", "/xyz/"),
            ("/foo", "", "/foo/bar", "/bar"),
            ("/foo", "", "/foo/", "/"),
            ("/foo", "", "/foo", "/"),
            ("/foo", "/", "/foo/", "/"),
            ("/foo", "/", "/foo", "/"),
        ];
        let by_row = |(row, (prefix, replacement, ..)): (usize, &(&str, &str, &str, &str))| {
            let matches = format!("[{{path: {{value: {prefix}}}, headers: [{{name: x-row, value: \"{row}\"}}]}}]");
            let path = format!("{{type: ReplacePrefixMatch, replacePrefixMatch: \"{replacement}\"}}");
            format!("- matches: {matches}\n  filters: [{{type: URLRewrite, urlRewrite: {{path: {path}}}}}]\n{TO_ONE}")
        };
        in_force(ns, &client, "echo", &(rules + &replaced.iter().enumerate().map(by_row).collect::<String>()))?;
        for (path, seen_path, authority) in [
            ("/full/a?x=1&y=%20", "/whole?x=1&y=%20", "echo:9080"),
            ("/host/a?x=1", "/host/a?x=1", "shop.example"),
            ("/both/a?x=1", "/new/a?x=1", "shop.example"),
        ] {
            let seen = seen(&client, path)?;
            ensure!(seen["path"] == seen_path, "{path} should arrive as {seen_path}: {seen}");
            ensure!(seen["authority"] == authority, "{path} should have the host {authority}: {seen}");
        }
        for (row, (prefix, replacement, path, seen_path)) in replaced.into_iter().enumerate() {
            let request = client.get(&format!("http://echo:9080{path}?x=1")).header("x-row", &row.to_string());
            let seen = request.send()?.expect_status(200)?.json()?;
            let wanted = format!("{seen_path}?x=1");
            ensure!(seen["path"] == wanted.as_str(), "{path}, {prefix} by {replacement:?}, should be {wanted}: {seen}");
        }
        Ok(())
    })
}

#[test]
fn headers_are_set_added_and_removed() -> Result<()> {
    in_mesh("gateway-headers", |ns| {
        let client = servers(ns)?;
        let changes = "set: [{name: X-Set, value: new}], add: [{name: X-Add, value: more}], remove: [X-Gone]";
        let rules = rule("/request", REQUEST_HEADERS, changes)
            + TO_ONE
            + &rule("/response", RESPONSE_HEADERS, &changes.replace("X-Gone", "x-pod"))
            + TO_ONE;
        in_force(ns, &client, "echo", &rules)?;
        let request = client.get("http://echo:9080/request").header("x-set", "old");
        let request = request.header("x-add", "first").header("x-gone", "1");
        let seen = request.send()?.expect_status(200)?.json()?;
        let headers = &seen["headers"];
        ensure!(headers["x-set"] == json!(["new"]) && headers["x-gone"].is_null(), "set and remove: {headers}");
        let added: Vec<&str> = headers["x-add"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(added.join(",").replace(' ', "") == "first,more", "add keeps the value: {headers}");
        for (sent, set) in [("x-set:old", Some("new")), ("x-add:first", Some("new"))] {
            let answer = client.get(&format!("http://echo:9080/response?header={sent}")).send()?.expect_status(200)?;
            ensure!(answer.header("x-set") == set, "set replaces the pod's value or adds one: {answer:?}");
            ensure!(answer.headers["x-add"].iter().any(|value| value.contains("more")), "add: {answer:?}");
            ensure!(answer.header("x-pod").is_none(), "remove: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn filters_of_a_backend_apply_to_its_share() -> Result<()> {
    in_mesh("gateway-backend", |ns| {
        let client = servers(ns)?;
        let filters = |to: &str| {
            format!(
                "    filters:\n    - type: RequestHeaderModifier\n      requestHeaderModifier: {{set: [{{name: x-to, \
                 value: {to}}}], remove: [x-not-{to}]}}\n    - type: ResponseHeaderModifier\n      \
                 responseHeaderModifier: {{add: [{{name: x-from, value: {to}}}]}}\n    - type: URLRewrite\n      \
                 urlRewrite: {{hostname: {to}.example, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /{to}}}}}\n"
            )
        };
        let rules = format!(
            "- matches: [{{path: {{value: /a}}}}]\n  filters:\n  - type: RequestHeaderModifier\n    requestHeaderModifier: \
             {{set: [{{name: x-rule, value: all}}]}}\n  backendRefs:\n  - name: one\n    port: 9080\n    weight: 2\n{}  - \
             name: two\n    port: 9080\n    weight: 1\n{}  - {{name: echo, port: 9080, weight: 1}}\n- matches: [{{path: \
             {{value: /other}}}}]\n  backendRefs:\n  - name: one\n    port: 9080\n    filters:\n    - {{type: RequestMirror, \
             requestMirror: {{backendRef: {{name: two, port: 9080}}}}}}\n  - name: one\n    port: 9080\n    filters:\n    - \
             {{type: RequestRedirect, requestRedirect: {{hostname: shop.example}}}}\n",
            filters("one"),
            filters("two")
        );
        in_force(ns, &client, "echo", &rules)?;
        let mut answered = [0_u32; 3];
        eventually("each backend to answer three times", SOON, || {
            let answer = client.get("http://echo:9080/a/b").header("x-to", "?").header("x-not-two", "1").send()?;
            let answer = answer.expect_status(200)?;
            let seen = answer.json()?;
            let (index, to) = match answer.version() {
                Some("v1") => (0, Some("one")),
                Some("v2") => (1, Some("two")),
                _ => (2, None),
            };
            // The closure is called again after an error, so a wrong answer ends the test instead.
            assert_eq!(seen["headers"]["x-to"], json!([to.unwrap_or("?")]), "{answer:?}");
            assert_eq!(seen["headers"]["x-not-two"].is_null(), to == Some("two"), "{answer:?}");
            let (path, host) = match to {
                Some(to) => (format!("/{to}/b"), format!("{to}.example")),
                None => ("/a/b".to_owned(), "echo:9080".to_owned()),
            };
            assert_eq!((&seen["path"], &seen["authority"]), (&json!(path), &json!(host)), "{answer:?}");
            assert_eq!(seen["headers"]["x-rule"], json!(["all"]), "the rule's filter applies to all: {answer:?}");
            assert_eq!(answer.header("x-from"), to, "{answer:?}");
            answered[index] += 1;
            ensure!(answered.iter().all(|count| *count >= 3), "{answered:?}");
            Ok(())
        })?;
        let report = client.load("http://echo:9080/other").requests(400).run()?;
        let (forwarded, redirected) = (report.status(200), report.status(302));
        ensure!(forwarded + redirected == 400 && (140..=260).contains(&redirected), "{}", report.summary());
        eventually("a copy of each request that was forwarded", SOON, || {
            let seen = client.get("http://two:9080/_seen").send()?.expect_status(200)?.json()?;
            ensure!(seen["by_path"]["GET /other"] == forwarded, "not {forwarded}: {seen}");
            Ok(())
        })
    })
}

#[test]
fn mirrors_copy_their_share() -> Result<()> {
    in_mesh("gateway-mirror", |ns| {
        let client = servers(ns)?;
        ns.apply(&workload::server("shadow", &["v9"]))?;
        ns.wait_ready(&["shadow-v9"])?;
        mesh::each_reachable(ns, &client, "shadow")?;
        let mirror = |path: &str, share: &str| {
            rule(path, MIRROR, &format!("backendRef: {{name: shadow, port: 9080}}{share}")) + TO_ONE
        };
        let two = "- matches: [{path: {value: /two}}]\n  filters:\n  - {type: RequestMirror, requestMirror: {backendRef: \
                   {name: shadow, port: 9080}}}\n  - {type: RequestMirror, requestMirror: {backendRef: {name: two, port: \
                   9080}}}\n";
        let rules = mirror("/all", "")
            + &mirror("/percent", ", percent: 20")
            + &mirror("/fraction", ", fraction: {numerator: 1, denominator: 2}")
            + &mirror("/none", ", percent: 0")
            + two
            + TO_ONE;
        in_force(ns, &client, "echo", &rules)?;
        // Name, requests, and the least and most copies.
        let cases =
            [("all", 50, 50, 50), ("percent", 1_000, 130, 270), ("fraction", 1_000, 400, 600), ("none", 50, 0, 0)];
        for (path, requests, ..) in cases {
            let report = client.load(&format!("http://echo:9080/{path}")).requests(requests).concurrency(5).run()?;
            report.expect_none_failed(requests)?;
            ensure!(report.share("v1") == 1.0, "the rule's own backend answers: {}", report.summary());
        }
        client.get("http://echo:9080/two").method("POST").body("an order").send()?.expect_status(200)?;
        let copies = |service: &str, path: &str| -> Result<u64> {
            let seen = client.get(&format!("http://{service}:9080/_seen")).send()?.expect_status(200)?.json()?;
            Ok(seen["by_path"][path].as_u64().unwrap_or(0))
        };
        for (path, requests, least, most) in cases {
            eventually(&format!("the copies of /{path} to arrive"), SOON, || {
                let arrived = copies("shadow", &format!("GET /{path}"))?;
                ensure!((least..=most).contains(&arrived), "{arrived} of {requests} arrived");
                Ok(())
            })?;
        }
        eventually("both mirrors to get the order", SOON, || {
            let arrived = [copies("shadow", "POST /two")?, copies("two", "POST /two")?];
            ensure!(arrived == [1, 1], "{arrived:?}");
            Ok(())
        })
    })
}

#[test]
fn cors_answers_preflights_and_marks_responses() -> Result<()> {
    in_mesh("gateway-cors", |ns| {
        let client = servers(ns)?;
        let some = "allowOrigins: [\"https://*.shop.example\", \"http://localhost:3000\"], allowMethods: [PUT, DELETE], \
                    allowHeaders: [x-a, x-b], exposeHeaders: [x-total], allowCredentials: true, maxAge: 60";
        let rules = rule("/some", CORS, some) + TO_ONE + &rule("/any", CORS, "allowOrigins: [\"*\"]") + TO_ONE;
        in_force(ns, &client, "echo", &rules)?;
        let preflight = |path: &str, origin: &str| {
            let request = client.get(&format!("http://echo:9080{path}")).method("OPTIONS").header("origin", origin);
            request.header("access-control-request-method", "PUT").send()
        };
        for origin in ["https://a.shop.example", "http://localhost:3000"] {
            let answer = preflight("/some", origin)?.expect_status(204)?;
            ensure!(answer.reason() == Some("cors-preflight"), "{answer:?}");
            let names = |name: &str| -> Vec<String> {
                answer.header(name).unwrap_or_default().split(',').map(|part| part.trim().to_lowercase()).collect()
            };
            ensure!(names("access-control-allow-methods").contains(&"put".to_owned()), "{answer:?}");
            ensure!(names("access-control-allow-methods").contains(&"delete".to_owned()), "{answer:?}");
            ensure!(names("access-control-allow-headers") == ["x-a", "x-b"], "{answer:?}");
            for (name, expected) in [
                ("access-control-allow-origin", origin),
                ("access-control-allow-credentials", "true"),
                ("access-control-max-age", "60"),
            ] {
                ensure!(answer.header(name) == Some(expected), "{name} should be {expected}: {answer:?}");
            }
        }
        let answer = preflight("/some", "https://evil.example")?;
        ensure!(answer.header("access-control-allow-origin").is_none(), "{answer:?}");
        let answer = preflight("/any", "https://evil.example")?;
        ensure!(answer.header("access-control-allow-origin") == Some("*"), "{answer:?}");
        ensure!(answer.header("access-control-max-age") == Some("5"), "the default: {answer:?}");
        let some = ("https://a.shop.example", "x-total");
        for (path, origin, allowed, exposed) in [
            ("/some", some.0, Some(some.0), Some(some.1)),
            ("/some", "https://evil.example", None, None),
            ("/any", "https://evil.example", Some("*"), None),
        ] {
            let answer = client.get(&format!("http://echo:9080{path}")).header("origin", origin).send()?;
            let answer = answer.expect_status(200)?;
            ensure!(answer.version() == Some("v1"), "the request is forwarded: {answer:?}");
            ensure!(answer.header("access-control-allow-origin") == allowed, "{path} {origin}: {answer:?}");
            ensure!(answer.header("access-control-expose-headers") == exposed, "{path} {origin}: {answer:?}");
        }
        Ok(())
    })
}
