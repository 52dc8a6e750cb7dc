//! HTTP routing: matches, weighted splits, filters, producer and consumer routes; h2c, upgrades and opaque TCP.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::install;
use weft_e2e::mesh::{self, route, route_in_force};
use weft_e2e::namespace::{Mesh, Namespace, SOON, in_mesh};
use weft_e2e::traffic::{Client, Request};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{self, App, PORT, Service};

#[test]
fn without_a_route_all_pods_get_requests() -> Result<()> {
    in_mesh("routing-default", |ns| {
        let client = mesh::echo(ns)?;
        let report = client.load("http://echo:9080/").requests(150).run()?;
        report.expect_none_failed(150)?;
        ensure!(report.by_pod.len() == 3, "all three pods answer: {}", report.summary());
        Ok(())
    })
}

#[test]
fn weighted_splits_are_within_five_points() -> Result<()> {
    in_mesh("routing-split", |ns| {
        let client = mesh::echo(ns)?;
        for (v1, v2, v3) in [(90, 10, 0), (50, 30, 20), (0, 1, 0)] {
            let rules = format!(
                "- backendRefs:\n  - {{name: echo, port: 9080, subset: v1, weight: {v1}}}\n  - {{name: echo, port: 9080, subset: \
                 v2, weight: {v2}}}\n  - {{name: echo, port: 9080, subset: v3, weight: {v3}}}\n"
            );
            route_in_force(ns, &client, "echo", &rules)?;
            // With 2000 requests the standard deviation is a quarter of the five points or less.
            let report = client.load("http://echo:9080/").requests(2_000).run()?;
            report.expect_none_failed(2_000)?;
            let sum = f64::from(v1 + v2 + v3);
            for (version, weight) in [("v1", v1), ("v2", v2), ("v3", v3)] {
                let (share, wanted) = (report.share(version), f64::from(weight) / sum);
                ensure!(
                    (share - wanted).abs() <= 0.05 && (weight > 0 || share == 0.0),
                    "{v1}/{v2}/{v3}: {version} should answer {wanted:.2} of all, not {share:.3}: {}",
                    report.summary()
                );
            }
        }
        Ok(())
    })
}

#[test]
fn each_match_type_matches() -> Result<()> {
    in_mesh("routing-match", |ns| {
        let client = mesh::echo(ns)?;
        let rule = |name: &str, matches: &str| {
            format!(
                "- name: {name}\n  matches: [{{{matches}}}]\n  filters: [{{type: DirectResponse, directResponse: {{status: 200, body: {name}}}}}]\n"
            )
        };
        let rules = [
            ("exact", "path: {type: Exact, value: /exact}"),
            ("prefix", "path: {type: PathPrefix, value: /prefix}"),
            ("longer", "path: {type: PathPrefix, value: /prefix/longer}"),
            ("regex", "path: {type: RegularExpression, value: \"/item/[0-9]+\"}"),
            ("method", "path: {value: /method}, method: DELETE"),
            ("h-exact", "path: {value: /h}, headers: [{name: X-User, value: beta}]"),
            ("h-regex", "path: {value: /h}, headers: [{type: RegularExpression, name: x-agent, value: \"bot-.*\"}]"),
            ("h-present", "path: {value: /h}, headers: [{type: Present, name: x-debug}]"),
            ("h-absent", "path: {value: /absent}, headers: [{type: Absent, name: x-secret}]"),
            ("q-exact", "path: {value: /q}, queryParams: [{name: v, value: \"a b\"}]"),
            ("q-regex", "path: {value: /q}, queryParams: [{type: RegularExpression, name: num, value: \"[0-9]+\"}]"),
            ("q-present", "path: {value: /q}, queryParams: [{type: Present, name: debug}]"),
            ("q-absent", "path: {value: /q-absent}, queryParams: [{type: Absent, name: debug}]"),
            ("two", "path: {value: /two}, method: GET, headers: [{name: a, value: \"1\"}, {name: b, value: \"2\"}]"),
        ];
        let rules: String = rules.iter().map(|(name, matches)| rule(name, matches)).collect();
        route_in_force(ns, &client, "echo", &rules)?;
        let get = |path: &str| client.get(&format!("http://echo:9080{path}"));
        let cases: Vec<(&str, Request, Option<&str>)> = vec![
            ("the exact path", get("/exact"), Some("exact")),
            ("the exact path with a query", get("/exact?a=b"), Some("exact")),
            ("not below an exact path", get("/exact/more"), None),
            ("paths are case-sensitive", get("/Exact"), None),
            ("the prefix", get("/prefix"), Some("prefix")),
            ("below the prefix", get("/prefix/a/b"), Some("prefix")),
            ("whole segments only", get("/prefixed"), None),
            ("the longer prefix wins", get("/prefix/longer/x"), Some("longer")),
            ("the expression", get("/item/42"), Some("regex")),
            ("the expression is anchored to the whole path", get("/item/42/x"), None),
            ("the method", get("/method").method("DELETE"), Some("method")),
            ("another method", get("/method"), None),
            ("the header's value", get("/h").header("x-user", "beta"), Some("h-exact")),
            ("values are case-sensitive", get("/h").header("x-user", "Beta"), None),
            ("the header's expression", get("/h").header("x-agent", "bot-7"), Some("h-regex")),
            ("the expression is anchored to the whole value", get("/h").header("x-agent", "a bot-7"), None),
            ("the header is present", get("/h").header("x-debug", "0"), Some("h-present")),
            ("no such header", get("/h"), None),
            ("the header is absent", get("/absent"), Some("h-absent")),
            ("the header that must be absent is present", get("/absent").header("x-secret", "1"), None),
            ("the parameter's value, decoded", get("/q?v=a%20b"), Some("q-exact")),
            ("another value", get("/q?v=ab"), None),
            ("the parameter's expression", get("/q?num=12"), Some("q-regex")),
            ("not the expression", get("/q?num=12x"), None),
            ("the parameter is present", get("/q?debug"), Some("q-present")),
            ("the parameter is absent", get("/q-absent?x=1"), Some("q-absent")),
            ("the parameter that must be absent is present", get("/q-absent?debug=1"), None),
            ("all conditions", get("/two").header("a", "1").header("b", "2"), Some("two")),
            ("all but one", get("/two").header("a", "1"), None),
        ];
        for (desc, request, rule) in cases {
            let answer = request.send()?;
            match rule {
                Some(rule) => {
                    ensure!(
                        answer.status == 200 && answer.body == rule,
                        "{desc}: rule {rule} should match: {answer:?}"
                    );
                    ensure!(answer.reason() == Some("direct-response"), "{desc}: {answer:?}");
                    let source = format!("MeshRoute/{}/echo/{rule}", ns.name);
                    ensure!(answer.source() == Some(&source), "{desc}: the answer names {source}: {answer:?}");
                }
                None => {
                    ensure!(answer.status == 404, "{desc}: no rule should match: {answer:?}");
                    ensure!(answer.reason() == Some("no-route"), "{desc}: {answer:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn header_rewrite_redirect_and_direct_response_filters_apply() -> Result<()> {
    in_mesh("routing-filter", |ns| {
        let client = mesh::echo(ns)?;
        let to_v1 = "  backendRefs: [{name: echo, port: 9080, subset: v1}]\n";
        let rules = [
            "- name: headers\n  matches: [{path: {value: /headers}}]\n  filters:\n  - type: RequestHeaderModifier\n    requestHeaderModifier: {set: \
             [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-gone]}\n  - type: ResponseHeaderModifier\n    \
             responseHeaderModifier: {set: [{name: x-version, value: hidden}], add: [{name: x-extra, value: \"1\"}], remove: [x-pod]}\n",
            to_v1,
            "- name: old\n  matches: [{path: {value: /old}}]\n  filters: [{type: URLRewrite, urlRewrite: {hostname: shop.example, path: {type: \
             ReplacePrefixMatch, replacePrefixMatch: /new}}}]\n",
            to_v1,
            "- name: whole\n  matches: [{path: {type: Exact, value: /whole}}]\n  filters: [{type: URLRewrite, urlRewrite: {path: {type: \
             ReplaceFullPath, replaceFullPath: /replaced}}}]\n",
            to_v1,
            "- name: go\n  matches: [{path: {value: /go}}]\n  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: \
             shop.example, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /there}}}]\n",
            "- name: port\n  matches: [{path: {value: /port}}]\n  filters: [{type: RequestRedirect, requestRedirect: {port: 8443}}]\n",
            "- name: tea\n  matches: [{path: {value: /tea}}]\n  filters: [{type: DirectResponse, directResponse: {status: 418, body: \
             \"I am a teapot\"}}]\n",
        ]
        .concat();
        route_in_force(ns, &client, "echo", &rules)?;
        let get = |path: &str| client.get(&format!("http://echo:9080{path}"));

        let answer = get("/headers").header("x-set", "old").header("x-add", "first").header("x-gone", "1").send()?;
        let echoed = answer.clone().expect_status(200)?.json()?;
        ensure!(echoed["headers"]["x-set"] == serde_json::json!(["new"]), "set replaces the value: {echoed}");
        let added: Vec<&str> =
            echoed["headers"]["x-add"].as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect();
        ensure!(added.join(",").replace(' ', "") == "first,more", "add keeps the existing value: {echoed}");
        ensure!(echoed["headers"]["x-gone"].is_null(), "remove: {echoed}");
        ensure!(answer.version() == Some("hidden"), "the response's header is set: {answer:?}");
        ensure!(answer.header("x-extra") == Some("1"), "the response's header is added: {answer:?}");
        ensure!(answer.header("x-pod").is_none(), "the response's header is removed: {answer:?}");

        let echoed = get("/old/a?b=c").send()?.expect_status(200)?.json()?;
        ensure!(echoed["path"] == "/new/a?b=c", "the prefix is replaced and the query stays: {echoed}");
        ensure!(echoed["authority"] == "shop.example", "the host is replaced: {echoed}");
        let echoed = get("/old").send()?.expect_status(200)?.json()?;
        ensure!(echoed["path"] == "/new", "the prefix alone is replaced: {echoed}");
        let echoed = get("/whole?b=c").send()?.expect_status(200)?.json()?;
        ensure!(echoed["path"] == "/replaced?b=c", "the whole path is replaced and the query stays: {echoed}");

        for (path, status, location) in
            [("/go/here?x=1", 301, "https://shop.example/there/here?x=1"), ("/port/a", 302, "http://echo:8443/port/a")]
        {
            let answer = get(path).send()?.expect_status(status)?;
            ensure!(answer.header("location") == Some(location), "{path} should redirect to {location}: {answer:?}");
            ensure!(answer.reason() == Some("redirect"), "{answer:?}");
        }

        let answer = get("/tea").send()?.expect_status(418)?;
        ensure!(answer.body == "I am a teapot", "{answer:?}");
        ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo/tea", ns.name)), "{answer:?}");
        Ok(())
    })
}

#[test]
fn deleting_a_route_restores_the_default() -> Result<()> {
    in_mesh("routing-delete", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", "- backendRefs: [{name: echo, port: 9080, subset: v2}]\n")?;
        let report = client.load("http://echo:9080/").requests(60).run()?;
        ensure!(report.share("v2") == 1.0, "the route sends all to v2: {}", report.summary());
        ns.delete("meshroute", "echo")?;
        eventually("all versions to answer again", SOON, || {
            let report = client.load("http://echo:9080/").requests(60).run()?;
            report.expect_none_failed(60)?;
            ensure!(report.by_version.len() == 3, "{}", report.summary());
            Ok(())
        })
    })
}

/// CP-03: only with a ReferenceGrant.
#[test]
fn route_reaches_a_backend_in_another_namespace() -> Result<()> {
    in_mesh("routing-cross", |ns| {
        let client = mesh::echo(ns)?;
        let other = Namespace::create("routing-cross-backend", Mesh::Inside)?;
        other.apply(&workload::server("away", &["v9"]))?;
        other.wait_ready(&["away-v9"])?;
        install::ensure_gateway_api()?;
        let rules = format!("- backendRefs: [{{name: away, namespace: {}, port: 9080}}]\n", other.name);
        ns.apply(&route("echo", &rules))?;
        let resolved = ns.await_condition("meshroute", "echo", "ResolvedRefs", "False")?;
        ensure!(resolved.reason == "RefNotPermitted", "no grant allows it: {resolved:?}");
        eventually("requests to be answered 500", SOON, || {
            client.get("http://echo:9080/").send()?.expect_status(500).map(drop)
        })?;
        other.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: routes}}\nspec:\n  from: \
             [{{group: weft.dev, kind: MeshRoute, namespace: {}}}]\n  to: [{{group: \"\", kind: Service, name: away}}]\n",
            ns.name
        ))?;
        ns.await_condition("meshroute", "echo", "ResolvedRefs", "True")?;
        // The route may be in force before Kubernetes has created the endpoint in the other namespace.
        eventually("the pod to answer", SOON, || client.get("http://echo:9080/").send()?.expect_status(200).map(drop))?;
        let report = client.load("http://echo:9080/").requests(50).run()?;
        report.expect_none_failed(50)?;
        ensure!(report.share("v9") == 1.0, "every request goes to the other namespace: {}", report.summary());

        other.delete("referencegrant", "routes")?;
        eventually("requests to be answered 500 again", SOON, || {
            client.get("http://echo:9080/").send()?.expect_status(500).map(drop)
        })
    })
}

/// CP-03: on a cluster.
#[test]
fn consumer_route_applies_only_to_its_own_namespace() -> Result<()> {
    in_mesh("routing-consumer", |ns| {
        let producer_client = mesh::echo(ns)?;
        let consumer = Namespace::create("routing-consumer-client", Mesh::Inside)?;
        let consumer_client = Client::deploy(&consumer)?;
        let url = format!("http://echo.{}:9080/", ns.name);
        let route = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{name: mine}}\nspec:\n  parentRefs: [{{kind: Service, name: \
             echo, namespace: {0}}}]\n  http:\n  - backendRefs: [{{name: echo, namespace: {0}, port: 9080, subset: v3}}]\n",
            ns.name
        );
        consumer.program(&route, &["meshroute/mine"])?;
        eventually("the consumer's requests to go to v3", SOON, || {
            let report = consumer_client.load(&url).requests(40).run()?;
            ensure!(report.share("v3") == 1.0, "{}", report.summary());
            Ok(())
        })?;
        let report = producer_client.load(&url).requests(90).run()?;
        ensure!(
            report.by_version.len() == 3,
            "clients in the Service's namespace are not affected: {}",
            report.summary()
        );
        Ok(())
    })
}

#[test]
fn h2c_is_routed() -> Result<()> {
    in_mesh("routing-h2c", |ns| {
        let client = mesh::echo(ns)?;
        ns.apply(&Service::new("h2").app_protocol("kubernetes.io/h2c").yaml().replace("app: h2", "app: echo"))?;
        route_in_force(ns, &client, "echo", "- backendRefs: [{name: echo, port: 9080, subset: v2}]\n")?;
        for url in ["http://echo:9080/x", "http://h2:9080/x"] {
            // The second Service is new to the client's proxy.
            let answer =
                eventually("the Service to answer", SOON, || client.get(url).http2().send()?.expect_status(200))?;
            let report = client.load(url).requests(100).with(&["--http2"]).run()?;
            report.expect_none_failed(100)?;
            if url.contains("echo") {
                ensure!(report.share("v2") == 1.0, "the route applies to HTTP/2: {}", report.summary());
            } else {
                ensure!(answer.json()?["protocol"] == "HTTP/2.0", "a port declared h2c gets HTTP/2: {}", answer.body);
            }
        }
        Ok(())
    })
}

#[test]
fn upgraded_connections_relay_both_directions() -> Result<()> {
    in_mesh("routing-upgrade", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", "- backendRefs: [{name: echo, port: 9080, subset: v1}]\n")?;
        let head = "GET /up HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nthere and back";
        let answer = client.tcp("echo:9080", &["--send", head, "--until", "there and back"])?;
        ensure!(answer.received.starts_with("HTTP/1.1 101 ") && answer.error.is_none(), "{answer:?}");
        Ok(())
    })
}

#[test]
fn opaque_tcp_passes_and_servers_may_speak_first() -> Result<()> {
    in_mesh("routing-tcp", |ns| {
        // client-first has no declared protocol and is detected; server-first is declared tcp; db has a well-known
        // port.
        let servers = App::tcp("client-first", 7000, "").yaml()
            + &App::tcp("server-first", 7001, "hello, who is there?").yaml()
            + &App::tcp("db", 3306, "mysql says hello").yaml()
            + &Service::new("client-first").port(7000, 7000).yaml()
            + &Service::new("server-first").port(7001, 7001).app_protocol("tcp").yaml()
            + &Service::new("db").port(3306, 3306).yaml();
        ns.apply(&servers)?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["client-first", "server-first", "db"])?;
        let bytes = "\u{1}not HTTP at all\n";
        let answer = client.tcp_reached("client-first:7000", &["--send", bytes])?;
        ensure!(answer.error.is_none() && answer.received == bytes, "{answer:?}");
        for (address, greeting) in [("server-first:7001", "hello, who is there?"), ("db:3306", "mysql says hello")] {
            let answer = client.tcp_reached(address, &["--expect-first", "--send", "ping"])?;
            ensure!(
                answer.error.is_none() && answer.first == greeting && answer.received == "ping",
                "{address}: {answer:?}"
            );
            ensure!(answer.first_ms.is_some_and(|ms| ms < 2000), "{address}: the greeting should not wait: {answer:?}");
        }
        // A server that speaks first on an undeclared port works too: protocol detection has a deadline.
        let undeclared =
            App::tcp("undeclared", 7002, "first").yaml() + &Service::new("undeclared").port(7002, 7002).yaml();
        ns.apply(&undeclared)?;
        ns.wait_ready(&["undeclared"])?;
        let answer = client.tcp_reached("undeclared:7002", &["--expect-first", "--send", "ping"])?;
        ensure!(answer.error.is_none() && answer.first == "first" && answer.received == "ping", "{answer:?}");
        ensure!(answer.first_ms.is_some_and(|ms| ms < 12_000), "{answer:?}");
        Ok(())
    })
}

#[test]
fn requests_to_pod_addresses_pass() -> Result<()> {
    in_mesh("routing-pod-address", |ns| {
        let client = mesh::echo(ns)?;
        let pod = ns.pods_of("echo")?.remove(0);
        let address = ns.get("pod", &pod)?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        client
            .get(&format!("http://{address}:{PORT}/direct"))
            .timeout(Duration::from_secs(5))
            .send()?
            .expect_status(200)?;
        Ok(())
    })
}
