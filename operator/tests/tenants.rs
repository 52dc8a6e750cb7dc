//! What one namespace can do to another, and to the configuration itself, by the names and values of its objects.

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_config::{Envelope, Export, Inbound, Written, bootstrap};
use weft_identity::{SpiffeId, TrustDomain};
use weft_operator::compile;
use weft_operator::world::Key;

use support::{namespace, service, world};

const TENANTS: [&str; 3] = ["a", "b", "c"];
/// Pairs of distinct keys that are compared.
const PAIRS: usize = 1_000_000;

fn route(from: &str, parent: Value) -> Value {
    json!({
        "kind": "MeshRoute", "metadata": {"namespace": from, "name": "route"},
        "spec": {"parentRefs": [parent], "http": [{"name": "stolen", "backendRefs": [{"name": "web", "port": 80}]}]},
    })
}

/// Three namespaces, each with a Service `web`, and further objects.
fn tenants(objects: &[Value]) -> Vec<Value> {
    let numbered = TENANTS.iter().zip(1..);
    let mut all: Vec<Value> = numbered
        .flat_map(|(name, number)| [namespace(name), service(name, "web", &format!("10.0.0.{number}"))])
        .collect();
    all.extend_from_slice(objects);
    all
}

/// CP-03: a route changes what the owner of the Service offers only if it is in the owner's namespace. Every other one is in
/// the private document of its own namespace, and in no other place.
#[test]
fn routes_for_services_of_others_apply_to_own_clients_only() {
    for from in TENANTS {
        for to in TENANTS {
            let world = world(&tenants(&[route(from, json!({"name": "web", "namespace": to}))]));
            for of in TENANTS {
                let compiled = compile::compile(&world, of);
                let has = |document: &Value| document.to_string().contains("stolen");
                let export = has(&serde_json::to_value(&compiled.export).expect("plain data"));
                let inbound = has(&serde_json::to_value(&compiled.inbound).expect("plain data"));
                let expected = (of == from && from == to, of == from && from != to);
                assert_eq!((export, inbound), expected, "route in {from} for Service {to}/web, documents of {of}");
            }
        }
    }
}

/// CP-03: addresses, wildcards and names of hosts are no Services.
#[test]
fn routes_name_services_and_nothing_else() {
    for name in ["*", "10.0.0.2", "web.b", "web.b.svc.cluster.local", "example.com", "", "web/../web"] {
        let world = world(&tenants(&[route("a", json!({"name": name}))]));
        for of in TENANTS {
            let compiled = compile::compile(&world, of);
            let text = json!([compiled.export, compiled.inbound]).to_string();
            assert!(!text.contains("stolen"), "{name:?} in {of}: {text}");
        }
    }
}

/// CP-13: a Service is known by its ClusterIP, which the API server gives. Addresses that its owner may choose capture nothing.
#[test]
fn addresses_that_users_choose_belong_to_no_service() {
    let victim = "10.0.0.1";
    let mut thief = service("b", "thief", "10.0.0.9");
    thief["spec"]["type"] = json!("LoadBalancer");
    thief["spec"]["externalIPs"] = json!([victim, "192.0.2.1"]);
    thief["spec"]["loadBalancerIP"] = json!(victim);
    thief["status"] = json!({"loadBalancer": {"ingress": [{"ip": victim}, {"ip": "192.0.2.2"}]}});
    let world = world(&tenants(&[thief]));
    let index = serde_json::to_value(compile::index(&world)).expect("plain data");
    assert_eq!(index["namespaces"], json!({"a": [victim], "b": ["10.0.0.2", "10.0.0.9"], "c": ["10.0.0.3"]}));
    let export = serde_json::to_value(compile::compile(&world, "b").export).expect("plain data");
    assert!(!export.to_string().contains(victim) && !export.to_string().contains("192.0.2"), "{export}");
}

/// SplitMix64.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) >> 1).expect("63 bits")
}

/// CP-04: no two objects share a key. The pairs are one text, cut at two places, so that whatever joins namespace and name with
/// a character of either would give the same key; half of the names are as long as may be, and differ at the end only.
#[test]
fn keys_of_distinct_objects_differ() {
    let domain: TrustDomain = "cluster.local".parse().expect("a domain");
    let mut state = 4;
    let mut pairs = 0;
    while pairs < PAIRS {
        let length = if random(&mut state).is_multiple_of(2) { 6 + random(&mut state) % 10 } else { 63 };
        let text: String = (0..length).map(|_| ['a', 'x', 'i', '-', '.'][random(&mut state) % 5]).collect();
        let mut cut = || {
            let at = 1 + random(&mut state) % (length - 2);
            let (namespace, name) = text.split_at(at);
            // A namespace has no dots, and names begin and end with a letter.
            (format!("n{}n", namespace.replace('.', "-")), format!("n{name}n"))
        };
        let (one, other) = (cut(), cut());
        if one == other {
            continue;
        }
        pairs += 1;
        let key = |(namespace, name): &(String, String)| Key::new(namespace.as_str(), name.as_str());
        assert_ne!(key(&one), key(&other));
        if one.0 != other.0 {
            let documents = |namespace: &str| [bootstrap::export_name(namespace), bootstrap::inbound_name(namespace)];
            assert!(documents(&one.0).iter().all(|name| !documents(&other.0).contains(name)), "{one:?} {other:?}");
        }
        let id = |(namespace, name): &(String, String)| SpiffeId::new(domain.clone(), namespace, name).ok();
        if let (Some(of_one), Some(of_other)) = (id(&one), id(&other)) {
            assert_ne!(of_one.to_string(), of_other.to_string(), "{one:?} {other:?}");
            assert_eq!(of_one.to_string().parse(), Ok(of_one));
        }
    }
    let documents = [bootstrap::export_name("index"), bootstrap::inbound_name("trust")];
    assert!(!documents.contains(&bootstrap::INDEX_NAME.to_owned()), "a namespace with the name of a document");
    assert!(!documents.contains(&bootstrap::TRUST_NAME.to_owned()), "a namespace with the name of a document");
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// CP-02: a value is data, whatever is in it: it arrives in the proxy's document as it is, and adds nothing to it.
    #[test]
    fn values_of_rules_arrive_as_they_are(text in any::<String>(), syntax in "[`\"'\\\\{}$();<>|&*]{1,20}") {
        for (value, is_syntax) in [(text, false), (syntax, true)] {
            let route = json!({
                "kind": "MeshRoute", "metadata": {"namespace": "a", "name": "route"},
                "spec": {"parentRefs": [{"name": "web"}], "http": [{
                    "matches": [{"headers": [{"name": "x-value", "value": value}]}],
                    "backendRefs": [{"name": "web", "port": 80}],
                }]},
            });
            let compiled = compile::compile(&world(&tenants(&[route])), "a");
            let envelope = Envelope::write(Written::default(), &compiled.export);
            let (_, read) = envelope.read::<Export>().expect("a document");
            prop_assert_eq!(&read, &compiled.export);
            let envelope = Envelope::write(Written::default(), &compiled.inbound);
            prop_assert_eq!(envelope.read::<Inbound>().expect("a document").1, compiled.inbound);
            let table = serde_json::to_value(&read.services[0].ports[0].routes).expect("plain data");
            let is_accepted = compiled.objects.values().all(|outcome| outcome.diagnostics.iter().all(|found| found.severity != compile::Severity::Refused));
            // A value with control characters is refused; one in the syntax of some language is a value.
            prop_assert!(is_accepted || !is_syntax, "{:?}: {:?}", value, compiled.objects);
            if is_accepted {
                let mut found = Vec::new();
                strings(&table, &mut found);
                prop_assert!(found.contains(&value), "{:?} in {}", value, table);
                prop_assert_eq!(table["matches"].as_array().map(Vec::len), Some(1));
            }
        }
    }
}
