//! Shares of requests.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// CEL: a share is given in one way only.
pub(super) const PERCENT_OR_FRACTION: &str = "!(has(self.percent) && has(self.fraction))";

/// A share of requests, chosen at random: numerator / denominator. Example: `{numerator: 1, denominator: 1000}` is
/// 0.1 %.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.numerator <= (has(self.denominator) ? self.denominator : 100)")
        .message("a fraction's numerator must not be greater than its denominator")
)]
pub struct Fraction {
    /// Numerator of the share.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub numerator: u32,
    /// Denominator of the share. Default: 100.
    #[serde(default = "Fraction::default_denominator")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub denominator: u32,
}

impl Fraction {
    fn default_denominator() -> u32 {
        100
    }
}
