//! Rewrites the head of a request: as if every client spoke HTTP/1.1, and for the version of the endpoint.

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri, Version};
use weft_codec::http1::framing::BadHead;

use super::hop_by_hop::{remove_all, strip_hop_by_hop};
use super::list::has_token;
use super::names::{Names, is_same_name};

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

/// The host that a request names, as the value of a Host header.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.headers().get(header::HOST) {
        Some(host) => Some(host.clone()),
        None => HeaderValue::from_str(request.uri().authority()?.as_str()).ok(),
    }
}

/// Tells the application who calls. Source of the name: Envoy.
const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Replaces every copy of `x-forwarded-client-cert` that a client sent, in any spelling that applications cannot tell
/// apart, by what its connection has proven. Trailers of this name are never forwarded.
pub(crate) fn set_client_certificate(headers: &mut HeaderMap, caller: Option<HeaderValue>) {
    remove_all(headers, |name| is_same_name(name, &CLIENT_CERTIFICATE));
    if let Some(caller) = caller {
        headers.insert(CLIENT_CERTIFICATE, caller);
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

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

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

    /// ID-13
    #[test]
    fn id_13_copies_of_the_client_certificate_header_are_replaced() {
        let names = ["x-forwarded-client-cert", "x_forwarded_client_cert", "X-Forwarded_Client-Cert"];
        for caller in [None, Some(HeaderValue::from_static("By=a;URI=b"))] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
            for name in names {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                headers.append(&name, HeaderValue::from_static("URI=spiffe://td/ns/a/sa/admin"));
                headers.append(&name, HeaderValue::from_static(""));
            }
            set_client_certificate(&mut headers, caller.clone());
            let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            let mut expected = vec![("x-forwarded-for", HeaderValue::from_static("192.0.2.1"))];
            expected.extend(caller.map(|caller| ("x-forwarded-client-cert", caller)));
            assert_eq!(left, expected);
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
}
