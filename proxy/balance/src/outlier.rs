//! Outlier detection: endpoints that fail much more often than others are ejected for a while.
//!
//! Each worker counts its own requests and ejects by itself. A proxy has one worker by default. With more, failures in
//! a row among a worker's own requests say as much as among all, but `minRequests` of the success rate applies on each
//! worker.
//!
//! Source of the model: Envoy's outlier detection. The differences: local failures (no response) are always counted
//! apart from error responses, the last endpoint is never ejected, and the success rate includes both kinds of
//! failures.

use std::time::Duration;

use http::StatusCode;
use weft_config as wire;

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    consecutive_5xx: u32,
    consecutive_gateway_errors: u32,
    consecutive_local_failures: u32,
    /// How often success rates are compared.
    pub interval: Duration,
    base: Duration,
    max: Duration,
    max_percent: u32,
    success_rate: wire::SuccessRate,
}

/// The outcome of a request to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response other than 5xx.
    Ok,
    /// A 5xx response other than 502, 503 and 504.
    Error,
    /// A 502, 503 or 504 response.
    Gateway,
    /// No response: connecting failed, the connection closed, or the timeout passed.
    Local,
}

/// What ejects an endpoint. The names are those in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detector {
    Consecutive5xx,
    ConsecutiveGatewayErrors,
    ConsecutiveLocalFailures,
    SuccessRate,
}

/// One endpoint's counts of failures, and its ejection.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutlierStats {
    /// Consecutive failures of each kind; `errors` includes gateway errors.
    errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    /// In this interval.
    requests: u32,
    successes: u32,
    /// Multiplies the ejection time. Each ejection adds one, each interval without subtracts one.
    ejections: u32,
    /// When the ejection ends. `None`: not ejected.
    until: Option<Duration>,
}

// === impl Settings ===

impl Settings {
    /// From the document.
    pub fn compile(outliers: &wire::Outliers) -> Self {
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

    /// Whether endpoints may be ejected at all.
    pub fn is_on(&self) -> bool {
        self.max_percent > 0
    }

    /// Positions of the endpoints whose success rate in this interval is too far below that of the others.
    pub fn low_success_rates(&self, endpoints: impl Iterator<Item = OutlierStats>) -> Vec<usize> {
        let rated: Vec<(usize, f64)> = (endpoints.enumerate())
            .filter(|(_, stats)| self.has_success_rate(stats))
            .map(|(at, stats)| (at, stats.success_rate()))
            .collect();
        let rates: Vec<f64> = rated.iter().map(|(_, rate)| *rate).collect();
        let Some(threshold) = self.success_rate_threshold(&rates) else { return Vec::new() };
        rated.into_iter().filter(|(_, rate)| *rate < threshold).map(|(at, _)| at).collect()
    }

    /// Whether one more of `total` endpoints may be ejected if `ejected` of them are.
    fn may_eject(&self, ejected: usize, total: usize) -> bool {
        ejected + 1 < total && ejected * 100 < total * self.max_percent as usize
    }

    /// Whether an endpoint had enough requests in this interval for a success rate.
    fn has_success_rate(&self, stats: &OutlierStats) -> bool {
        self.success_rate.deviations_permille > 0 && stats.requests >= self.success_rate.min_requests.max(1)
    }

    /// The success rate below which an endpoint is ejected: the mean less a number of standard deviations. `None`: too
    /// few endpoints have a rate.
    fn success_rate_threshold(&self, rates: &[f64]) -> Option<f64> {
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
    /// The outcome of a response with this status.
    #[inline]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::Gateway,
            500..=599 => Self::Error,
            _ => Self::Ok,
        }
    }
}

// === impl Detector ===

impl Detector {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive-5xx",
            Self::ConsecutiveGatewayErrors => "consecutive-gateway-errors",
            Self::ConsecutiveLocalFailures => "consecutive-local-failures",
            Self::SuccessRate => "success-rate",
        }
    }
}

// === impl OutlierStats ===

impl OutlierStats {
    /// Records an outcome. Returns the detector that it trips, whose count restarts at 0.
    #[inline]
    pub fn record(&mut self, outcome: Outcome, settings: &Settings) -> Option<Detector> {
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
            // Does not end a series of error responses.
            Outcome::Local => self.local_failures += 1,
        }
        let detectors = [
            (&mut self.errors, settings.consecutive_5xx, Detector::Consecutive5xx),
            (&mut self.gateway_errors, settings.consecutive_gateway_errors, Detector::ConsecutiveGatewayErrors),
            (&mut self.local_failures, settings.consecutive_local_failures, Detector::ConsecutiveLocalFailures),
        ];
        let mut tripped = None;
        for (count, threshold, detector) in detectors {
            if threshold == 0 {
                *count = 0;
            } else if *count >= threshold {
                *count = 0;
                tripped = tripped.or(Some(detector));
            }
        }
        tripped
    }

    /// Whether the endpoint is ejected.
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.until.is_some()
    }

    /// Ejects the endpoint, for longer each time, while `ejected` of `total` endpoints are. Returns for how long. `None`:
    /// it is ejected already, or the limit of ejections is reached.
    pub fn try_eject(&mut self, settings: &Settings, ejected: usize, total: usize, now: Duration) -> Option<Duration> {
        (!self.is_ejected() && settings.may_eject(ejected, total)).then(|| self.eject(settings, now))
    }

    fn eject(&mut self, settings: &Settings, now: Duration) -> Duration {
        self.ejections = self.ejections.saturating_add(1);
        let time = settings.base.saturating_mul(self.ejections).min(settings.max);
        self.until = Some(now + time);
        time
    }

    /// Unejects the endpoint if its ejection time is over. Returns whether it did.
    pub fn uneject_if_due(&mut self, now: Duration) -> bool {
        let is_due = self.until.is_some_and(|until| until <= now);
        if is_due {
            self.uneject();
        }
        is_due
    }

    /// Ends the ejection and resets the consecutive failures.
    pub fn uneject(&mut self) {
        self.until = None;
        (self.errors, self.gateway_errors, self.local_failures) = (0, 0, 0);
    }

    /// The share of this interval's requests that succeeded.
    fn success_rate(&self) -> f64 {
        f64::from(self.successes) / f64::from(self.requests.max(1))
    }

    /// Starts the next interval.
    pub fn next_interval(&mut self) {
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

    fn record(stats: &mut OutlierStats, outcomes: &[Outcome]) -> Vec<Detector> {
        outcomes.iter().filter_map(|outcome| stats.record(*outcome, &settings())).collect()
    }

    #[test]
    fn consecutive_failures_trip_a_detector() {
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
            assert_eq!(record(&mut OutlierStats::default(), &outcomes), expected, "{outcomes:?}");
        }
        let only_gateway = Settings::compile(&wire::Outliers { consecutive_5xx: 0, ..wire::Outliers::default() });
        let mut stats = OutlierStats::default();
        assert!((0..20).all(|_| stats.record(Error, &only_gateway).is_none()), "the 5xx detector is off");
        let found: Vec<_> = (0..5).filter_map(|_| stats.record(Gateway, &only_gateway)).collect();
        assert_eq!(found, [Detector::ConsecutiveGatewayErrors]);
    }

    #[test]
    fn ejection_time_grows_with_ejections_and_shrinks_with_intervals() {
        let (mut stats, settings) = (OutlierStats::default(), settings());
        let seconds = Duration::from_secs;
        let mut now = seconds(0);
        for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            assert_eq!(stats.eject(&settings, now), seconds(expected), "base times the number in a row, up to 300 s");
            assert!(!stats.uneject_if_due(now + seconds(expected) - Duration::from_millis(1)), "not before its end");
            stats.next_interval();
            now += seconds(expected);
            assert!(stats.uneject_if_due(now));
        }
        for _ in 0..4 {
            stats.next_interval();
        }
        assert_eq!(
            stats.eject(&settings, now),
            seconds(240),
            "11 in a row, 4 intervals without, and this one: 8 times 30 s"
        );
        stats.uneject();
        for _ in 0..100 {
            stats.next_interval();
        }
        assert_eq!(stats.eject(&settings, now), seconds(30));
    }

    #[test]
    fn max_ejection_percent_bounds_ejections() {
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
    fn success_rate_threshold_is_the_mean_less_deviations() {
        let settings = settings();
        let threshold = |rates: &[f64]| settings.success_rate_threshold(rates);
        assert_eq!(threshold(&[1.0, 1.0, 1.0, 0.0]), None, "four endpoints are too few");
        // Mean 0.8, standard deviation 0.4: 0.8 - 1.9 * 0.4.
        let bound = threshold(&[1.0, 1.0, 1.0, 1.0, 0.0]).expect("five are enough");
        assert!((bound - 0.04).abs() < 1e-9, "{bound}");
        let bound = threshold(&[0.5; 5]).expect("enough");
        assert!((bound - 0.5).abs() < 1e-9, "equal rates: none is below the threshold");
        let mut stats = OutlierStats::default();
        record(&mut stats, &[Outcome::Ok; 99]);
        assert!(!settings.has_success_rate(&stats), "99 requests are too few");
        record(&mut stats, &[Outcome::Error]);
        assert!(settings.has_success_rate(&stats));
        assert!((stats.success_rate() - 0.99).abs() < 1e-9);
        stats.next_interval();
        assert!(!settings.has_success_rate(&stats), "each interval starts at 0");
    }

    #[test]
    fn low_success_rates_are_found_among_endpoints_with_enough_requests() {
        let with = |successes, failures| {
            let mut stats = OutlierStats::default();
            record(&mut stats, &vec![Outcome::Ok; successes]);
            record(&mut stats, &vec![Outcome::Error; failures]);
            stats
        };
        let [few, good, bad] = [with(0, 99), with(99, 1), with(60, 40)];
        let low = |endpoints: &[OutlierStats]| settings().low_success_rates(endpoints.iter().copied());
        assert_eq!(low(&[few, good, good, good, bad, good, good]), [4]);
        assert_eq!(low(&[few, good, good, bad, good]), [0; 0], "four with enough requests are too few to compare");
    }

    #[test]
    fn an_endpoint_is_ejected_once_at_a_time() {
        let (mut stats, settings, now) = (OutlierStats::default(), settings(), Duration::ZERO);
        assert_eq!(stats.try_eject(&settings, 1, 10, now), None, "one of ten is the limit");
        assert_eq!(stats.try_eject(&settings, 0, 10, now), Some(Duration::from_secs(30)));
        assert_eq!(stats.try_eject(&settings, 0, 10, now), None, "it is ejected");
    }

    #[test]
    fn outcomes_follow_the_status() {
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
