//! Validates and rewrites the heads of requests and responses.
//!
//! The rules are a proxy's (RFC 9110 7.6.1, RFC 9112 6.3): one authority, one framing, and hop-by-hop headers are never
//! forwarded. An ambiguous head is refused.
//!
//! - [`check`]: refuses ambiguous heads.
//! - [`rewrite`]: prepares the head of a request for rules, and then for its endpoint.
//! - [`hop_by_hop`]: removes headers and trailers that are not forwarded.
//! - [`upgrade`]: which upgrades are forwarded.
//! - [`names`]: sets of header names.
//! - [`list`]: comma-separated lists.

mod check;
mod hop_by_hop;
mod list;
mod names;
#[cfg(any(test, fuzzing))]
mod properties;
mod rewrite;
mod upgrade;

use std::time::Duration;

use http::HeaderMap;
use http::header::{self, HeaderName};

pub(crate) use check::{MaxForwards, canonical_host, check, check_connect, check_response, max_forwards};
pub(crate) use hop_by_hop::{strip_hop_by_hop, strip_trailers, strip_weft_headers};
pub(crate) use list::has_token;
pub(crate) use names::{Names, ProtectedHeaders, is_same_name};
#[cfg(fuzzing)]
pub(crate) use properties::check_properties;
pub(crate) use rewrite::{authority, for_upstream, normalize, set_client_certificate};
pub(crate) use upgrade::{is_requested, wants_upgrade};

/// The status of a gRPC call.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Digits of a `grpc-timeout`.
const GRPC_TIMEOUT_DIGITS_MAX: usize = 8;

/// Whether a message belongs to a gRPC call.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The time that a gRPC client gives its call. None: no limit, or not a valid one. Source: "Timeout" in gRPC over HTTP/2.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.len() > GRPC_TIMEOUT_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A request with these headers.
#[cfg(test)]
fn request(method: &str, target: &str, headers: &[(&'static str, &'static str)]) -> http::Request<()> {
    let mut request = http::Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}
