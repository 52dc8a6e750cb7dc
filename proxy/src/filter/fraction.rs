//! The fraction of requests that a filter applies to. Pure: randomness is passed in.

use weft_balance::Rng;
use weft_config as wire;

use crate::value::CompileError;

/// A fraction of all requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    pub(crate) fn compile(fraction: wire::Fraction) -> Result<Self, CompileError> {
        let wire::Fraction { numerator, denominator } = fraction;
        if denominator == 0 {
            return Err(CompileError::Filter("a fraction has the denominator 0".into()));
        }
        Ok(Self { numerator, denominator })
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
            Err(CompileError::Filter(_))
        ));
    }
}
