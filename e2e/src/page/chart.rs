//! The plots: for each client the rate of responses by outcome, and below it the latency of each response.
//!
//! A plot is 1000 wide and 100 high in SVG units, and stretched to its size on the screen.

use std::fmt::Write;

use super::{Answer, Outcome, Story, Stream, escape, millis, summarise};

/// Width of a bin of responses. Bins restart at each apply, so that a change starts exactly at its mark.
const BIN_MS: f64 = 1000.0;
/// Range of the logarithmic latency axis, in milliseconds.
const LATENCY_MS: (f64, f64) = (0.5, 10_000.0);
/// Share of the plot's height for the rates; above it are the labels with the shares.
const AREA_SHARE: f64 = 0.72;
/// Smaller shares get no label.
const LABEL_SHARE_MIN: f64 = 0.01;

/// Responses within a span of time.
#[derive(Debug)]
struct Bin {
    from_ms: f64,
    until_ms: f64,
    counts: Vec<usize>,
}

pub(super) fn section(story: &Story, out: &mut String) {
    let outcomes = story.outcomes();
    out.push_str("<section class=\"plots\">\n<h2>Responses over time</h2>\n<ul class=\"legend\">\n");
    for outcome in &outcomes {
        let _ =
            writeln!(out, "<li><i class=\"swatch {}\"></i>{}</li>", outcome.class(), escape(&outcome.explanation()));
    }
    out.push_str("</ul>\n<ol class=\"changes\">\n");
    for (index, step) in story.steps.iter().enumerate() {
        let number = index + 1;
        let label = escape(&step.label);
        let _ = writeln!(out, "<li><a href=\"#step-{number}\"><span class=\"number\">{number}</span>{label}</a></li>");
    }
    // Failures are hatched too, for readers who cannot distinguish the colours.
    out.push_str(
        "</ol>\n<svg class=\"defs\" aria-hidden=\"true\"><defs><pattern id=\"hatch\" patternUnits=\"userSpaceOnUse\" width=\"5\" \
         height=\"100\"><rect class=\"stripe\" width=\"1.5\" height=\"100\"/></pattern></defs></svg>\n",
    );
    rail(story, out);
    for stream in &story.streams {
        plot(story, stream, &outcomes, out);
    }
    axis(story, out);
    out.push_str("</section>\n");
}

/// The time of each apply, with a link to its step.
fn rail(story: &Story, out: &mut String) {
    out.push_str("<div class=\"rail\"><span>applied</span><div class=\"track\">\n");
    for (index, step) in story.steps.iter().enumerate() {
        let number = index + 1;
        let next = story.steps.get(index + 1).map_or(story.length_ms, |next| next.applied_ms);
        let _ = writeln!(
            out,
            "<a class=\"apply\" href=\"#step-{number}\" style=\"left:{:.2}%;width:{:.2}%\" title=\"{}\">\
             <span class=\"number\">{number}</span><span class=\"label\">{}</span></a>",
            percent(story, step.applied_ms),
            percent(story, next - step.applied_ms),
            escape(&step.title),
            escape(&step.label),
        );
    }
    out.push_str("</div></div>\n");
}

fn plot(story: &Story, stream: &Stream, outcomes: &[Outcome], out: &mut String) {
    let bins = bins(story, stream, outcomes);
    let rate = |bin: &Bin, count: usize| count as f64 * 1000.0 / (bin.until_ms - bin.from_ms);
    let highest = bins.iter().map(|bin| rate(bin, bin.counts.iter().sum())).fold(1.0, f64::max);
    let scale = 100.0 * AREA_SHARE / highest;
    let _ = write!(
        out,
        "<figure class=\"stream\">\n<figcaption><b>{}</b> <span>{}</span></figcaption>\n<div class=\"plot rate\">\
         <span class=\"y\" style=\"bottom:0\">0</span><span class=\"y\" style=\"bottom:{:.1}%\">{highest:.0}/s</span>\n",
        escape(&stream.name),
        escape(&stream.description),
        100.0 * AREA_SHARE,
    );
    share_labels(story, stream, out);
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Responses per second to {}, by version \
         and status; the tables below have the numbers\">",
        escape(&stream.name)
    );
    for (index, outcome) in outcomes.iter().enumerate() {
        let mut path = String::new();
        for bin in &bins {
            let below: usize = bin.counts[..index].iter().sum();
            let (count, left, right) = (bin.counts[index], x(story, bin.from_ms), x(story, bin.until_ms));
            if count > 0 {
                let bottom = 100.0 - rate(bin, below) * scale;
                let top = bottom - rate(bin, count) * scale;
                let _ = write!(path, "M{left:.1} {bottom:.1}V{top:.1}H{right:.1}V{bottom:.1}Z");
            }
        }
        if !path.is_empty() {
            let _ = writeln!(out, "<path class=\"area {}\" d=\"{path}\"/>", outcome.class());
            if !matches!(outcome, Outcome::Version(_)) {
                let _ = writeln!(out, "<path class=\"hatch\" d=\"{path}\"/>");
            }
        }
    }
    marks(story, out);
    for bin in &bins {
        let counts: Vec<String> = outcomes
            .iter()
            .zip(&bin.counts)
            .filter(|(_, count)| **count > 0)
            .map(|(outcome, count)| format!("{count} × {}", outcome.label()))
            .collect();
        let (left, right) = (x(story, bin.from_ms), x(story, bin.until_ms));
        let _ = writeln!(
            out,
            "<rect class=\"hover\" x=\"{left:.1}\" y=\"0\" width=\"{:.1}\" height=\"100\"><title>{:.1} s to {:.1} s: {}</title></rect>",
            right - left,
            bin.from_ms / 1000.0,
            bin.until_ms / 1000.0,
            escape(&counts.join(", ")),
        );
    }
    out.push_str("</svg></div>\n");
    latency(story, stream, outcomes, out);
    out.push_str("</figure>\n");
}

/// Labels with the shares of each outcome after a step, for the affected streams.
fn share_labels(story: &Story, stream: &Stream, out: &mut String) {
    for (index, step) in story.steps.iter().enumerate() {
        if !step.affects.contains(&stream.name) {
            continue;
        }
        let (from, until) = story.window(index);
        let mut rows = summarise(stream, from, until);
        rows.retain(|row| row.share >= LABEL_SHARE_MIN);
        let labels: Vec<String> = rows
            .iter()
            .map(|row| {
                format!(
                    "<b class=\"{}\">{} {:.0} %</b>",
                    row.outcome.class(),
                    escape(&row.outcome.label()),
                    row.share * 100.0
                )
            })
            .collect();
        let _ = writeln!(
            out,
            "<span class=\"words\" style=\"left:{:.2}%;max-width:{:.2}%\">{}</span>",
            percent(story, step.applied_ms),
            percent(story, until - step.applied_ms),
            labels.join(" ")
        );
    }
}

fn latency(story: &Story, stream: &Stream, outcomes: &[Outcome], out: &mut String) {
    out.push_str("<div class=\"plot latency\">\n");
    let decades = [1.0, 10.0, 100.0, 1000.0, 10_000.0];
    for ms in decades {
        let label = if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.0} s", ms / 1000.0) };
        let _ = writeln!(out, "<span class=\"y\" style=\"bottom:{:.1}%\">{label}</span>", 100.0 - latency_y(ms));
    }
    let slowest = stream.answers.iter().map(|answer| answer.latency_ms).fold(0.0, f64::max);
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Latency of each response to {}; the \
         slowest {}\">",
        escape(&stream.name),
        millis(slowest)
    );
    for ms in decades {
        let y = latency_y(ms);
        let _ = writeln!(out, "<path class=\"grid\" d=\"M0 {y:.1}H1000\"/>");
    }
    marks(story, out);
    for outcome in outcomes {
        let mut path = String::new();
        for answer in stream.answers.iter().filter(|answer| answer.outcome == *outcome) {
            let _ = write!(path, "M{:.1} {:.1}h0", x(story, answered_ms(story, answer)), latency_y(answer.latency_ms));
        }
        if !path.is_empty() {
            let _ = writeln!(out, "<path class=\"dots {}\" d=\"{path}\"/>", outcome.class());
        }
    }
    out.push_str("</svg></div>\n");
}

/// A vertical line at each apply.
fn marks(story: &Story, out: &mut String) {
    for step in &story.steps {
        let x = x(story, step.applied_ms);
        let _ = writeln!(out, "<path class=\"mark\" d=\"M{x:.1} 0V100\"/>");
    }
}

fn axis(story: &Story, out: &mut String) {
    out.push_str("<div class=\"axis\"><div class=\"track\">\n");
    let seconds = story.length_ms / 1000.0;
    let every = [5.0, 10.0, 20.0, 30.0, 60.0, 120.0].into_iter().find(|every| seconds / every <= 10.0).unwrap_or(300.0);
    let mut second = 0.0;
    while second <= seconds {
        let _ = writeln!(out, "<span style=\"left:{:.2}%\">{second:.0} s</span>", percent(story, second * 1000.0));
        second += every;
    }
    out.push_str("</div></div>\n");
}

fn bins(story: &Story, stream: &Stream, outcomes: &[Outcome]) -> Vec<Bin> {
    let mut edges = vec![0.0];
    let ends = story.steps.iter().map(|step| step.applied_ms).chain([story.length_ms]);
    for end in ends {
        let mut edge = edges.last().copied().unwrap_or(0.0) + BIN_MS;
        // A remainder shorter than half a bin is merged into the bin before it: a rate over a short time is noise.
        while edge + BIN_MS / 2.0 <= end {
            edges.push(edge);
            edge += BIN_MS;
        }
        edges.push(end);
    }
    edges.dedup_by(|a, b| *a <= *b);
    let mut bins: Vec<Bin> = edges
        .windows(2)
        .map(|edge| Bin { from_ms: edge[0], until_ms: edge[1], counts: vec![0; outcomes.len()] })
        .collect();
    for answer in &stream.answers {
        let at = answered_ms(story, answer);
        let bin = bins.partition_point(|bin| bin.until_ms <= at).min(bins.len().saturating_sub(1));
        if let (Some(bin), Ok(outcome)) = (bins.get_mut(bin), outcomes.binary_search(&answer.outcome)) {
            bin.counts[outcome] += 1;
        }
    }
    bins
}

/// The position of a response on the time axis: when it arrived.
fn answered_ms(story: &Story, answer: &Answer) -> f64 {
    (answer.sent_ms + answer.latency_ms).clamp(0.0, story.length_ms)
}

fn x(story: &Story, ms: f64) -> f64 {
    ms / story.length_ms.max(1.0) * 1000.0
}

fn percent(story: &Story, ms: f64) -> f64 {
    ms / story.length_ms.max(1.0) * 100.0
}

fn latency_y(ms: f64) -> f64 {
    let (low, high) = LATENCY_MS;
    let ms = ms.clamp(low, high);
    100.0 - (ms / low).log10() / (high / low).log10() * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Step;

    #[test]
    fn bins_restart_at_each_apply_and_contain_every_response() {
        let answers: Vec<Answer> = (0..100)
            .map(|n| Answer {
                sent_ms: f64::from(n) * 100.0,
                latency_ms: 1.0,
                outcome: Outcome::Version("v1".to_owned()),
            })
            .collect();
        let stream = Stream { answers, ..Stream::default() };
        let steps =
            vec![Step { applied_ms: 3300.0, ..Step::default() }, Step { applied_ms: 7900.0, ..Step::default() }];
        let story = Story { length_ms: 10_000.0, streams: vec![stream.clone()], steps, ..Story::default() };
        let bins = bins(&story, &stream, &story.outcomes());
        let edges: Vec<f64> = bins.iter().map(|bin| bin.until_ms).collect();
        assert_eq!(edges, [1000.0, 2000.0, 3300.0, 4300.0, 5300.0, 6300.0, 7300.0, 7900.0, 8900.0, 10_000.0]);
        assert_eq!(bins.iter().map(|bin| bin.counts[0]).sum::<usize>(), 100);
    }

    #[test]
    fn the_latency_axis_is_logarithmic_and_bounded() {
        assert_eq!(latency_y(0.1), 100.0);
        assert_eq!(latency_y(60_000.0), 0.0);
        assert!((latency_y(1.0) - latency_y(10.0) - (latency_y(10.0) - latency_y(100.0))).abs() < 1e-9);
    }
}
