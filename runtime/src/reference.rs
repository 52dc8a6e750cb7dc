//! Support for the tests that keep the pages of docs/reference true: each part of a page is generated from the code.
//!
//! A generated part is between the lines `<!-- NAME -->` and `<!-- /NAME -->`. Its test fails if the page differs;
//! with `WEFT_BLESS=1` it writes the part instead.

use std::fmt::Write;
use std::path::Path;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A table of the metrics of a registry: name, type, unit, labels, HELP text. Labels are those of a metric's first
/// series, so each metric needs one.
///
/// # Panics
///
/// If a metric has no series, or no HELP text.
pub fn metrics_table(registry: &Registry) -> String {
    let mut page = String::new();
    text::encode(&mut page, registry).expect("a page of metrics");
    let mut rows = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.rsplit(' ').next()).unwrap_or_default();
        // prometheus-client ends each HELP text with a full stop.
        let help = help.strip_suffix('.').unwrap_or(help);
        assert!(!help.is_empty(), "{name} has no HELP text");
        let sample = lines.find(|line| !line.starts_with("# UNIT")).filter(|line| line.starts_with(name));
        let sample = sample.unwrap_or_else(|| panic!("{name} has no series"));
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let unit = ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or_default();
        rows.push(format!("| `{name}{suffix}` | {kind} | {unit} | {} | {help} |", label_names(sample)));
    }
    rows.sort();
    let mut table = "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
    rows.iter().for_each(|row| writeln!(table, "{row}").expect("a string grows"));
    table
}

/// Compares a generated part of a page with the code, or writes it if `WEFT_BLESS` is 1.
///
/// # Panics
///
/// If the part differs, or the page has no such part.
pub fn check(page: &Path, part: &str, generated: &str) {
    let (begin, end) = (format!("<!-- {part} -->\n"), format!("<!-- /{part} -->\n"));
    let text = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?)));
    let (before, (found, after)) = parts.unwrap_or_else(|| panic!("{} has no part {part}", page.display()));
    let expected = format!("\n{}\n\n", generated.trim());
    if std::env::var_os("WEFT_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(page, format!("{before}{begin}{expected}{end}{after}")).expect("the page is written");
        return;
    }
    let is_new = |line: &&str| !found.lines().any(|other| other == *line);
    let news = expected.lines().filter(is_new).collect::<Vec<_>>().join("\n");
    assert!(found == expected, "{} is not what the code says; `make golden` writes it:\n{news}", page.display());
}

/// The names of a sample's labels, without the bound of a histogram's bucket.
fn label_names(sample: &str) -> String {
    let Some((_, labels)) = sample.split_once('{') else { return String::new() };
    let names = labels.split("=\"").map(|part| part.rsplit([',', '{']).next().unwrap_or_default());
    let mut names: Vec<String> = names.filter(|name| *name != "le").map(|name| format!("`{name}`")).collect();
    // What follows the last value.
    names.pop();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn table_has_name_type_unit_labels_and_help() {
        let mut registry = Registry::default();
        let retries = Family::<Vec<(String, String)>, Counter>::default();
        let labels = [("service", "shop/reviews:9080"), ("reason", "a,b")];
        drop(retries.get_or_create(&labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()));
        registry.register("retries", "Retries, by cause", retries);
        registry.register("wait_seconds", "Waits", Histogram::new([1.0]));
        assert_eq!(
            metrics_table(&registry),
            "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n\
             | `retries_total` | counter |  | `service`, `reason` | Retries, by cause |\n\
             | `wait_seconds` | histogram | seconds |  | Waits |\n"
        );
    }
}
