//! Metrics of a proxy or the operator, in the Prometheus text format.

use std::collections::BTreeMap;

/// One sample of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// All samples of `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<Sample>);

// === impl Metrics ===

impl Metrics {
    /// Parses the text format; lines that are not samples are ignored.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over all samples of the metric that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.0.iter().filter(has).map(|sample| sample.value).sum()
    }

    /// The samples whose names have this prefix, for messages.
    pub fn with_prefix(&self, name: &str) -> Vec<&Sample> {
        self.0.iter().filter(|sample| sample.name.starts_with(name)).collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_once(['{', ' '])?;
    let (labels, value) = if line[name.len()..].starts_with('{') { labels(rest)? } else { (BTreeMap::new(), rest) };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Parses `a="b",c="d"}`; returns the labels and the rest of the line.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (end, '"') => break end,
                (_, char) => value.push(char),
            }
        };
        labels.insert(name.to_owned(), value);
        text = &rest[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_parse_with_and_without_labels() {
        let text = "# HELP a Help.\n# TYPE a counter\na_total{x=\"1\",path=\"C:\\\\ \\\"q\\\" {}\"} 3\na_total{x=\"2\"} 4.5\nup 1\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.0.len(), 3, "{metrics:?}");
        assert_eq!(metrics.sum("a_total", &[]), 7.5);
        assert_eq!(metrics.sum("a_total", &[("x", "2")]), 4.5);
        assert_eq!(metrics.sum("a_total", &[("path", "C:\\ \"q\" {}")]), 3.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
        assert_eq!(metrics.sum("down", &[]), 0.0);
    }
}
