use serde_json::json;

use super::*;
use crate::world::objects::RawMeshObject;
use crate::world::{Change, Document, NamespaceMeta};

#[test]
fn state_has_synced_when_every_kind_was_listed() {
    let (mut state, kinds) = (State::default(), WatchedKind::ALL);
    let namespaces: Vec<NamespaceMeta> = Vec::new();
    state.observe(Event::Namespace(Change::Reset(namespaces)), Instant::now());
    assert_eq!(state.listed, BTreeSet::from([WatchedKind::Namespaces]));
    state.listed.extend(kinds.iter().skip(2));
    assert!(!state.has_synced(), "services are missing");
    state.listed.extend(kinds);
    assert!(state.has_synced());
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn referenced_namespaces_are_written_first() {
    let mut state = State::default();
    state.references.insert("a".into(), set(&["b", "elsewhere"]));
    state.references.insert("b".into(), set(&["c"]));
    assert_eq!(state.levels(set(&["a", "b", "c", "d"])), [vec!["c", "d"], vec!["b"], vec!["a"]]);
    state.references.insert("c".into(), set(&["a"]));
    assert_eq!(state.levels(set(&["a", "b", "c", "d"])), [vec!["d"], vec!["a", "b", "c"]], "a cycle ends");
}

#[test]
fn mesh_is_programmed_when_every_namespace_was_written_with_its_mode() {
    let now = Instant::now();
    let mut state = State::new();
    for name in ["a", "b"] {
        state.observe(Event::Namespace(Change::Apply(NamespaceMeta { name: name.into(), enabled: true })), now);
    }
    let written = |state: &mut State, scope: &str, delivery| {
        state.delivery.insert((DocumentKind::Inbound, scope.to_owned()), delivery);
        state.mode_written(scope);
    };
    assert!(matches!(state.delivery_of_mesh(false), Delivery::Written(_)), "nothing to write");
    let mesh = json!({"metadata": {"name": "weft"}, "spec": {"mtls": {"mode": "Strict"}}});
    let mesh: RawMeshObject<weft_crds::Mesh> = serde_json::from_value(mesh).unwrap();
    state.observe(Event::Mesh(Change::Apply(mesh.read())), now);
    assert_eq!(
        state.delivery_of_mesh(false),
        Delivery::Pending("namespaces do not have the mode yet: a, 2 in all".into())
    );
    state.dirty.clear();
    written(&mut state, "a", Delivery::Written("in i.a".into()));
    written(&mut state, "b", Delivery::Pending("a conflict".into()));
    assert_eq!(
        state.delivery_of_mesh(false),
        Delivery::Pending("namespaces do not have the mode yet: b, 1 in all".into())
    );
    assert!(matches!(state.delivery_of_mesh(true), Delivery::Written(_)), "they had it before a restart");
    assert!(state.dirty.is_empty());
    written(&mut state, "b", Delivery::Written("in i.b".into()));
    assert!(matches!(state.delivery_of_mesh(false), Delivery::Written(_)));
    assert_eq!(state.dirty, set(&[INDEX]), "its status is to be written");
}

/// Only documents of namespaces have the mode.
#[test]
fn programmed_of_the_mesh_does_not_wait_for_documents_of_pods() {
    let (now, mut state) = (Instant::now(), State::new());
    for (kind, name) in [(DocumentKind::Export, "x.a"), (DocumentKind::Pods, "p.198.18.129.0")] {
        let document = Document { name: name.into(), ..Document::default() };
        state.observe(Event::Document(kind, Change::Apply(document)), now);
    }
    state.reset(Some(1), now);
    assert_eq!(state.dirty, set(&[INDEX, "a", "p.198.18.129.0"]));
    assert_eq!(state.without_mode, set(&["a"]));
}

#[test]
fn retries_back_off_up_to_a_limit() {
    let mut state = State::default();
    for _ in 0..40 {
        state.retry("shop", Instant::now());
    }
    let wait = state.not_before["shop"] - Instant::now();
    assert!(wait <= RETRY_MAX && wait > RETRY_MAX / 2, "{wait:?}");
    assert!(state.take_due(Instant::now()).is_empty(), "backing off");
    state.schedule(Instant::now());
    assert!(state.flush_at.is_some_and(|at| at > Instant::now()), "scheduled for later");
}

#[test]
fn change_does_not_wait_for_the_retry_of_another_namespace() {
    let (mut state, now) = (State::new(), Instant::now());
    for _ in 0..40 {
        state.retry("failing", now);
    }
    state.schedule(now);
    assert_eq!(state.flush_at, Some(now + RETRY_MAX));
    let meta = NamespaceMeta { name: "shop".into(), enabled: true };
    state.observe(Event::Namespace(Change::Apply(meta)), now);
    assert_eq!(state.flush_at, Some(now + COALESCE_MIN));
}

#[test]
fn statuses_are_throttled_and_delay_nothing_else() {
    let (mut state, start) = (State::new(), Instant::now());
    let id = ObjectId { kind: crate::world::Kind::Policy, key: crate::world::Key::new("shop", "p") };
    assert!(state.may_write_status(&id, true, start), "the first");
    state.status_written(id.clone(), start);
    let soon = start + Duration::from_millis(500);
    assert!(!state.may_write_status(&id, false, soon));
    assert!(!state.may_write_status(&id, true, soon));
    state.schedule(soon);
    assert_eq!(state.flush_at, Some(start + STATUS_INTERVAL), "the earlier of both");
    state.dirty.insert("shop".into());
    assert_eq!(state.take_due(soon), ["shop"], "a change of the configuration does not wait");

    let later = start + STATUS_INTERVAL;
    assert_eq!(state.take_due(later), ["shop"]);
    assert!(state.may_write_status(&id, true, later), "a status changed");
    assert!(!state.may_write_status(&id, false, later), "only the message changed");
    state.schedule(later);
    assert_eq!(state.flush_at, Some(start + MESSAGE_INTERVAL));
    assert!(state.may_write_status(&id, false, start + MESSAGE_INTERVAL));
}

#[test]
fn messages_of_many_objects_are_spread_over_time() {
    let (mut state, start) = (State::new(), Instant::now());
    let id =
        |n: u32| ObjectId { kind: crate::world::Kind::Policy, key: crate::world::Key::new("shop", format!("p{n}")) };
    let written =
        |state: &mut State, is_prompt, at| (0..100).filter(|n| state.may_write_status(&id(*n), is_prompt, at)).count();
    assert_eq!(written(&mut state, false, start), MESSAGES_MAX as usize);
    assert_eq!(written(&mut state, true, start), 100, "a status that changed does not wait");
    assert_eq!(written(&mut state, false, start + STATUS_INTERVAL / 2), 0);
    assert_eq!(state.status_due["shop"], start + STATUS_INTERVAL);
    assert_eq!(written(&mut state, false, start + STATUS_INTERVAL), MESSAGES_MAX as usize);
}

#[test]
fn first_change_is_written_at_once_and_a_burst_is_coalesced() {
    let namespace = |name: &str, enabled| Event::Namespace(Change::Apply(NamespaceMeta { name: name.into(), enabled }));
    let mut state = State::new();
    state.observe(namespace("a", true), Instant::now());
    assert_eq!(state.coalesce, COALESCE_MIN);
    for round in 0..8 {
        assert_eq!(state.take_due(Instant::now()).len(), 1);
        state.last_flush = Some(Instant::now());
        state.observe(namespace("a", round % 2 == 1), Instant::now());
    }
    assert_eq!(state.coalesce, COALESCE_MAX);
}
