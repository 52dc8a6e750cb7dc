//! Fault injection: delays and aborts. Pure: randomness is passed in, and the caller waits.

use std::time::Duration;

use http::StatusCode;
use weft_balance::Rng;
use weft_config as wire;

use super::fraction::Fraction;
use crate::value::{CompileError, parse_status};

/// The faults of a rule, each for a fraction of the requests.
#[derive(Debug)]
pub(crate) struct Fault {
    delay: Option<(Duration, Fraction)>,
    abort: Option<(StatusCode, Fraction)>,
}

/// The faults of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    pub(crate) delay: Option<Duration>,
    pub(crate) abort: Option<StatusCode>,
}

impl Fault {
    /// None: the rule injects no fault.
    pub(crate) fn compile(fault: wire::Fault) -> Result<Option<Self>, CompileError> {
        let wire::Fault { delay, abort } = fault;
        let delay = delay.map(|wire::FaultDelay { duration_ms, share }| {
            Ok::<_, CompileError>((Duration::from_millis(duration_ms), Fraction::compile(share)?))
        });
        let abort = abort.map(|wire::FaultAbort { status, share }| {
            Ok::<_, CompileError>((parse_status(status)?, Fraction::compile(share)?))
        });
        let fault = Self { delay: delay.transpose()?, abort: abort.transpose()? };
        Ok((fault.delay.is_some() || fault.abort.is_some()).then_some(fault))
    }

    /// Samples the faults of the next request, delay and abort independently.
    pub(crate) fn sample(&self, rng: &mut Rng) -> Injected {
        let mut is_sampled = |fraction: Fraction| fraction.samples(rng);
        Injected {
            delay: self.delay.and_then(|(duration, fraction)| is_sampled(fraction).then_some(duration)),
            abort: self.abort.and_then(|(status, fraction)| is_sampled(fraction).then_some(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(fault: serde_json::Value) -> Option<Fault> {
        Fault::compile(serde_json::from_value(fault).expect("a fault")).expect("compiles")
    }

    #[test]
    fn delay_and_abort_are_sampled_independently() {
        let fault = fault(serde_json::json!({
            "delay": {"durationMs": 250, "share": {"numerator": 50, "denominator": 100}},
            "abort": {"status": 503, "share": {"numerator": 20, "denominator": 100}}
        }))
        .expect("a fault");
        let mut rng = Rng::new(5);
        let (mut delayed, mut aborted, mut both) = (0, 0, 0);
        for _ in 0..100_000 {
            let Injected { delay, abort } = fault.sample(&mut rng);
            assert!(delay.is_none_or(|delay| delay == Duration::from_millis(250)));
            assert!(abort.is_none_or(|status| status == StatusCode::SERVICE_UNAVAILABLE));
            delayed += u32::from(delay.is_some());
            aborted += u32::from(abort.is_some());
            both += u32::from(delay.is_some() && abort.is_some());
        }
        assert!((49_000..51_000).contains(&delayed), "{delayed} delayed");
        assert!((19_000..21_000).contains(&aborted), "{aborted} aborted");
        assert!((9_500..10_500).contains(&both), "{both} delayed and aborted");
    }

    #[test]
    fn absent_faults_are_not_injected() {
        assert!(fault(serde_json::json!({})).is_none());
        let all = serde_json::json!({"abort": {"status": 500, "share": {"numerator": 1, "denominator": 1}}});
        let injected = fault(all).expect("a fault").sample(&mut Rng::new(1));
        assert_eq!(injected, Injected { delay: None, abort: Some(StatusCode::INTERNAL_SERVER_ERROR) });
    }
}
