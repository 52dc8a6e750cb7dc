//! Routes of the Gateway API compile to what a MeshRoute that says the same compiles to.

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_operator::compile::{self, Compiled, Severity};
use weft_operator::world::World;

use support::{namespace, service};

fn services() -> Vec<Value> {
    vec![namespace("shop"), service("shop", "web", "10.0.0.1"), service("shop", "next", "10.0.0.2")]
}

fn http_route(name: &str, rules: Value) -> Value {
    json!({
        "kind": "HTTPRoute", "metadata": {"namespace": "shop", "name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    })
}

fn mesh_route(name: &str, rules: Value) -> Value {
    json!({
        "kind": "MeshRoute", "metadata": {"namespace": "shop", "name": name},
        "spec": {"parentRefs": [{"name": "web"}], "http": rules},
    })
}

fn world_with(routes: impl IntoIterator<Item = Value>) -> World {
    support::world(&services().into_iter().chain(routes).collect::<Vec<_>>())
}

/// The routes of the only port of Service web.
fn table(compiled: &Compiled) -> Value {
    let web = compiled.export.services.iter().find(|service| service.name == "web").expect("exported");
    serde_json::to_value(&web.ports[0].routes).expect("plain data")
}

/// The table without what differs by intention: the kind of the routes, and the methods of retries, of which the Gateway
/// API has none.
fn comparable(mut table: Value) -> Value {
    for rule in table["rules"].as_array_mut().into_iter().flatten() {
        rule["route"].as_object_mut().expect("a reference").remove("kind");
        if let Some(retry) = rule.get_mut("retry").and_then(Value::as_object_mut) {
            retry.remove("methods");
        }
    }
    table
}

/// Some of these fields.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> =
        fields.into_iter().map(|(name, value)| prop::option::of(value).prop_map(move |value| (name, value))).collect();
    let object = |fields: Vec<(&'static str, Option<Value>)>| {
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    };
    fields.prop_map(move |fields| Value::Object(object(fields))).boxed()
}

fn one_of(values: &[Value]) -> BoxedStrategy<Value> {
    prop::sample::select(values.to_vec()).boxed()
}

fn list(values: BoxedStrategy<Value>, max: usize) -> BoxedStrategy<Value> {
    prop::collection::vec(values, 0..=max).prop_map(Value::Array).boxed()
}

fn matches() -> BoxedStrategy<Value> {
    let values = |names: [&str; 2]| {
        let values = names.map(|name| {
            [json!({"name": name, "value": "a"}), json!({"type": "RegularExpression", "name": name, "value": "a|b"})]
        });
        list(one_of(values.as_flattened()), 2)
    };
    object(vec![
        (
            "path",
            one_of(&[
                json!({"value": "/a"}),
                json!({"type": "PathPrefix", "value": "/a/b/"}),
                json!({"type": "Exact", "value": "/a"}),
                json!({"type": "RegularExpression", "value": "/[ab]+"}),
            ]),
        ),
        ("headers", values(["x-one", "X-Two"])),
        ("queryParams", values(["one", "Two"])),
        ("method", one_of(&[json!("GET"), json!("PATCH")])),
    ])
}

/// Some of the filters, each at most once.
fn filters(of_backend: bool) -> BoxedStrategy<Value> {
    let modifier =
        json!({"set": [{"name": "X-One", "value": "1"}], "add": [{"name": "x-two", "value": "2"}], "remove": ["x"]});
    let mirror = |share: &str, value: Value| json!({"backendRef": {"name": "next", "port": 80}, share: value});
    let mut all = vec![
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": modifier}),
        json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier}),
        json!({"type": "URLRewrite", "urlRewrite": {"hostname": "a.example", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}}),
        json!({"type": "RequestMirror", "requestMirror": mirror("percent", json!(5))}),
    ];
    if !of_backend {
        all.push(json!({"type": "RequestMirror", "requestMirror": mirror("fraction", json!({"numerator": 1}))}));
        all.push(json!({"type": "CORS", "cors": {
            "allowOrigins": ["https://*.example", "http://a.example:8080"], "allowMethods": ["*"], "allowHeaders": ["X-One"],
            "exposeHeaders": ["x-two"], "allowCredentials": true, "maxAge": 60,
        }}));
    }
    let length = all.len();
    prop::sample::subsequence(all, 0..=length).prop_map(Value::Array).boxed()
}

fn rule() -> impl Strategy<Value = Value> {
    let backend = (one_of(&[json!("web"), json!("next"), json!("gone")]), 1..3_u32, filters(true))
        .prop_map(|(name, weight, filters)| json!({"name": name, "port": 80, "weight": weight, "filters": filters}));
    let backends = prop::collection::vec(backend, 1..3).prop_map(Value::Array);
    let timeouts = object(vec![
        ("request", one_of(&[json!("10s"), json!("0s")])),
        ("backendRequest", one_of(&[json!("1s500ms"), json!("0s")])),
    ]);
    let retry = object(vec![("attempts", one_of(&[json!(1), json!(3)])), ("backoff", one_of(&[json!("1m")]))]);
    let more = object(vec![("timeouts", timeouts), ("retry", retry)]);
    (list(matches(), 3), filters(false), backends, more).prop_map(|(matches, filters, backends, mut rule)| {
        rule["matches"] = matches;
        rule["filters"] = filters;
        rule["backendRefs"] = backends;
        if let Some(retry) = rule.get_mut("retry") {
            // The default of MeshRoute has codes.
            retry["codes"] = json!([500, 503]);
        }
        rule
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn http_route_compiles_to_what_the_same_mesh_route_does(rules in prop::collection::vec(rule(), 1..4)) {
        let compiled = |route| compile::compile(&world_with([route]), "shop");
        // Rules without a name are called by their positions in an HTTPRoute, and `default` in a MeshRoute.
        let named = rules.into_iter().enumerate().map(|(index, mut rule)| {
            rule["name"] = json!(format!("rule-{index}"));
            rule
        });
        let rules = Value::from_iter(named);
        let (gateway, mesh) = (compiled(http_route("r", rules.clone())), compiled(mesh_route("r", rules)));
        let table = table(&gateway);
        prop_assert!(!table.is_null());
        prop_assert_eq!(comparable(table), comparable(self::table(&mesh)));
        let [of_gateway, of_mesh] = [&gateway, &mesh].map(|compiled| compiled.objects.values().next().expect("one"));
        let of_parent = &of_gateway.parents[0].diagnostics;
        let severities = |severity| {
            let count = |found: &[compile::Diagnostic]| found.iter().filter(|found| found.severity == severity).count();
            (count(of_parent), count(&of_mesh.diagnostics))
        };
        for severity in [Severity::Refused, Severity::Unresolved, Severity::Ineffective] {
            let (of_gateway, of_mesh) = severities(severity);
            prop_assert_eq!(of_gateway, of_mesh, "{:?}: {:?} {:?}", severity, of_parent, of_mesh);
        }
    }
}

/// A gRPC match by exact names: service, method, number of headers.
fn grpc_match() -> impl Strategy<Value = (Option<String>, Option<String>, usize)> {
    (prop::option::of("[a-c]{1,3}"), prop::option::of("[a-c]{1,3}"), 0..3_usize)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The Gateway API: characters in the service, then in the method, then the number of headers.
    #[test]
    fn grpc_matches_are_tried_in_the_order_of_the_api(matches in prop::collection::vec(grpc_match(), 1..8)) {
        let condition = |(service, method, headers): &(Option<String>, Option<String>, usize)| {
            let headers: Vec<Value> = (0..*headers).map(|n| json!({"name": format!("x-{n}"), "value": "a"})).collect();
            match (service, method) {
                (None, None) => json!({"headers": headers}),
                _ => json!({"method": {"service": service, "method": method}, "headers": headers}),
            }
        };
        let rules: Vec<Value> = matches
            .iter()
            .map(|found| json!({"matches": [condition(found)], "backendRefs": [{"name": "web", "port": 80}]}))
            .collect();
        let mut route = http_route("r", json!(rules));
        route["kind"] = json!("GRPCRoute");
        let table = table(&compile::compile(&world_with([route]), "shop"));
        let rule_of = |found: &Value| {
            let rule = found["rule"].as_u64().and_then(|rule| usize::try_from(rule).ok()).expect("an index");
            let name = table["rules"][rule]["name"].as_str().expect("a name");
            matches[name.parse::<usize>().expect("its position")].clone()
        };
        let tried: Vec<_> = table["matches"].as_array().expect("matches").iter().map(rule_of).collect();
        let length = |name: &Option<String>| name.as_ref().map_or(0, String::len);
        for pair in tried.windows(2) {
            let [first, second] = [&pair[0], &pair[1]].map(|(service, method, headers)| {
                (service.is_some() && method.is_some(), length(service), length(method), *headers)
            });
            prop_assert!(first >= second, "{:?} before {:?}", pair[0], pair[1]);
        }
    }
}

#[test]
fn tls_and_tcp_routes_compile_to_what_the_same_mesh_route_does() {
    let names = json!(["shop.example", "*.shop.example"]);
    let backends = json!([{"name": "web", "port": 80, "weight": 9}, {"name": "gone", "port": 80, "weight": 1}]);
    for (kind, gateway, mesh) in [
        (
            "TLSRoute",
            json!({"hostnames": names, "rules": [{"name": "r", "backendRefs": backends}]}),
            json!({"tls": [{"name": "r", "matches": [{"sni": names}], "backendRefs": backends}]}),
        ),
        (
            "TCPRoute",
            json!({"rules": [{"name": "r", "backendRefs": backends}]}),
            json!({"tcp": [{"name": "r", "backendRefs": backends}]}),
        ),
    ] {
        let compiled = |kind: &str, parent: Value, mut spec: Value| {
            spec["parentRefs"] = json!([parent]);
            let route = json!({"kind": kind, "metadata": {"namespace": "shop", "name": "r"}, "spec": spec});
            let mut objects = services();
            // Not declared as HTTP.
            objects[1]["spec"]["ports"][0]["name"] = json!("any");
            let mut table = table(&compile::compile(&support::world(&[objects, vec![route]].concat()), "shop"));
            table["streams"][0]["route"].as_object_mut().expect("a reference").remove("kind");
            table
        };
        let of_gateway = compiled(kind, json!({"group": "", "kind": "Service", "name": "web"}), gateway);
        assert_eq!(of_gateway, compiled("MeshRoute", json!({"name": "web"}), mesh), "{kind}");
    }
}

#[test]
fn sixteen_rules_with_128_matches_apply() {
    let matches =
        |rule: usize| (0..8).map(move |n| json!({"path": {"type": "Exact", "value": format!("/{rule}/{n}")}}));
    let rules: Vec<Value> = (0..15)
        .map(|rule| json!({"matches": matches(rule).collect::<Vec<_>>(), "backendRefs": [{"name": "web", "port": 80}]}))
        .collect();
    let last = json!({"matches": matches(15).collect::<Vec<_>>(), "backendRefs": [{"name": "next", "port": 80}]});
    let world = world_with([http_route("r", json!([rules, vec![last]].concat()))]);
    let compiled = compile::compile(&world, "shop");
    let table = table(&compiled);
    assert_eq!(table["matches"].as_array().expect("matches").len(), 128);
    assert_eq!(table["rules"].as_array().expect("rules").len(), 16);
    let found = &compiled.objects.values().next().expect("one").parents[0].diagnostics;
    assert!(found.iter().all(|found| found.severity == Severity::Limited), "there are no pods: {found:?}");
}
