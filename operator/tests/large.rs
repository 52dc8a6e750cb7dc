//! A large namespace compiles within a time limit. `--nocapture --test-threads 1` prints the times, and the memory that
//! a World takes.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use weft_config::{Envelope, Written};
use weft_operator::compile;
use weft_operator::world::World;

use support::{applied, namespace, pod, service, slice};

/// Ten times what the largest case takes on two cores: a busy machine does not fail the test, quadratic time does.
const LIMIT: Duration = Duration::from_secs(2);

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn large_namespace_compiles_within_the_limit() {
    for (services, pods) in [(10, 10), (100, 30), (1_000, 20)] {
        let before = resident_kib();
        let mut world = World::default();
        world.observe(applied(&namespace("shop")));
        for s in 0..services {
            let name = format!("service-{s}");
            world.observe(applied(&service("shop", &name, &format!("10.0.{}.{}", s / 256, s % 256))));
            let names: Vec<(String, String)> =
                (0..pods).map(|p| (format!("{name}-{p}"), format!("10.{}.{}.{}", 1 + s / 256, s % 256, p))).collect();
            for (pod_name, _) in &names {
                let labels = json!({"app": name, "version": "v1", "weft.dev/proxy-version": "0.1.0"});
                let mut pod = pod("shop", pod_name, labels);
                pod["spec"] = json!({
                    "serviceAccountName": name, "nodeName": "node-1",
                    "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}],
                });
                world.observe(applied(&pod));
            }
            let endpoints: Vec<(&str, &str)> = names.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
            world.observe(applied(&slice("shop", &name, &endpoints)));
            world.observe(applied(&json!({
                "kind": "MeshCluster", "metadata": {"namespace": "shop", "name": name},
                "spec": {"targetRef": {"name": name}, "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
            })));
            world.observe(applied(&json!({
                "kind": "MeshRoute", "metadata": {"namespace": "shop", "name": name},
                "spec": {"parentRefs": [{"name": name}], "http": [{"backendRefs": [{"name": name, "port": 80, "subset": "v1"}]}]},
            })));
        }
        let memory = resident_kib().saturating_sub(before) / 1024;
        let started = Instant::now();
        let compiled = compile::compile(&world, "shop");
        let compile_time = started.elapsed();
        let started = Instant::now();
        let envelope = Envelope::write(Written::default(), &compiled.export);
        println!(
            "{services} services, {} pods: compiled in {compile_time:?}, packed in {:?} to {} bytes, the \
             World takes {memory} MiB",
            services * pods,
            started.elapsed(),
            envelope.stored_bytes()
        );
        assert_eq!(compiled.export.services.len(), services);
        assert!(compile_time < LIMIT, "{services} services took {compile_time:?}");
    }
}

#[test]
fn policies_of_many_pods_compile_within_the_limit() {
    let (services, pods) = (500, 20);
    let mut world = World::default();
    world.observe(applied(&namespace("shop")));
    for s in 0..services {
        let name = format!("service-{s}");
        world.observe(applied(&service("shop", &name, &format!("10.0.{}.{}", s / 256, s % 256))));
        for p in 0..pods {
            let mut pod = pod("shop", &format!("{name}-{p}"), json!({"app": name}));
            pod["spec"] = json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]});
            if p > 0 {
                pod["metadata"]["labels"]["weft.dev/proxy-version"] = json!("1");
            }
            world.observe(applied(&pod));
        }
        for (target, name) in [
            (json!({"kind": "Service", "name": name}), format!("service-{s}")),
            (json!({"kind": "Namespace"}), format!("all-{s}")),
        ] {
            world.observe(applied(&json!({
                "kind": "MeshPolicy", "metadata": {"namespace": "shop", "name": name},
                "spec": {"targetRef": target, "authorization": {"rules": [{"action": "Deny", "ports": [8080]}]}},
            })));
        }
    }
    let started = Instant::now();
    let compiled = compile::compile(&world, "shop");
    let compile_time = started.elapsed();
    let started = Instant::now();
    let touched = world.observe(applied(&pod("shop", "service-0-0", json!({"app": "changed"}))));
    let (event_time, events) = (started.elapsed(), touched.scopes.len());
    println!(
        "{} policies, {} pods: compiled in {compile_time:?}, one event in {event_time:?}",
        2 * services,
        pods * services
    );
    let messages =
        compiled.objects.values().flat_map(|outcome| &outcome.diagnostics).map(|found| found.message.as_str());
    let without: Vec<&str> = messages.filter(|message| message.contains("no proxy")).collect();
    assert_eq!(without.len(), 2 * services, "each policy is told of the pods without a proxy");
    assert!(compile_time < LIMIT, "{compile_time:?}");
    assert!(events == 1 && event_time < LIMIT / 100, "an event looks at no other pod: {event_time:?}");
}
