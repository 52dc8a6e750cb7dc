//! Random numbers: a generator that is passed in, and two choices (Mitzenmacher, *The power of two choices*).

/// A pseudo-random number generator (xorshift64*). Not for secrets: its numbers can be predicted.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Generators with different seeds give different numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is above 0.
    #[inline]
    pub fn below(&mut self, bound: u32) -> u32 {
        let high = (self.next_u64() >> 32) as u32;
        ((u64::from(high) * u64::from(bound)) >> 32) as u32
    }
}

/// Two different positions below `count`, which is at least 2.
#[inline]
pub(crate) fn pick_two(rng: &mut Rng, count: usize) -> (usize, usize) {
    let bound = u32::try_from(count).unwrap_or(u32::MAX);
    let first = rng.below(bound);
    let second = (first + 1 + rng.below(bound - 1)) % bound;
    (first as usize, second as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pick_two_gives_each_pair_equally_often() {
        let mut rng = Rng::new(7);
        let mut seen = [[0u32; 3]; 3];
        for _ in 0..9_000 {
            let (first, second) = pick_two(&mut rng, 3);
            assert_ne!(first, second);
            seen[first][second] += 1;
        }
        for first in 0..3 {
            for second in (0..3).filter(|second| *second != first) {
                assert!((1_300..1_700).contains(&seen[first][second]), "{seen:?}");
            }
        }
    }

    #[test]
    fn rng_is_uniform() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }
}
