//! Requests that wait or fail on purpose. Pure: chance is passed in, and whoever asked does the waiting.

use std::time::Duration;

use http::StatusCode;
use weft_config as wire;

use super::Fraction;
use crate::balance::Rng;
use crate::table::CompileError;
use crate::table::route::parse_status;

/// Which requests wait, and which fail.
#[derive(Debug)]
pub(crate) struct Fault {
    delay: Option<(Duration, Fraction)>,
    abort: Option<(StatusCode, Fraction)>,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) delay: Option<Duration>,
    pub(crate) abort: Option<StatusCode>,
}

impl Fault {
    /// None where nobody waits or fails.
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

    /// Decides on the next request: on the wait and on the failure apart.
    pub(crate) fn draw(&self, rng: &mut Rng) -> Drawn {
        let mut drawn = |fraction: Fraction| fraction.takes(rng);
        Drawn {
            delay: self.delay.and_then(|(duration, fraction)| drawn(fraction).then_some(duration)),
            abort: self.abort.and_then(|(status, fraction)| drawn(fraction).then_some(status)),
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
    fn waits_and_failures_are_decided_apart() {
        let fault = fault(serde_json::json!({
            "delay": {"durationMs": 250, "share": {"numerator": 50, "denominator": 100}},
            "abort": {"status": 503, "share": {"numerator": 20, "denominator": 100}}
        }))
        .expect("a fault");
        let mut rng = Rng::new(5);
        let (mut waited, mut failed, mut both) = (0, 0, 0);
        for _ in 0..100_000 {
            let Drawn { delay, abort } = fault.draw(&mut rng);
            assert!(delay.is_none_or(|delay| delay == Duration::from_millis(250)));
            assert!(abort.is_none_or(|status| status == StatusCode::SERVICE_UNAVAILABLE));
            waited += u32::from(delay.is_some());
            failed += u32::from(abort.is_some());
            both += u32::from(delay.is_some() && abort.is_some());
        }
        assert!((49_000..51_000).contains(&waited), "{waited} waited");
        assert!((19_000..21_000).contains(&failed), "{failed} failed");
        assert!((9_500..10_500).contains(&both), "{both} waited and failed");
    }

    #[test]
    fn what_is_not_there_happens_to_nobody() {
        assert!(fault(serde_json::json!({})).is_none());
        let all = serde_json::json!({"abort": {"status": 500, "share": {"numerator": 1, "denominator": 1}}});
        let drawn = fault(all).expect("a fault").draw(&mut Rng::new(1));
        assert_eq!(drawn, Drawn { delay: None, abort: Some(StatusCode::INTERNAL_SERVER_ERROR) });
    }
}
