//! The Date header of responses that come without one.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use http::header::HeaderValue;

use crate::clock;

thread_local! {
    /// The second that was written last, and as what.
    static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The present second, as a Date header says it (RFC 9110 5.6.7). Written once a second.
pub(super) fn now() -> HeaderValue {
    let second = clock::time_of_day().as_secs();
    WRITTEN.with_borrow_mut(|written| {
        if written.0 != second
            && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second)))
        {
            *written = (second, value);
        }
        written.1.clone()
    })
}
