//! What ties a request to an endpoint: a hash key, a session cookie or the client's address. Pure; balancing itself
//! (`weft_balance`) knows only the hashes.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Uri};
use weft_balance::hash;
use weft_config as wire;

use crate::cookie::cookie;
use crate::query::query_value;

/// What part of a request is its hash key.
#[derive(Clone, Debug)]
pub(crate) enum HashOn {
    Header(HeaderName),
    Cookie(String),
    QueryParam(String),
    SourceAddress,
}

/// The session cookie, whose value names an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Sticky {
    cookie: String,
    /// The part of `Set-Cookie` after the value.
    attributes: String,
}

/// What ties one request to an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Affinity {
    /// The hash of its key.
    pub(crate) key: Option<u64>,
    /// The session id in its cookie, see [`hash::session`].
    pub(crate) session: Option<u64>,
    /// The client's address, if the Service has `sessionAffinity: ClientIP`.
    pub(crate) client: Option<IpAddr>,
}

// === impl Affinity ===

impl Affinity {
    /// Whether the request stays with one endpoint.
    pub(crate) fn is_session(&self) -> bool {
        self.session.is_some() || self.client.is_some()
    }
}

// === impl HashOn ===

impl HashOn {
    /// `None`: invalid header name.
    pub(crate) fn compile(on: &wire::HashOn) -> Option<Self> {
        Some(match on {
            wire::HashOn::Header(name) => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
            wire::HashOn::Cookie(name) => Self::Cookie(name.clone()),
            wire::HashOn::QueryParam(name) => Self::QueryParam(name.clone()),
            wire::HashOn::SourceAddress => Self::SourceAddress,
        })
    }

    /// The hash of a request's key.
    pub(crate) fn of_request(&self, uri: &Uri, headers: &HeaderMap, peer: IpAddr) -> Option<u64> {
        match self {
            Self::Header(name) => headers.get(name).map(|value| hash::hash(value.as_bytes())),
            Self::Cookie(name) => cookie(headers, name).map(hash::hash),
            Self::QueryParam(name) => query_value(uri.query()?, name).map(|value| hash::hash(&value)),
            Self::SourceAddress => self.of_connection(peer),
        }
    }

    /// The hash of a TCP connection's key. Only `SourceAddress` applies to these.
    pub(crate) fn of_connection(&self, peer: IpAddr) -> Option<u64> {
        matches!(self, Self::SourceAddress).then(|| hash::of_ip(peer))
    }
}

// === impl Sticky ===

impl Sticky {
    pub(crate) fn compile(sticky: &wire::Sticky) -> Self {
        let wire::Sticky { cookie, path, ttl_seconds } = sticky;
        let age = ttl_seconds.map(|seconds| format!("; Max-Age={seconds}")).unwrap_or_default();
        // HttpOnly: scripts need not read it.
        Self { cookie: cookie.clone(), attributes: format!("; Path={path}{age}; HttpOnly") }
    }

    /// The session id in a request's cookie.
    pub(crate) fn session(&self, headers: &HeaderMap) -> Option<u64> {
        let value = std::str::from_utf8(cookie(headers, &self.cookie)?).ok()?;
        u64::from_str_radix(value, 16).ok()
    }

    /// The `Set-Cookie` value that names an endpoint.
    pub(crate) fn set_cookie(&self, endpoint: SocketAddr) -> Option<HeaderValue> {
        let Self { cookie, attributes } = self;
        HeaderValue::try_from(format!("{cookie}={:016x}{attributes}", hash::session(endpoint))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        headers
    }

    #[test]
    fn keys_are_taken_from_headers_cookies_queries_and_addresses() {
        let peer = IpAddr::from([198, 18, 128, 9]);
        let with = headers(&[("x-user", "ada"), ("cookie", "theme=dark; user=ada"), ("cookie", "cart=7")]);
        let ada = Some(hash::hash(b"ada"));
        let key = |on: wire::HashOn, uri: &str, headers: &HeaderMap| {
            HashOn::compile(&on).expect("a name").of_request(&uri.parse().expect("a URI"), headers, peer)
        };
        let none = HeaderMap::new();
        let header = || wire::HashOn::Header("x-user".into());
        let cookie = |name: &str| wire::HashOn::Cookie(name.into());
        let query = || wire::HashOn::QueryParam("user".into());
        for (on, uri, headers, expected) in [
            (header(), "/", &with, ada),
            (header(), "/", &none, None),
            (cookie("user"), "/", &with, ada),
            (cookie("cart"), "/", &with, Some(hash::hash(b"7"))),
            (cookie("use"), "/", &with, None),
            (query(), "/?a=b&user=a%64a&user=other", &none, ada),
            (query(), "/?a=b", &none, None),
            (query(), "/", &none, None),
            (wire::HashOn::SourceAddress, "/", &none, Some(hash::of_ip(peer))),
        ] {
            assert_eq!(key(on.clone(), uri, headers), expected, "{on:?} of {uri}");
        }
        assert!(HashOn::compile(&wire::HashOn::Header("a b".into())).is_none());
    }

    #[test]
    fn session_cookies_round_trip() {
        let endpoint: SocketAddr = "198.18.128.2:8080".parse().expect("an address");
        let sticky = Sticky::compile(&wire::Sticky { cookie: "s".into(), path: "/shop".into(), ttl_seconds: Some(60) });
        let set = sticky.set_cookie(endpoint).expect("a header");
        let set = set.to_str().expect("text");
        assert!(set.ends_with("; Path=/shop; Max-Age=60; HttpOnly") && !set.contains("198"), "{set}");
        let value = set.split(';').next().expect("a value");
        assert_eq!(sticky.session(&headers(&[("cookie", value)])), Some(hash::session(endpoint)));
        for other in ["s=", "s=xyz", "t=1", "ss=1"] {
            assert_eq!(sticky.session(&headers(&[("cookie", other)])), None, "{other}");
        }
        let plain = Sticky::compile(&wire::Sticky { cookie: "s".into(), path: "/".into(), ttl_seconds: None });
        assert!(plain.set_cookie(endpoint).is_some_and(|set| !set.to_str().expect("text").contains("Max-Age")));
    }
}
