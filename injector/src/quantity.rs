//! Kubernetes quantities of cores and bytes: parsed to compare them, and to count whole cores.

const NANO: i128 = 1_000_000_000;

/// A Kubernetes quantity of cores or bytes, in 10^-9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity {
    nano: i128,
}

// === impl Quantity ===

impl Quantity {
    /// That many cores or bytes.
    pub(crate) const fn whole(count: i128) -> Self {
        Self { nano: count * NANO }
    }

    /// Parses the Kubernetes grammar: a decimal number, then a unit or an exponent.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // Enough digits for any machine, and too few to overflow an i128 below.
        if number.is_empty() || number == "." || whole.len() > 12 || fraction.len() > 9 || fraction.contains('.') {
            return None;
        }
        let digits: i128 = format!("0{whole}{fraction:0<9}").parse().ok()?;
        let (multiplier, divisor) = match unit {
            "n" => (1, NANO),
            "u" => (1, 1_000_000),
            "m" => (1, 1_000),
            "" => (1, 1),
            "k" => (1_000, 1),
            "M" => (1_000_000, 1),
            "G" => (NANO, 1),
            "T" => (NANO * 1_000, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            _ => (10i128.checked_pow(exponent(unit)?)?, 1),
        };
        Some(Self { nano: digits.checked_mul(multiplier)? / divisor })
    }

    /// The number of cores or bytes, rounded up.
    pub(crate) fn round_up(self) -> i128 {
        (self.nano + NANO - 1) / NANO
    }
}

/// The exponent in `e3`, at most 12.
fn exponent(unit: &str) -> Option<u32> {
    let digits = unit.strip_prefix(['e', 'E'])?;
    let exponent: Option<u32> = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    exponent.filter(|exponent| *exponent <= 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse_as_in_kubernetes() {
        for (text, nano) in [
            ("100m", Some(NANO / 10)),
            ("1", Some(NANO)),
            ("1.5", Some(NANO * 3 / 2)),
            (".5", Some(NANO / 2)),
            ("64Mi", Some((64 << 20) * NANO)),
            ("1e3", Some(1000 * NANO)),
            ("1k", Some(1000 * NANO)),
            ("2u", Some(2000)),
            ("", None),
            (".", None),
            ("-1", None),
            ("+1", None),
            ("1.2.3", None),
            ("1MB", None),
            ("1 Gi", None),
            ("1e99", None),
            ("9999999999999", None),
            ("NaN", None),
        ] {
            assert_eq!(Quantity::parse(text).map(|quantity| quantity.nano), nano, "{text:?}");
        }
    }
}
