//! Filters: what a rule does with requests besides picking a backend. Most rules have none and pay one check.
//!
//! [`cors`] responds to preflights and sets headers of other responses; [`rate_limit`] refuses requests over the limit;
//! [`fault`] delays or aborts requests; [`mirror`] says which requests are copied elsewhere. `outbound/filters` applies
//! them, in this order, around the rule's action. The limit of response bodies is a number, which the body checks. A
//! backend may have some of them too (`table/backend`).

pub(crate) mod cors;
pub(crate) mod fault;
mod fraction;
pub(crate) mod mirror;
pub(crate) mod rate_limit;

use std::sync::Arc;

use http::header::HeaderName;
use weft_config as wire;

use self::cors::Cors;
use self::fault::Fault;
use self::mirror::Mirror;
use self::rate_limit::RateLimit;
use crate::value::CompileError;

/// The filters of one rule, at least one.
#[derive(Debug)]
pub(crate) struct Filters {
    pub(crate) cors: Option<Cors>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirrors: Vec<Arc<Mirror>>,
    /// Maximum bytes of a response body of an endpoint.
    pub(crate) response_body_bytes_max: Option<u64>,
}

impl Filters {
    /// None: the rule has no filters.
    pub(crate) fn compile(rule_name: &str, filters: wire::Filters) -> Result<Option<Box<Self>>, CompileError> {
        let wire::Filters { cors, rate_limit, fault, mirrors, response_body_bytes_max } = filters;
        let cors = cors.map(Cors::compile).transpose()?;
        let fault = Fault::compile(fault)?;
        let mirrors = Mirror::compile_each(mirrors)?;
        let rate_limit = rate_limit.map(|limit| RateLimit::compile(rule_name, limit)).transpose()?;
        if response_body_bytes_max == Some(0) {
            return Err(CompileError::Filter("a response body limit of 0 bytes".into()));
        }
        let any = cors.is_some()
            || rate_limit.is_some()
            || fault.is_some()
            || !mirrors.is_empty()
            || response_body_bytes_max.is_some();
        Ok(any.then(|| Box::new(Self { cors, rate_limit, fault, mirrors, response_body_bytes_max })))
    }

    /// The request headers that the filters read, and that a client must not hide by naming them in `Connection`.
    pub(crate) fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.rate_limit.iter().filter_map(RateLimit::key_header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_body_limit_is_a_filter_and_not_zero() {
        let compile = |response_body_bytes_max| {
            Filters::compile("rule", wire::Filters { response_body_bytes_max, ..wire::Filters::default() })
        };
        assert!(compile(None).expect("compiles").is_none(), "no filter");
        let filters = compile(Some(1)).expect("compiles").expect("a filter");
        assert_eq!(filters.response_body_bytes_max, Some(1));
        assert!(matches!(compile(Some(0)), Err(CompileError::Filter(_))));
    }
}
