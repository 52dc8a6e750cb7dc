//! The Date header for responses without one.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use http::header::HeaderValue;

use crate::clock;

thread_local! {
    /// The last second that was formatted, and its header value.
    static CACHED: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The current time as a Date header (RFC 9110 5.6.7). Formatted once a second.
pub(super) fn now() -> HeaderValue {
    let second = clock::time_of_day().as_secs();
    CACHED.with_borrow_mut(|cached| {
        if cached.0 != second
            && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second)))
        {
            *cached = (second, value);
        }
        cached.1.clone()
    })
}
