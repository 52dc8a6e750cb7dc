//! Which level of endpoints a request goes to: those of the proxy's own zone first, those of other zones as far as the own
//! ones cannot take the load.
//!
//! Levels are taken to bear 1.4 times their share, so a level keeps all of its load until less than 72 % of it is well
//! (Envoy's overprovisioning factor; these are its formulas, in whole percent):
//!
//! ```text
//! health(L) = min(100, 140 * well / all)          norm = min(100, sum of health)
//! load(L)   = min(what is left of 100, health(L) * 100 / norm, to the nearest)
//! ```

/// Endpoints of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) well: usize,
    pub(crate) all: usize,
}

/// What becomes of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Percent of the requests. Those of all levels sum to 100, or to 0 where nobody can take any.
    pub(crate) percent: u32,
    /// Too few are well, and no other level can help: all are used.
    pub(crate) panic: bool,
}

/// Divides the load among levels, the first being the one that is wanted most.
pub(crate) fn divide(levels: &[Level], panic_percent: u32) -> Vec<Share> {
    let health: Vec<u32> = levels.iter().map(Level::health).collect();
    let norm = health.iter().sum::<u32>().min(100);
    let panics = |level: &Level| {
        let well_percent = level.well * 100;
        (norm < 100 || levels.len() == 1) && well_percent < level.all * panic_percent as usize
    };
    // Where nobody is well, and all are used for that reason, each level gets what its number is worth.
    let total: usize = levels.iter().map(|level| level.all).sum();
    let by_number = |level: &Level| (level.all * 100).checked_div(total).unwrap_or(0) as u32;
    let mut left = 100;
    let mut shares: Vec<Share> = (levels.iter().zip(&health))
        .map(|(level, health)| {
            let panic = panics(level);
            let wanted = match norm {
                0 if panic => by_number(level),
                0 => 0,
                norm => (health * 100 + norm / 2) / norm,
            };
            let percent = wanted.min(left);
            left -= percent;
            Share { percent, panic }
        })
        .collect();
    // What rounding leaves goes to the first that takes any.
    if let Some(first) = shares.iter_mut().find(|share| share.percent > 0) {
        first.percent += left;
    }
    shares
}

/// The level that a number below 100 falls into.
pub(crate) fn choose(mut percents: impl Iterator<Item = u32>, roll: u32) -> usize {
    let mut sum = 0;
    percents
        .position(|percent| {
            sum += percent;
            roll < sum
        })
        .unwrap_or(0)
}

impl Level {
    fn health(&self) -> u32 {
        (self.well * 140).checked_div(self.all).map_or(0, |health| health.min(100) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percents(levels: &[(usize, usize)]) -> Vec<u32> {
        let levels: Vec<Level> = levels.iter().map(|(well, all)| Level { well: *well, all: *all }).collect();
        divide(&levels, 50).iter().map(|share| share.percent).collect()
    }

    /// Levels of 100 endpoints each.
    fn of_hundred(well: &[usize]) -> Vec<Level> {
        well.iter().map(|well| Level { well: *well, all: 100 }).collect()
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
            // In its text: healths of 20 and 30, where 140 % of what is well are meant.
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
        for (well, expected) in rows {
            let shares = divide(&of_hundred(well), 50);
            let percents: Vec<u32> = shares.iter().map(|share| share.percent).collect();
            assert_eq!(percents, expected, "{well:?} % are well");
        }
        assert_eq!(percents(&[(0, 10), (0, 30)]), [25, 75], "nobody is well: by number");
        assert_eq!(percents(&[(0, 0), (3, 3)]), [0, 100], "an empty level takes nothing");
        assert_eq!(percents(&[(1, 3)]), [100], "there is no other");
    }

    /// Every row of the two tables in Envoy's `panic_threshold.rst`. Where it says 50/50 for 50 % and 60 %, and 25/75 for
    /// 25 % and 100 %, it contradicts its own formula and `priority.rst`, which are followed.
    #[test]
    fn panic_begins_as_envoy_documents() {
        for (well, expected) in [
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
            assert_eq!(divide(&of_hundred(&well), 50), expected, "{well:?} % are well");
            let never = expected.map(|share| Share { panic: false, ..share });
            assert_eq!(divide(&of_hundred(&well), 0), never, "{well:?} % are well, and the threshold is off");
        }
        let nobody = Share { percent: 0, panic: false };
        assert_eq!(divide(&of_hundred(&[0, 0]), 0), [nobody, nobody], "nobody is well, and the threshold is off");
    }

    #[test]
    fn all_endpoints_of_a_level_are_used_only_where_no_other_level_can_help() {
        let panic = |levels: &[(usize, usize)], percent| -> Vec<bool> {
            let levels: Vec<Level> = levels.iter().map(|(well, all)| Level { well: *well, all: *all }).collect();
            divide(&levels, percent).iter().map(|share| share.panic).collect()
        };
        assert_eq!(panic(&[(25, 100), (100, 100)], 50), [false, false], "the second takes the rest");
        assert_eq!(panic(&[(25, 100), (25, 100)], 50), [true, true]);
        assert_eq!(panic(&[(60, 100), (10, 100)], 50), [false, true], "84 and 14 are 98");
        assert_eq!(panic(&[(49, 100)], 50), [true]);
        assert_eq!(panic(&[(50, 100)], 50), [false]);
        assert_eq!(panic(&[(0, 100)], 0), [false], "switched off");
        let none = divide(&[Level { well: 0, all: 4 }], 0);
        assert_eq!(none, [Share { percent: 0, panic: false }]);
    }

    #[test]
    fn a_level_is_chosen_by_its_share() {
        let count = |percents: [u32; 2]| (0..100).filter(|roll| choose(percents.into_iter(), *roll) == 0).count();
        assert_eq!((count([70, 30]), count([0, 100]), count([100, 0])), (70, 0, 100));
    }
}
