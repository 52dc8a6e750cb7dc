//! What a rule does to requests beside choosing a backend for them. Few rules have any of it: the others pay one look.
//!
//! In this order: [`cors`] answers a browser's preflight, and marks the response of everything else; [`rate_limit`] refuses
//! what comes too fast; [`fault`] makes a request wait or answers it; [`mirror`] sends copies of it elsewhere; then comes
//! the rule's action.

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
use crate::table::CompileError;

/// The filters of one rule, at least one.
#[derive(Debug)]
pub(crate) struct Filters {
    pub(crate) cors: Option<Cors>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirrors: Vec<Arc<Mirror>>,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fraction {
    numerator: u32,
    denominator: u32,
}

// === impl Filters ===

impl Filters {
    /// None where the rule has none. `origin` names the rule.
    pub(crate) fn compile(
        origin: &str,
        cors: Option<wire::Cors>,
        rate_limit: Option<wire::RateLimit>,
        fault: wire::Fault,
        mirrors: Vec<wire::Mirror>,
    ) -> Result<Option<Box<Self>>, CompileError> {
        let cors = cors.map(Cors::compile).transpose()?;
        let fault = Fault::compile(fault)?;
        let mirrors: Vec<_> =
            mirrors.into_iter().map(|mirror| Mirror::compile(mirror).map(Arc::new)).collect::<Result<_, _>>()?;
        let rate_limit = rate_limit.map(|limit| RateLimit::compile(origin, limit)).transpose()?;
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

    /// Whether it takes the next request.
    pub(crate) fn takes(self, rng: &mut Rng) -> bool {
        rng.below(self.denominator) < self.numerator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_takes_its_part() {
        let mut rng = Rng::new(3);
        for (numerator, denominator, expected) in [
            (0, 100, 0..1),
            (100, 100, 100_000..100_001),
            (10, 100, 9_500..10_500),
            (1, 1000, 60..150),
            (1, 1, 100_000..100_001),
        ] {
            let fraction = Fraction::compile(wire::Fraction { numerator, denominator }).expect("compiles");
            let taken = (0..100_000).filter(|_| fraction.takes(&mut rng)).count();
            assert!(expected.contains(&taken), "{numerator} of {denominator} took {taken} of 100000");
        }
        assert!(matches!(
            Fraction::compile(wire::Fraction { numerator: 0, denominator: 0 }),
            Err(CompileError::Fraction)
        ));
    }
}
