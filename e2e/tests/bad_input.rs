//! Invalid input is refused at apply or reported in a condition, and does not affect other traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::Cluster;
use weft_e2e::kubectl::Kubectl;
use weft_e2e::mesh::{self, proxy_metrics, route, route_in_force};
use weft_e2e::metrics::Metrics;
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::wait::{eventually, eventually_every};
use weft_e2e::workload::Service;

const TO_V1: &str = "- backendRefs: [{name: echo, port: 9080, subset: v1}]\n";

#[test]
fn missing_backend_fails_only_its_share() -> Result<()> {
    in_mesh("bad-backend", |ns| {
        let client = mesh::echo(ns)?;
        let rules =
            "- name: half\n  backendRefs:\n  - {name: echo, port: 9080, subset: v1}\n  - {name: nowhere, port: 9080}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let accepted = ns.await_condition("meshroute", "echo", "Accepted", "True")?;
        ensure!(accepted.observed_generation.is_some(), "{accepted:?}");
        let resolved = ns.await_condition("meshroute", "echo", "ResolvedRefs", "False")?;
        ensure!(resolved.reason == "BackendNotFound", "{resolved:?}");
        ensure!(resolved.message.contains("nowhere"), "the message names the backend: {resolved:?}");
        let report = client.load("http://echo:9080/").requests(600).run()?;
        let (good, bad) = (report.status(200), report.status(500));
        ensure!(good + bad == 600 && (240..=360).contains(&bad), "half is answered 500: {}", report.summary());
        ensure!(report.by_reason.get("backend-not-found") == Some(&bad), "{}", report.summary());
        let answer = eventually("a request of the bad share", SOON, || {
            client.get("http://echo:9080/").send()?.expect_status(500)
        })?;
        let source = format!("MeshRoute/{}/echo/half", ns.name);
        ensure!(answer.source() == Some(&source), "the answer names {source}: {answer:?}");
        // Once the backend exists, the route uses it without another apply.
        ns.apply(&weft_e2e::workload::server("nowhere", &["v8"]))?;
        ns.wait_ready(&["nowhere-v8"])?;
        ns.await_condition("meshroute", "echo", "ResolvedRefs", "True")?;
        eventually("the new backend to answer", SOON, || {
            let report = client.load("http://echo:9080/").requests(60).run()?;
            report.expect_none_failed(60)?;
            ensure!(report.share("v8") > 0.2, "{}", report.summary());
            Ok(())
        })
    })
}

#[test]
fn empty_subset_fails_only_its_share() -> Result<()> {
    in_mesh("bad-subset", |ns| {
        let client = mesh::echo(ns)?;
        let subsets = mesh::SUBSETS.to_owned() + "  - {name: empty, labels: {version: v99}}\n";
        ns.program(&subsets, &["meshcluster/echo"])?;
        let rules = "- name: half\n  backendRefs:\n  - {name: echo, port: 9080, subset: v1}\n  - {name: echo, port: 9080, subset: empty}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let report = client.load("http://echo:9080/").requests(600).run()?;
        let (good, bad) = (report.status(200), report.status(503));
        ensure!(good + bad == 600 && (240..=360).contains(&bad), "half is answered 503: {}", report.summary());
        ensure!(report.by_reason.get("no-endpoints") == Some(&bad), "{}", report.summary());
        let condition = ns
            .await_condition("meshcluster", "echo", "ResolvedRefs", "False")
            .or_else(|_| ns.await_condition("meshroute", "echo", "ResolvedRefs", "False"))?;
        ensure!(condition.reason == "SubsetNotFound" && condition.message.contains("empty"), "{condition:?}");
        // An undeclared subset is an error of the route.
        let undeclared = "- name: half\n  backendRefs: [{name: echo, port: 9080, subset: v1}, {name: echo, port: 9080, subset: nope}]\n";
        ns.apply(&route("echo", undeclared))?;
        let condition = ns.await_condition("meshroute", "echo", "ResolvedRefs", "False")?;
        ensure!(condition.reason == "SubsetNotFound" && condition.message.contains("nope"), "{condition:?}");
        Ok(())
    })
}

#[test]
fn older_of_two_conflicting_routes_wins() -> Result<()> {
    in_mesh("bad-conflict", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        // creationTimestamp has whole seconds; of two routes with the same time the name decides, and this name is
        // later.
        let second = route("echo", "- backendRefs: [{name: echo, port: 9080, subset: v2}]\n")
            .replace("metadata: {name: echo}", "metadata: {name: second}");
        ns.apply(&second)?;
        let condition = ns.await_condition("meshroute", "second", "Accepted", "False")?;
        let older = format!("MeshRoute {}/echo", ns.name);
        ensure!(
            condition.reason == "Conflicted" && condition.message.contains(&older),
            "it should name {older}: {condition:?}"
        );
        let accepted = ns.condition("meshroute", "echo", "Accepted")?;
        ensure!(accepted.status == "True", "the older route is accepted: {accepted:?}");
        let report = client.load("http://echo:9080/").requests(100).run()?;
        report.expect_none_failed(100)?;
        ensure!(report.share("v1") == 1.0, "the older route is used: {}", report.summary());
        // When the older route is deleted, the other one is used.
        ns.delete("meshroute", "echo")?;
        eventually("the other route to take over", SOON, || {
            let report = client.load("http://echo:9080/").requests(40).run()?;
            ensure!(report.share("v2") == 1.0, "{}", report.summary());
            Ok(())
        })?;
        ns.await_condition("meshroute", "second", "Accepted", "True").map(drop)
    })
}

#[test]
fn schema_errors_are_refused_at_apply() -> Result<()> {
    in_mesh("bad-schema", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let bad = |rules: &str| route("bad", rules);
        let bad_cluster = |field: &str| {
            format!(
                "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {{name: bad}}\nspec:\n  targetRef: {{name: echo}}\n  {field}\n"
            )
        };
        let to_echo = "backendRefs: [{name: echo, port: 9080}]";
        let cases: Vec<(&str, String, &str)> = vec![
            (
                "weights that sum to zero",
                bad("- backendRefs: [{name: echo, port: 9080, weight: 0}]\n"),
                "the weights of backendRefs sum to zero",
            ),
            (
                "an invalid regular expression",
                bad(&format!("- matches: [{{path: {{type: RegularExpression, value: \"/a(\"}}}}]\n  {to_echo}\n")),
                "the regular expression does not compile",
            ),
            (
                "an invalid regular expression of a header",
                bad(&format!("- matches: [{{headers: [{{type: RegularExpression, name: a, value: \"(\"}}]}}]\n  {to_echo}\n")),
                "the regular expression does not compile",
            ),
            ("a duration without a unit", bad(&format!("- {to_echo}\n  timeouts: {{request: \"5\"}}\n")), "a unit (h, m, s or ms): 500ms, 5s, 1m"),
            ("an invalid duration", bad(&format!("- {to_echo}\n  timeouts: {{request: 2 seconds}}\n")), "spec.http[0].timeouts.request"),
            (
                "a duration out of range",
                bad(&format!("- {to_echo}\n  timeouts: {{request: 25h}}\n")),
                "timeouts.request must be at most 24h",
            ),
            (
                "an attempt longer than the request",
                bad(&format!("- {to_echo}\n  timeouts: {{request: 1s, backendRequest: 2s}}\n")),
                "backendRequest must not be longer than request",
            ),
            ("a backoff out of range", bad(&format!("- {to_echo}\n  retry: {{backoff: 2m}}\n")), "retry.backoff must be between 1ms and 1m"),
            (
                "a redirect together with backends",
                bad(&format!("- {to_echo}\n  filters: [{{type: RequestRedirect, requestRedirect: {{port: 1}}}}]\n")),
                "remove its backendRefs",
            ),
            (
                "a filter without its field",
                bad(&format!("- {to_echo}\n  filters: [{{type: URLRewrite, requestRedirect: {{port: 1}}}}]\n")),
                "a filter has exactly the field that its type names",
            ),
            ("a path without a slash", bad(&format!("- matches: [{{path: {{value: a}}}}]\n  {to_echo}\n")), "a path starts with /"),
            ("a rule that does nothing", bad("- name: idle\n"), "a rule needs backendRefs"),
            ("a header that frames messages", bad(&format!("- {to_echo}\n  filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: Host, value: a}}]}}}}]\n")), "use URLRewrite"),
            (
                "a fault that does nothing",
                bad(&format!("- {to_echo}\n  filters: [{{type: Fault, fault: {{}}}}]\n")),
                "a fault needs a delay or an abort",
            ),
            (
                "percent and fraction",
                bad(&format!("- {to_echo}\n  filters: [{{type: Fault, fault: {{abort: {{status: 500, percent: 1, fraction: {{numerator: 1}}}}}}}}]\n")),
                "give percent or fraction, not both",
            ),
            (
                "a fraction above 1",
                bad(&format!("- {to_echo}\n  filters: [{{type: Fault, fault: {{abort: {{status: 500, fraction: {{numerator: 101}}}}}}}}]\n")),
                "must not be greater than its denominator",
            ),
            (
                "a mirror of a direct response",
                bad("- filters: [{type: DirectResponse, directResponse: {status: 200}}, {type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 9080}}}]\n"),
                "no backend gets the request",
            ),
            ("a hedge after 0 s", bad(&format!("- {to_echo}\n  hedge: {{after: 0s}}\n")), "hedge.after must be between 1ms and 1m"),
            ("too many hedges", bad(&format!("- {to_echo}\n  hedge: {{after: 1s, attempts: 4}}\n")), "spec.http[0].hedge.attempts"),
            (
                "a hedge after the timeout",
                bad(&format!("- {to_echo}\n  hedge: {{after: 1s}}\n  timeouts: {{backendRequest: 1s}}\n")),
                "hedge.after must be shorter than timeouts.request and timeouts.backendRequest",
            ),
            (
                "a hedge of a direct response",
                bad("- filters: [{type: DirectResponse, directResponse: {status: 200}}]\n  hedge: {after: 1s}\n"),
                "timeouts, retry and hedge have no effect",
            ),
            (
                "CONNECT and another method",
                bad(&format!("- matches: [{{method: CONNECT}}, {{method: GET}}]\n  {to_echo}\n")),
                "a rule that matches CONNECT cannot match other methods",
            ),
            (
                "CONNECT with a path",
                bad(&format!("- matches: [{{method: CONNECT, path: {{value: /}}}}]\n  {to_echo}\n")),
                "CONNECT requests have no path and no query",
            ),
            (
                "a mirror of a CONNECT",
                bad(&format!("- matches: [{{method: CONNECT}}]\n  {to_echo}\n  filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: echo, port: 9080}}}}}}]\n")),
                "may only have filters of type ResponseHeaderModifier, RateLimit and Fault",
            ),
            (
                "a retry of a CONNECT",
                bad(&format!("- matches: [{{method: CONNECT}}]\n  {to_echo}\n  retry: {{attempts: 1}}\n")),
                "a rule that matches CONNECT cannot have retry",
            ),
            (
                "an invalid origin",
                bad(&format!("- {to_echo}\n  filters: [{{type: CORS, cors: {{allowOrigins: [shop.example]}}}}]\n")),
                "spec.http[0].filters[0].cors.allowOrigins[0]",
            ),
            (
                "every origin and another one",
                bad(&format!("- {to_echo}\n  filters: [{{type: CORS, cors: {{allowOrigins: [\"*\", \"https://a.example\"]}}}}]\n")),
                "'*' allows every origin",
            ),
            (
                "all headers exposed with credentials",
                bad(&format!("- {to_echo}\n  filters: [{{type: CORS, cors: {{allowOrigins: [\"*\"], allowCredentials: true, exposeHeaders: [\"*\"]}}}}]\n")),
                "browsers do not treat exposeHeaders '*' as a wildcard",
            ),
            (
                "a rate limit key without a name",
                bad(&format!("- {to_echo}\n  filters: [{{type: RateLimit, rateLimit: {{requests: 1, key: {{type: Header}}}}}}]\n")),
                "Header, QueryParam and Cookie require a name",
            ),
            (
                "a rate limit key with an invalid header name",
                bad(&format!("- {to_echo}\n  filters: [{{type: RateLimit, rateLimit: {{requests: 1, key: {{type: Header, name: \"a b\"}}}}}}]\n")),
                "not a valid header or cookie name",
            ),
            (
                "a rate limit with a too short period",
                bad(&format!("- {to_echo}\n  filters: [{{type: RateLimit, rateLimit: {{requests: 1, per: 10ms}}}}]\n")),
                "rateLimit.per must be between 1s and 24h",
            ),
            (
                "a filter twice",
                bad(&format!("- {to_echo}\n  filters: [{{type: RateLimit, rateLimit: {{requests: 1}}}}, {{type: RateLimit, rateLimit: {{requests: 2}}}}]\n")),
                "a filter type may appear once",
            ),
            (
                "a route without rules",
                "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {name: bad}\nspec:\n  parentRefs: [{name: echo}]\n".to_owned(),
                "a route needs http, tls or tcp rules",
            ),
            (
                "an invalid server name",
                "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {name: bad}\nspec:\n  parentRefs: [{name: echo}]\n  tls: [{matches: [{sni: \
                 [\"a*.example\"]}], backendRefs: [{name: echo, port: 9080}]}]\n"
                    .to_owned(),
                "spec.tls[0].matches[0].sni[0]",
            ),
            (
                "TCP weights that sum to zero",
                "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {name: bad}\nspec:\n  parentRefs: [{name: echo}]\n  tcp: [{backendRefs: [{name: \
                 echo, port: 9080, weight: 0}]}]\n"
                    .to_owned(),
                "the weights of backendRefs sum to zero",
            ),
            ("a field that does not exist", bad(&format!("- {to_echo}\n  timeout: 2s\n")), "unknown field"),
            (
                "two subsets of one name",
                "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {name: bad}\nspec:\n  targetRef: {name: echo}\n  subsets: [{name: a, labels: \
                 {v: a}}, {name: a, labels: {v: b}}]\n"
                    .to_owned(),
                "Duplicate value",
            ),
            (
                "a base ejection time above the maximum",
                bad_cluster("outlierDetection: {maxEjectionTime: 10s}"),
                "maxEjectionTime must not be shorter than baseEjectionTime",
            ),
            ("a hash policy without hashOn", bad_cluster("loadBalancer: {policy: Maglev}"), "RingHash and Maglev require hashOn"),
            (
                "a hash of a header without a name",
                bad_cluster("loadBalancer: {policy: RingHash, hashOn: {type: Header}}"),
                "Header, Cookie and QueryParam require a name",
            ),
            (
                "an invalid cookie path",
                bad_cluster("loadBalancer: {stickySession: {path: \"/a;b\"}}"),
                "spec.loadBalancer.stickySession.path",
            ),
            (
                "a health check without a path",
                bad_cluster("healthCheck: {type: HTTP}"),
                "HTTP requires path",
            ),
            (
                "a health check timeout above the interval",
                bad_cluster("healthCheck: {type: TCP, interval: 1s, timeout: 2s}"),
                "healthCheck.timeout must not be longer than the interval",
            ),
            (
                "a policy for a Namespace with a name",
                "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: bad}\nspec:\n  targetRef: {kind: Namespace, name: x}\n  authorization: \
                 {rules: [{action: Deny}]}\n"
                    .to_owned(),
                "remove name for kind Namespace",
            ),
        ];
        for (desc, yaml, message) in cases {
            let stderr = ns.apply_refused(&yaml).with_context(|| desc.to_owned())?;
            ensure!(stderr.contains(message), "{desc}: kubectl should print {message:?}: {stderr}");
        }
        let report = client.load("http://echo:9080/").requests(50).run()?;
        report.expect_none_failed(50)?;
        ensure!(report.share("v1") == 1.0, "the valid route is still in force: {}", report.summary());
        Ok(())
    })
}

#[test]
fn semantic_errors_are_reported_as_conditions() -> Result<()> {
    in_mesh("bad-condition", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        // The regular expressions of the schema (Go) support \Q...\E, those of the proxy (Rust) do not.
        let regex = route("echo", "- matches: [{headers: [{type: RegularExpression, name: a, value: '\\Qa.b\\E'}]}]\n  backendRefs: [{name: echo, port: 9080}]\n")
            .replace("metadata: {name: echo}", "metadata: {name: bad-regex}");
        let no_service = route("ghost", "- backendRefs: [{name: echo, port: 9080}]\n");
        ns.apply(&(regex + &no_service))?;
        let condition = ns.await_condition("meshroute", "bad-regex", "Accepted", "False")?;
        ensure!(condition.reason == "UnsupportedValue" && condition.message.contains("Qa.b"), "{condition:?}");
        let condition = ns.await_condition("meshroute", "ghost", "Accepted", "False")?;
        ensure!(condition.reason == "TargetNotFound" && condition.message.contains("ghost"), "{condition:?}");
        let report = client.load("http://echo:9080/").requests(50).run()?;
        report.expect_none_failed(50)?;
        ensure!(report.share("v1") == 1.0, "the valid route is still in force: {}", report.summary());
        Ok(())
    })
}

#[test]
fn condition_that_turns_false_is_an_event_on_the_route_and_its_service() -> Result<()> {
    in_mesh("bad-input-events", |ns| {
        ns.apply(&(Service::new("web").yaml() + &route("web", "- backendRefs: [{name: nosuch, port: 9080}]\n")))?;
        for object in ["meshroute/web", "service/web"] {
            eventually(&format!("a Warning on {object}"), SOON, || {
                let events = ns.events(object)?;
                let told =
                    events.contains("Warning") && events.contains("BackendNotFound") && events.contains("nosuch");
                ensure!(told, "{events}");
                Ok(())
            })?;
        }
        ns.apply(&route("web", "- backendRefs: [{name: web, port: 9080}]\n"))?;
        eventually("a Normal Event", SOON, || {
            let events = ns.events("service/web")?;
            ensure!(events.contains("Normal") && events.contains("all references are resolved"), "{events}");
            Ok(())
        })
    })
}

fn exports() -> Result<Kubectl> {
    Ok(Kubectl::within(Cluster::get()?, "weft-config"))
}

#[test]
fn edited_config_map_is_rejected_and_repaired() -> Result<()> {
    in_mesh("bad-edited", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let (exports, name) = (exports()?, format!("x.{}", ns.name));
        let refused = |metrics: &Metrics| -> f64 {
            metrics.with_prefix("weft_config_rejections").iter().map(|sample| sample.value).sum()
        };
        let before = (refused(&proxy_metrics(ns, "client")?), exports.get("configmap", &name)?);
        let load = client.load("http://echo:9080/").rate(100).duration(Duration::from_secs(10)).start()?;
        let edited = Instant::now();
        // The header's hash no longer matches the body.
        let header: String = before.1["data"]["header"].as_str().context("the object has a header")?.to_owned();
        let mut parsed: Value = serde_json::from_str(&header)?;
        parsed["sha256"] = "0".repeat(64).into();
        let patch = serde_json::json!({ "data": { "header": parsed.to_string() } }).to_string();
        exports.run(&["patch", "configmap", &name, "--type=merge", "-p", &patch])?;
        eventually_every(Duration::from_millis(50), "the operator to repair it", SOON, || {
            let header = exports.get("configmap", &name)?["data"]["header"].as_str().unwrap_or_default().to_owned();
            ensure!(!header.contains(&"0".repeat(64)), "the header is not repaired");
            Ok(())
        })?;
        println!("a ConfigMap edited by hand was repaired {:?} after the edit began", edited.elapsed());
        eventually("the proxy to count the refusal", SOON, || {
            let metrics = proxy_metrics(ns, "client")?;
            ensure!(refused(&metrics) > before.0, "no refusal is counted: {:?}", metrics.with_prefix("weft_config"));
            Ok(())
        })?;
        let report = load.finish()?;
        report.expect_none_failed(500)?;
        ensure!(report.share("v1") == 1.0, "the last valid configuration stays in force: {}", report.summary());
        Ok(())
    })
}

#[test]
fn deleted_config_map_loses_no_traffic_and_is_recreated() -> Result<()> {
    in_mesh("bad-deleted", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let exports = exports()?;
        let name = format!("x.{}", ns.name);
        let generation = |object: &Value| -> Option<u64> {
            let header: Value = serde_json::from_str(object["data"]["header"].as_str()?).ok()?;
            header["generation"].as_u64()
        };
        let before = generation(&exports.get("configmap", &name)?);
        let load = client.load("http://echo:9080/").rate(100).duration(Duration::from_secs(8)).start()?;
        exports.run(&["delete", "configmap", &name])?;
        let after = eventually("the operator to write it again", SOON, || exports.get("configmap", &name))?;
        ensure!(generation(&after) > before, "the generation grows: {before:?}, then {:?}", generation(&after));
        let report = load.finish()?;
        report.expect_none_failed(400)?;
        ensure!(report.share("v1") == 1.0, "the last valid configuration stays in force: {}", report.summary());
        // The proxy watches the new object.
        route_in_force(ns, &client, "echo", "- backendRefs: [{name: echo, port: 9080, subset: v2}]\n")
    })
}

#[test]
fn oversized_configuration_sets_a_condition_and_is_not_written() -> Result<()> {
    in_mesh("bad-too-large", |ns| {
        let client = mesh::echo(ns)?;
        route_in_force(ns, &client, "echo", TO_V1)?;
        let exports = exports()?;
        let name = format!("x.{}", ns.name);
        // Incompressible bodies, for paths without requests, until they exceed the maximum size of one ConfigMap.
        let mut state = 1_u64;
        let mut letters = |count: usize| -> String {
            (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    char::from(
                        b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(state >> 58) as usize],
                    )
                })
                .collect()
        };
        let mut routes = Vec::new();
        for number in 0..24 {
            let rules: String = (0..16)
                .map(|rule| {
                    format!(
                        "- name: rule-{rule}\n  matches: [{{path: {{type: Exact, value: /big/{number}/{rule}}}}}]\n  filters: [{{type: DirectResponse, directResponse: {{status: \
                         200, body: {}}}}}]\n",
                        letters(4000)
                    )
                })
                .collect();
            routes.push(
                route("echo", &rules).replace("metadata: {name: echo}", &format!("metadata: {{name: big-{number}}}")),
            );
        }
        routes.chunks(4).try_for_each(|some| ns.apply(&some.concat()).map(drop))?;
        let condition = eventually("a route to have the reason TooLarge", SOON * 2, || {
            for number in (0..24).rev() {
                let conditions = ns.conditions("meshroute", &format!("big-{number}"))?;
                if let Some(found) = conditions.into_iter().find(|condition| condition.reason == "TooLarge") {
                    return Ok(found);
                }
            }
            anyhow::bail!("no condition has the reason TooLarge")
        })?;
        ensure!(condition.status == "False" && !condition.message.is_empty(), "{condition:?}");
        // The stored object is complete and valid, and the routes in force stay.
        let stored = exports.get("configmap", &name)?.to_string().len();
        ensure!(stored < 1_400_000, "the object has {stored} bytes");
        let report = client.load("http://echo:9080/").requests(100).run()?;
        report.expect_none_failed(100)?;
        ensure!(report.share("v1") == 1.0, "the route in force stays: {}", report.summary());
        Ok(())
    })
}
