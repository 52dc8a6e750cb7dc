//! Which endpoints fail so much more than others that they are left alone (ejected) for a while.
//!
//! What is counted stands with each endpoint of each worker: a worker judges by its own requests and shares nothing. With the
//! one worker that a proxy has by default nothing is lost by that; with more, failures in a row are as telling among a
//! worker's own requests as among all, and each worker finds out for itself. A success rate needs its number of requests on
//! each worker.
//!
//! Source of the model: Envoy's outlier detection. The differences: connections that fail are always told from answers that
//! are errors, the last endpoint is never ejected, and a success rate takes both kinds of failures in.

use std::time::Duration;

use http::StatusCode;
use weft_config as wire;

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    consecutive_5xx: u32,
    consecutive_gateway_errors: u32,
    consecutive_local_failures: u32,
    pub(crate) interval: Duration,
    base: Duration,
    max: Duration,
    max_percent: u32,
    success_rate: wire::SuccessRate,
}

/// What came of a request to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered, and not with an error of its own.
    Ok,
    /// It answered 5xx, but for the next.
    Error,
    /// It answered 502, 503 or 504.
    Gateway,
    /// It did not answer: no connection, one that broke, or the time was over.
    Local,
}

/// What gave an endpoint away. The words are those of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detector {
    Consecutive5xx,
    ConsecutiveGatewayErrors,
    ConsecutiveLocalFailures,
    SuccessRate,
}

/// What is known of one endpoint's failures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Failures of each kind without an answer that ends the row.
    errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    /// Of this interval.
    requests: u32,
    successes: u32,
    /// Ejections in a row: one fewer for each interval that went well.
    ejections: u32,
    /// Until when it is left alone.
    until: Option<Duration>,
}

// === impl Settings ===

impl Settings {
    pub(crate) fn compile(outliers: &wire::Outliers) -> Self {
        let wire::Outliers {
            consecutive_5xx,
            consecutive_gateway_errors,
            consecutive_local_failures,
            interval_ms,
            base_ejection_ms,
            max_ejection_ms,
            max_ejection_percent,
            success_rate,
        } = *outliers;
        Self {
            consecutive_5xx,
            consecutive_gateway_errors,
            consecutive_local_failures,
            interval: Duration::from_millis(interval_ms),
            base: Duration::from_millis(base_ejection_ms),
            max: Duration::from_millis(max_ejection_ms),
            max_percent: max_ejection_percent,
            success_rate,
        }
    }

    /// Whether any endpoint is ever ejected.
    pub(crate) fn is_on(&self) -> bool {
        self.max_percent > 0
    }

    /// Whether one more of `total` endpoints may be ejected where `ejected` are already.
    pub(crate) fn may_eject(&self, ejected: usize, total: usize) -> bool {
        ejected + 1 < total && ejected * 100 < total * self.max_percent as usize
    }

    /// Whether an endpoint with so many requests in an interval has a success rate to speak of.
    pub(crate) fn has_rate(&self, tally: &Tally) -> bool {
        self.success_rate.deviations_permille > 0 && tally.requests >= self.success_rate.min_requests.max(1)
    }

    /// The rate below which an endpoint is ejected: the mean less a number of standard deviations. None: these are too few
    /// to tell.
    pub(crate) fn lowest_rate(&self, rates: &[f64]) -> Option<f64> {
        if rates.is_empty() || rates.len() < self.success_rate.min_endpoints as usize {
            return None;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
        Some(mean - f64::from(self.success_rate.deviations_permille) / 1000.0 * variance.sqrt())
    }
}

// === impl Outcome ===

impl Outcome {
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::Gateway,
            500..=599 => Self::Error,
            _ => Self::Ok,
        }
    }
}

// === impl Detector ===

impl Detector {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive-5xx",
            Self::ConsecutiveGatewayErrors => "consecutive-gateway-errors",
            Self::ConsecutiveLocalFailures => "consecutive-local-failures",
            Self::SuccessRate => "success-rate",
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Takes an outcome in. Says what gives the endpoint away, if something does; a row that did begins anew.
    pub(crate) fn note(&mut self, outcome: Outcome, settings: &Settings) -> Option<Detector> {
        self.requests = self.requests.saturating_add(1);
        match outcome {
            Outcome::Ok => {
                self.successes = self.successes.saturating_add(1);
                (self.errors, self.gateway_errors, self.local_failures) = (0, 0, 0);
                return None;
            }
            Outcome::Error => {
                self.errors += 1;
                (self.gateway_errors, self.local_failures) = (0, 0);
            }
            Outcome::Gateway => {
                self.errors += 1;
                self.gateway_errors += 1;
                self.local_failures = 0;
            }
            // Says nothing about the answers that came before.
            Outcome::Local => self.local_failures += 1,
        }
        let rows = [
            (&mut self.errors, settings.consecutive_5xx, Detector::Consecutive5xx),
            (&mut self.gateway_errors, settings.consecutive_gateway_errors, Detector::ConsecutiveGatewayErrors),
            (&mut self.local_failures, settings.consecutive_local_failures, Detector::ConsecutiveLocalFailures),
        ];
        let mut found = None;
        for (row, limit, detector) in rows {
            if limit == 0 {
                *row = 0;
            } else if *row >= limit {
                *row = 0;
                found = found.or(Some(detector));
            }
        }
        found
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.until.is_some()
    }

    /// Leaves the endpoint alone, the longer the more often it was in a row. Says for how long.
    pub(crate) fn eject(&mut self, settings: &Settings, now: Duration) -> Duration {
        self.ejections = self.ejections.saturating_add(1);
        let time = settings.base.saturating_mul(self.ejections).min(settings.max);
        self.until = Some(now + time);
        time
    }

    /// Takes it back if its time is over. Says whether it did.
    pub(crate) fn release(&mut self, now: Duration) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.take_back();
        }
        over
    }

    /// Takes it back.
    pub(crate) fn take_back(&mut self) {
        self.until = None;
        (self.errors, self.gateway_errors, self.local_failures) = (0, 0, 0);
    }

    /// The share of requests of this interval that went well.
    pub(crate) fn success_rate(&self) -> f64 {
        f64::from(self.successes) / f64::from(self.requests.max(1))
    }

    /// Begins the next interval.
    pub(crate) fn next_interval(&mut self) {
        (self.requests, self.successes) = (0, 0);
        if !self.is_ejected() {
            self.ejections = self.ejections.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::compile(&wire::Outliers::default())
    }

    fn note(tally: &mut Tally, outcomes: &[Outcome]) -> Vec<Detector> {
        outcomes.iter().filter_map(|outcome| tally.note(*outcome, &settings())).collect()
    }

    #[test]
    fn failures_in_a_row_give_an_endpoint_away() {
        use Outcome::{Error, Gateway, Local, Ok};
        let five = |outcome| vec![outcome; 5];
        for (outcomes, expected) in [
            (five(Error), vec![Detector::Consecutive5xx]),
            (five(Local), vec![Detector::ConsecutiveLocalFailures]),
            (five(Gateway), vec![Detector::Consecutive5xx]),
            (vec![Error, Error, Error, Error, Ok, Error, Error, Error, Error], vec![]),
            (vec![Gateway, Error, Gateway, Error, Gateway], vec![Detector::Consecutive5xx]),
            (vec![Local, Local, Local, Local, Error, Local], vec![]),
            (vec![Error, Local, Error, Local, Error, Local, Error, Local, Error], vec![Detector::Consecutive5xx]),
            (vec![Error; 10], vec![Detector::Consecutive5xx; 2]),
        ] {
            assert_eq!(note(&mut Tally::default(), &outcomes), expected, "{outcomes:?}");
        }
        let only_gateway = Settings::compile(&wire::Outliers { consecutive_5xx: 0, ..wire::Outliers::default() });
        let mut tally = Tally::default();
        assert!((0..20).all(|_| tally.note(Error, &only_gateway).is_none()), "not looked at");
        let found: Vec<_> = (0..5).filter_map(|_| tally.note(Gateway, &only_gateway)).collect();
        assert_eq!(found, [Detector::ConsecutiveGatewayErrors]);
    }

    #[test]
    fn an_ejection_is_the_longer_the_more_often_and_forgets_by_intervals() {
        let (mut tally, settings) = (Tally::default(), settings());
        let seconds = Duration::from_secs;
        let mut now = seconds(0);
        for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            assert_eq!(tally.eject(&settings, now), seconds(expected), "base times the number in a row, up to 300 s");
            assert!(!tally.release(now + seconds(expected) - Duration::from_millis(1)), "not before its time");
            tally.next_interval();
            now += seconds(expected);
            assert!(tally.release(now));
        }
        for _ in 0..4 {
            tally.next_interval();
        }
        assert_eq!(
            tally.eject(&settings, now),
            seconds(240),
            "11 in a row, 4 intervals without, and this one: 8 times 30 s"
        );
        tally.take_back();
        for _ in 0..100 {
            tally.next_interval();
        }
        assert_eq!(tally.eject(&settings, now), seconds(30));
    }

    #[test]
    fn the_share_of_ejected_endpoints_is_bounded() {
        let may = |percent, ejected, total| {
            let outliers = wire::Outliers { max_ejection_percent: percent, ..wire::Outliers::default() };
            Settings::compile(&outliers).may_eject(ejected, total)
        };
        for (percent, total, expected) in [
            (10, 1, 0), // the last one is never ejected
            (10, 2, 1),
            (10, 10, 1),
            (10, 11, 2), // 1 of 11 is below 10 %
            (10, 20, 2),
            (50, 4, 2),
            (100, 4, 3),
            (0, 100, 0),
        ] {
            let ejected = (0..total).take_while(|ejected| may(percent, *ejected, total)).count();
            assert_eq!(ejected, expected, "{percent} % of {total}");
        }
    }

    #[test]
    fn a_success_rate_far_below_the_others_is_too_low() {
        let settings = settings();
        let lowest = |rates: &[f64]| settings.lowest_rate(rates);
        assert_eq!(lowest(&[1.0, 1.0, 1.0, 0.0]), None, "four are too few to tell");
        // Mean 0.8, standard deviation 0.4: 0.8 - 1.9 * 0.4.
        let bound = lowest(&[1.0, 1.0, 1.0, 1.0, 0.0]).expect("five are enough");
        assert!((bound - 0.04).abs() < 1e-9, "{bound}");
        let bound = lowest(&[0.5; 5]).expect("enough");
        assert!((bound - 0.5).abs() < 1e-9, "all the same: none is below");
        let mut tally = Tally::default();
        note(&mut tally, &[Outcome::Ok; 99]);
        assert!(!settings.has_rate(&tally), "99 requests are too few");
        note(&mut tally, &[Outcome::Error]);
        assert!(settings.has_rate(&tally));
        assert!((tally.success_rate() - 0.99).abs() < 1e-9);
        tally.next_interval();
        assert!(!settings.has_rate(&tally), "each interval counts anew");
    }

    #[test]
    fn outcomes_by_status() {
        for (status, expected) in [
            (200, Outcome::Ok),
            (404, Outcome::Ok),
            (429, Outcome::Ok),
            (500, Outcome::Error),
            (501, Outcome::Error),
            (502, Outcome::Gateway),
            (503, Outcome::Gateway),
            (504, Outcome::Gateway),
        ] {
            assert_eq!(Outcome::of_status(StatusCode::from_u16(status).expect("a status")), expected, "{status}");
        }
    }
}
