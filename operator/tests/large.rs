//! A large namespace compiles within a time limit; `--nocapture` prints the times.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use weft_config::{Envelope, Written};
use weft_operator::compile;
use weft_operator::world::World;

use support::{applied, namespace, pod, service, slice};

/// Ten times what the largest case takes on two cores: a busy machine does not fail the test, quadratic time does.
const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn large_namespace_compiles_within_the_limit() {
    for (services, pods) in [(10, 10), (100, 30), (1_000, 20)] {
        let mut world = World::default();
        world.observe(applied(&namespace("shop")));
        for s in 0..services {
            let name = format!("service-{s}");
            world.observe(applied(&service("shop", &name, &format!("10.0.{}.{}", s / 256, s % 256))));
            let names: Vec<(String, String)> =
                (0..pods).map(|p| (format!("{name}-{p}"), format!("10.{}.{}.{}", 1 + s / 256, s % 256, p))).collect();
            for (pod_name, _) in &names {
                world.observe(applied(&pod("shop", pod_name, json!({"app": name, "version": "v1"}))));
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
        let started = Instant::now();
        let compiled = compile::compile(&world, "shop");
        let compile_time = started.elapsed();
        let started = Instant::now();
        let envelope = Envelope::write(Written::default(), &compiled.export);
        println!(
            "{services} services, {} pods: compiled in {compile_time:?}, packed in {:?} to {} bytes",
            services * pods,
            started.elapsed(),
            envelope.stored_bytes()
        );
        assert_eq!(compiled.export.services.len(), services);
        assert!(compile_time < LIMIT, "{services} services took {compile_time:?}");
    }
}
