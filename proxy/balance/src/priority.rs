//! Priorities: requests go to endpoints of the proxy's own node and zone first, and to others as far as too few of
//! the former are healthy.
//!
//! A priority is overprovisioned by a factor of 1.4, so it keeps all of its load until less than 72 % of its
//! endpoints are healthy. Factor and formulas are Envoy's, in whole percent:
//!
//! ```text
//! health(P) = min(100, 140 * healthy / total)      norm = min(100, sum of health)
//! load(P)   = min(what is left of 100, health(P) * 100 / norm, to the nearest)
//! ```

/// The endpoints of one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priority {
    pub(crate) healthy: usize,
    pub(crate) total: usize,
}

/// The load of one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Percent of the requests. The sum over all priorities is 100, or 0 if there is no endpoint to use.
    pub(crate) percent: u32,
    /// Below the panic threshold, and other priorities cannot take the load: unhealthy endpoints are used too.
    pub(crate) panic: bool,
}

/// Divides the load among priorities, the most preferred first.
pub(crate) fn divide(priorities: &[Priority], panic_percent: u32) -> Vec<Share> {
    let health: Vec<u32> = priorities.iter().map(Priority::health).collect();
    let norm = health.iter().sum::<u32>().min(100);
    let is_panic = |priority: &Priority| {
        let healthy_percent = priority.healthy * 100;
        (norm < 100 || priorities.len() == 1) && healthy_percent < priority.total * panic_percent as usize
    };
    // If no endpoint is healthy and all are used for that reason, each priority gets a share by its number of
    // endpoints.
    let total: usize = priorities.iter().map(|priority| priority.total).sum();
    let by_number = |priority: &Priority| (priority.total * 100).checked_div(total).unwrap_or(0) as u32;
    let mut left = 100;
    let mut shares: Vec<Share> = (priorities.iter().zip(&health))
        .map(|(priority, health)| {
            let panic = is_panic(priority);
            let wanted = match norm {
                0 if panic => by_number(priority),
                0 => 0,
                norm => (health * 100 + norm / 2) / norm,
            };
            let percent = wanted.min(left);
            left -= percent;
            Share { percent, panic }
        })
        .collect();
    // The remainder of rounding goes to the first priority with a share.
    if let Some(first) = shares.iter_mut().find(|share| share.percent > 0) {
        first.percent += left;
    }
    shares
}

/// The priority that a percentile (0 to 99) falls into.
pub(crate) fn choose(mut percents: impl Iterator<Item = u32>, percentile: u32) -> usize {
    let mut sum = 0;
    percents
        .position(|percent| {
            sum += percent;
            percentile < sum
        })
        .unwrap_or(0)
}

impl Priority {
    fn health(&self) -> u32 {
        (self.healthy * 140).checked_div(self.total).map_or(0, |health| health.min(100) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Priorities given as (healthy, total).
    fn priorities(counts: &[(usize, usize)]) -> Vec<Priority> {
        counts.iter().map(|(healthy, total)| Priority { healthy: *healthy, total: *total }).collect()
    }

    fn percents(counts: &[(usize, usize)]) -> Vec<u32> {
        divide(&priorities(counts), 50).iter().map(|share| share.percent).collect()
    }

    /// Priorities of 100 endpoints each.
    fn of_hundred(healthy: &[usize]) -> Vec<Priority> {
        healthy.iter().map(|healthy| Priority { healthy: *healthy, total: 100 }).collect()
    }

    /// Every row of the three tables in Envoy's `load_balancing/priority.rst`.
    #[test]
    fn load_spills_over_as_envoy_documents() {
        let rows: [(&[usize], &[u32]); 19] = [
            (&[100, 100], &[100, 0]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[0, 100], &[0, 100]),
            (&[72, 72], &[100, 0]),
            (&[71, 71], &[99, 1]),
            (&[50, 50], &[70, 30]),
            (&[25, 25], &[50, 50]),
            // From the text there: healths of 20 and 30, which are 140 % of the healthy endpoints.
            (&[15, 22], &[41, 59]),
            (&[100, 100, 100], &[100, 0, 0]),
            (&[72, 72, 100], &[100, 0, 0]),
            (&[71, 71, 100], &[99, 1, 0]),
            (&[50, 50, 100], &[70, 30, 0]),
            (&[25, 100, 100], &[35, 65, 0]),
            (&[25, 25, 100], &[35, 35, 30]),
            (&[25, 25, 20], &[36, 36, 28]),
            (&[0, 0, 10], &[0, 0, 100]),
        ];
        for (healthy, expected) in rows {
            let shares = divide(&of_hundred(healthy), 50);
            let percents: Vec<u32> = shares.iter().map(|share| share.percent).collect();
            assert_eq!(percents, expected, "{healthy:?} % are healthy");
        }
        assert_eq!(percents(&[(0, 10), (0, 30)]), [25, 75], "no endpoint is healthy: by number");
        assert_eq!(percents(&[(0, 0), (3, 3)]), [0, 100], "an empty priority gets no load");
        assert_eq!(percents(&[(1, 3)]), [100], "the only priority");
    }

    /// Every row of the two tables in Envoy's `panic_threshold.rst`. Where it says 50/50 for 50 % and 60 %, and 25/75
    /// for 25 % and 100 %, it contradicts its own formula and `priority.rst`, which are followed.
    #[test]
    fn panic_begins_as_envoy_documents() {
        for (healthy, expected) in [
            ([72, 100], [(100, false), (0, false)]),
            ([71, 100], [(99, false), (1, false)]),
            ([50, 100], [(70, false), (30, false)]),
            ([25, 100], [(35, false), (65, false)]),
            ([0, 100], [(0, false), (100, false)]),
            ([72, 72], [(100, false), (0, false)]),
            ([71, 71], [(99, false), (1, false)]),
            ([50, 60], [(70, false), (30, false)]),
            ([25, 25], [(50, true), (50, true)]),
            ([5, 65], [(7, true), (93, false)]),
        ] {
            let expected = expected.map(|(percent, panic)| Share { percent, panic });
            assert_eq!(divide(&of_hundred(&healthy), 50), expected, "{healthy:?} % are healthy");
            let never = expected.map(|share| Share { panic: false, ..share });
            assert_eq!(divide(&of_hundred(&healthy), 0), never, "{healthy:?} % are healthy, the threshold is off");
        }
        let none = Share { percent: 0, panic: false };
        assert_eq!(divide(&of_hundred(&[0, 0]), 0), [none, none], "no endpoint is healthy, the threshold is off");
    }

    #[test]
    fn panic_requires_that_no_other_priority_can_take_the_load() {
        let panic = |counts: &[(usize, usize)], percent| -> Vec<bool> {
            divide(&priorities(counts), percent).iter().map(|share| share.panic).collect()
        };
        assert_eq!(panic(&[(25, 100), (100, 100)], 50), [false, false], "the second takes the rest");
        assert_eq!(panic(&[(25, 100), (25, 100)], 50), [true, true]);
        assert_eq!(panic(&[(60, 100), (10, 100)], 50), [false, true], "84 and 14 are 98");
        assert_eq!(panic(&[(49, 100)], 50), [true]);
        assert_eq!(panic(&[(50, 100)], 50), [false]);
        assert_eq!(panic(&[(0, 100)], 0), [false], "switched off");
        let shares = divide(&[Priority { healthy: 0, total: 4 }], 0);
        assert_eq!(shares, [Share { percent: 0, panic: false }]);
    }

    #[test]
    fn priorities_are_chosen_by_their_share() {
        let count = |percents: [u32; 2]| (0..100).filter(|at| choose(percents.into_iter(), *at) == 0).count();
        assert_eq!((count([70, 30]), count([0, 100]), count([100, 0])), (70, 0, 100));
    }
}
