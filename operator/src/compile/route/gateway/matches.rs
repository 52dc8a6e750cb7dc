//! Matches of HTTPRoutes and GRPCRoutes. A path of gRPC is `/service/method`.

use std::cmp::Reverse;

use weft_config::Match;
use weft_crds::route::{self, PathMatchType, ValueMatchType};
use weft_gateway_api::{
    GrpcHeaderMatch, GrpcMethodMatch, GrpcRouteMatch, HttpHeaderMatch, HttpPathMatch, HttpQueryParamMatch,
    HttpRouteMatch,
};

use crate::compile::precedence::{self, Rank};
use crate::compile::route::rule::condition;

/// A condition on requests, in the words of MeshRoute, with its rank.
#[derive(Clone, Debug)]
pub(super) struct RankedMatch {
    pub(super) words: route::HttpMatch,
    pub(super) compiled: Match,
    pub(super) rank: Rank,
}

/// Which of a gRPC path's parts a match names; the smaller is tried first. The API counts the characters of the
/// service, then those of the method, and leaves the rank of regular expressions open: as in paths of HTTP, they come
/// after exact names, so that no expression hides one, and before a whole service, which would hide every expression.
#[derive(Clone, Copy, Debug)]
enum GrpcRank {
    Exact = 0,
    Regex = 1,
    Service = 2,
    Method = 3,
    All = 4,
}

/// A match of an HTTPRoute.
pub(super) fn http(condition: &HttpRouteMatch) -> Result<RankedMatch, String> {
    let HttpRouteMatch { headers, method, path, query_params } = condition;
    let method = method.as_deref().map(self::method).transpose()?;
    let path = path.as_ref().map(self::path).transpose()?;
    // The schema's default, where a CONNECT has no path.
    let path = path.filter(|path| method != Some(route::Method::Connect) || path.value != "/");
    let header = |HttpHeaderMatch { name, r#type, value }: &HttpHeaderMatch| {
        let kind = value_match_type(r#type.as_deref())?;
        Ok(route::HeaderMatch { kind, name: name.clone(), value: Some(value.clone()) })
    };
    let query = |HttpQueryParamMatch { name, r#type, value }: &HttpQueryParamMatch| {
        let kind = value_match_type(r#type.as_deref())?;
        Ok(route::QueryParamMatch { kind, name: name.clone(), value: Some(value.clone()) })
    };
    let words = route::HttpMatch {
        path,
        headers: headers.iter().map(header).collect::<Result<_, String>>()?,
        query_params: query_params.iter().map(query).collect::<Result<_, String>>()?,
        method,
    };
    let compiled = self::condition(&words)?;
    Ok(RankedMatch { rank: precedence::rank(&compiled), words, compiled })
}

/// A match of a GRPCRoute.
pub(super) fn grpc(condition: &GrpcRouteMatch) -> Result<RankedMatch, String> {
    let GrpcRouteMatch { headers, method } = condition;
    let (class, service, name) = match method {
        None => (GrpcRank::All, None, None),
        Some(GrpcMethodMatch { method, service, r#type }) => {
            let [service, method] = [service, method].map(|name| name.as_deref().filter(|name| !name.is_empty()));
            match (value_match_type(r#type.as_deref())?, service, method) {
                (_, None, None) => (GrpcRank::All, None, None),
                (ValueMatchType::RegularExpression, ..) => (GrpcRank::Regex, service, method),
                (_, Some(_), Some(_)) => (GrpcRank::Exact, service, method),
                (_, Some(_), None) => (GrpcRank::Service, service, method),
                (_, None, Some(_)) => (GrpcRank::Method, service, method),
            }
        }
    };
    let any = "[^/]+";
    let (kind, value) = match class {
        GrpcRank::All => (PathMatchType::PathPrefix, "/".to_owned()),
        GrpcRank::Exact => (PathMatchType::Exact, format!("/{}/{}", service.unwrap_or(any), name.unwrap_or(any))),
        GrpcRank::Service => (PathMatchType::PathPrefix, format!("/{}", service.unwrap_or(any))),
        GrpcRank::Method => {
            let name = name.map_or_else(|| any.to_owned(), regex::escape);
            (PathMatchType::RegularExpression, format!("/{any}/{name}"))
        }
        GrpcRank::Regex => {
            // In groups, so that an alternative in one part does not reach into the other.
            let value = format!("/(?:{})/(?:{})", service.unwrap_or(any), name.unwrap_or(any));
            (PathMatchType::RegularExpression, value)
        }
    };
    let header = |GrpcHeaderMatch { name, r#type, value }: &GrpcHeaderMatch| {
        let kind = value_match_type(r#type.as_deref())?;
        Ok(route::HeaderMatch { kind, name: name.clone(), value: Some(value.clone()) })
    };
    let words = route::HttpMatch {
        path: Some(route::PathMatch { kind, value }).filter(|_| !matches!(class, GrpcRank::All)),
        headers: headers.iter().map(header).collect::<Result<_, String>>()?,
        query_params: Vec::new(),
        method: None,
    };
    let compiled = self::condition(&words)?;
    let length = |name: Option<&str>| Reverse(name.map_or(0, str::len));
    let rank = (class as u8, length(service), false, length(name), Reverse(compiled.headers.len()));
    Ok(RankedMatch { words, compiled, rank })
}

fn path(path: &HttpPathMatch) -> Result<route::PathMatch, String> {
    let HttpPathMatch { r#type, value } = path;
    let kind = match r#type.as_deref() {
        None | Some("PathPrefix") => PathMatchType::PathPrefix,
        Some("Exact") => PathMatchType::Exact,
        Some("RegularExpression") => PathMatchType::RegularExpression,
        Some(other) => return Err(format!("path.type {other:?} is not supported")),
    };
    Ok(route::PathMatch { kind, value: value.clone().unwrap_or_else(|| "/".to_owned()) })
}

fn value_match_type(kind: Option<&str>) -> Result<ValueMatchType, String> {
    match kind {
        None | Some("Exact") => Ok(ValueMatchType::Exact),
        Some("RegularExpression") => Ok(ValueMatchType::RegularExpression),
        Some(other) => Err(format!("type {other:?} is not supported: use Exact or RegularExpression")),
    }
}

fn method(method: &str) -> Result<route::Method, String> {
    use route::Method;
    Ok(match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => return Err(format!("method {other:?} is not supported")),
    })
}
