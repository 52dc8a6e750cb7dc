//! Filters of a rule: faults, mirrors, CORS, rate limits, limits of response bodies. Filters of single backends.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use weft_e2e::mesh::{self, proxy_metrics, route_in_force};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::wait::eventually;
use weft_e2e::workload;

const TO_V1: &str = "  backendRefs: [{name: echo, port: 9080, subset: v1}]\n";

#[test]
fn faults_delay_and_abort_requests() -> Result<()> {
    in_mesh("filters-fault", |ns| {
        let client = mesh::echo(ns)?;
        let fault = |name: &str, fault: &str| {
            format!(
                "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  filters: [{{type: Fault, fault: {{{fault}}}}}]\n{TO_V1}"
            )
        };
        let rules = fault("slow", "delay: {duration: 1s}")
            + &fault("fail", "abort: {status: 503}")
            + &fault("some", "abort: {status: 418, percent: 30}")
            + &fault("late", "delay: {duration: 1m}")
            + "  timeouts: {request: 500ms}\n";
        route_in_force(ns, &client, "echo", &rules)?;

        let answer = client.get("http://echo:9080/slow").send()?.expect_status(200)?;
        ensure!(answer.ms >= 1000 && answer.reason().is_none(), "the backend answers after the delay: {answer:?}");
        let answer = client.get("http://echo:9080/fail").send()?.expect_status(503)?;
        ensure!(answer.reason() == Some("fault"), "{answer:?}");
        ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo/fail", ns.name)), "{answer:?}");
        let answer = client.get("http://echo:9080/late").send()?.expect_status(504)?;
        ensure!(answer.reason() == Some("request-timeout") && answer.ms < 10_000, "{answer:?}");
        let report = client.load("http://echo:9080/some").requests(2_000).run()?;
        let failed = report.status(418);
        ensure!((500..=700).contains(&failed), "30 % of 2000 fail within 5 points: {}", report.summary());
        ensure!(
            report.status(200) == 2_000 - failed && report.by_reason.get("fault") == Some(&failed),
            "{}",
            report.summary()
        );
        Ok(())
    })
}

#[test]
fn mirrored_requests_do_not_affect_the_response() -> Result<()> {
    in_mesh("filters-mirror", |ns| {
        ns.apply(&workload::server("shadow", &["v9"]))?;
        let client = mesh::echo(ns)?;
        ns.wait_ready(&["shadow-v9"])?;
        mesh::reachable(&client, "shadow")?;
        let mirror = |name: &str, mirror: &str| {
            format!(
                "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  filters: [{{type: RequestMirror, requestMirror: {{{mirror}}}}}]\n{TO_V1}"
            )
        };
        let rules = mirror("all", "backendRef: {name: shadow, port: 9080}, hostSuffix: -shadow")
            + &mirror("some", "backendRef: {name: shadow, port: 9080}, percent: 20")
            + &mirror("nowhere", "backendRef: {name: nowhere, port: 9080}");
        route_in_force(ns, &client, "echo", &rules)?;
        let seen = |path: &str| -> Result<u64> {
            let seen = client.get("http://shadow:9080/_seen").send()?.expect_status(200)?.json()?;
            Ok(seen["by_path"][path].as_u64().unwrap_or(0))
        };

        let answer = client.get("http://echo:9080/all").method("POST").body("an order").send()?.expect_status(200)?;
        ensure!(answer.version() == Some("v1"), "the rule's own backend answers: {answer:?}");
        let report = client.load("http://echo:9080/some").requests(2_000).concurrency(5).run()?;
        report.expect_none_failed(2_000)?;
        ensure!(report.share("v1") == 1.0, "{}", report.summary());
        eventually("mirrored requests to arrive", SOON, || {
            let (all, some) = (seen("POST /all")?, seen("GET /some")?);
            ensure!(all == 1 && (300..=500).contains(&some), "{all} of 1 and {some} of 2000 arrived");
            Ok(())
        })?;
        let source = format!("MeshRoute/{}/echo/all", ns.name);
        // The mirror's response comes after the mirror has counted the request.
        eventually("the mirror's response to be counted", SOON, || {
            let metrics = proxy_metrics(ns, "client")?;
            let answered = metrics.sum("weft_mirrored_requests_total", &[("outcome", "answered"), ("source", &source)]);
            ensure!(answered == 1.0, "{:?}", metrics.with_prefix("weft_mirrored"));
            Ok(())
        })?;

        // A missing mirror is reported on the route and affects no request.
        let resolved = ns.await_condition("meshroute", "echo", "ResolvedRefs", "False")?;
        ensure!(resolved.reason == "BackendNotFound" && resolved.message.contains("nowhere"), "{resolved:?}");
        client.load("http://echo:9080/nowhere").requests(100).run()?.expect_none_failed(100)
    })
}

#[test]
fn backends_apply_only_their_own_filters() -> Result<()> {
    in_mesh("filters-backend", |ns| {
        ns.apply(&workload::server("shadow", &["v9"]))?;
        let client = mesh::echo(ns)?;
        ns.wait_ready(&["shadow-v9"])?;
        mesh::reachable(&client, "shadow")?;
        let marked = |tag: &str, more: &str| {
            format!(
                "[{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-tag, value: {tag}}}]}}}}, \
                 {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-tag, value: {tag}}}]}}}}{more}]"
            )
        };
        let rewrite = ", {type: URLRewrite, urlRewrite: {hostname: two.example, path: {type: ReplacePrefixMatch, \
                       replacePrefixMatch: /two}}}";
        let mirror = ", {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 9080}}}";
        let redirect = "[{type: RequestRedirect, requestRedirect: {hostname: next.example, statusCode: 301}}]";
        let rules = [
            "- name: split\n  matches: [{path: {value: /split}}]\n",
            "  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: all}]}}]\n",
            "  backendRefs:\n",
            &format!("  - {{name: echo, port: 9080, subset: v1, filters: {}}}\n", marked("one", mirror)),
            &format!("  - {{name: echo, port: 9080, subset: v2, filters: {}}}\n", marked("two", rewrite)),
            "  - {name: echo, port: 9080, subset: v1}\n",
            &format!("  - {{name: echo, port: 9080, filters: {redirect}}}\n"),
            "  retry: {attempts: 2, codes: [503]}\n",
        ]
        .concat();
        route_in_force(ns, &client, "echo", &rules)?;

        let mut counts = [0; 4];
        for _ in 0..80 {
            let answer = client.get("http://echo:9080/split/a").header("x-tag", "client").send()?;
            if answer.status == 301 {
                ensure!(answer.header("location") == Some("http://next.example:9080/split/a"), "{answer:?}");
                counts[3] += 1;
                continue;
            }
            let answer = answer.expect_status(200)?;
            let echoed = answer.json()?;
            let (tag, path, host) = (&echoed["headers"]["x-tag"][0], &echoed["path"], &echoed["authority"]);
            let case = match (answer.version(), tag.as_str(), answer.header("x-tag"), path.as_str(), host.as_str()) {
                (Some("v1"), Some("one"), Some("one"), Some("/split/a"), Some("echo:9080")) => 0,
                (Some("v2"), Some("two"), Some("two"), Some("/two/a"), Some("two.example")) => 1,
                (Some("v1"), Some("client"), None, Some("/split/a"), Some("echo:9080")) => 2,
                _ => bail!("filters of another backend: {answer:?}"),
            };
            ensure!(echoed["headers"]["x-rule"][0] == "all", "the filters of the rule apply to each: {echoed}");
            counts[case] += 1;
        }
        ensure!(counts.iter().all(|count| *count >= 5), "a quarter of 80 each: {counts:?}");
        eventually("the copies to arrive", SOON, || {
            let seen = client.get("http://shadow:9080/_seen").send()?.expect_status(200)?.json()?;
            let copies = seen["by_path"]["GET /split"].as_u64().unwrap_or(0);
            ensure!(copies == counts[0], "{copies} copies of {} requests to the first backend", counts[0]);
            Ok(())
        })
    })
}

#[test]
fn cors_allows_only_configured_origins() -> Result<()> {
    in_mesh("filters-cors", |ns| {
        let client = mesh::echo(ns)?;
        let rules = format!(
            "- name: api\n  filters: [{{type: CORS, cors: {{allowOrigins: [\"https://*.shop.example\"], allowMethods: [PUT], allowHeaders: [x-a], \
             allowCredentials: true, maxAge: 60}}}}]\n{TO_V1}"
        );
        route_in_force(ns, &client, "echo", &rules)?;
        let preflight = |origin: &str| {
            let request = client.get("http://echo:9080/api").method("OPTIONS").header("origin", origin);
            request.header("access-control-request-method", "PUT").send()
        };
        let answer = preflight("https://a.shop.example")?.expect_status(204)?;
        ensure!(answer.reason() == Some("cors-preflight"), "{answer:?}");
        for (name, expected) in [
            ("access-control-allow-origin", "https://a.shop.example"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "60"),
            ("vary", "Origin"),
        ] {
            ensure!(answer.header(name) == Some(expected), "{name} should be {expected}: {answer:?}");
        }
        let answer = preflight("https://evil.example")?.expect_status(403)?;
        ensure!(answer.reason() == Some("cors-refused"), "{answer:?}");
        ensure!(answer.header("access-control-allow-origin").is_none(), "{answer:?}");
        for (origin, allowed) in
            [("https://a.shop.example", Some("https://a.shop.example")), ("https://evil.example", None)]
        {
            let answer = client.get("http://echo:9080/api").header("origin", origin).send()?.expect_status(200)?;
            ensure!(answer.header("access-control-allow-origin") == allowed, "{origin}: {answer:?}");
            ensure!(answer.header("vary") == Some("Origin") && answer.version() == Some("v1"), "{answer:?}");
        }
        Ok(())
    })
}

#[test]
fn requests_beyond_the_rate_limit_get_429() -> Result<()> {
    in_mesh("filters-rate", |ns| {
        let client = mesh::echo(ns)?;
        let limit = |name: &str, limit: &str| {
            format!(
                "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  filters: [{{type: RateLimit, rateLimit: {{{limit}}}}}]\n{TO_V1}"
            )
        };
        let rules = limit("all", "requests: 10, burst: 20")
            + &limit("each", "requests: 1, per: 1h, burst: 2, key: {type: Header, name: x-caller}");
        route_in_force(ns, &client, "echo", &rules)?;

        let report = client.load("http://echo:9080/all").rate(50).duration(Duration::from_secs(6)).run()?;
        let passed = report.status(200);
        ensure!((70..=95).contains(&passed), "a burst of 20 and 10 in each of 6 seconds pass: {}", report.summary());
        ensure!(report.by_reason.get("rate-limited") == Some(&report.status(429)), "{}", report.summary());
        ensure!(report.status(429) + passed == report.requests, "{}", report.summary());

        for caller in ["a", "b"] {
            for (remaining, status) in [("1", 200), ("0", 200), ("0", 429)] {
                let answer = client.get("http://echo:9080/each").header("x-caller", caller).send()?;
                let answer = answer.expect_status(status)?;
                ensure!(answer.header("ratelimit-limit") == Some("2"), "{answer:?}");
                ensure!(answer.header("ratelimit-remaining") == Some(remaining), "{answer:?}");
                if status == 429 {
                    let wait: u64 = answer.header("retry-after").unwrap_or_default().parse()?;
                    ensure!((3000..=3600).contains(&wait) && answer.reason() == Some("rate-limited"), "{answer:?}");
                    ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo/each", ns.name)), "{answer:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn responses_beyond_the_body_limit_get_502() -> Result<()> {
    in_mesh("filters-body", |ns| {
        let client = mesh::echo(ns)?;
        let rules = format!(
            "- name: large\n  matches: [{{path: {{value: /large}}}}]\n  filters: [{{type: ResponseBodyLimit, responseBodyLimit: {{maxBytes: 100000}}}}]\n{TO_V1}- name: rest\n{TO_V1}"
        );
        route_in_force(ns, &client, "echo", &rules)?;
        for http2 in [false, true] {
            let get = |bytes: u32| {
                let request = client.get(&format!("http://echo:9080/large?bytes={bytes}"));
                if http2 { request.http2().send() } else { request.send() }
            };
            for round in 0..3 {
                let answer = get(100_000)?.expect_status(200)?;
                ensure!(answer.reason().is_none(), "HTTP/2: {http2}, round {round}: {answer:?}");
                let answer = get(100_001)?.expect_status(502)?;
                ensure!(answer.reason() == Some("response-too-large"), "HTTP/2: {http2}, round {round}: {answer:?}");
                ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo/large", ns.name)), "{answer:?}");
            }
        }
        Ok(())
    })
}
