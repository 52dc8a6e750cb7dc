//! Validation and conversion of single values: what the schema cannot check, and values of objects that were stored
//! under an older schema. A proxy rejects a whole document with an invalid value, so none may get into one.

use std::time::Duration;

use weft_config::{Cors, Fraction, HeaderEdit, HeaderValue, Origin, PathMatch, RateLimitKey, ValueMatch, ValueTest};
use weft_crds::route::{self, PathMatchType, RateLimitKeyType, ValueMatchType};

use crate::world::Service;

/// Maximum length of a regular expression and of its compiled form, in bytes. The same bounds as in the proxy.
const REGEX_BYTES_MAX: usize = 1024;
const REGEX_SIZE_MAX: usize = 1024 * 1024;

/// Headers that frame or route a message: changing one would make client and server disagree on where a message ends.
const FRAMING_HEADERS: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "http2-settings",
];

/// A duration as the Gateway API writes it.
pub(super) fn parse_duration(text: &weft_crds::Duration, field: &str) -> Result<Duration, String> {
    text.parse().map_err(|error| format!("{field}: {error}"))
}

/// A duration between two bounds, in milliseconds.
pub(super) fn duration(text: &weft_crds::Duration, field: &str, min: Duration, max: Duration) -> Result<u64, String> {
    let duration = parse_duration(text, field)?;
    if duration < min || duration > max {
        return Err(format!("{field}: {} is not between {} ms and {} ms", text.0, min.as_millis(), max.as_millis()));
    }
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A share of requests. Default: all.
pub(super) fn fraction(percent: Option<u32>, fraction: Option<&route::Fraction>) -> Result<Fraction, String> {
    let (numerator, denominator) = match (percent, fraction) {
        (None, None) => (100, 100),
        (Some(percent), None) => (percent, 100),
        (None, Some(route::Fraction { numerator, denominator })) => (*numerator, *denominator),
        (Some(_), Some(_)) => return Err("give percent or fraction, not both".into()),
    };
    if denominator == 0 || numerator > denominator {
        return Err(format!("fraction: {numerator}/{denominator} must be between 0 and 1"));
    }
    Ok(Fraction { numerator, denominator })
}

/// The CORS filter.
pub(super) fn cors(cors: &route::Cors) -> Result<Cors, String> {
    let route::Cors { allow_origins, allow_credentials, allow_methods, allow_headers, expose_headers, max_age } = cors;
    for list in [allow_origins, allow_methods, allow_headers, expose_headers] {
        if list.len() > 1 && list.iter().any(|item| item == "*") {
            return Err("cors: '*' allows all: remove the other values of the list".into());
        }
    }
    if *allow_credentials && expose_headers.iter().any(|name| name == "*") {
        return Err(
            "cors.exposeHeaders: with allowCredentials, browsers do not treat '*' as a wildcard: list the headers"
                .into(),
        );
    }
    let origins = match allow_origins.as_slice() {
        [any] if any == "*" => None,
        origins => Some(origins.iter().map(|text| origin(text)).collect::<Result<_, _>>()?),
    };
    let names = |names: &[String]| names.iter().map(|name| header_name(name)).collect::<Result<Vec<_>, _>>();
    let methods = allow_methods.iter().map(|method| match header_name(method) {
        Ok(_) => Ok(method.clone()),
        Err(_) => Err(format!("cors.allowMethods: {method:?} is not a method")),
    });
    Ok(Cors {
        origins,
        credentials: *allow_credentials,
        methods: methods.collect::<Result<_, _>>()?,
        headers: names(allow_headers)?,
        expose: names(expose_headers)?,
        max_age_s: *max_age,
    })
}

/// The key of a rate limit.
pub(super) fn rate_limit_key(key: &route::RateLimitKey) -> Result<RateLimitKey, String> {
    let route::RateLimitKey { kind, name } = key;
    let needed = || name.as_deref().ok_or_else(|| format!("rateLimit.key: type {kind:?} requires a name"));
    Ok(match kind {
        RateLimitKeyType::Header => RateLimitKey::Header(header_name(needed()?)?),
        RateLimitKeyType::QueryParam => RateLimitKey::Query(needed()?.to_owned()),
        RateLimitKeyType::Cookie => RateLimitKey::Cookie(needed()?.to_owned()),
        RateLimitKeyType::SourceAddress => RateLimitKey::SourceAddress,
    })
}

/// The server names of a rule's matches, at least one.
pub(super) fn server_names(matches: &[route::TlsMatch]) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        matches.iter().flat_map(|route::TlsMatch { sni }| sni).map(|name| name.to_ascii_lowercase()).collect();
    if names.is_empty() {
        return Err("matches have no sni: add at least one server name".into());
    }
    for name in &names {
        let host = name.strip_prefix("*.").unwrap_or(name);
        let is_host = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
        if host.is_empty() || host.len() > 253 || !is_host {
            return Err(format!("sni: {name:?} is not a server name"));
        }
    }
    Ok(names)
}

fn origin(text: &str) -> Result<Origin, String> {
    let wrong = || format!("cors.allowOrigins: {text:?} is not an origin: write one like \"https://shop.example\"");
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
        None => (rest, if scheme == "https" { 443 } else { 80 }),
    };
    let name = if host == "*" { "all" } else { host.strip_prefix("*.").unwrap_or(host) };
    let is_host = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
    if !["http", "https"].contains(&scheme) || !is_host {
        return Err(wrong());
    }
    Ok(Origin { scheme: scheme.to_owned(), host: host.to_owned(), port })
}

/// A condition on the path. The prefix `/abc/` is normalised to `/abc`.
pub(super) fn path(path: &route::PathMatch) -> Result<PathMatch, String> {
    let route::PathMatch { kind, value } = path;
    if *kind != PathMatchType::RegularExpression && !value.starts_with('/') {
        return Err(format!("path {value:?} does not start with /"));
    }
    Ok(match kind {
        PathMatchType::Exact => PathMatch::Exact(value.clone()),
        PathMatchType::PathPrefix => {
            let trimmed = value.strip_suffix('/').unwrap_or(value);
            PathMatch::Prefix(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
        }
        PathMatchType::RegularExpression => PathMatch::Regex(regex(value)?),
    })
}

/// A condition on a header.
pub(super) fn header(header: &route::HeaderMatch) -> Result<ValueMatch, String> {
    let route::HeaderMatch { kind, name, value } = header;
    Ok(ValueMatch { name: header_name(name)?, test: test(*kind, name, value.as_deref())? })
}

/// A condition on a query parameter.
pub(super) fn query(query: &route::QueryParamMatch) -> Result<ValueMatch, String> {
    let route::QueryParamMatch { kind, name, value } = query;
    Ok(ValueMatch { name: name.clone(), test: test(*kind, name, value.as_deref())? })
}

/// Keeps only the first of several conditions on one name.
pub(super) fn first_of_each(mut values: Vec<ValueMatch>) -> Vec<ValueMatch> {
    let mut seen = std::collections::BTreeSet::new();
    values.retain(|value| seen.insert(value.name.clone()));
    values
}

/// The name of a method.
pub(super) fn method(method: route::Method) -> String {
    use route::Method;
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
    .to_owned()
}

/// Changes to headers.
pub(super) fn header_edit(modifier: &route::HeaderModifier) -> Result<HeaderEdit, String> {
    let route::HeaderModifier { set, add, remove } = modifier;
    let values = |headers: &[route::Header]| headers.iter().map(header_value).collect::<Result<Vec<_>, _>>();
    let remove = remove.iter().map(|name| editable_name(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(HeaderEdit { remove, set: values(set)?, add: values(add)? })
}

/// Why a Service without a usable ClusterIP is not supported as a target.
pub(super) fn no_address(service: &Service) -> String {
    const LACKS: &str = "has no ClusterIP, by which proxies match its traffic (name a Service with a ClusterIP)";
    let name = &service.key;
    if service.external {
        format!("Service {name} is of type ExternalName and {LACKS}")
    } else if service.served_elsewhere {
        format!(
            "Service {name} has the label service.kubernetes.io/service-proxy-name: another service proxy implements it, \
             and Weft passes its traffic through"
        )
    } else {
        format!("Service {name} is headless and {LACKS}")
    }
}

/// Why a Service whose ports are all of UDP or SCTP is not supported as a target.
pub(super) fn no_port(service: &Service) -> String {
    format!(
        "Service {} has no TCP port, and proxies handle no other protocol: name a Service that has one",
        service.key
    )
}

fn header_value(header: &route::Header) -> Result<HeaderValue, String> {
    let route::Header { name, value } = header;
    if !value.bytes().all(|byte| byte == b'\t' || (0x20..=0x7e).contains(&byte)) {
        return Err(format!("the value of header {name} has invalid characters"));
    }
    Ok(HeaderValue { name: editable_name(name)?, value: value.clone() })
}

fn editable_name(name: &str) -> Result<String, String> {
    let name = header_name(name)?;
    if FRAMING_HEADERS.contains(&name.as_str()) {
        return Err(format!(
            "header {name} frames or routes the message and cannot be changed; to change the host use URLRewrite"
        ));
    }
    Ok(name)
}

/// Validates a header name, and returns it in lower case.
pub(super) fn header_name(name: &str) -> Result<String, String> {
    if is_token(name) { Ok(name.to_ascii_lowercase()) } else { Err(format!("{name:?} is not a valid header name")) }
}

/// Validates a cookie name.
pub(super) fn cookie_name(name: &str) -> Result<String, String> {
    if is_token(name) { Ok(name.to_owned()) } else { Err(format!("{name:?} is not a valid cookie name")) }
}

fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&name.len()) && name.bytes().all(token)
}

fn test(kind: ValueMatchType, name: &str, value: Option<&str>) -> Result<ValueTest, String> {
    let needed = || value.map(str::to_owned).ok_or_else(|| format!("the condition on {name:?} requires a value"));
    Ok(match kind {
        ValueMatchType::Exact => ValueTest::Exact(needed()?),
        ValueMatchType::RegularExpression => ValueTest::Regex(regex(&needed()?)?),
        ValueMatchType::Present => ValueTest::Present,
        ValueMatchType::Absent => ValueTest::Absent,
    })
}

/// Validates a regular expression as the proxy compiles it.
fn regex(text: &str) -> Result<String, String> {
    if text.len() > REGEX_BYTES_MAX {
        return Err(format!("a regular expression of {} bytes is too long: {REGEX_BYTES_MAX} are allowed", text.len()));
    }
    let build = |text: &str| regex::RegexBuilder::new(text).size_limit(REGEX_SIZE_MAX).build();
    // Without the anchors first: "a)|(b" compiles between them and escapes them.
    match build(text).and_then(|_| build(&format!("^(?:{text})$"))) {
        Ok(_) => Ok(text.to_owned()),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err(format!("the regular expression {text:?} compiles to more than 1 MiB"))
        }
        Err(error) => {
            // The last line has the cause; the lines before it mark the position, which needs a fixed-width font.
            let error = error.to_string();
            let cause = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("the regular expression {text:?} does not compile: {cause}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_regular_expressions_are_rejected_with_the_cause() {
        assert_eq!(regex("/v[0-9]+/.*"), Ok("/v[0-9]+/.*".into()));
        assert!(regex("(").unwrap_err().contains("does not compile: unclosed group"));
        assert!(regex("(?=a)").unwrap_err().contains("look-around"), "linear time only");
        assert!(regex(r"(\w{1000}){1000}").unwrap_err().contains("1 MiB"));
        assert!(regex(&"a".repeat(2000)).unwrap_err().contains("too long"));
        assert!(regex("a)|(b").is_err(), "an expression cannot escape its anchors");
    }

    #[test]
    fn fractions_are_validated() {
        let of = |numerator, denominator| route::Fraction { numerator, denominator };
        let check = |percent, given: Option<route::Fraction>, expected: Option<(u32, u32)>| {
            let found = fraction(percent, given.as_ref()).ok().map(|found| (found.numerator, found.denominator));
            assert_eq!(found, expected, "{percent:?} {given:?}");
        };
        check(None, None, Some((100, 100)));
        check(Some(0), None, Some((0, 100)));
        check(None, Some(of(1, 1000)), Some((1, 1000)));
        check(Some(101), None, None);
        check(None, Some(of(1, 0)), None);
        check(None, Some(of(3, 2)), None);
        check(Some(1), Some(of(1, 2)), None);
    }

    #[test]
    fn origins_have_the_port_of_their_scheme() {
        for (text, expected) in [
            ("https://shop.example", Some(("https", "shop.example", 443))),
            ("http://shop.example", Some(("http", "shop.example", 80))),
            ("http://*.shop.example:8080", Some(("http", "*.shop.example", 8080))),
            ("https://*", Some(("https", "*", 443))),
            ("https://*:8443", Some(("https", "*", 8443))),
            ("shop.example", None),
            ("ftp://shop.example", None),
            ("https://", None),
            ("https://*.", None),
            ("https://a*.example", None),
            ("https://shop.example/", None),
            ("https://shop.example:0", None),
            ("https://shop.example:65536", None),
            ("https://Shop.example", None),
        ] {
            let found = origin(text).ok();
            let found = found.as_ref().map(|found| (found.scheme.as_str(), found.host.as_str(), found.port));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn path_prefix_loses_its_trailing_slash() {
        for (given, kept) in [("/", "/"), ("/a", "/a"), ("/a/", "/a"), ("/a/b/", "/a/b")] {
            let given = route::PathMatch { kind: PathMatchType::PathPrefix, value: given.into() };
            assert_eq!(path(&given), Ok(PathMatch::Prefix(kept.into())));
        }
    }

    #[test]
    fn framing_headers_cannot_be_changed() {
        let header = |name: &str| route::Header { name: name.into(), value: "x".into() };
        let set = |name: &str| route::HeaderModifier { set: vec![header(name)], ..Default::default() };
        assert!(header_edit(&set("X-Team")).is_ok_and(|edit| edit.set[0].name == "x-team"));
        for name in ["Host", "Content-Length", "transfer-encoding", "Connection", "TE", "Expect", "a b", ""] {
            assert!(header_edit(&set(name)).is_err(), "{name}");
        }
        let remove = route::HeaderModifier { remove: vec!["Transfer-Encoding".into()], ..Default::default() };
        assert!(header_edit(&remove).is_err(), "they cannot be removed either");
    }
}
