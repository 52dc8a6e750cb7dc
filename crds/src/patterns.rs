//! Adds CEL rules with messages to the patterns of the schema: an API server that refuses a value because of a pattern
//! prints only the pattern, which does not tell how to write the value.
//!
//! A rule has a cost, which the API server estimates from the maximum size of all arrays around the value and limits
//! for a whole definition. Where matching the pattern itself would cost too much, the pattern stays, and a cheaper rule
//! recognises the usual mistake.

use serde_json::{Map, Value, json};

use crate::{duration, mesh, policy};

/// How the values of a pattern are checked.
enum Check {
    /// A rule replaces the pattern.
    Matches,
    /// The pattern stays, and this rule is added.
    Beside(&'static str),
}

/// Each pattern with its check and its message, which has examples.
const PATTERNS: [(&str, Check, &str); 16] = [
    (duration::PATTERN, Check::Matches, "must be whole numbers with a unit (h, m, s or ms): 500ms, 5s, 1m, 1m30s"),
    (
        "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        Check::Matches,
        "must be lower case letters, digits, dashes and dots, with a letter or digit at both ends: v1, shop.example",
    ),
    (
        mesh::TRUST_DOMAIN_PATTERN,
        Check::Matches,
        "must be lower case letters, digits, dashes and underscores in parts separated by single dots, without scheme and \
         slash: cluster.local",
    ),
    (
        "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        Check::Matches,
        "must be lower case letters, digits and dashes, with a letter or digit at both ends: checkout-v2",
    ),
    (
        policy::ACCOUNT,
        Check::Matches,
        "must be a service account, as namespace/name, or as name in the policy's own namespace: shop/web, web",
    ),
    (
        "^[-a-z0-9.]*[a-z0-9]$",
        Check::Matches,
        "must be lower case letters, digits, dashes and dots, with a letter or digit at the end: -mirror",
    ),
    (
        "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        Check::Matches,
        "must be a host name in lower case, or *. and a host name: shop.example, *.shop.example",
    ),
    (
        "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$",
        Check::Beside("!self.contains(' ') && !self.contains(':')"),
        "must be a header name, without spaces and colons: x-user",
    ),
    (
        "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$",
        Check::Matches,
        "must be a cookie name, without spaces, commas and semicolons: session",
    ),
    (
        "^/[!-+.-:<-~-]*$",
        Check::Matches,
        "must be a path that starts with /, without spaces, commas and semicolons: /shop",
    ),
    ("^/[!-~]*$", Check::Matches, "must be a path that starts with /, without spaces: /healthz"),
    (
        "^/[^?#\\s]*$",
        Check::Matches,
        "must be a path that starts with /, without query, fragment and spaces: /v2/items",
    ),
    (
        "^(/[^?#\\s]*)?$",
        Check::Matches,
        "must be empty or a path that starts with /, without query, fragment and spaces: /v2",
    ),
    (
        "^[A-Za-z0-9.:-]+$",
        Check::Matches,
        "must be a host name or address, with or without a port: shop.example, 10.0.0.1:8080",
    ),
    (
        "^(\\*|https?://(\\*|(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(:[0-9]{1,5})?)$",
        Check::Beside("self == '*' || self.contains('://')"),
        "must be * or an origin with scheme and host, without a path: https://shop.example, https://*.shop.example:8443",
    ),
    (
        "^(\\*|GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)$",
        Check::Matches,
        "must be * or an HTTP method in capital letters: GET, POST",
    ),
];

/// The key of CEL rules in a schema.
const RULES: &str = "x-kubernetes-validations";

/// Adds the rule of each pattern. Where it replaces the pattern, the value's other rules apply only if it holds: on any
/// other value they would fail to evaluate.
pub(crate) fn explain(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            guard_durations(fields);
            add_rule(fields);
            fields.values_mut().for_each(explain);
        }
        Value::Array(items) => items.iter_mut().for_each(explain),
        _ => {}
    }
}

/// Lets the rules of an object that compare durations hold if one is no duration: its own rule says so.
fn guard_durations(fields: &mut Map<String, Value>) {
    let mut durations = Vec::new();
    find_durations(fields, "self", "", &mut durations);
    for rule in fields.get_mut(RULES).and_then(Value::as_array_mut).into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap_or_default();
        let compared = durations.iter().filter(|(path, _)| text.contains("duration(") && text.contains(path.as_str()));
        let guard: String = compared.map(|(_, is_none)| format!(" || ({is_none})")).collect();
        if !guard.is_empty() {
            rule["rule"] = format!("({text}){guard}").into();
        }
    }
}

/// The durations in an object and the objects in it: how a rule names them, and the condition that one is no duration.
/// `present`: the condition that the object itself is there.
fn find_durations(fields: &Map<String, Value>, object: &str, present: &str, found: &mut Vec<(String, String)>) {
    for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{object}.{name}");
        let present = format!("{present}has({path}) && ");
        if property["pattern"] == duration::PATTERN {
            let is_none = format!("{present}!{path}.matches(r\"{}\")", duration::PATTERN);
            found.push((path, is_none));
        } else if let Some(fields) = property.as_object() {
            find_durations(fields, &path, &present, found);
        }
    }
}

fn add_rule(fields: &mut Map<String, Value>) {
    let pattern = fields.get("pattern").and_then(Value::as_str).unwrap_or_default();
    let Some((pattern, check, message)) = PATTERNS.iter().find(|(known, ..)| *known == pattern) else { return };
    let mut rules = match fields.remove(RULES) {
        Some(Value::Array(rules)) => rules,
        _ => Vec::new(),
    };
    let rule = match check {
        Check::Matches => {
            fields.remove("pattern");
            let matches = format!("self.matches(r\"{pattern}\")");
            for rule in &mut rules {
                let text = rule["rule"].as_str().unwrap_or_default();
                rule["rule"] = format!("!{matches} || ({text})").into();
            }
            matches
        }
        Check::Beside(rule) => (*rule).to_owned(),
    };
    rules.insert(0, json!({ "rule": rule, "message": message }));
    fields.insert(RULES.to_owned(), rules.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_becomes_a_rule_that_comes_before_the_others() {
        let mut schema = json!({"properties": {"timeout": {
            "type": "string", "pattern": duration::PATTERN,
            "x-kubernetes-validations": [{"rule": "duration(self) > duration('0s')", "message": "must not be 0"}],
        }}});
        explain(&mut schema);
        let timeout = &schema["properties"]["timeout"];
        assert_eq!(timeout.get("pattern"), None);
        let matches = r#"self.matches(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")"#;
        assert_eq!(timeout[RULES][0]["rule"], matches);
        assert!(timeout[RULES][0]["message"].as_str().unwrap().contains("500ms, 5s, 1m"), "an example");
        assert_eq!(timeout[RULES][1]["rule"], format!("!{matches} || (duration(self) > duration('0s'))"));
    }

    #[test]
    fn rule_that_compares_durations_holds_if_one_is_none() {
        let mut schema = json!({
            "properties": {
                "other": {"type": "string", "pattern": duration::PATTERN},
                "hedge": {"properties": {"after": {"type": "string", "pattern": duration::PATTERN}}},
            },
            "x-kubernetes-validations": [{"rule": "duration(self.hedge.after) > duration('0s')", "message": "is 0"}],
        });
        explain(&mut schema);
        let expected = "(duration(self.hedge.after) > duration('0s')) || (has(self.hedge) && has(self.hedge.after) && \
                        !self.hedge.after.matches(r\"^([0-9]{1,5}(h|m|s|ms)){1,4}$\"))";
        assert_eq!(schema[RULES][0]["rule"], expected);
    }

    #[test]
    fn pattern_that_costs_too_much_stays_beside_its_rule() {
        let token = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$";
        let mut schema = json!({"type": "string", "pattern": token});
        explain(&mut schema);
        assert_eq!(schema["pattern"], token);
        assert_eq!(schema[RULES][0]["rule"], "!self.contains(' ') && !self.contains(':')");
    }

    #[test]
    fn every_pattern_has_a_message() {
        fn check(schema: &Value) {
            match schema {
                Value::Object(fields) => {
                    if let Some(pattern) = fields.get("pattern").and_then(Value::as_str) {
                        // Any rule would cost too much for values of 4 KiB, and most mistakes are visible.
                        let is_header_value = pattern == r"^[\x20-\x7e\t]+$";
                        assert!(is_header_value || fields.contains_key(RULES), "{pattern}: add it to PATTERNS");
                    }
                    fields.values().for_each(check);
                }
                Value::Array(items) => items.iter().for_each(check),
                _ => {}
            }
        }
        for (_, yaml) in crate::yaml() {
            check(&serde_saphyr::from_str(&yaml).unwrap());
        }
    }
}
