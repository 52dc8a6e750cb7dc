//! Interim responses (1xx, RFC 9110 15.2): 100 Continue, 102 Processing, 103 Early Hints.
//!
//! They are forwarded from the endpoint to the client as they arrive, over either version of HTTP, and do not affect
//! retries. `Expect: 100-continue` is sent upstream, so that the endpoint accepts or refuses the body; it is never
//! added to a request without it. At most one 100 is forwarded, and only to a client that sent `Expect`. For a hedged
//! request no other interim response is forwarded, because several endpoints may send them at once.

use std::cell::Cell;

use http::header;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use super::head;

/// Which interim responses are forwarded to the client of a request.
#[derive(Debug)]
pub(crate) struct InterimFilter {
    /// The client waits for 100 Continue before it sends the body.
    awaits_continue: Cell<bool>,
    /// Interim responses other than 100 are forwarded.
    forwards_others: bool,
}

// === impl InterimFilter ===

impl InterimFilter {
    /// The filter for a request with this head.
    pub(crate) fn new(request: &Parts, has_body: bool, is_hedged: bool) -> Self {
        let knows_interim = request.version > Version::HTTP_10;
        let awaits_continue = knows_interim && has_body && expects_continue(&request.headers);
        Self { awaits_continue: Cell::new(awaits_continue), forwards_others: knows_interim && !is_hedged }
    }

    /// Whether the client waits for 100 Continue before it sends the body.
    pub(crate) fn awaits_continue(&self) -> bool {
        self.awaits_continue.get()
    }

    /// The client has begun to send the body, so it no longer waits for 100 Continue.
    pub(crate) fn body_started(&self) {
        self.awaits_continue.set(false);
    }

    /// Whether an interim response is forwarded. If so, hop-by-hop and mesh headers are removed from it.
    pub(crate) fn passes(&self, status: StatusCode, headers: &mut HeaderMap) -> bool {
        let passes =
            if status == StatusCode::CONTINUE { self.awaits_continue.replace(false) } else { self.forwards_others };
        if passes {
            head::strip_hop_by_hop(headers, None);
            headers.remove(header::CONTENT_LENGTH);
            head::strip_weft_headers(headers);
        }
        passes
    }
}

/// The value of `Expect` in a request whose client waits for 100 Continue.
pub(crate) const CONTINUE: HeaderValue = HeaderValue::from_static("100-continue");

/// Whether a request has `Expect: 100-continue`.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn filter(version: Version, expect: Option<&str>, has_body: bool, is_hedged: bool) -> InterimFilter {
        let mut request = Request::post("/").version(version);
        if let Some(expect) = expect {
            request = request.header(header::EXPECT, expect);
        }
        InterimFilter::new(&request.body(()).expect("a request").into_parts().0, has_body, is_hedged)
    }

    #[test]
    fn one_100_continue_is_forwarded_to_a_client_that_sent_expect() {
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
                let filter = filter(version, expect, has_body, is_hedged);
                let pass = || filter.passes(StatusCode::CONTINUE, &mut HeaderMap::new());
                assert_eq!((pass(), pass()), (passes, false), "{version:?} {expect:?} {has_body} {is_hedged}");
            }
        }
        let filter = filter(Version::HTTP_11, Some("100-continue"), true, false);
        filter.body_started();
        assert!(!filter.passes(StatusCode::CONTINUE, &mut HeaderMap::new()), "the client has begun to send the body");
    }

    #[test]
    fn other_interim_responses_are_forwarded_unless_http10_or_hedged() {
        for (version, is_hedged, passes) in [
            (Version::HTTP_11, false, true),
            (Version::HTTP_2, false, true),
            (Version::HTTP_10, false, false),
            (Version::HTTP_11, true, false),
        ] {
            let filter = filter(version, None, false, is_hedged);
            for number in [102, 103, 103, 199] {
                let status = StatusCode::from_u16(number).expect("a status");
                assert_eq!(filter.passes(status, &mut HeaderMap::new()), passes, "{version:?} {is_hedged} {number}");
            }
        }
    }

    #[test]
    fn forwarded_interim_responses_lose_hop_by_hop_headers() {
        let fields =
            [("link", "</a.css>"), ("connection", "x-a"), ("x-a", "1"), ("content-length", "5"), ("weft-reason", "x")];
        let pairs = fields.map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)));
        let mut headers: HeaderMap = pairs.into_iter().collect();
        assert!(filter(Version::HTTP_11, None, false, false).passes(StatusCode::EARLY_HINTS, &mut headers));
        assert_eq!(headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["link"]);
    }
}
