//! Refuses ambiguous heads: a request has one authority, a message has one framing (RFC 9112 6.3).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Version};
use weft_codec::HEADERS_MAX;
use weft_codec::http1::framing::{BadHead, framing};

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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::request;
    use super::*;

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
