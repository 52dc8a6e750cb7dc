//! What a request's head must be before anybody looks at it, and what it becomes on its way up.
//!
//! These are the duties of a proxy: one authority, one framing, and headers that concern one connection
//! never passed to another (RFC 9110 7.6.1, RFC 9112 6.3). A head that could mean two things is refused.

use bytes::BytesMut;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Uri, Version};

use super::respond;
use crate::http1::parse::Framing;

/// Headers of a request, each value counted. Source: Envoy's default.
pub(crate) const HEADERS_MAX: usize = 100;

/// Headers that concern one connection only.
static HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What has no place after a body: framing, routing, credentials, and what says how the body is to be read (RFC 9110 6.5.1).
static NEVER_TRAILERS: [HeaderName; 14] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::MAX_FORWARDS,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::SET_COOKIE,
    header::TRAILER,
];

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadHead(pub(crate) &'static str);

/// Gives a request of HTTP/2 the form that one of HTTP/1.1 has, for all who look at headers: its authority is the Host
/// header too, and a Cookie header that the client cut into crumbs is whole again (RFC 9113 8.2.3 and 8.3.1).
pub(crate) fn unify<B>(request: &mut Request<B>) {
    if request.version() != Version::HTTP_2 {
        return;
    }
    if !request.headers().contains_key(header::HOST)
        && let Some(host) = authority(request)
    {
        request.headers_mut().insert(header::HOST, host);
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

/// Refuses a head that could mean two things.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), BadHead> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(BadHead("there are more than 100 headers"));
    }
    // Over HTTP/1.1 nobody could have read it otherwise.
    if request.version() == Version::HTTP_2 {
        framing(headers)?;
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadHead("there are several Host headers"));
    }
    if let Some(host) = host {
        let authority = Authority::try_from(host.as_bytes());
        let empty = host.is_empty() && request.uri().authority().is_none();
        if !(empty || authority.as_ref().is_ok_and(is_host)) {
            return Err(BadHead("the Host header is no host"));
        }
        if let (Some(of_uri), Ok(of_host)) = (request.uri().authority(), authority)
            && *of_uri != of_host
            // The example of RFC 9110 9.3.6 leaves the port out.
            && !(request.method() == Method::CONNECT && of_host.as_str().eq_ignore_ascii_case(of_uri.host()))
        {
            return Err(BadHead("the target and the Host header name different hosts"));
        }
    } else if request.version() == Version::HTTP_11 && request.uri().authority().is_none() {
        return Err(BadHead("there is no Host header"));
    }
    if request.uri().authority().is_some_and(|authority| !is_host(authority)) {
        return Err(BadHead("the target names no host"));
    }
    let path = request.uri().path();
    let any_server = path == "*" && request.method() == Method::OPTIONS;
    if !path.starts_with('/') && !any_server && request.method() != Method::CONNECT {
        return Err(BadHead("the path does not begin with a slash"));
    }
    Ok(())
}

/// Refuses a CONNECT that does not name host and port, or that has a body: what comes after its head is the tunnel's.
pub(crate) fn check_connect<B>(request: &Request<B>) -> Result<(), BadHead> {
    let (uri, headers) = (request.uri(), request.headers());
    let port = uri.authority().and_then(Authority::port_u16);
    if uri.scheme().is_some() || uri.path_and_query().is_some() || port.is_none_or(|port| port == 0) {
        return Err(BadHead("the target of a CONNECT is host:port"));
    }
    if headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(BadHead("a CONNECT has no body"));
    }
    Ok(())
}

/// Refuses a response's head that could mean two things. Of equal lengths one is left.
pub(crate) fn check_response(version: Version, headers: &mut HeaderMap) -> Result<(), BadHead> {
    // Over HTTP/1.1 nobody could have read it otherwise.
    if version == Version::HTTP_2 {
        framing(headers)?;
    }
    // Fewer names than values: some name has several.
    if headers.keys_len() < headers.len()
        && headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = headers.remove(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// How a message's headers say where its body ends, if they do: one framing, said once.
pub(crate) fn framing(headers: &HeaderMap) -> Result<Option<Framing>, BadHead> {
    // Looking once through the few that a message has is cheaper than looking each name up.
    if !headers.keys().any(|name| *name == header::TRANSFER_ENCODING || *name == header::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() {
            return Err(BadHead("the only transfer encoding is \"chunked\", once"));
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(BadHead("a message has a content length or a transfer encoding, not both"));
        }
        return Ok(Some(Framing::Chunked));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().filter(|length| lengths.all(|other| other == length)).and_then(|length| {
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok()
    });
    length.map(|length| Some(Framing::Length(length))).ok_or(BadHead("the content length is no single number"))
}

/// Whether an authority is a name or an address and perhaps a port, and nothing that could be read as two of them.
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
    (named || host.starts_with('[')) && port == Some(true)
}

/// The host that a request names, in the form of a Host header.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.headers().get(header::HOST) {
        Some(host) => Some(host.clone()),
        None => HeaderValue::from_str(request.uri().authority()?.as_str()).ok(),
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
    remove_all(headers, |name| HOP_BY_HOP.contains(name));
}

/// Takes away what a proxy of the mesh says of itself, from what does not come from one.
pub(crate) fn strip_own(headers: &mut HeaderMap) {
    for name in [&respond::UNPROCESSED, &respond::REASON, &respond::SOURCE] {
        headers.remove(name);
    }
}

/// Removes the headers with such names. To look at the few that are there is cheaper than to look up those that might be.
fn remove_all(headers: &mut HeaderMap, is_one: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_one(name)).cloned() {
        headers.remove(name);
    }
}

/// Takes away what nobody may say after a body.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| HOP_BY_HOP.contains(name) || NEVER_TRAILERS.contains(name));
}

/// Makes a request's head ready to be sent: `host` and `path` replace what it had, framing is left to the codec.
pub(crate) fn for_upstream(
    parts: &mut Parts,
    host: Option<HeaderValue>,
    path: Option<PathAndQuery>,
    http2: bool,
) -> Result<(), BadHead> {
    let trailers = http2 && parts.headers.get_all(header::TE).iter().any(|value| has_token(value, "trailers"));
    strip_hop_by_hop(&mut parts.headers);
    if trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // Whoever sends the request knows how long it is, and what is to be expected of the answer.
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
    parts.uri = Uri::from_parts(uri).map_err(|_| BadHead("the target is none"))?;
    Ok(())
}

/// Whether a list of tokens has one, whatever its case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
}

/// What is read from a connection and let through has one framing and at most one host, and what goes up has nothing of the
/// connection that it came on.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(bytes: &[u8]) {
    use crate::http1::parse;
    if let Ok(Some((_, length))) = parse::response(bytes, &Method::GET) {
        assert!(length <= bytes.len());
    }
    let Ok(Some((head, length))) = parse::request(bytes) else { return };
    assert!(!matches!(parse::request(&bytes[..length - 1]), Ok(Some(_))), "it has ended before");
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
        for_upstream(&mut parts, host.clone(), None, http2).expect("ready");
        assert_eq!(parts.headers.contains_key(header::HOST), !http2 && host.is_some(), "{request:?}");
        for name in HOP_BY_HOP.iter().filter(|name| !http2 || **name != header::TE) {
            assert!(!parts.headers.contains_key(name), "{name} of {request:?}");
        }
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH), "{request:?}");
    }
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
        ] {
            assert_eq!(check(&request("GET", target, &headers)).is_ok(), ok, "{desc}");
        }
    }

    #[test]
    fn a_framing_is_said_once() {
        let (chunked, length) = (("transfer-encoding", "chunked"), ("content-length", "3"));
        for (desc, headers, expected) in [
            ("nothing", vec![], Some(None)),
            ("chunked", vec![("transfer-encoding", "Chunked")], Some(Some(Framing::Chunked))),
            ("chunked twice", vec![chunked, chunked], None),
            ("a list", vec![("transfer-encoding", "chunked, chunked")], None),
            ("another encoding", vec![("transfer-encoding", "gzip")], None),
            ("both framings", vec![chunked, length], None),
            ("a length", vec![length], Some(Some(Framing::Length(3)))),
            ("two equal lengths", vec![length, length], Some(Some(Framing::Length(3)))),
            ("two lengths", vec![length, ("content-length", "4")], None),
            ("a signed length", vec![("content-length", "+3")], None),
            ("a length beyond numbers", vec![("content-length", "18446744073709551616")], None),
        ] {
            let headers = headers
                .into_iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(framing(&headers.collect()).ok(), expected, "{desc}");
        }
    }

    #[test]
    fn connect_names_host_and_port_and_has_no_body() {
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
        assert_eq!(names, ["host", "x-stays"]);
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

    /// A request with such lines for headers, each character a byte.
    fn from_lines(lines: &[String]) -> Vec<u8> {
        let text =
            format!("GET /a HTTP/1.1\r\n{}\r\n", lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
        text.chars().map(|byte| byte as u8).collect()
    }

    #[test]
    fn heads_that_were_seen_before() {
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
    fn a_cookie_in_crumbs_is_one_cookie() {
        let mut crumbs = request("GET", "http://a/", &[("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "1")]);
        unify(&mut crumbs);
        assert_eq!(crumbs.headers().get_all(header::COOKIE).iter().count(), 2, "HTTP/1.1 has no crumbs");
        *crumbs.version_mut() = Version::HTTP_2;
        unify(&mut crumbs);
        let cookies: Vec<_> = crumbs.headers().get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
        assert_eq!(crumbs.headers()[header::HOST], "a");
    }

    #[test]
    fn responses_that_could_mean_two_things_are_refused() {
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
