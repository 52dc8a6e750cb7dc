//! What a request's head must be before anybody looks at it, and what it becomes on its way up.
//!
//! These are the duties that hyper leaves to a proxy: one authority, one framing, and headers that concern one connection
//! never passed to another (RFC 9110 7.6.1, RFC 9112 6.3). A head that could mean two things is refused.

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Uri, Version};

/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadHead(pub(crate) &'static str);

/// Refuses a head that could mean two things.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), BadHead> {
    let headers = request.headers();
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() {
            return Err(BadHead("the only transfer encoding is \"chunked\", once"));
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(BadHead("a message has a content length or a transfer encoding, not both"));
        }
        if request.version() == Version::HTTP_10 {
            return Err(BadHead("HTTP/1.0 has no transfer encoding"));
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.any(|other| other != length) || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(BadHead("the content length is no single number"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadHead("there are several Host headers"));
    }
    if let Some(host) = host {
        let authority = Authority::try_from(host.as_bytes());
        let empty = host.is_empty() && request.uri().authority().is_none();
        if !(empty || authority.as_ref().is_ok_and(|authority| !authority.as_str().contains('@'))) {
            return Err(BadHead("the Host header is no host"));
        }
        if let (Some(of_uri), Ok(of_host)) = (request.uri().authority(), authority)
            && *of_uri != of_host
        {
            return Err(BadHead("the target and the Host header name different hosts"));
        }
    } else if request.version() == Version::HTTP_11 && request.uri().authority().is_none() {
        return Err(BadHead("there is no Host header"));
    }
    let path = request.uri().path();
    let any_server = path == "*" && request.method() == Method::OPTIONS;
    if !path.starts_with('/') && !any_server && request.method() != Method::CONNECT {
        return Err(BadHead("the path does not begin with a slash"));
    }
    Ok(())
}

/// The host that a request names, in the form of a Host header.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(header::HOST).cloned(),
    }
}

/// The protocol that a request wants to change to, if it is one that may be passed on. HTTP/2 is not: who wants it on
/// this connection must begin with it.
pub(crate) fn wants_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE).filter(|_| version == Version::HTTP_11)?;
    if !headers.get_all(header::CONNECTION).iter().any(|value| has_token(value, "upgrade")) {
        return None;
    }
    (!has_token(protocol, "h2c")).then(|| protocol.clone())
}

/// Takes away what concerns one connection only: the well-known headers and those that `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = (headers.get_all(header::CONNECTION).iter())
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|token| token.trim().parse().ok())
            // Framing and host are nobody's to name.
            .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Makes a request's head ready to be sent: `host` and `path` replace what it had, framing is left to the codec.
pub(crate) fn for_upstream(
    parts: &mut Parts,
    host: Option<HeaderValue>,
    path: Option<PathAndQuery>,
    http2: bool,
) -> Result<(), BadHead> {
    let trailers = parts.headers.get_all(header::TE).iter().any(|value| has_token(value, "trailers"));
    strip_hop_by_hop(&mut parts.headers);
    if trailers && http2 {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    // hyper has answered it already, when the body was first read.
    parts.headers.remove(header::EXPECT);
    parts.headers.remove(header::HOST);
    let path = path.or_else(|| parts.uri.path_and_query().cloned()).unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if http2 {
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(
            host.as_ref()
                .and_then(|host| Authority::try_from(host.as_bytes()).ok())
                .unwrap_or_else(|| Authority::from_static("unknown")),
        );
        parts.version = Version::HTTP_2;
    } else {
        if let Some(host) = host {
            parts.headers.insert(header::HOST, host);
        }
        parts.version = Version::HTTP_11;
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| BadHead("the target is none"))?;
    Ok(())
}

/// Whether a list of tokens has one, whatever its case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str, headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn heads_that_could_mean_two_things_are_refused() {
        let host = ("host", "a");
        for (desc, target, headers, ok) in [
            ("plain", "/", vec![host], true),
            ("no host", "/", vec![], false),
            ("two hosts", "/", vec![host, host], false),
            ("an absolute target", "http://a/", vec![], true),
            ("an absolute target and its host", "http://a/", vec![host], true),
            ("an absolute target and another host", "http://b/", vec![host], false),
            ("a host with user", "/", vec![("host", "u@a")], false),
            ("chunked", "/", vec![host, ("transfer-encoding", "Chunked")], true),
            (
                "chunked twice",
                "/",
                vec![host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                false,
            ),
            ("a list", "/", vec![host, ("transfer-encoding", "chunked, chunked")], false),
            ("another encoding", "/", vec![host, ("transfer-encoding", "gzip")], false),
            ("both framings", "/", vec![host, ("transfer-encoding", "chunked"), ("content-length", "3")], false),
            ("two equal lengths", "/", vec![host, ("content-length", "3"), ("content-length", "3")], true),
            ("two lengths", "/", vec![host, ("content-length", "3"), ("content-length", "4")], false),
            ("a signed length", "/", vec![host, ("content-length", "+3")], false),
        ] {
            assert_eq!(check(&request("GET", target, &headers)).is_ok(), ok, "{desc}");
        }
    }

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let request = request(
            "POST",
            "/a?b",
            &[
                ("host", "shop"),
                ("connection", "close, X-Secret, Host"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("te", "trailers, gzip"),
                ("upgrade", "x"),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("x-stays", "1"),
            ],
        );
        let host = authority(&request);
        let mut parts = request.into_parts().0;
        for_upstream(&mut parts, host.clone(), None, false).expect("ready");
        let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-stays", "host"]);
        assert_eq!(parts.uri, "/a?b");
        for_upstream(&mut parts, host, Some(PathAndQuery::from_static("/c")), true).expect("ready");
        assert_eq!(parts.uri, "http://shop/c");
        assert!(!parts.headers.contains_key("host"));
    }

    #[test]
    fn only_real_upgrades_are_asked_for() {
        let upgrade = |connection, protocol| {
            let request = request("GET", "/", &[("host", "a"), ("connection", connection), ("upgrade", protocol)]);
            wants_upgrade(request.version(), request.headers()).is_some()
        };
        assert!(upgrade("Upgrade", "websocket"));
        assert!(upgrade("keep-alive, upgrade", "websocket"));
        assert!(!upgrade("keep-alive", "websocket"), "not named");
        assert!(!upgrade("Upgrade, HTTP2-Settings", "h2c"));
    }
}
