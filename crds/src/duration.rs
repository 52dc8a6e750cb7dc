//! Durations as the Gateway API writes them (GEP-2257): `500ms`, `2s`, `1m30s`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The pattern of GEP-2257.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A duration as the user wrote it. It is parsed with [`Duration::parse`] after the watch, so that an invalid one
/// becomes a condition of its object and does not break the watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// The duration, or an error message that says how to write one.
    pub fn parse(&self) -> Result<std::time::Duration, String> {
        let wrong = || format!("{:?} is not a duration: write one like \"500ms\", \"2s\" or \"1m30s\"", self.0);
        let (mut rest, mut sum, mut parts) = (self.0.as_str(), std::time::Duration::ZERO, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let millis = match &rest[digits..digits + unit] {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(wrong()),
            };
            if !(1..=5).contains(&digits) || parts == 4 {
                return Err(wrong());
            }
            let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            sum += std::time::Duration::from_millis(count * millis);
            parts += 1;
            rest = &rest[digits + unit..];
        }
        if parts == 0 { Err(wrong()) } else { Ok(sum) }
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_parse_accepts_gep_2257_only() {
        for (text, millis) in [
            ("0s", 0),
            ("25ms", 25),
            ("2s", 2_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1s1ms", 1_001),
            ("10m", 600_000),
        ] {
            assert_eq!(Duration(text.into()).parse(), Ok(std::time::Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "2", "s", "1.5s", "-1s", "2S", "100000s", "1s 2s", "1s1s1s1s1s", "1d", "2s\u{fc}"] {
            let error = Duration(text.into()).parse().expect_err(text);
            assert!(error.contains("is not a duration"), "{error}");
        }
    }
}
