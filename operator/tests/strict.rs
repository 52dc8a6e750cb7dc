//! The condition StrictReady: whom the mode Strict would refuse, by what the pods' proxies have seen.

mod support;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weft_config::bootstrap::ENV_IDENTITY_URL;
use weft_config::{PlaintextCaller, PlaintextCallers};
use weft_crds::Status;
use weft_operator::compile::{self, Compiled};
use weft_operator::status::{self, Delivery};
use weft_operator::world::{Answer, Key, World};

use support::{namespace, service};

/// A ready pod with an identity.
fn pod(name: &str, app: &str, address: &str) -> Value {
    let mut pod = support::pod("shop", name, json!({"app": app, "weft.dev/proxy-version": "1"}));
    let proxy = json!({"name": "weft-proxy", "env": [{"name": ENV_IDENTITY_URL, "value": "https://x"}]});
    pod["spec"] = json!({"serviceAccountName": app, "containers": [proxy]});
    pod["status"]["podIPs"] = json!([{"ip": address}]);
    pod
}

fn policy(name: &str, target: Value, mtls: Value) -> Value {
    json!({
        "kind": "MeshPolicy", "metadata": {"namespace": "shop", "name": name, "generation": 1, "uid": name},
        "spec": {"targetRef": target, "mtls": mtls},
    })
}

/// What a pod of shop answers: addresses and ports. None: nothing.
fn answer(pod: &str, callers: Option<&[(&str, u16)]>) -> Answer {
    let caller = |(address, port): &(&str, u16)| PlaintextCaller {
        address: address.parse().expect("an address"),
        port: *port,
        connections: 1,
        open: 0,
        seconds_ago: 1,
    };
    let callers =
        callers.map(|callers| PlaintextCallers { callers: callers.iter().map(caller).collect(), truncated: false });
    Answer { pod: Key::new("shop", pod), uid: format!("uid-{pod}"), callers }
}

/// The pods `web-1` and `web-2`, which the Service `web` selects on port 8080, `db-0`, and a client without proxy.
fn world(objects: &[Value], answers: Vec<Answer>) -> World {
    let mut client = support::pod("legacy", "cron-abc-x", json!({"pod-template-hash": "abc"}));
    client["status"]["podIPs"] = json!([{"ip": "198.18.0.9"}]);
    let base = [
        namespace("shop"),
        service("shop", "web", "198.19.0.1"),
        json!({"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "db"}}),
        pod("web-1", "web", "198.18.0.1"),
        pod("web-2", "web", "198.18.0.2"),
        pod("db-0", "db", "198.18.0.3"),
        client,
    ];
    let mut world = support::world(&[&base, objects].concat());
    world.observe_callers(answers);
    world
}

/// Status and reason of the condition StrictReady of a policy, with its message.
fn strict_ready(compiled: &Compiled, policy: &str) -> Option<(String, String, String)> {
    let (_, outcome) = compiled.objects.iter().find(|(id, _)| id.key.name == policy)?;
    let delivery = Delivery::Written(String::new());
    let status = status::next(&Status::default(), 1, &outcome.diagnostics, &delivery, Timestamp::now())?;
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("Ready");
    assert_eq!(ready.status, "True", "Strict is no part of Ready: {}", ready.message);
    let found = status.conditions.iter().find(|condition| condition.type_ == "StrictReady")?;
    Some((found.status.clone(), found.reason.clone(), found.message.clone()))
}

fn names(pods: &[Key]) -> Vec<&str> {
    pods.iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn policy_names_the_callers_of_its_pods_at_its_ports() {
    let (whole, web) = (json!({"kind": "Namespace"}), json!({"kind": "Service", "name": "web"}));
    let permissive = || json!({"mode": "Permissive"});
    let policies = [policy("all", whole, permissive()), policy("web", web, permissive())];
    let answers = vec![
        answer("web-1", Some(&[("198.18.0.9", 8080), ("198.18.0.9", 9090)])),
        answer("web-2", Some(&[("203.0.113.7", 8080)])),
        answer("db-0", None),
    ];
    let compiled = compile::compile(&world(&policies, answers), "shop");
    assert_eq!(names(&compiled.permissive), ["db-0", "web-1", "web-2"]);
    let (status, reason, message) = strict_ready(&compiled, "web").expect("a condition");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "PlaintextCallers"));
    let expected =
        "Strict would refuse 2 callers of the last 10 minutes: legacy/cron (port 8080), 203.0.113.7 (port 8080)";
    assert_eq!(message, expected);
    let (status, _, message) = strict_ready(&compiled, "all").expect("a condition");
    assert_eq!(status, "False");
    assert!(message.contains("legacy/cron (port 8080, 9090)"), "{message}");
    assert!(message.ends_with("; 1 of 3 pods that accept plaintext could not be asked for their callers: shop/db-0"));
}

#[test]
fn silence_is_not_taken_for_readiness() {
    let policies = [policy("all", json!({"kind": "Namespace"}), json!({"mode": "Permissive"}))];
    let of = |answers: Vec<Answer>| {
        let compiled = compile::compile(&world(&policies, answers), "shop");
        let (status, reason, message) = strict_ready(&compiled, "all").expect("a condition");
        (format!("{status} {reason}"), message)
    };
    let quiet = |name: &str| answer(name, Some(&[]));
    let (status, message) = of(vec![]);
    assert_eq!(status, "Unknown PodsNotAsked", "not asked yet");
    assert!(message.starts_with("3 of 3 pods"), "{message}");
    let (status, message) = of(vec![quiet("web-1"), quiet("web-2"), answer("db-0", None)]);
    assert_eq!(status, "Unknown PodsNotAsked", "a NetworkPolicy is in the way");
    assert!(message.starts_with("1 of 3 pods") && message.ends_with("shop/db-0"), "{message}");
    let (status, message) = of(vec![quiet("web-1"), quiet("web-2"), quiet("db-0")]);
    assert_eq!((status.as_str(), message.contains("3 pods")), ("True NoPlaintextCallers", true), "{message}");
}

#[test]
fn pods_that_accept_no_plaintext_are_not_asked() {
    let strict = json!({"mode": "Strict", "ports": [
        {"port": 9090, "mode": "Permissive", "ipBlocks": ["198.18.0.0/15"]}, {"port": 7070, "mode": "Permissive"},
    ]});
    let account = policy("db", json!({"kind": "ServiceAccount", "name": "db"}), strict.clone());
    // What a proxy says of the time before is no more in force.
    let answers = vec![answer("db-0", Some(&[("198.18.0.9", 5432)]))];
    let compiled = compile::compile(&world(&[account], answers), "shop");
    assert_eq!(names(&compiled.permissive), ["web-1", "web-2"]);
    let (status, reason, _) = strict_ready(&compiled, "db").expect("a condition");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "NoPlaintextCallers"));

    let all = policy("all", json!({"kind": "Namespace"}), json!({"mode": "Strict"}));
    let open = policy("web", json!({"kind": "Service", "name": "web"}), json!({"mode": "Permissive"}));
    let compiled = compile::compile(&world(&[all, open], Vec::new()), "shop");
    assert_eq!(names(&compiled.permissive), ["web-1", "web-2"], "on the port of the Service");
}

/// The Mesh's condition is about what its mode decides.
#[test]
fn mesh_sums_up_what_no_policy_decides() {
    let account = policy("db", json!({"kind": "ServiceAccount", "name": "db"}), json!({"mode": "Permissive"}));
    let calls: &[(&str, u16)] = &[("198.18.0.9", 8080)];
    let answers = || vec![answer("web-1", Some(calls)), answer("web-2", Some(&[])), answer("db-0", Some(calls))];
    let compiled = compile::compile(&world(&[account], answers()), "shop");
    let diagnostic = compiled.strictness.diagnostic();
    assert_eq!(diagnostic.message, "Strict would refuse a caller of the last 10 minutes: legacy/cron (port 8080)");
    let mut all = compiled.strictness.clone();
    all.merge(&compile::compile(&world(&[], vec![answer("web-1", Some(&[("203.0.113.7", 80)]))]), "shop").strictness);
    let message = all.diagnostic().message;
    assert!(message.starts_with("Strict would refuse 2 callers") && message.contains("2 of 5 pods"), "{message}");

    let mesh =
        json!({"kind": "Mesh", "metadata": {"name": "weft", "generation": 1}, "spec": {"mtls": {"mode": "Strict"}}});
    let compiled = compile::compile(&world(&[mesh], answers()), "shop");
    assert!(compiled.permissive.is_empty());
    assert_eq!(compiled.strictness.diagnostic().reason.to_string(), "NoPlaintextCallers");
}

#[test]
fn further_callers_are_counted() {
    let addresses: Vec<String> = (1..=7).map(|number| format!("203.0.113.{number}")).collect();
    let calls: Vec<(&str, u16)> = addresses.iter().map(|address| (address.as_str(), 80)).collect();
    let answers = vec![answer("web-1", Some(&calls)), answer("web-2", Some(&[])), answer("db-0", Some(&[]))];
    let message = compile::compile(&world(&[], answers), "shop").strictness.diagnostic().message;
    assert!(message.starts_with("Strict would refuse 7 callers") && message.ends_with(" and 2 more"), "{message}");
    assert!(message.contains("203.0.113.5 (port 80)") && !message.contains("203.0.113.6"), "{message}");
}
