use super::sample::sample;
use super::*;

#[test]
fn page_has_a_point_per_response_and_a_mark_per_apply() {
    let story = sample();
    let page = html(&story);
    let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
    let encrypted = story.traffic.iter().filter(|traffic| traffic.is_encrypted()).count();
    assert_eq!(shown(&page), Shown { answers, applies: story.steps.len(), encrypted });
    assert_eq!(
        page.matches("class=\"mark\" d").count(),
        2 * story.streams.len() * story.steps.len(),
        "lines of applies"
    );
    assert_eq!(page.matches("<article id=\"step-").count(), story.steps.len(), "steps");
}

#[test]
fn page_says_which_requests_were_not_encrypted() {
    let mut story = sample();
    let all = shown(&html(&story)).encrypted;
    assert!(all == story.traffic.len() && all > 0, "{all}");
    assert!(html(&story).contains("<dd>100 %</dd>"), "all requests are encrypted");
    story.traffic[0].encrypted = 0;
    story.traffic[1].encrypted -= 1;
    let page = html(&story);
    assert_eq!(shown(&page).encrypted, all - 2);
    assert!(page.contains(">none</td>") && !page.contains("<dd>100 %</dd>"), "two rows are not all encrypted");
}

#[test]
fn page_loads_no_external_resources() {
    let page = html(&sample()).replace("url(#hatch)", "");
    for word in ["<script", "<link", "<img", "src=", "url(", "@import"] {
        assert!(!page.contains(word), "the page contains {word}");
    }
}

#[test]
fn text_from_the_cluster_is_escaped() {
    let mut story = sample();
    story.environment = "<b>&\"".to_owned();
    story.steps[0].yaml = "</pre><script>".to_owned();
    story.streams[0].name = "<i>".to_owned();
    let page = html(&story);
    assert!(page.contains("&lt;b&gt;&amp;&quot;"), "the environment is escaped");
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;"), "the YAML is escaped");
    assert!(page.contains("<b>&lt;i&gt;</b>"), "names are escaped");
}

#[test]
fn page_without_traffic_renders() {
    let page = html(&Story::default());
    assert!(page.ends_with("</html>\n"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn durations_have_at_most_three_digits() {
    for (ms, expected) in [(0.44, "0.4 ms"), (9.96, "10 ms"), (120.4, "120 ms"), (999.7, "1.00 s"), (2001.0, "2.00 s")]
    {
        assert_eq!(millis(ms), expected);
    }
    assert_eq!(thousands(1_234_567), "1\u{202f}234\u{202f}567");
    assert_eq!(thousands(999), "999");
}
