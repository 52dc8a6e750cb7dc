//! Validates and rewrites the heads of requests and responses.
//!
//! The rules are a proxy's (RFC 9110 7.6.1, RFC 9112 6.3): one authority, one framing, and hop-by-hop headers are never
//! forwarded. An ambiguous head is refused.
//!
//! Token lists are parsed as bytes, so that bytes beyond ASCII hide no token beside them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv6Addr;

use bytes::BytesMut;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Uri, Version};
use weft_codec::http1::framing::{BadHead, framing};
use weft_codec::{HEADERS_MAX, is_token};

use crate::reason::{REASON, SOURCE, UNPROCESSED};

/// Hop-by-hop headers.
static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Upgrades that are not forwarded, because the new protocol carries requests that rules and policies would not see:
/// HTTP in any version, and TLS, which may carry HTTP. Clients must open a connection with these protocols directly.
const REFUSED_UPGRADES: [&[u8]; 5] = [b"h2c", b"h2", b"http", b"tls", b"shttp"];

/// A set of header names. Names that differ only in `-` and `_` are equal: applications behind CGI, WSGI and the like
/// cannot tell them apart.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<HeaderName>);

/// Headers that routes and policies match, and those that rules set or remove. A peer can neither remove them by naming
/// them in `Connection` nor send them as trailers.
#[derive(Debug, Default)]
pub(crate) struct ProtectedHeaders {
    pub(crate) request: Option<Names>,
    pub(crate) response: Option<Names>,
}

/// How many times a TRACE or OPTIONS may still be forwarded (RFC 9110 7.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxForwards {
    /// The request has no limit.
    Unlimited,
    /// The value to forward: how many times the next recipient may forward the request.
    Left(u64),
    /// The limit is reached: this proxy responds itself.
    Reached,
}

/// Gives requests of every version the headers of an HTTP/1.1 request. `:authority`, or the authority of an HTTP/1.0
/// target, becomes the Host header; Cookie headers that an HTTP/2 client split are joined (RFC 9113 8.2.3 and 8.3.1).
pub(crate) fn normalize<B>(request: &mut Request<B>) {
    if request.version() == Version::HTTP_11 {
        return;
    }
    if !request.headers().contains_key(header::HOST)
        && let Some(host) = authority(request)
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if request.version() != Version::HTTP_2 {
        return;
    }
    let crumbs = request.headers().get_all(header::COOKIE);
    if crumbs.iter().nth(1).is_some() {
        let mut cookie = BytesMut::new();
        for crumb in crumbs {
            if !cookie.is_empty() {
                cookie.extend_from_slice(b"; ");
            }
            cookie.extend_from_slice(crumb.as_bytes());
        }
        if let Ok(cookie) = HeaderValue::from_maybe_shared(cookie.freeze()) {
            request.headers_mut().insert(header::COOKIE, cookie);
        }
    }
}

/// Refuses an ambiguous request head.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), BadHead> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(BadHead("more than 100 headers"));
    }
    // The HTTP/1.1 parser has checked the framing already.
    if request.version() == Version::HTTP_2 {
        framing(headers)?;
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadHead("more than one Host header"));
    }
    let of_uri = request.uri().authority();
    if let Some(host) = host
        // Over HTTP/2 they are mostly equal, because `normalize` copied one from the other.
        && of_uri.is_none_or(|authority| authority.as_str().as_bytes() != host.as_bytes())
    {
        let authority = Authority::try_from(host.as_bytes());
        let empty = host.is_empty() && of_uri.is_none();
        if !(empty || authority.as_ref().is_ok_and(is_host)) {
            return Err(BadHead("invalid Host header"));
        }
        if let (Some(of_uri), Ok(of_host)) = (of_uri, authority)
            && *of_uri != of_host
            // The example of RFC 9110 9.3.6 omits the port.
            && !(request.method() == Method::CONNECT && of_host.as_str().eq_ignore_ascii_case(of_uri.host()))
        {
            return Err(BadHead("the request target and the Host header name different hosts"));
        }
    }
    if host.is_none() && request.version() == Version::HTTP_11 {
        // RFC 9112 3.2: required with every form of request target.
        return Err(BadHead("missing Host header"));
    }
    if of_uri.is_some_and(|authority| !is_host(authority)) {
        return Err(BadHead("invalid host in the request target"));
    }
    let path = request.uri().path();
    let is_asterisk_form = path == "*" && request.method() == Method::OPTIONS;
    if !path.starts_with('/') && !is_asterisk_form && request.method() != Method::CONNECT {
        return Err(BadHead("invalid request target: the path must begin with \"/\""));
    }
    Ok(())
}

/// Refuses a CONNECT without a host and a port, or with a body: the bytes after its head belong to the tunnel.
pub(crate) fn check_connect<B>(request: &Request<B>) -> Result<(), BadHead> {
    let (uri, headers) = (request.uri(), request.headers());
    let port = uri.authority().and_then(Authority::port_u16);
    if uri.scheme().is_some() || uri.path_and_query().is_some() || port.is_none_or(|port| port == 0) {
        return Err(BadHead("invalid CONNECT target: it must be host:port"));
    }
    if headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(BadHead("a CONNECT must not have a Content-Length or Transfer-Encoding header"));
    }
    Ok(())
}

/// Refuses an ambiguous response head, and reduces equal Content-Length headers to one.
pub(crate) fn check_response(version: Version, headers: &mut HeaderMap) -> Result<(), BadHead> {
    // The HTTP/1.1 parser has checked the framing already.
    if version == Version::HTTP_2 {
        framing(headers)?;
    }
    // Fewer names than values: a header is repeated.
    if headers.keys_len() < headers.len()
        && headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = headers.remove(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// Whether an authority is a name or an IP address, with or without a port, and nothing ambiguous.
fn is_host(authority: &Authority) -> bool {
    let (host, text) = (authority.host(), authority.as_str());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let named = !host.is_empty() && host.bytes().all(plain);
    let port = text.strip_prefix(host).map(|rest| match rest.strip_prefix(':') {
        Some(port) => {
            port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
        }
        None => rest.is_empty(),
    });
    (named || ipv6(host.as_bytes()).is_some()) && port == Some(true)
}

/// The IPv6 address in brackets. RFC 3986's syntax for later versions of IP (`[v1.a]`) is unused and not accepted.
fn ipv6(host: &[u8]) -> Option<Ipv6Addr> {
    let address = host.strip_prefix(b"[")?.strip_suffix(b"]")?;
    std::str::from_utf8(address).ok()?.parse().ok()
}

/// The canonical form of a host: lower case, without the port and without a trailing dot.
pub(crate) fn canonical_host(host: &[u8]) -> Cow<'_, [u8]> {
    let end = match host.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(colon) if host[colon] == b':' => colon,
        _ => host.len(),
    };
    let name = &host[..end];
    let name = name.strip_suffix(b".").unwrap_or(name);
    match ipv6(name) {
        Some(address) => Cow::Owned(format!("[{address}]").into_bytes()),
        None if name.iter().any(u8::is_ascii_uppercase) => Cow::Owned(name.to_ascii_lowercase()),
        None => Cow::Borrowed(name),
    }
}

/// The host that a request names, as the value of a Host header.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.headers().get(header::HOST) {
        Some(host) => Some(host.clone()),
        None => HeaderValue::from_str(request.uri().authority()?.as_str()).ok(),
    }
}

/// The value of a request's Upgrade header, if the upgrade may be forwarded: there is one Upgrade header, it is
/// valid, and none of its protocols is in [`REFUSED_UPGRADES`].
pub(crate) fn wants_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let protocol = protocols.next()?;
    if protocols.next().is_some() || !headers.get_all(header::CONNECTION).iter().any(|it| has_token(it, "upgrade")) {
        return None;
    }
    list_items(protocol).all(is_upgrade_allowed).then(|| protocol.clone())
}

/// Whether the protocols that a server switches to were all requested by the client.
pub(crate) fn is_requested(requested: &HeaderValue, accepted: &HeaderValue) -> bool {
    list_items(accepted).all(|protocol| list_items(requested).any(|other| other.eq_ignore_ascii_case(protocol)))
}

/// Whether an item of an Upgrade header is `name` or `name/version`, and not one of [`REFUSED_UPGRADES`].
fn is_upgrade_allowed(protocol: &[u8]) -> bool {
    let mut parts = protocol.split(|byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    is_token(name)
        && parts.next().is_none_or(is_token)
        && parts.next().is_none()
        && !REFUSED_UPGRADES.iter().any(|refused| name.eq_ignore_ascii_case(refused))
}

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
fn remove_all(headers: &mut HeaderMap, is_match: impl Fn(&HeaderName) -> bool) {
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

/// A name with each `_` replaced by `-`.
fn with_hyphens(name: &str) -> Cow<'_, str> {
    if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) }
}

/// Whether applications behind CGI, WSGI and the like cannot tell two names apart.
pub(crate) fn is_same_name(one: &HeaderName, other: &HeaderName) -> bool {
    let alike = |(one, other): (u8, u8)| one == other || (matches!(one, b'-' | b'_') && matches!(other, b'-' | b'_'));
    one.as_str().len() == other.as_str().len() && one.as_str().bytes().zip(other.as_str().bytes()).all(alike)
}

/// Removes forbidden and protected fields from trailers.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap, protected: Option<&Names>) {
    remove_all(trailers, |name| {
        HOP_BY_HOP.contains(name) || is_never_trailer(name) || protected.is_some_and(|names| names.contains(name))
    });
}

/// How many times a request may still be forwarded. Max-Forwards is ignored for methods other than TRACE and OPTIONS.
pub(crate) fn max_forwards(method: &Method, headers: &HeaderMap) -> Result<MaxForwards, BadHead> {
    if !matches!(*method, Method::TRACE | Method::OPTIONS) {
        return Ok(MaxForwards::Unlimited);
    }
    let mut values = headers.get_all(header::MAX_FORWARDS).iter();
    let Some(value) = values.next() else { return Ok(MaxForwards::Unlimited) };
    let digits = std::str::from_utf8(value.as_bytes())
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && values.next().is_none());
    match digits.map(|digits| digits.parse::<u64>()) {
        None => Err(BadHead("invalid Max-Forwards: it must be a single number")),
        Some(Ok(0)) => Ok(MaxForwards::Reached),
        Some(Ok(left)) => Ok(MaxForwards::Left(left - 1)),
        // Larger than a u64; RFC 9110 7.6.2 lets a recipient send its own maximum.
        Some(Err(_)) => Ok(MaxForwards::Left(u64::MAX)),
    }
}

/// Prepares a request's head to be sent upstream: sets `host` and `path`, removes hop-by-hop and framing headers (the
/// codec adds framing). Header edits of rules run after this, so that `Connection` cannot remove what they set.
pub(crate) fn for_upstream(
    parts: &mut Parts,
    host: Option<HeaderValue>,
    path: Option<PathAndQuery>,
    http2: bool,
    protected: Option<&Names>,
) -> Result<(), BadHead> {
    let trailers = http2 && parts.headers.get_all(header::TE).iter().any(|value| has_token(value, "trailers"));
    strip_hop_by_hop(&mut parts.headers, protected);
    if trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // The codec sets the length; `Expect` is set again if the client still waits for 100 Continue.
    remove_all(&mut parts.headers, |name| *name == header::CONTENT_LENGTH || *name == header::EXPECT);
    let path = path.or_else(|| parts.uri.path_and_query().cloned()).unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if http2 {
        parts.headers.remove(header::HOST);
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(
            host.as_ref()
                .and_then(|host| Authority::try_from(host.as_bytes()).ok())
                .unwrap_or_else(|| Authority::from_static("unknown")),
        );
        parts.version = Version::HTTP_2;
    } else {
        match host {
            Some(host) => parts.headers.insert(header::HOST, host),
            None => parts.headers.remove(header::HOST),
        };
        parts.version = Version::HTTP_11;
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| BadHead("invalid request target"))?;
    Ok(())
}

/// Whether a list contains a token, compared without case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    list_items(value).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// The items of a comma-separated list (RFC 9110 5.6.1), without empty ones.
fn list_items(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

// === impl Names ===

impl Names {
    /// A set of these names. None: it would be empty.
    pub(crate) fn of<'a>(names: impl IntoIterator<Item = &'a HeaderName>) -> Option<Self> {
        let names: HashSet<HeaderName> = names.into_iter().map(Self::normalized).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    pub(crate) fn contains(&self, name: &HeaderName) -> bool {
        if name.as_str().contains('_') { self.0.contains(&Self::normalized(name)) } else { self.0.contains(name) }
    }

    fn normalized(name: &HeaderName) -> HeaderName {
        HeaderName::from_bytes(with_hyphens(name.as_str()).as_bytes()).unwrap_or_else(|_| name.clone())
    }
}

/// Properties of any bytes: a request that is accepted has one framing and at most one host, and what is sent
/// upstream has no hop-by-hop headers.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(bytes: &[u8]) {
    use weft_codec::http1::parse;
    if let Ok(Some((_, length))) = parse::response(bytes, &Method::GET) {
        assert!(length <= bytes.len());
    }
    let Ok(Some((head, length))) = parse::request(bytes) else { return };
    assert!(!matches!(parse::request(&bytes[..length - 1]), Ok(Some(_))), "the head ended earlier");
    let request = head.request;
    if check(&request).is_err() || request.method() == Method::CONNECT {
        return;
    }
    let headers = request.headers();
    let count = |name: HeaderName| headers.get_all(name).iter().count();
    assert!(count(header::HOST) <= 1 && count(header::TRANSFER_ENCODING) <= 1, "{request:?}");
    assert!(count(header::TRANSFER_ENCODING) == 0 || count(header::CONTENT_LENGTH) == 0, "{request:?}");
    let host = authority(&request);
    for http2 in [false, true] {
        let mut parts = request.clone().into_parts().0;
        for_upstream(&mut parts, host.clone(), None, http2, None).expect("valid");
        assert_eq!(parts.headers.contains_key(header::HOST), !http2 && host.is_some(), "{request:?}");
        for name in HOP_BY_HOP.iter().filter(|name| !http2 || **name != header::TE) {
            assert!(!parts.headers.contains_key(name), "{name} of {request:?}");
        }
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH), "{request:?}");
    }
}

/// Whether a message belongs to a gRPC call.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
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
    fn check_refuses_ambiguous_requests() {
        let host = ("host", "a");
        for (desc, target, headers, ok) in [
            ("plain", "/", vec![host], true),
            ("no host", "/", vec![], false),
            ("two hosts", "/", vec![host, host], false),
            ("an absolute target", "http://a/", vec![], false),
            ("an absolute target and its host", "http://a/", vec![host], true),
            ("an absolute target and another host", "http://b/", vec![host], false),
            ("a host with user", "/", vec![("host", "u@a")], false),
            ("an address", "/", vec![("host", "[::1]:80")], true),
            ("a name in brackets", "/", vec![("host", "[evil]")], false),
            ("an address of a future IP version", "/", vec![("host", "[v1.a]")], false),
            ("an address with a zone", "/", vec![("host", "[fe80::1%25eth0]")], false),
        ] {
            assert_eq!(check(&request("GET", target, &headers)).is_ok(), ok, "{desc}");
        }
    }

    #[test]
    fn check_connect_requires_host_and_port_and_no_body() {
        let host = ("host", "app");
        for (desc, target, headers, ok) in [
            ("plain", "app:80", vec![("host", "app:80")], true),
            ("the host without its port", "app:80", vec![("host", "APP")], true),
            ("an address", "[::1]:443", vec![("host", "[::1]:443")], true),
            ("no port", "app", vec![host], false),
            ("an empty port", "app:", vec![host], false),
            ("port 0", "app:0", vec![host], false),
            ("another port", "app:80", vec![("host", "app:81")], false),
            ("another host", "app:80", vec![("host", "b")], false),
            ("a path", "/x", vec![host], false),
            ("a whole URL", "http://app:80/", vec![host], false),
            ("a user", "u@app:80", vec![host], false),
            ("a length", "app:80", vec![host, ("content-length", "0")], false),
            ("chunks", "app:80", vec![host, ("transfer-encoding", "chunked")], false),
        ] {
            let request = request("CONNECT", target, &headers);
            assert_eq!(check(&request).and_then(|()| check_connect(&request)).is_ok(), ok, "{desc}");
        }
    }

    #[test]
    fn for_upstream_removes_hop_by_hop_headers() {
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
        for_upstream(&mut parts, host.clone(), None, false, None).expect("valid");
        let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["host", "x-stays"]);
        assert_eq!(parts.uri, "/a?b");
        for_upstream(&mut parts, host, Some(PathAndQuery::from_static("/c")), true, None).expect("valid");
        assert_eq!(parts.uri, "http://shop/c");
        assert!(!parts.headers.contains_key("host"));
    }

    #[test]
    fn upgrades_to_http_and_tls_are_not_forwarded() {
        let upgrade = |connection, protocol| {
            let request = request("GET", "/", &[("host", "a"), ("connection", connection), ("upgrade", protocol)]);
            wants_upgrade(request.version(), request.headers()).is_some()
        };
        assert!(upgrade("Upgrade", "websocket"));
        assert!(upgrade("keep-alive, upgrade", "websocket"));
        assert!(!upgrade("keep-alive", "websocket"), "Connection does not name Upgrade");
        for protocol in ["h2c", "H2C", "websocket, h2c", "h2", "HTTP/2.0", "TLS/1.0", "a/b/c", "a b", "a;b", "/1"] {
            assert!(!upgrade("Upgrade, HTTP2-Settings", protocol), "{protocol}");
        }
        assert!(upgrade("Upgrade", "websocket, other/1.2,"));
        let mut bytes = request("GET", "/", &[("host", "a"), ("connection", "upgrade")]);
        for value in [&b"h2c, \xff"[..], b"websocket, \xff", b"\xff"] {
            bytes.headers_mut().insert(header::UPGRADE, HeaderValue::from_bytes(value).expect("a value"));
            assert_eq!(wants_upgrade(bytes.version(), bytes.headers()), None, "{value:?}");
        }
        let of = |text: &'static str| HeaderValue::from_static(text);
        assert!(is_requested(&of("a, websocket"), &of("WebSocket")));
        assert!(!is_requested(&of("websocket"), &of("websocket, h2c")));
    }

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

    #[test]
    fn canonical_host_ignores_case_port_and_trailing_dot() {
        for (host, expected) in [
            ("app", "app"),
            ("App.Shop", "app.shop"),
            ("app:80", "app"),
            ("app:", "app"),
            ("APP.:8080", "app"),
            ("app.", "app"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0:0::1]:80", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
            ("", ""),
        ] {
            assert_eq!(*canonical_host(host.as_bytes()), *expected.as_bytes(), "{host}");
        }
    }

    #[test]
    fn max_forwards_counts_down_for_trace_and_options() {
        for (method, values, expected) in [
            (Method::OPTIONS, &[][..], Some(MaxForwards::Unlimited)),
            (Method::GET, &["0"], Some(MaxForwards::Unlimited)),
            (Method::OPTIONS, &["0"], Some(MaxForwards::Reached)),
            (Method::TRACE, &["3"], Some(MaxForwards::Left(2))),
            (Method::TRACE, &["18446744073709551616"], Some(MaxForwards::Left(u64::MAX))),
            (Method::TRACE, &[""], None),
            (Method::TRACE, &["+1"], None),
            (Method::TRACE, &["1", "1"], None),
        ] {
            let headers = values.iter().map(|value| (header::MAX_FORWARDS, HeaderValue::from_static(value))).collect();
            assert_eq!(max_forwards(&method, &headers).ok(), expected, "{method} {values:?}");
        }
    }

    /// A request with these header lines, each character one byte.
    fn from_lines(lines: &[String]) -> Vec<u8> {
        let text =
            format!("GET /a HTTP/1.1\r\n{}\r\n", lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
        text.chars().map(|byte| byte as u8).collect()
    }

    #[test]
    fn laws_hold_for_seed_heads() {
        let heads: Vec<Vec<String>> =
            serde_json::from_str(include_str!("../../tests/corpus/seeds/heads.json")).expect("a list of heads");
        heads.iter().for_each(|lines| check_laws(&from_lines(lines)));
    }

    proptest::proptest! {
        #[test]
        fn laws(lines in proptest::collection::vec(
            "(host|connection|transfer-encoding|content-length|te|upgrade|x-a|keep-alive): (a|a:80|a,b|u@a|\\[::1\\]|chunked|chunked, chunked|gzip|[0-9]{0,3}|x-a|close, x-a|host|[ -~]{0,12})",
            0..8,
        )) {
            check_laws(&from_lines(&lines));
        }
    }

    #[test]
    fn normalize_joins_http2_cookies_and_sets_host() {
        let mut crumbs = request("GET", "http://a/", &[("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "1")]);
        normalize(&mut crumbs);
        assert_eq!(crumbs.headers().get_all(header::COOKIE).iter().count(), 2, "HTTP/1.1 does not split cookies");
        *crumbs.version_mut() = Version::HTTP_2;
        normalize(&mut crumbs);
        let cookies: Vec<_> = crumbs.headers().get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
        assert_eq!(crumbs.headers()[header::HOST], "a");
    }

    #[test]
    fn check_response_refuses_ambiguous_lengths() {
        for (desc, headers, ok) in [
            ("none", vec![], true),
            ("a length", vec![("content-length", "3")], true),
            ("two equal lengths", vec![("content-length", "3"), ("content-length", "3")], true),
            ("two lengths", vec![("content-length", "3"), ("content-length", "4")], false),
            ("a list of lengths", vec![("content-length", "3, 3")], false),
            ("an empty length", vec![("content-length", "")], false),
            ("chunked", vec![("transfer-encoding", "chunked")], true),
            ("both", vec![("transfer-encoding", "chunked"), ("content-length", "3")], false),
            ("another encoding", vec![("transfer-encoding", "gzip, chunked")], false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, HeaderValue::from_static(value));
            }
            assert_eq!(check_response(Version::HTTP_2, &mut map).is_ok(), ok, "{desc}");
            assert!(!ok || map.get_all(header::CONTENT_LENGTH).iter().count() <= 1, "{desc}: one is left");
        }
    }
}
