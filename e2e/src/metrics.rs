//! What a proxy or the operator counts, in the text format of Prometheus.

use std::collections::BTreeMap;

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// What `/metrics` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<Sample>);

// === impl Metrics ===

impl Metrics {
    /// Reads the text format; lines that are no samples are left out.
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

    /// The samples whose name begins like this, for messages.
    pub fn beginning(&self, name: &str) -> Vec<&Sample> {
        self.0.iter().filter(|sample| sample.name.starts_with(name)).collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_once(['{', ' '])?;
    let (labels, value) = if line[name.len()..].starts_with('{') { labels(rest)? } else { (BTreeMap::new(), rest) };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads `a="b",c="d"}` and gives back what follows it.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next()? {
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    letter => value.push(letter),
                },
                (end, '"') => break end,
                (_, letter) => value.push(letter),
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
    fn reads_samples_with_and_without_labels() {
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
