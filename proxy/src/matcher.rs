//! Conditions on requests, compiled, and the parts of a request that they look at. Pure; routes and policies consist of
//! them.

use std::borrow::Cow;

use http::Method;
use http::header::{self, HeaderMap, HeaderName};
use regex::{Regex, RegexBuilder};
use weft_config as wire;

use crate::http::head::canonical_host;
use crate::query::query_value;
use crate::value::{CompileError, parse_method, parse_name};

/// Size limit of a compiled regular expression, in bytes. Larger ones are refused.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// Conditions on a request; all must match.
#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) rule: usize,
    pub(crate) path: Option<PathMatch>,
    pub(crate) method: Option<Method>,
    pub(crate) headers: Box<[(HeaderName, ValueTest)]>,
    pub(crate) query: Box<[(String, ValueTest)]>,
}

/// A condition on the path.
#[derive(Debug)]
pub(crate) enum PathMatch {
    Exact(String),
    /// Without a trailing slash, so `/` is the empty string.
    Prefix(String),
    Regex(Regex),
}

/// A condition on a value.
#[derive(Debug)]
pub(crate) enum ValueTest {
    Exact(String),
    Regex(Regex),
    Present,
    Absent,
}

/// The parts of a request that routes match on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    /// Without the query.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
}

// === impl Match ===

impl Match {
    pub(crate) fn compile(condition: wire::Match) -> Result<Self, CompileError> {
        let wire::Match { rule, path, method, headers, query } = condition;
        Ok(Self {
            rule,
            path: path.map(PathMatch::compile).transpose()?,
            method: method.map(|name| parse_method(&name)).transpose()?,
            headers: compile_headers(headers)?,
            query: query
                .into_iter()
                .map(|wire::ValueMatch { name, test }| Ok((name, ValueTest::compile(test)?)))
                .collect::<Result<_, CompileError>>()?,
        })
    }
}

// === impl PathMatch ===

impl PathMatch {
    pub(crate) fn compile(path: wire::PathMatch) -> Result<Self, CompileError> {
        Ok(match path {
            wire::PathMatch::Exact(path) => Self::Exact(path),
            wire::PathMatch::Prefix(prefix) => Self::Prefix(prefix.trim_end_matches('/').to_owned()),
            wire::PathMatch::Regex(pattern) => Self::Regex(compile_regex(&pattern)?),
        })
    }

    /// Whether the condition matches a path (without query).
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            // `/` matches everything, including `*` of OPTIONS.
            Self::Prefix(prefix) if prefix.is_empty() => true,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

// === impl ValueTest ===

impl ValueTest {
    pub(crate) fn compile(test: wire::ValueTest) -> Result<Self, CompileError> {
        Ok(match test {
            wire::ValueTest::Exact(value) => Self::Exact(value),
            wire::ValueTest::Regex(pattern) => Self::Regex(compile_regex(&pattern)?),
            wire::ValueTest::Present => Self::Present,
            wire::ValueTest::Absent => Self::Absent,
        })
    }

    /// Compiles a condition on a header. Conditions on Host compare canonical hosts.
    pub(crate) fn of_header(name: &HeaderName, test: wire::ValueTest) -> Result<Self, CompileError> {
        match test {
            wire::ValueTest::Exact(host) if *name == header::HOST => {
                Ok(Self::Exact(String::from_utf8_lossy(&canonical_host(host.as_bytes())).into_owned()))
            }
            wire::ValueTest::Regex(pattern) if *name == header::HOST => {
                compile_regex_by(&pattern, true).map(Self::Regex)
            }
            test => Self::compile(test),
        }
    }

    /// Whether the condition matches a value that is present.
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => expected.as_bytes() == value,
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
            Self::Present => true,
            Self::Absent => false,
        }
    }
}

/// Compiles header conditions. Of several on one name, the first counts.
fn compile_headers(headers: Vec<wire::ValueMatch>) -> Result<Box<[(HeaderName, ValueTest)]>, CompileError> {
    let mut compiled: Vec<(HeaderName, ValueTest)> = Vec::with_capacity(headers.len());
    for wire::ValueMatch { name, test } in headers {
        let name = parse_name(&name)?;
        if compiled.iter().all(|(earlier, _)| *earlier != name) {
            let test = ValueTest::of_header(&name, test)?;
            compiled.push((name, test));
        }
    }
    Ok(compiled.into())
}

fn compile_regex(pattern: &str) -> Result<Regex, CompileError> {
    compile_regex_by(pattern, false)
}

fn compile_regex_by(pattern: &str, ignores_case: bool) -> Result<Regex, CompileError> {
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .case_insensitive(ignores_case)
            .size_limit(REGEX_BYTES_MAX)
            .dfa_size_limit(REGEX_BYTES_MAX)
            .build()
            .map_err(|source| CompileError::Regex { pattern: pattern.to_owned(), source: Box::new(source) })
    };
    // The pattern alone first: `a)|(b` compiles only between the anchors, and would escape them.
    compile(pattern)?;
    compile(&format!("^(?:{pattern})$"))
}

pub(crate) fn matches(condition: &Match, head: &RequestHead<'_>) -> bool {
    condition.path.as_ref().is_none_or(|path| path.matches(head.path))
        // Without a method, a match excludes CONNECT: a tunnel must be allowed explicitly.
        && condition.method.as_ref().map_or(*head.method != Method::CONNECT, |method| method == head.method)
        && condition.headers.iter().all(|(name, test)| header_matches(head.headers, name, test))
        && condition.query.iter().all(|(name, test)| query_matches(head.query.unwrap_or_default(), name, test))
}

/// Whether a header condition matches any of the header's values. Values are compared one by one, never joined.
fn header_matches(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    let mut values = headers.get_all(name).iter().peekable();
    match values.peek() {
        None => matches!(test, ValueTest::Absent),
        Some(_) => values.any(|value| test.matches(&normalize_value(name, value.as_bytes()))),
    }
}

/// The form of a header value that conditions are compared with: canonical for hosts, as it is for all others.
pub(crate) fn normalize_value<'a>(name: &HeaderName, value: &'a [u8]) -> Cow<'a, [u8]> {
    if *name == header::HOST { canonical_host(value) } else { Cow::Borrowed(value) }
}

fn query_matches(query: &str, name: &str, test: &ValueTest) -> bool {
    match query_value(query, name) {
        None => matches!(test, ValueTest::Absent),
        Some(value) => test.matches(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_path(condition: wire::PathMatch, path: &str, expected: bool) {
        let compiled = PathMatch::compile(condition.clone()).expect("compiles");
        assert_eq!(compiled.matches(path), expected, "{condition:?} and {path}");
    }

    #[test]
    fn paths_match_as_in_the_gateway_api() {
        let prefix = |value: &str| wire::PathMatch::Prefix(value.into());
        let exact = |value: &str| wire::PathMatch::Exact(value.into());
        for value in ["/abc", "/abc/"] {
            for (path, expected) in
                [("/abc", true), ("/abc/", true), ("/abc/def", true), ("/abcd", false), ("/ab", false)]
            {
                check_path(prefix(value), path, expected);
            }
        }
        for path in ["/", "/a", "/a/b", "*"] {
            check_path(prefix("/"), path, true);
        }
        check_path(exact("/abc"), "/abc", true);
        check_path(exact("/abc"), "/abc/", false);
        check_path(exact("/abc"), "/ABC", false);
        check_path(wire::PathMatch::Regex("/v[0-9]+|/x".into()), "/v12", true);
        check_path(wire::PathMatch::Regex("/v[0-9]+|/x".into()), "/v12/a", false);
        check_path(wire::PathMatch::Regex("/v[0-9]+|/x".into()), "/x", true);
    }

    #[test]
    fn invalid_expressions_are_refused() {
        assert!(matches!(compile_regex("("), Err(CompileError::Regex { .. })));
        assert!(matches!(compile_regex("a)|(b"), Err(CompileError::Regex { .. })), "escapes the anchors");
        assert!(matches!(compile_regex(r"(\w{1000}){1000}"), Err(CompileError::Regex { .. })), "too large");
    }
}
