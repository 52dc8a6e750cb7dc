//! The result does not depend on the order of events: equal states compile to equal bytes, and the scopes that an
//! event marks are sufficient to recompile.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_config::bootstrap::{pods_name, prefix_of_name};
use weft_config::{Envelope, Pods, Written};
use weft_operator::compile::{self, Compiled};
use weft_operator::world::World;

use support::{applied, deleted, identified, namespace, pod, service, slice};

/// How many there are.
const OBJECTS: usize = 28;

fn objects() -> Vec<Value> {
    let route = |namespace: &str, name: &str, created: u32, parent: Value, path: &str, backend: Value| {
        json!({
            "kind": "MeshRoute",
            "metadata": {"namespace": namespace, "name": name, "creationTimestamp": format!("2026-01-0{created}T00:00:00Z")},
            "spec": {"parentRefs": [parent], "http": [{"matches": [{"path": {"value": path}}], "backendRefs": [backend]}]},
        })
    };
    let gateway_route = |kind: &str, namespace: &str, name: &str, mut parents: Value, backend: Value| {
        for parent in parents.as_array_mut().expect("a list") {
            parent["group"] = json!("");
            parent["kind"] = json!("Service");
        }
        json!({
            "kind": kind, "metadata": {"namespace": namespace, "name": name},
            "spec": {"parentRefs": parents, "rules": [{"backendRefs": [backend]}]},
        })
    };
    let cluster = |name: &str, created: u32, version: &str| {
        json!({
            "kind": "MeshCluster",
            "metadata": {"namespace": "a", "name": name, "creationTimestamp": format!("2026-01-0{created}T00:00:00Z")},
            "spec": {"targetRef": {"name": "web"}, "subsets": [{"name": "v", "labels": {"version": version}}]},
        })
    };
    vec![
        namespace("a"),
        namespace("b"),
        service("a", "web", "10.0.0.1"),
        service("a", "api", "10.0.0.2"),
        service("b", "web", "10.0.1.1"),
        pod("a", "web-1", json!({"app": "web", "version": "1"})),
        pod("a", "web-2", json!({"app": "web", "version": "2"})),
        pod("a", "client-1", json!({"app": "client", "weft.dev/proxy-version": "1"})),
        pod("b", "other-1", json!({"app": "web", "weft.dev/proxy-version": "1"})),
        // The second and the third claim one address.
        identified("a", "db-0", "db", "10.2.0.1"),
        identified("a", "db-1", "db", "10.2.0.2"),
        identified("b", "new", "new", "10.2.0.2"),
        slice("a", "web", &[("web-2", "10.1.0.2"), ("web-1", "10.1.0.1")]),
        slice("b", "web", &[("other-1", "10.1.1.1")]),
        cluster("one", 2, "1"),
        cluster("two", 1, "2"),
        route("a", "r1", 1, json!({"name": "web"}), "/", json!({"name": "web", "port": 80, "subset": "v"})),
        route("a", "r2", 1, json!({"name": "web"}), "/", json!({"name": "api", "port": 80})),
        route(
            "a",
            "r3",
            3,
            json!({"name": "web", "port": 80}),
            "/x",
            json!({"name": "web", "namespace": "b", "port": 80}),
        ),
        route("b", "r4", 1, json!({"name": "web", "namespace": "a"}), "/", json!({"name": "web", "port": 80})),
        json!({
            "kind": "MeshPolicy", "metadata": {"namespace": "a", "name": "p"},
            "spec": {"targetRef": {"kind": "Service", "name": "web"}, "authorization": {"rules": [{"action": "Deny"}]}},
        }),
        json!({
            "kind": "MeshPolicy", "metadata": {"namespace": "a", "name": "callers"},
            "spec": {"targetRef": {"kind": "Namespace"}, "authorization": {"default": "Deny", "rules": [
                {"action": "Allow", "from": [{"serviceAccounts": ["b/robot"]}, {"namespaces": ["bb"]}]},
            ]}},
        }),
        json!({"kind": "ServiceAccount", "metadata": {"namespace": "b", "name": "robot"}}),
        json!({
            "kind": "ReferenceGrant", "metadata": {"namespace": "b", "name": "g"},
            "spec": {
                "from": [
                    {"group": "weft.dev", "kind": "MeshRoute", "namespace": "a"},
                    {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "namespace": "a"},
                ],
                "to": [{"group": "", "kind": "Service"}],
            },
        }),
        // Beside r1 to r3, for a Service of its own, and for one of another namespace.
        gateway_route(
            "HTTPRoute",
            "a",
            "h1",
            json!([{"name": "web"}, {"name": "api"}]),
            json!({"name": "web", "port": 80}),
        ),
        gateway_route(
            "HTTPRoute",
            "b",
            "h2",
            json!([{"name": "web", "namespace": "a"}]),
            json!({"name": "web", "namespace": "a", "port": 80}),
        ),
        gateway_route(
            "GRPCRoute",
            "a",
            "g1",
            json!([{"name": "api"}]),
            json!({"name": "web", "namespace": "b", "port": 80}),
        ),
        gateway_route("TCPRoute", "b", "t1", json!([{"name": "web"}]), json!({"name": "web", "port": 80})),
    ]
}

fn all(world: &World) -> BTreeMap<String, Compiled> {
    world.mesh().into_iter().map(|name| (name.clone(), compile::compile(world, &name))).collect()
}

fn all_pods(world: &World) -> BTreeMap<String, Pods> {
    world.prefixes().into_iter().map(|prefix| (pods_name(prefix), compile::pods(world, prefix))).collect()
}

fn bytes(compiled: &BTreeMap<String, Compiled>) -> Vec<Envelope> {
    let envelopes = compiled.values().flat_map(|compiled| {
        [Envelope::write(Written::default(), &compiled.export), Envelope::write(Written::default(), &compiled.inbound)]
    });
    envelopes.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn equal_states_give_equal_bytes(order in Just(objects()).prop_shuffle(), detour in prop::collection::vec(0..OBJECTS, 0..8)) {
        let expected = all(&support::world(&objects()));
        let mut world = World::default();
        for object in &order {
            world.observe(applied(object));
        }
        // Objects that are deleted and created again leave no trace.
        for index in &detour {
            world.observe(deleted(&order[*index]));
        }
        for index in &detour {
            world.observe(applied(&order[*index]));
        }
        let found = all(&world);
        prop_assert_eq!(bytes(&found), bytes(&expected));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(all_pods(&world), all_pods(&support::world(&objects())));
    }

    /// As in the reconcile loop: compile the scopes that an event marked, and the referrers of a namespace whose
    /// exports changed.
    #[test]
    fn marked_scopes_are_sufficient(steps in prop::collection::vec((0..OBJECTS, any::<bool>()), 1..80)) {
        let objects = objects();
        let mut world = World::default();
        let mut pods: BTreeMap<String, Pods> = BTreeMap::new();
        let mut cache: BTreeMap<String, (Option<Compiled>, compile::Exports, BTreeSet<String>)> = BTreeMap::new();
        for (index, there) in steps {
            let event = if there { applied(&objects[index]) } else { deleted(&objects[index]) };
            let mut dirty = world.observe(event).scopes;
            while let Some(scope) = dirty.pop_first() {
                if let Some(prefix) = prefix_of_name(&scope) {
                    pods.insert(scope, compile::pods(&world, prefix));
                    continue;
                }
                let compiled = world.in_mesh(&scope).then(|| compile::compile(&world, &scope));
                let exports = compiled.as_ref().map(|compiled| compile::exports(&world, &scope, compiled)).unwrap_or_default();
                let references = world.references(&scope);
                let before = cache.insert(scope.clone(), (compiled, exports.clone(), references.clone()));
                let (_, seen, named) = before.unwrap_or_default();
                if seen != exports {
                    dirty.extend(world.referrers(&scope).map(str::to_owned));
                }
                dirty.extend(named.symmetric_difference(&references).filter(|other| **other != scope).cloned());
            }
            let found: BTreeMap<String, Compiled> =
                cache.iter().filter_map(|(name, (compiled, ..))| Some((name.clone(), compiled.clone()?))).collect();
            prop_assert_eq!(found, all(&world));
            pods.retain(|_, document| !document.pods.is_empty());
            prop_assert_eq!(&pods, &all_pods(&world));
        }
    }
}
