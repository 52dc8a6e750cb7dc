//! Filters: what a rule does with requests besides picking a backend. Most rules have none and pay one check.
//!
//! In this order: [`cors`] responds to preflights and sets headers of other responses; [`rate_limit`] refuses
//! requests over the limit; [`fault`] delays or aborts requests; [`mirror`] sends copies of requests elsewhere; then
//! the rule's action runs.

pub(crate) mod cors;
pub(crate) mod fault;
pub(crate) mod mirror;
pub(crate) mod rate_limit;

use std::sync::Arc;

use weft_config as wire;

use self::cors::Cors;
use self::fault::Fault;
use self::mirror::Mirror;
use self::rate_limit::RateLimit;
use crate::balance::Rng;
use crate::value::CompileError;

/// The filters of one rule, at least one.
#[derive(Debug)]
pub(crate) struct Filters {
    pub(crate) cors: Option<Cors>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirrors: Vec<Arc<Mirror>>,
}

/// A fraction of all requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fraction {
    numerator: u32,
    denominator: u32,
}

// === impl Filters ===

impl Filters {
    /// None: the rule has no filters.
    pub(crate) fn compile(
        rule_name: &str,
        cors: Option<wire::Cors>,
        rate_limit: Option<wire::RateLimit>,
        fault: wire::Fault,
        mirrors: Vec<wire::Mirror>,
    ) -> Result<Option<Box<Self>>, CompileError> {
        let cors = cors.map(Cors::compile).transpose()?;
        let fault = Fault::compile(fault)?;
        let mirrors: Vec<_> =
            mirrors.into_iter().map(|mirror| Mirror::compile(mirror).map(Arc::new)).collect::<Result<_, _>>()?;
        let rate_limit = rate_limit.map(|limit| RateLimit::compile(rule_name, limit)).transpose()?;
        let any = cors.is_some() || rate_limit.is_some() || fault.is_some() || !mirrors.is_empty();
        Ok(any.then(|| Box::new(Self { cors, rate_limit, fault, mirrors })))
    }
}

// === impl Fraction ===

impl Fraction {
    pub(crate) fn compile(fraction: wire::Fraction) -> Result<Self, CompileError> {
        let wire::Fraction { numerator, denominator } = fraction;
        if denominator == 0 { Err(CompileError::Fraction) } else { Ok(Self { numerator, denominator }) }
    }

    /// Samples whether the next request is in the fraction.
    pub(crate) fn samples(self, rng: &mut Rng) -> bool {
        rng.below(self.denominator) < self.numerator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fraction_samples_its_share() {
        let mut rng = Rng::new(3);
        for (numerator, denominator, expected) in [
            (0, 100, 0..1),
            (100, 100, 100_000..100_001),
            (10, 100, 9_500..10_500),
            (1, 1000, 60..150),
            (1, 1, 100_000..100_001),
        ] {
            let fraction = Fraction::compile(wire::Fraction { numerator, denominator }).expect("compiles");
            let sampled = (0..100_000).filter(|_| fraction.samples(&mut rng)).count();
            assert!(expected.contains(&sampled), "{numerator} of {denominator}: {sampled} of 100000");
        }
        assert!(matches!(
            Fraction::compile(wire::Fraction { numerator: 0, denominator: 0 }),
            Err(CompileError::Fraction)
        ));
    }
}
