//! CORS (Fetch standard, "CORS protocol"). Pure: headers in, headers out.
//!
//! A response never names an origin that is not allowed. CORS headers of the backend are removed: browsers reject a
//! response with two of them.

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use weft_config as wire;

use crate::value::{CompileError, parse_name, parse_value};

/// The CORS settings of a rule.
#[derive(Debug)]
pub(crate) struct Cors {
    /// None: every origin is allowed.
    origins: Option<Vec<Origin>>,
    credentials: bool,
    methods: Option<AllowList>,
    headers: Option<AllowList>,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
}

/// An allowed origin, or all whose host has a suffix.
#[derive(Debug)]
struct Origin {
    scheme: String,
    host: Host,
    port: u16,
}

#[derive(Debug)]
enum Host {
    Any,
    Exact(String),
    /// Suffix with its dot: `.example`.
    Suffix(String),
}

/// Allowed methods or headers.
#[derive(Debug)]
enum AllowList {
    All,
    Named(HeaderValue),
}

/// The method that a preflight announces. None: the request is not a preflight.
pub(crate) fn preflight(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

// === impl Cors ===

impl Cors {
    pub(crate) fn compile(cors: wire::Cors) -> Result<Self, CompileError> {
        let wire::Cors { origins, credentials, methods, headers, expose, max_age_s } = cors;
        for name in headers.iter().chain(&expose).chain(&methods) {
            parse_name(name)?;
        }
        Ok(Self {
            origins: origins.map(|origins| origins.into_iter().map(Origin::new).collect()),
            credentials,
            methods: AllowList::compile(&methods)?,
            headers: AllowList::compile(&headers)?,
            expose: if expose.is_empty() { None } else { Some(parse_value(&expose.join(", "))?) },
            max_age: max_age_s.into(),
        })
    }

    /// The headers of a preflight response. Err: those of the response to an origin that is not allowed.
    pub(crate) fn preflight_headers(&self, request: &HeaderMap) -> Result<HeaderMap, HeaderMap> {
        let mut answer = HeaderMap::new();
        self.vary(&mut answer);
        let Some(allowed) = request.get(header::ORIGIN).and_then(|origin| self.allowed(origin)) else {
            return Err(answer);
        };
        self.allow(allowed, &mut answer);
        let lists = [
            (&self.methods, header::ACCESS_CONTROL_ALLOW_METHODS, header::ACCESS_CONTROL_REQUEST_METHOD),
            (&self.headers, header::ACCESS_CONTROL_ALLOW_HEADERS, header::ACCESS_CONTROL_REQUEST_HEADERS),
        ];
        for (list, name, requested) in lists {
            let value = match list {
                None => None,
                Some(AllowList::Named(names)) => Some(names.clone()),
                // With credentials, browsers read "*" as a name.
                Some(AllowList::All) if self.credentials => request.get(requested).cloned(),
                Some(AllowList::All) => Some(HeaderValue::from_static("*")),
            };
            if let Some(value) = value {
                answer.insert(name, value);
            }
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        Ok(answer)
    }

    /// Sets the CORS headers of a response other than to a preflight.
    pub(crate) fn apply_to_response(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        const OURS: [HeaderName; 3] = [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ];
        for name in OURS {
            response.remove(name);
        }
        self.vary(response);
        if let Some(allowed) = origin.and_then(|origin| self.allowed(origin)) {
            self.allow(allowed, response);
            if let Some(names) = &self.expose {
                response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, names.clone());
            }
        }
    }

    fn allow(&self, origin: HeaderValue, response: &mut HeaderMap) {
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// The value of `Access-Control-Allow-Origin`, if the origin is allowed.
    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            None if !self.credentials => Some(HeaderValue::from_static("*")),
            None => RequestOrigin::of(origin).map(|_| origin.clone()),
            Some(origins) => {
                let parsed = RequestOrigin::of(origin)?;
                origins.iter().any(|candidate| candidate.matches(&parsed)).then(|| origin.clone())
            }
        }
    }

    /// Adds `Vary: Origin`, unless the response is the same for all origins.
    fn vary(&self, response: &mut HeaderMap) {
        let same_for_all = self.origins.is_none() && !self.credentials;
        let names = |value: &HeaderValue| crate::http::head::has_token(value, "origin") || value == "*";
        if !same_for_all && !response.get_all(header::VARY).iter().any(names) {
            response.append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }
}

// === impl Origin ===

/// A parsed `Origin` header. `null` does not parse: any page can have the origin `null`.
struct RequestOrigin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: u16,
}

impl<'a> RequestOrigin<'a> {
    fn of(origin: &'a HeaderValue) -> Option<Self> {
        let (scheme, rest) = origin.to_str().ok()?.split_once("://")?;
        let well_known = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (host, port) = match rest.rsplit_once(':') {
            // The last part of an IPv6 address without a port is not a port.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (rest, well_known),
        };
        (!host.is_empty()).then_some(Self { scheme, host, port })
    }
}

impl Origin {
    fn new(origin: wire::Origin) -> Self {
        let wire::Origin { scheme, host, port } = origin;
        let host = match host.strip_prefix('*') {
            None => Host::Exact(host),
            Some("") => Host::Any,
            Some(suffix) => Host::Suffix(suffix.to_owned()),
        };
        Self { scheme, host, port }
    }

    fn matches(&self, origin: &RequestOrigin<'_>) -> bool {
        let host = match &self.host {
            Host::Any => true,
            Host::Exact(host) => host == origin.host,
            Host::Suffix(suffix) => origin.host.strip_suffix(suffix.as_str()).is_some_and(|rest| !rest.is_empty()),
        };
        host && self.scheme == origin.scheme && self.port == origin.port
    }
}

// === impl AllowList ===

impl AllowList {
    fn compile(names: &[String]) -> Result<Option<Self>, CompileError> {
        match names {
            [] => Ok(None),
            [all] if all == "*" => Ok(Some(Self::All)),
            names => Ok(Some(Self::Named(parse_value(&names.join(", "))?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(more: serde_json::Value) -> Cors {
        let mut cors = serde_json::json!({
            "origins": [
                {"scheme": "https", "host": "shop.example", "port": 443},
                {"scheme": "http", "host": "*.dev.example", "port": 8080}
            ],
            "maxAgeS": 5
        });
        cors.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Cors::compile(serde_json::from_value(cors).expect("cors")).expect("compiles")
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn text(headers: &HeaderMap, name: &str) -> Option<String> {
        let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect();
        (!values.is_empty()).then(|| values.join("; "))
    }

    #[test]
    fn responses_name_only_allowed_origins() {
        let cors = cors(serde_json::json!({}));
        for (origin, allowed) in [
            ("https://shop.example", true),
            ("https://shop.example:443", true),
            ("https://shop.example:444", false),
            ("http://shop.example", false),
            ("https://a.shop.example", false),
            ("https://shop.example.evil", false),
            ("https://evilshop.example", false),
            ("http://a.dev.example:8080", true),
            ("http://a.b.dev.example:8080", true),
            ("http://dev.example:8080", false),
            ("http://adev.example:8080", false),
            ("http://a.dev.example", false),
            ("http://[::1]:8080", false),
            ("http://[::1]", false),
            ("null", false),
            ("", false),
            ("https://", false),
        ] {
            let mut response = HeaderMap::new();
            cors.apply_to_response(Some(&HeaderValue::from_static(origin)), &mut response);
            let expected = allowed.then(|| origin.to_owned());
            assert_eq!(text(&response, "access-control-allow-origin"), expected, "{origin}");
            assert_eq!(text(&response, "vary").as_deref(), Some("Origin"), "{origin}");
        }
    }

    #[test]
    fn cors_headers_of_the_backend_are_replaced() {
        let cors = cors(serde_json::json!({"expose": ["x-total"], "credentials": true}));
        let backend = || {
            map(&[
                ("access-control-allow-origin", "https://evil.example"),
                ("access-control-allow-credentials", "true"),
                ("access-control-expose-headers", "x-secret"),
                ("vary", "Accept-Encoding"),
            ])
        };
        for origin in [None, Some(HeaderValue::from_static("https://evil.example"))] {
            let mut response = backend();
            cors.apply_to_response(origin.as_ref(), &mut response);
            assert_eq!(response, map(&[("vary", "Accept-Encoding"), ("vary", "Origin")]), "{origin:?}");
        }
        let mut response = backend();
        cors.apply_to_response(Some(&HeaderValue::from_static("https://shop.example")), &mut response);
        assert_eq!(text(&response, "access-control-allow-origin").as_deref(), Some("https://shop.example"));
        assert_eq!(text(&response, "access-control-allow-credentials").as_deref(), Some("true"));
        assert_eq!(text(&response, "access-control-expose-headers").as_deref(), Some("x-total"));
        let mut varied = map(&[("vary", "accept, origin")]);
        cors.apply_to_response(None, &mut varied);
        assert_eq!(varied.get_all("vary").iter().count(), 1, "Vary has it already");
    }

    #[test]
    fn preflight_response_lists_what_is_allowed() {
        let preflight_of = |origin| {
            map(&[
                ("origin", origin),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a, authorization"),
            ])
        };
        let listed = cors(serde_json::json!({"methods": ["PUT", "DELETE"], "headers": ["x-a"]}));
        let answer = listed.preflight_headers(&preflight_of("https://shop.example")).expect("allowed");
        for (name, expected) in [
            ("access-control-allow-origin", Some("https://shop.example")),
            ("access-control-allow-methods", Some("PUT, DELETE")),
            ("access-control-allow-headers", Some("x-a")),
            ("access-control-allow-credentials", None),
            ("access-control-max-age", Some("5")),
            ("vary", Some("Origin")),
        ] {
            assert_eq!(text(&answer, name).as_deref(), expected, "{name}");
        }
        let refused = listed.preflight_headers(&preflight_of("https://evil.example")).expect_err("not allowed");
        assert_eq!(refused, map(&[("vary", "Origin")]), "no other header");
    }

    #[test]
    fn wildcards_are_spelled_out_with_credentials() {
        let all = serde_json::json!({"origins": null, "methods": ["*"], "headers": ["*"]});
        let request = map(&[
            ("origin", "https://any.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a"),
        ]);
        let answer = cors(all.clone()).preflight_headers(&request).expect("allowed");
        assert_eq!(text(&answer, "access-control-allow-origin").as_deref(), Some("*"));
        assert_eq!(text(&answer, "access-control-allow-methods").as_deref(), Some("*"));
        assert_eq!(text(&answer, "access-control-allow-headers").as_deref(), Some("*"));
        assert_eq!(text(&answer, "vary"), None, "the same for all");

        let mut with_credentials = all;
        with_credentials["credentials"] = true.into();
        let cors = cors(with_credentials);
        let answer = cors.preflight_headers(&request).expect("allowed");
        assert_eq!(text(&answer, "access-control-allow-origin").as_deref(), Some("https://any.example"));
        assert_eq!(text(&answer, "access-control-allow-methods").as_deref(), Some("PUT"));
        assert_eq!(text(&answer, "access-control-allow-headers").as_deref(), Some("x-a"));
        assert_eq!(text(&answer, "vary").as_deref(), Some("Origin"));
        let mut null = HeaderMap::new();
        cors.apply_to_response(Some(&HeaderValue::from_static("null")), &mut null);
        assert_eq!(text(&null, "access-control-allow-origin"), None, "null is never allowed with credentials");
    }

    #[test]
    fn preflights_are_recognized() {
        let headers = map(&[("origin", "https://a.example"), ("access-control-request-method", "PATCH")]);
        assert_eq!(preflight(&Method::OPTIONS, &headers), Some(Method::PATCH));
        assert_eq!(preflight(&Method::GET, &headers), None);
        assert_eq!(preflight(&Method::OPTIONS, &map(&[("origin", "https://a.example")])), None);
        assert_eq!(preflight(&Method::OPTIONS, &map(&[("access-control-request-method", "GET")])), None);
    }
}
