//! "Did you mean": the known name that is most similar to a name that is not known.

/// Minimum [`similarity`] for a suggestion.
const SIMILARITY_MIN: f64 = 0.6;

/// Maximum number of known names that are compared: the time of a suggestion has a bound.
const KNOWN_MAX: usize = 512;

/// The known name most similar to `given`, if any is similar enough; of equally similar ones the first. Letter case
/// does not count, and two swapped letters are one edit.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for name in known.into_iter().filter(|name| may_be_similar(given.len(), name.len())).take(KNOWN_MAX) {
        let similarity = similarity(&given, &name.to_ascii_lowercase());
        if similarity >= SIMILARITY_MIN && best.is_none_or(|(found, _)| similarity > found) {
            best = Some((similarity, name));
        }
    }
    best.map(|(_, name)| name)
}

/// The end of a message about a name that is not known: `; did you mean reviews?`, or nothing.
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(given, known).map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// How similar two names are: 1 minus the edit distance divided by the length of the longer one. Two swapped letters are
/// one edit.
pub fn similarity(one: &str, other: &str) -> f64 {
    let longer = one.chars().count().max(other.chars().count()).max(1);
    1.0 - strsim::osa_distance(one, other) as f64 / longer as f64
}

/// Whether names of these lengths in bytes can be similar enough: the difference is part of the edit distance.
fn may_be_similar(one: usize, other: usize) -> bool {
    one.abs_diff(other) * 5 <= one.max(other) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_suggested_if_it_is_similar() {
        for (given, known, expected) in [
            ("reviws", &["ratings", "reviews"][..], Some("reviews")),
            ("Reviews", &["reviews"], Some("reviews")),
            ("wbe", &["api", "web"], Some("web")),
            ("web-1", &["web-2", "web-3"], Some("web-2")),
            ("frontend", &["backend", "db"], None),
            ("v1", &["v2"], None),
            ("reviews-internal", &["reviews"], None),
            ("", &["a"], None),
            ("a", &[], None),
        ] {
            assert_eq!(nearest(given, known.iter().copied()), expected, "{given}");
        }
    }

    #[test]
    fn did_you_mean_ends_a_message() {
        assert_eq!(did_you_mean("reviws", ["reviews"]), "; did you mean reviews?");
        assert_eq!(did_you_mean("x", ["reviews"]), "");
    }
}
