//! Synthetic data, for tests of the page and for working on its design without a cluster.

use super::{Answer, Outcome, Step, Story, Stream, Traffic};

/// Synthetic data of a successful demo.
pub fn sample() -> Story {
    let mut state = 7_u64;
    let mut random = move || {
        // A linear congruential generator with a fixed seed (Numerical Recipes): the sample is the same each time.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / 2_147_483_648.0
    };
    let version = |version: &str| Outcome::Version(version.to_owned());
    let applied = [8_200.0, 18_400.0, 28_500.0, 38_700.0, 49_300.0];
    let length_ms = 60_000.0;
    let mut stream =
        |name: &str, description: &str, every_ms: f64, answer: &dyn Fn(f64, f64, usize) -> (f64, Outcome)| {
            let mut answers = Vec::new();
            let mut sent_ms = 0.0;
            while sent_ms < length_ms - 3_000.0 {
                let (latency_ms, outcome) = answer(sent_ms, random(), answers.len());
                answers.push(Answer { sent_ms, latency_ms: latency_ms * (1.0 + random() * random()), outcome });
                sent_ms += every_ms;
            }
            Stream { name: name.to_owned(), description: description.to_owned(), answers }
        };
    let split = |sent: f64, random: f64| {
        if sent < applied[0] {
            version(if random < 0.33 {
                "v1"
            } else if random < 0.67 {
                "v2"
            } else {
                "v3"
            })
        } else if sent < applied[1] || random < 0.9 {
            version("v1")
        } else {
            version("v2")
        }
    };
    let streams = vec![
        stream("reviews, any visitor", "GET http://reviews:9080/ 20 times a second", 50.0, &|sent, random, _| {
            (1.8, split(sent, random))
        }),
        stream(
            "reviews, x-user: beta",
            "the same with header x-user: beta, 10 times a second",
            100.0,
            &|sent, random, _| (1.7, if sent > applied[2] { version("v3") } else { split(sent, random) }),
        ),
        stream("ratings, slow", "GET http://ratings:9080/ 5 times a second", 200.0, &|sent, random, _| {
            if sent > applied[3] && random < 0.5 {
                (1900.0, Outcome::Status(504))
            } else {
                (1200.0 + 1800.0 * random, version("v1"))
            }
        }),
        stream("stock, fails every third time", "GET http://stock:9080/ 10 times a second", 100.0, &|sent, _, n| {
            if sent < applied[4] && n % 3 == 0 { (1.5, Outcome::Status(503)) } else { (2.4, version("v1")) }
        }),
    ];
    let names: Vec<String> = streams.iter().map(|stream| stream.name.clone()).collect();
    let titles = [
        ("all to v1", "Every request for reviews goes to v1"),
        ("90/10", "A tenth of the requests to reviews goes to v2"),
        ("beta to v3", "Requests with x-user: beta go to v3"),
        ("2 s timeout", "Requests to ratings time out after 2 s"),
        ("retries", "Failed requests to stock are retried"),
    ];
    let affects = [vec![0, 1], vec![0, 1], vec![1], vec![2], vec![3]];
    let steps = titles
        .iter()
        .zip(applied)
        .zip(affects)
        .map(|(((label, title), applied_ms), affects)| Step {
            label: (*label).to_owned(),
            title: (*title).to_owned(),
            yaml: "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata:\n  name: reviews\n  namespace: shop\nspec:\n  parentRefs:\n  - kind: Service\n    name: reviews\n  http:\n  - backendRefs:\n    - {name: reviews, port: 9080, subset: v1, weight: 90}\n    - {name: reviews, port: 9080, subset: v2, weight: 10}\n".to_owned(),
            applied_ms,
            settled_ms: applied_ms + 300.0,
            affects: affects.into_iter().map(|index: usize| names[index].clone()).collect(),
            status_command: "kubectl get weft -A".to_owned(),
            status: "NAMESPACE   NAME                              SERVICE   READY   REASON   AGE\nshop        meshroute.weft.dev/reviews        reviews   True    Ready    12s\n\nNAMESPACE   NAME                              TARGET    READY   REASON   AGE\nshop        meshcluster.weft.dev/reviews      reviews   True    Ready    40s\n".to_owned(),
        })
        .collect();
    let traffic = [
        ("client", Some("reviews"), 1710),
        ("reviews", Some("ratings"), 1710),
        ("reviews", None, 1710),
        ("ratings", None, 1710),
    ];
    let traffic = traffic.map(|(app, service, requests)| Traffic {
        app: app.to_owned(),
        service: service.map(str::to_owned),
        requests,
        encrypted: requests,
    });
    let environment = "Kubernetes v1.36.3, one node, namespace shop".to_owned();
    Story { environment, length_ms, streams, steps, traffic: traffic.to_vec() }
}
