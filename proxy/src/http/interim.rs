//! Responses before the response (1xx, RFC 9110 15.2): 100 Continue, 102 Processing, 103 Early Hints.
//!
//! They go from the endpoint to the client as they come, over either version of HTTP, and change nothing about what may be
//! repeated. `Expect: 100-continue` goes up, so that it is the endpoint that asks for a body or refuses it; a client that does not
//! wait is not made to. One 100 is passed on to a client that waits for it, and none to others. Of a request that is hedged only
//! that is passed on, because two endpoints may speak at once.

use std::cell::Cell;

use http::header;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use super::head;

/// Responses before a response. One a second may be a sign of life for more than two hours.
pub(crate) const INTERIM_MAX: u32 = 10_000;

/// What is to be told to the client of a request before its response.
#[derive(Debug)]
pub(crate) struct Hears {
    /// The client waits to be asked for the body.
    waits: Cell<bool>,
    /// Others than 100, too.
    all: bool,
}

// === impl Hears ===

impl Hears {
    /// What the client of this request hears, which `is_hedged` or not.
    pub(crate) fn of(request: &Parts, has_body: bool, is_hedged: bool) -> Self {
        let is_new = request.version > Version::HTTP_10;
        Self { waits: Cell::new(is_new && has_body && expects_continue(&request.headers)), all: is_new && !is_hedged }
    }

    /// Whether the client waits to be asked for the body.
    pub(crate) fn waits(&self) -> bool {
        self.waits.get()
    }

    /// The client has sent something of the body.
    pub(crate) fn sends(&self) {
        self.waits.set(false);
    }

    /// Whether a response is passed on. If so, its headers are made ready for it.
    pub(crate) fn pass(&self, status: StatusCode, headers: &mut HeaderMap) -> bool {
        let passes = if status == StatusCode::CONTINUE { self.waits.replace(false) } else { self.all };
        if passes {
            head::strip_hop_by_hop(headers, None);
            headers.remove(header::CONTENT_LENGTH);
            head::strip_own(headers);
        }
        passes
    }
}

/// What a request says whose client waits to be asked for the body.
pub(crate) const CONTINUE: HeaderValue = HeaderValue::from_static("100-continue");

/// Whether it says that.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn hears(version: Version, expect: Option<&str>, has_body: bool, is_hedged: bool) -> Hears {
        let mut request = Request::post("/").version(version);
        if let Some(expect) = expect {
            request = request.header(header::EXPECT, expect);
        }
        Hears::of(&request.body(()).expect("a request").into_parts().0, has_body, is_hedged)
    }

    #[test]
    fn one_100_goes_to_a_client_that_waits_for_it() {
        for (version, expect, has_body, passes) in [
            (Version::HTTP_11, Some("100-continue"), true, true),
            (Version::HTTP_11, Some("100-Continue"), true, true),
            (Version::HTTP_2, Some("100-continue"), true, true),
            (Version::HTTP_11, None, true, false),
            (Version::HTTP_11, Some("100-continue"), false, false),
            (Version::HTTP_11, Some("something"), true, false),
            (Version::HTTP_10, Some("100-continue"), true, false),
        ] {
            for is_hedged in [false, true] {
                let hears = hears(version, expect, has_body, is_hedged);
                let pass = || hears.pass(StatusCode::CONTINUE, &mut HeaderMap::new());
                assert_eq!((pass(), pass()), (passes, false), "{version:?} {expect:?} {has_body} {is_hedged}");
            }
        }
        let hears = hears(Version::HTTP_11, Some("100-continue"), true, false);
        hears.sends();
        assert!(!hears.pass(StatusCode::CONTINUE, &mut HeaderMap::new()), "it did not wait");
    }

    #[test]
    fn others_go_to_all_that_know_of_them() {
        for (version, is_hedged, passes) in [
            (Version::HTTP_11, false, true),
            (Version::HTTP_2, false, true),
            (Version::HTTP_10, false, false),
            (Version::HTTP_11, true, false),
        ] {
            let hears = hears(version, None, false, is_hedged);
            for number in [102, 103, 103, 199] {
                let status = StatusCode::from_u16(number).expect("a status");
                assert_eq!(hears.pass(status, &mut HeaderMap::new()), passes, "{version:?} {is_hedged} {number}");
            }
        }
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let fields =
            [("link", "</a.css>"), ("connection", "x-a"), ("x-a", "1"), ("content-length", "5"), ("weft-reason", "x")];
        let pairs = fields.map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)));
        let mut headers: HeaderMap = pairs.into_iter().collect();
        assert!(hears(Version::HTTP_11, None, false, false).pass(StatusCode::EARLY_HINTS, &mut headers));
        assert_eq!(headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["link"]);
    }
}
