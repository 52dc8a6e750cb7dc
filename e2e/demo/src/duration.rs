//! Durations on the command line and in queries: `300ms`, `2s`, `1m`.

use std::time::Duration;

pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("{text:?} is not a duration: write one like 300ms, 2s or 1m")),
    };
    let count: u64 = count.parse().map_err(|_| format!("{text:?} is not a duration: it must begin with a number"))?;
    count.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_one_number_with_a_unit() {
        for (text, millis) in [("0ms", 0), ("300ms", 300), ("2s", 2_000), ("1m", 60_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "2", "s", "-1s", "1.5s", "1h", "99999999999999999999s", "9999999999999999999m"] {
            parse(text).expect_err(text);
        }
    }
}
