//! Timeouts and retries of an HTTPRoute's rule (GEP-1742, GEP-1731). Values beyond Weft's bounds are set to the bound.

use std::time::Duration;

use weft_config::Retry;
use weft_gateway_api::{HttpRouteRetry, HttpRouteTimeouts};

use crate::compile::route::rule::{ATTEMPTS_MAX, BACKOFF_MAX, BACKOFF_MIN, TIMEOUT_MAX};
use crate::compile::value;

/// The API leaves the default base interval of the backoff open; this is MeshRoute's.
const BACKOFF_DEFAULT: Duration = Duration::from_millis(25);

/// The timeouts of a rule, in milliseconds: of the request, and of one attempt. 0s is none. `changed`: what is applied
/// otherwise than it is written.
pub(super) fn timeouts(
    timeouts: &HttpRouteTimeouts,
    changed: &mut Vec<String>,
) -> Result<(Option<u64>, Option<u64>), String> {
    let HttpRouteTimeouts { backend_request, request } = timeouts;
    let mut read = |text: &Option<String>, field| match text {
        Some(text) => {
            let found = bounded(text, field, Duration::ZERO, TIMEOUT_MAX, changed)?;
            Ok::<_, String>((found > 0).then_some(found))
        }
        None => Ok(None),
    };
    Ok((read(request, "timeouts.request")?, read(backend_request, "timeouts.backendRequest")?))
}

/// The retries of a rule.
///
/// `attempts: 0` means that a request is sent at most once. Codes are retried for every method, as the author of the rule
/// says that the backend has rejected the request; a reset or an attempt that times out, after which the backend may
/// have processed it, only for idempotent methods.
pub(super) fn retry(retry: &HttpRouteRetry, changed: &mut Vec<String>) -> Result<Retry, String> {
    let HttpRouteRetry { attempts, backoff, codes } = retry;
    let attempts = attempts.unwrap_or(1);
    if attempts > i64::from(ATTEMPTS_MAX) {
        changed.push(format!("retry.attempts: {attempts}: at most {ATTEMPTS_MAX} retries are made"));
    }
    let attempts = u32::try_from(attempts).unwrap_or(ATTEMPTS_MAX).min(ATTEMPTS_MAX);
    let code = |code: &i64| {
        let known = u16::try_from(*code).ok().filter(|code| (400..600).contains(code));
        known.ok_or_else(|| format!("retry.codes: {code} is not between 400 and 599"))
    };
    let backoff_ms = match backoff {
        Some(text) => bounded(text, "retry.backoff", BACKOFF_MIN, BACKOFF_MAX, changed)?,
        None => millis(BACKOFF_DEFAULT),
    };
    Ok(Retry { attempts, codes: codes.iter().map(code).collect::<Result<_, _>>()?, methods: Vec::new(), backoff_ms })
}

/// A duration in milliseconds, within bounds.
fn bounded(text: &str, field: &str, min: Duration, max: Duration, changed: &mut Vec<String>) -> Result<u64, String> {
    let written = value::parse_duration(&weft_crds::Duration(text.to_owned()), field)?;
    let found = written.clamp(min, max);
    if found != written {
        changed.push(format!("{field}: {text} is applied as {} ms, the nearest that Weft supports", found.as_millis()));
    }
    Ok(millis(found))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
