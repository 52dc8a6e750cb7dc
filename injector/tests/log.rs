//! What the injector logs about pods. One test in a process of its own: a log that is set while other threads log may
//! miss events.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

mod support;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{Fixture, patched, pod, review};

/// Collects log events as text: level, then message and fields.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("weft_injector")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn each_pod_is_logged_once_with_its_controller_and_the_reason() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let fixture = Fixture::new();
    let mut pod = pod();
    pod["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9", "uid": "u", "controller": true }]);
    let injected = patched(&fixture.review(&review("shop", &pod)).await, &pod);
    let with = |pointer: &str, field: &str, value: Value| {
        let mut pod = pod.clone();
        pod.pointer_mut(pointer).unwrap()[field] = value;
        pod
    };
    for pod in [
        injected,
        with("/metadata", "labels", json!({ "weft.dev/inject": "false" })),
        with("/spec", "hostNetwork", json!(true)),
        with("/metadata", "labels", json!({ "weft.dev/inject": "maybe" })),
    ] {
        fixture.review(&review("shop", &pod)).await;
    }
    let names = "ns=\"shop\" name=\"web-\" owner=\"ReplicaSet/web-7d9\"";
    let lines = log.0.lock().unwrap().clone();
    let expected = [
        ("INFO message=injected", names),
        ("DEBUG message=skipped", "reason=\"already-injected\""),
        ("DEBUG message=skipped", "reason=\"pod-opted-out\""),
        ("INFO message=skipped", "reason=\"host-network\""),
        ("WARN message=refused", "reason=\"inject-label\""),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (start, part)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(names) && line.contains(part), "{line}: {start} {part}");
    }
}
