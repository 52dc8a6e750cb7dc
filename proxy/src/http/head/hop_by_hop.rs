//! Removes headers and trailers that are not forwarded: hop-by-hop headers (RFC 9110 7.6.1), fields that are forbidden
//! in trailers (RFC 9110 6.5.1), and headers of mesh proxies.

use http::HeaderMap;
use http::header::{self, HeaderName};

use super::list::list_items;
use super::names::{Names, with_hyphens};
use crate::reason::{REASON, SOURCE, UNPROCESSED};

/// Hop-by-hop headers.
pub(super) static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes hop-by-hop headers: the well-known ones and those that `Connection` names, except protected and end-to-end
/// headers.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, protected: Option<&Names>) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = (headers.get_all(header::CONNECTION).iter())
            .flat_map(list_items)
            .filter_map(|option| HeaderName::from_bytes(option).ok())
            .filter(|name| !is_end_to_end(name) && !protected.is_some_and(|names| names.contains(name)))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    remove_all(headers, |name| HOP_BY_HOP.contains(name));
}

/// Removes the headers by which mesh proxies describe their own responses, from a message that no mesh proxy sent.
pub(crate) fn strip_weft_headers(headers: &mut HeaderMap) {
    remove_all(headers, |name| *name == UNPROCESSED || *name == REASON || *name == SOURCE);
}

/// Removes the headers whose names match. Scanning the few headers of a message is cheaper than looking each name up.
pub(super) fn remove_all(headers: &mut HeaderMap, is_match: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_match(name)).cloned() {
        headers.remove(name);
    }
}

/// Whether a header stays even if `Connection` names it. RFC 9110 7.6.1 forbids senders to name end-to-end headers
/// there, and removing a header that an earlier proxy added or checked would undo that proxy's work.
fn is_end_to_end(name: &HeaderName) -> bool {
    let name = &*with_hyphens(name.as_str());
    is_head_only(name) || name == "etag" || name.starts_with("grpc-") || name.starts_with("sec-")
}

/// Whether a field is forbidden in trailers (RFC 9110 6.5.1): framing, routing, authentication, request modifiers,
/// response controls, content format, and the headers of proxies.
fn is_never_trailer(name: &HeaderName) -> bool {
    let name = &*with_hyphens(name.as_str());
    is_head_only(name)
        || matches!(
            name,
            "age"
                | "proxy-authenticate"
                | "proxy-authentication-info"
                | "proxy-authorization"
                | "retry-after"
                | "server"
                | "status"
                | "strict-transport-security"
                | "warning"
                | "www-authenticate"
                | "x-http-method-override"
        )
}

/// Whether a field is end-to-end and valid in a head only. Compared as constants, because each gRPC call has trailers.
fn is_head_only(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "b3"
            | "baggage"
            | "cache-control"
            | "cookie"
            | "date"
            | "expect"
            | "expires"
            | "forwarded"
            | "host"
            | "location"
            | "max-forwards"
            | "origin"
            | "pragma"
            | "range"
            | "referer"
            | "set-cookie"
            | "traceparent"
            | "tracestate"
            | "trailer"
            | "user-agent"
            | "vary"
            | "via"
            | "x-real-ip"
            | "x-request-id"
    ) || name.starts_with("accept")
        || name.starts_with("access-control-")
        || name.starts_with("content-")
        || name.starts_with("if-")
        || name.starts_with("weft-")
        || name.starts_with("x-b3-")
        || name.starts_with("x-forwarded-")
}

/// Removes forbidden and protected fields from trailers.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap, protected: Option<&Names>) {
    remove_all(trailers, |name| {
        HOP_BY_HOP.contains(name) || is_never_trailer(name) || protected.is_some_and(|names| names.contains(name))
    });
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn connection_cannot_remove_protected_or_end_to_end_headers() {
        let protected = Names::of(&[HeaderName::from_static("x-team"), HeaderName::from_static("x_user")]);
        let mut headers = HeaderMap::new();
        let names = [
            "authorization",
            "x-forwarded-for",
            "x_forwarded_for",
            "grpc-timeout",
            "x-team",
            "x_team",
            "x-user",
            "x-own",
        ];
        for name in names {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let options = [&b"close, \xff, X-Own"[..], names.join(",").as_bytes()].join(&b","[..]);
        headers.insert(header::CONNECTION, HeaderValue::from_bytes(&options).expect("a value"));
        strip_hop_by_hop(&mut headers, protected.as_ref());
        let kept: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(kept, names[..7]);
    }

    #[test]
    fn strip_trailers_removes_forbidden_and_protected_fields() {
        let protected = Names::of(&[HeaderName::from_static("x-team")]);
        let kept = ["grpc-status", "grpc-message", "x-sum", "etag", "x-data-bin"];
        let mut trailers = HeaderMap::new();
        for name in [
            "x_forwarded_for",
            "weft-reason",
            "Host",
            "te",
            "connection",
            "x_team",
            "X-Team",
            "content-md5",
            "if-match",
        ]
        .into_iter()
        .chain(kept)
        {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            trailers.append(name, HeaderValue::from_static("1"));
        }
        strip_trailers(&mut trailers, protected.as_ref());
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_by_key(|name| kept.iter().position(|other| other == name));
        assert_eq!(left, kept);
    }
}
