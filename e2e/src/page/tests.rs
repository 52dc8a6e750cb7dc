use super::*;

/// The demo as it should go, made up.
pub(crate) fn sample() -> Story {
    let mut state = 7_u64;
    let mut random = move || {
        // Numerical Recipes' generator: the sample is the same each time.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / 2_147_483_648.0
    };
    let version = |version: &str| Outcome::Version(version.to_owned());
    let applied = [8_200.0, 18_400.0, 28_500.0, 38_700.0, 49_300.0];
    let length_ms = 60_000.0;
    let mut stream = |name: &str, sends: &str, every_ms: f64, answer: &dyn Fn(f64, f64, usize) -> (f64, Outcome)| {
        let mut answers = Vec::new();
        let mut sent_ms = 0.0;
        while sent_ms < length_ms - 3_000.0 {
            let (latency_ms, outcome) = answer(sent_ms, random(), answers.len());
            answers.push(Answer { sent_ms, latency_ms: latency_ms * (1.0 + random() * random()), outcome });
            sent_ms += every_ms;
        }
        Stream { name: name.to_owned(), sends: sends.to_owned(), answers }
    };
    let split = |sent: f64, random: f64| {
        if sent < applied[0] {
            version(if random < 0.33 { "v1" } else if random < 0.67 { "v2" } else { "v3" })
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
        stream("reviews, x-user: beta", "the same with header x-user: beta, 10 times a second", 100.0, &|sent, random, _| {
            (1.7, if sent > applied[2] { version("v3") } else { split(sent, random) })
        }),
        stream("ratings, slow", "GET http://ratings:9080/ 5 times a second", 200.0, &|sent, random, _| {
            if sent > applied[3] && random < 0.5 { (1900.0, Outcome::Status(504)) } else { (1200.0 + 1800.0 * random, version("v1")) }
        }),
        stream("stock, fails every third time", "GET http://stock:9080/ 10 times a second", 100.0, &|sent, _, n| {
            if sent < applied[4] && n % 3 == 0 { (1.5, Outcome::Status(503)) } else { (2.4, version("v1")) }
        }),
    ];
    let names: Vec<String> = streams.iter().map(|stream| stream.name.clone()).collect();
    let titles = [
        ("all to v1", "Every request for reviews goes to v1"),
        ("90/10", "Nine of ten stay at v1, one tries v2"),
        ("beta to v3", "Visitors with the header x-user: beta get v3"),
        ("2 s timeout", "A request to ratings may take two seconds"),
        ("retries", "What stock fails is tried again"),
    ];
    let about = [vec![0, 1], vec![0, 1], vec![1], vec![2], vec![3]];
    let steps = titles
        .iter()
        .zip(applied)
        .zip(about)
        .map(|(((label, title), applied_ms), about)| Step {
            label: (*label).to_owned(),
            title: (*title).to_owned(),
            yaml: "apiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata:\n  name: reviews\n  namespace: shop\nspec:\n  parentRefs:\n  - kind: Service\n    name: reviews\n  http:\n  - backendRefs:\n    - {name: reviews, port: 9080, subset: v1, weight: 90}\n    - {name: reviews, port: 9080, subset: v2, weight: 10}\n".to_owned(),
            applied_ms,
            settled_ms: applied_ms + 300.0,
            about: about.into_iter().map(|index: usize| names[index].clone()).collect(),
            weft: "NAMESPACE   NAME                              SERVICE   ACCEPTED   RESOLVED   PROGRAMMED   AGE\nshop        meshroute.weft.dev/reviews        reviews   True       True       True         12s\n\nNAMESPACE   NAME                              TARGET    ACCEPTED   RESOLVED   PROGRAMMED   AGE\nshop        meshcluster.weft.dev/reviews      reviews   True       True       True         40s\n".to_owned(),
        })
        .collect();
    Story { place: "Kubernetes v1.36.3, one node, namespace shop".to_owned(), length_ms, streams, steps }
}

#[test]
fn every_answer_is_a_point_and_every_apply_a_mark() {
    let story = sample();
    let page = html(&story);
    let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
    let points: usize =
        page.lines().filter(|line| line.contains("class=\"dots")).map(|line| line.matches("h0").count()).sum();
    assert_eq!(points, answers, "points in the latency plots");
    assert_eq!(page.matches("class=\"apply\"").count(), story.steps.len(), "labels of applies");
    assert_eq!(page.matches("class=\"mark\" d").count(), 2 * story.streams.len() * story.steps.len(), "lines of applies");
    assert_eq!(page.matches("<article").count(), story.steps.len(), "steps");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = html(&sample());
    for word in ["<script", "<link", "<img", "src=", "url(", "@import"] {
        assert!(!page.contains(word), "the page contains {word}");
    }
}

#[test]
fn text_from_the_cluster_is_text() {
    let mut story = sample();
    story.place = "<b>&\"".to_owned();
    story.steps[0].yaml = "</pre><script>".to_owned();
    story.streams[0].name = "<i>".to_owned();
    let page = html(&story);
    assert!(page.contains("&lt;b&gt;&amp;&quot;"), "the place is escaped");
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;"), "the YAML is escaped");
    assert!(page.contains("<b>&lt;i&gt;</b>"), "names are escaped");
}

#[test]
fn a_story_without_traffic_is_a_page_too() {
    let page = html(&Story::default());
    assert!(page.ends_with("</html>\n"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn durations_have_three_digits_at_most() {
    for (ms, said) in [(0.44, "0.4 ms"), (9.96, "10 ms"), (120.4, "120 ms"), (999.7, "1.00 s"), (2001.0, "2.00 s")] {
        assert_eq!(millis(ms), said);
    }
    assert_eq!(thousands(1_234_567), "1\u{202f}234\u{202f}567");
    assert_eq!(thousands(999), "999");
}

/// Writes the sample for a person to look at: `cargo test -p weft-e2e --lib -- --ignored sample_page`.
#[test]
#[ignore = "for looking at"]
fn sample_page() {
    let folder = crate::cluster::target().join("demo");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("sample.html"), html(&sample())).unwrap();
}
