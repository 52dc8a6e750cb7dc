//! Filters of rules and backendRefs, in the words of MeshRoute, which took them from the Gateway API.

use std::collections::BTreeSet;

use weft_crds::route::{self, FilterType, PathModifierType, Scheme};
use weft_crds::status::Reason;
use weft_gateway_api::{
    Fraction, HttpCorsFilter, HttpHeader, HttpHeaderFilter, HttpPathModifier, HttpRequestMirrorFilter,
    HttpRequestRedirectFilter, HttpRouteFilter, HttpUrlRewriteFilter, LocalObjectReference,
};

use super::backend;

/// What translating filters found beside them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What has no effect, or is applied otherwise than it is written.
    pub(super) changed: Vec<String>,
    /// References that do not resolve.
    pub(super) unresolved: Vec<(Reason, String)>,
}

/// The filters of an HTTPRoute's rule or backendRef, which is the field `at` of the rule. An error means that one is not
/// supported.
pub(super) fn filters(
    at: &str,
    filters: &[HttpRouteFilter],
    findings: &mut Findings,
) -> Result<Vec<route::HttpFilter>, String> {
    let is_answered = filters.iter().any(|filter| filter.r#type == "RequestRedirect");
    let mut translated = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        if is_answered && ["RequestHeaderModifier", "RequestMirror"].contains(&filter.r#type.as_str()) {
            let message = format!("{at}[{index}] has no effect: no backend gets a request that is redirected");
            findings.changed.push(message);
            continue;
        }
        findings.changed.extend(repeated_names(filter).map(|message| format!("{at}[{index}].{message}")));
        let filter = self::filter(filter, findings).map_err(|message| format!("{at}[{index}]: {message}"))?;
        translated.extend(filter);
    }
    Ok(translated)
}

/// `None`: a mirror whose reference is of a kind that is not supported; requests must not fail because of it.
fn filter(filter: &HttpRouteFilter, findings: &mut Findings) -> Result<Option<route::HttpFilter>, String> {
    let HttpRouteFilter {
        cors,
        extension_ref,
        request_header_modifier,
        request_mirror,
        request_redirect,
        response_header_modifier,
        r#type,
        url_rewrite,
    } = filter;
    let kind = match r#type.as_str() {
        "RequestHeaderModifier" => FilterType::RequestHeaderModifier,
        "ResponseHeaderModifier" => FilterType::ResponseHeaderModifier,
        "RequestMirror" => FilterType::RequestMirror,
        "RequestRedirect" => FilterType::RequestRedirect,
        "URLRewrite" => FilterType::UrlRewrite,
        "CORS" => FilterType::Cors,
        "ExtensionRef" => return Err(extension(extension_ref.as_ref())),
        other => return Err(format!("type {other} is not supported")),
    };
    let request_mirror = match request_mirror {
        Some(given) => match mirror(given, findings)? {
            Some(mirror) => Some(mirror),
            None => return Ok(None),
        },
        None => None,
    };
    Ok(Some(route::HttpFilter {
        kind,
        request_header_modifier: request_header_modifier.as_ref().map(header_modifier),
        response_header_modifier: response_header_modifier.as_ref().map(header_modifier),
        request_redirect: request_redirect.as_ref().map(redirect).transpose()?,
        url_rewrite: url_rewrite.as_ref().map(rewrite).transpose()?,
        cors: cors.as_ref().map(|cors| self::cors(cors, findings)),
        request_mirror,
        direct_response: None,
        fault: None,
        rate_limit: None,
        response_body_limit: None,
    }))
}

fn extension(reference: Option<&LocalObjectReference>) -> String {
    let names = reference.map(|LocalObjectReference { group, kind, name }| format!(" ({kind}.{group} {name})"));
    format!("type ExtensionRef{} is not supported", names.unwrap_or_default())
}

/// Names of headers that have several entries in one list; names are compared in any letter case.
fn repeated_names(filter: &HttpRouteFilter) -> impl Iterator<Item = String> {
    let modifiers = [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ];
    let mut repeated = Vec::new();
    for (field, modifier) in modifiers {
        let Some(HttpHeaderFilter { add, remove: _, set }) = modifier else { continue };
        for (list, headers) in [("set", set), ("add", add)] {
            let mut seen = BTreeSet::new();
            let names = headers.iter().map(|header| header.name.to_ascii_lowercase());
            let others = names.filter(|name| !seen.insert(name.clone())).collect::<BTreeSet<_>>();
            repeated.extend(others.into_iter().map(|name| {
                format!("{field}.{list}: of several entries for {name} only the first counts; remove the others")
            }));
        }
    }
    repeated.into_iter()
}

/// Of several entries for one name, in any letter case, the first counts.
fn header_modifier(modifier: &HttpHeaderFilter) -> route::HeaderModifier {
    let HttpHeaderFilter { add, remove, set } = modifier;
    let first_of_each = |headers: &[HttpHeader]| {
        let mut seen = BTreeSet::new();
        let headers = headers.iter().filter(|header| seen.insert(header.name.to_ascii_lowercase()));
        headers.map(|HttpHeader { name, value }| route::Header { name: name.clone(), value: value.clone() }).collect()
    };
    route::HeaderModifier { set: first_of_each(set), add: first_of_each(add), remove: remove.clone() }
}

fn redirect(redirect: &HttpRequestRedirectFilter) -> Result<route::RequestRedirect, String> {
    let HttpRequestRedirectFilter { hostname, path, port, scheme, status_code } = redirect;
    let scheme = match scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => return Err(format!("requestRedirect.scheme {other:?} is not supported")),
    };
    let port = match port {
        Some(port) => Some(backend::port(*port).ok_or_else(|| format!("requestRedirect.port {port} is no port"))?),
        None => None,
    };
    let status_code = status_code.unwrap_or(302);
    let known = u16::try_from(status_code).ok().filter(|code| [301, 302, 303, 307, 308].contains(code));
    Ok(route::RequestRedirect {
        scheme,
        hostname: hostname.clone(),
        path: path.as_ref().map(path_modifier).transpose()?,
        port,
        status_code: known.ok_or_else(|| format!("requestRedirect.statusCode {status_code} is not supported"))?,
    })
}

fn rewrite(rewrite: &HttpUrlRewriteFilter) -> Result<route::UrlRewrite, String> {
    let HttpUrlRewriteFilter { hostname, path } = rewrite;
    Ok(route::UrlRewrite { hostname: hostname.clone(), path: path.as_ref().map(path_modifier).transpose()? })
}

fn path_modifier(path: &HttpPathModifier) -> Result<route::PathModifier, String> {
    let HttpPathModifier { replace_full_path, replace_prefix_match, r#type } = path;
    let kind = match r#type.as_str() {
        "ReplaceFullPath" => PathModifierType::ReplaceFullPath,
        "ReplacePrefixMatch" => PathModifierType::ReplacePrefixMatch,
        other => return Err(format!("path.type {other:?} is not supported")),
    };
    let (replace_full_path, replace_prefix_match) = (replace_full_path.clone(), replace_prefix_match.clone());
    Ok(route::PathModifier { kind, replace_full_path, replace_prefix_match })
}

fn mirror(mirror: &HttpRequestMirrorFilter, findings: &mut Findings) -> Result<Option<route::RequestMirror>, String> {
    let HttpRequestMirrorFilter { backend_ref, fraction, percent } = mirror;
    let number = |number: i32, field: &str| {
        u32::try_from(number).map_err(|_| format!("requestMirror.{field}: {number} is negative"))
    };
    let fraction = match fraction {
        Some(Fraction { denominator, numerator }) => Some(route::Fraction {
            numerator: number(*numerator, "fraction.numerator")?,
            denominator: number(denominator.unwrap_or(100), "fraction.denominator")?,
        }),
        None => None,
    };
    let percent = percent.map(|percent| number(percent, "percent")).transpose()?;
    match backend::service(backend_ref) {
        Ok(route::BackendRef { kind, namespace, name, port, subset, weight: _ }) => Ok(Some(route::RequestMirror {
            backend_ref: route::MirrorRef { kind, namespace, name, port, subset },
            percent,
            fraction,
            host_suffix: None,
        })),
        Err((reason, message)) => {
            findings.unresolved.push((reason, format!("{message}: nothing is mirrored to it")));
            Ok(None)
        }
    }
}

fn cors(cors: &HttpCorsFilter, findings: &mut Findings) -> route::Cors {
    let HttpCorsFilter { allow_credentials, allow_headers, allow_methods, allow_origins, expose_headers, max_age } =
        cors;
    let allow_credentials = allow_credentials.unwrap_or(false);
    if allow_origins.is_empty() {
        findings.changed.push("cors.allowOrigins is empty: no origin is allowed".to_owned());
    }
    let mut expose_headers = expose_headers.clone();
    if allow_credentials && expose_headers.iter().any(|name| name == "*") {
        expose_headers.retain(|name| name != "*");
        findings.changed.push(
            "cors.exposeHeaders: '*' has no effect with allowCredentials, where browsers take it for a name: list the \
             headers"
                .to_owned(),
        );
    }
    route::Cors {
        // Browsers write hosts in lower case.
        allow_origins: allow_origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        allow_credentials,
        allow_methods: allow_methods.clone(),
        allow_headers: allow_headers.clone(),
        expose_headers,
        max_age: max_age.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(5),
    }
}
