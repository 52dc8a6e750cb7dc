use super::sample::sample;
use super::*;

#[test]
fn every_answer_is_a_point_and_every_apply_a_mark() {
    let story = sample();
    let page = html(&story);
    let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
    assert_eq!(shown(&page), Shown { answers, applies: story.steps.len() });
    assert_eq!(
        page.matches("class=\"mark\" d").count(),
        2 * story.streams.len() * story.steps.len(),
        "lines of applies"
    );
    assert_eq!(page.matches("<article").count(), story.steps.len(), "steps");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = html(&sample()).replace("url(#hatch)", "");
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
