//! The filters of a rule, and those of a backend.

use std::time::Duration;

use weft_config::{
    Action, BackendFilters, Fault, FaultAbort, FaultDelay, Filters, HeaderEdit, Mirror, PathRewrite, RateLimit,
    Redirect, Respond, Rewrite,
};
use weft_crds::route::{self, BackendFilterType, FilterType, PathModifierType, Scheme};
use weft_crds::status::Reason;

use super::backend::{OfBackend, Referrer, resolve};
use crate::compile::value;
use crate::world::World;

const PER_MIN: Duration = Duration::from_secs(1);
const PER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const RATE_MAX: u32 = 1_000_000;
const DELAY_MIN: Duration = Duration::from_millis(1);
const DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// The filters of a rule, each where the proxy's rule has it.
#[derive(Default)]
pub(super) struct RuleFilters {
    pub(super) request_headers: HeaderEdit,
    pub(super) response_headers: HeaderEdit,
    pub(super) filters: Filters,
    pub(super) rewrite: Rewrite,
    /// The action, if the rule answers without a backend.
    pub(super) answer: Option<Action>,
}

/// Compiles the filters of a rule. `by_prefix`: every match of the rule has a path prefix. References that do not
/// resolve are added to `unresolved`.
pub(super) fn compile(
    world: &World,
    route: Referrer<'_>,
    filters: &[route::HttpFilter],
    by_prefix: bool,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<RuleFilters, String> {
    let mut compiled = RuleFilters::default();
    for filter in filters {
        let route::HttpFilter {
            kind,
            request_header_modifier,
            response_header_modifier,
            request_redirect,
            url_rewrite,
            direct_response,
            cors,
            fault,
            request_mirror,
            rate_limit,
            response_body_limit,
        } = filter;
        let needed = || format!("a filter of type {kind:?} requires the field of that name");
        match kind {
            FilterType::RequestHeaderModifier => {
                let modifier = request_header_modifier.as_ref().ok_or_else(needed)?;
                compiled.request_headers = value::header_edit(modifier)?;
            }
            FilterType::ResponseHeaderModifier => {
                let modifier = response_header_modifier.as_ref().ok_or_else(needed)?;
                compiled.response_headers = value::header_edit(modifier)?;
            }
            FilterType::UrlRewrite => {
                let route::UrlRewrite { hostname, path } = url_rewrite.as_ref().ok_or_else(needed)?;
                let path = path.as_ref().map(|path| path_rewrite(path, by_prefix)).transpose()?;
                compiled.rewrite = Rewrite { hostname: hostname.clone(), path };
            }
            FilterType::RequestRedirect => {
                let redirect = redirect(request_redirect.as_ref().ok_or_else(needed)?, by_prefix)?;
                set_answer(&mut compiled.answer, Action::Redirect(redirect))?;
            }
            FilterType::DirectResponse => {
                let route::DirectResponse { status, body } = direct_response.as_ref().ok_or_else(needed)?;
                let respond = Respond { status: *status, body: body.clone() };
                set_answer(&mut compiled.answer, Action::Respond(respond))?;
            }
            FilterType::Cors => compiled.filters.cors = Some(value::cors(cors.as_ref().ok_or_else(needed)?)?),
            FilterType::Fault => compiled.filters.fault = self::fault(fault.as_ref().ok_or_else(needed)?)?,
            FilterType::RequestMirror => {
                let mirror = request_mirror.as_ref().ok_or_else(needed)?;
                compiled.filters.mirrors.extend(self::mirror(world, route, mirror, unresolved)?);
            }
            FilterType::RateLimit => {
                compiled.filters.rate_limit = Some(self::rate_limit(rate_limit.as_ref().ok_or_else(needed)?)?);
            }
            FilterType::ResponseBodyLimit => {
                let route::ResponseBodyLimit { max_bytes } = response_body_limit.as_ref().ok_or_else(needed)?;
                if *max_bytes == 0 {
                    return Err("responseBodyLimit.maxBytes: 0 allows no response body: give at least 1".into());
                }
                compiled.filters.response_body_bytes_max = Some(*max_bytes);
            }
        }
    }
    let idle = filters.iter().find(|filter| compiled.answer.is_some() && filter.kind.needs_backend());
    if let Some(route::HttpFilter { kind, .. }) = idle {
        return Err(format!(
            "{kind:?} has no effect with RequestRedirect or DirectResponse: no backend gets the request"
        ));
    }
    Ok(compiled)
}

/// Compiles the filters of a backend; otherwise as [`compile`].
pub(super) fn compile_of_backend(
    world: &World,
    route: Referrer<'_>,
    filters: &[route::HttpFilter],
    by_prefix: bool,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<OfBackend, String> {
    if let Some(route::HttpFilter { kind, .. }) = filters.iter().find(|filter| !filter.kind.fits_backend()) {
        return Err(format!("a filter of type {kind:?} applies to a whole rule: move it to the filters of the rule"));
    }
    let RuleFilters { request_headers, response_headers, filters, rewrite, answer } =
        compile(world, route, filters, by_prefix, unresolved)?;
    let Filters { cors, mirrors, rate_limit: _, fault: _, response_body_bytes_max: _ } = filters;
    let redirect = match answer {
        Some(Action::Redirect(redirect)) => Some(redirect),
        Some(Action::Respond(_) | Action::Forward { .. }) | None => None,
    };
    let filters = BackendFilters { request_headers, response_headers, rewrite, cors, mirrors };
    let filters = (filters != BackendFilters::default()).then(|| Box::new(filters));
    Ok(OfBackend { filters, redirect })
}

/// The filter of a backendRef, as a rule would have it.
pub(super) fn as_of_rule(filter: &route::BackendFilter) -> route::HttpFilter {
    let route::BackendFilter {
        kind,
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        request_mirror,
    } = filter.clone();
    route::HttpFilter {
        kind: match kind {
            BackendFilterType::RequestHeaderModifier => FilterType::RequestHeaderModifier,
            BackendFilterType::ResponseHeaderModifier => FilterType::ResponseHeaderModifier,
            BackendFilterType::RequestRedirect => FilterType::RequestRedirect,
            BackendFilterType::UrlRewrite => FilterType::UrlRewrite,
            BackendFilterType::RequestMirror => FilterType::RequestMirror,
        },
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        request_mirror,
        direct_response: None,
        cors: None,
        fault: None,
        rate_limit: None,
        response_body_limit: None,
    }
}

fn set_answer(answer: &mut Option<Action>, action: Action) -> Result<(), String> {
    match answer.replace(action) {
        None => Ok(()),
        Some(_) => Err("RequestRedirect and DirectResponse cannot be combined".into()),
    }
}

fn redirect(redirect: &route::RequestRedirect, by_prefix: bool) -> Result<Redirect, String> {
    let route::RequestRedirect { scheme, hostname, path, port, status_code } = redirect;
    let scheme = scheme.map(|scheme| match scheme {
        Scheme::Http => "http".to_owned(),
        Scheme::Https => "https".to_owned(),
    });
    let path = path.as_ref().map(|path| path_rewrite(path, by_prefix)).transpose()?;
    Ok(Redirect { scheme, hostname: hostname.clone(), port: *port, path, status: *status_code })
}

fn path_rewrite(path: &route::PathModifier, by_prefix: bool) -> Result<PathRewrite, String> {
    let route::PathModifier { kind, replace_full_path, replace_prefix_match } = path;
    let needed = || format!("a path modifier of type {kind:?} requires the field of that name");
    match kind {
        PathModifierType::ReplaceFullPath => Ok(PathRewrite::Full(replace_full_path.clone().ok_or_else(needed)?)),
        PathModifierType::ReplacePrefixMatch if !by_prefix => {
            Err("ReplacePrefixMatch needs a PathPrefix in every match of the rule".into())
        }
        PathModifierType::ReplacePrefixMatch => {
            Ok(PathRewrite::Prefix(replace_prefix_match.clone().ok_or_else(needed)?))
        }
    }
}

fn rate_limit(limit: &route::RateLimit) -> Result<RateLimit, String> {
    let route::RateLimit { requests, per, burst, key } = limit;
    let burst = burst.unwrap_or(*requests);
    for (field, count) in [("requests", *requests), ("burst", burst)] {
        if !(1..=RATE_MAX).contains(&count) {
            return Err(format!("rateLimit.{field}: {count} is not between 1 and {RATE_MAX}"));
        }
    }
    let per_ms = value::duration(per, "rateLimit.per", PER_MIN, PER_MAX)?;
    let key = key.as_ref().map(value::rate_limit_key).transpose()?;
    Ok(RateLimit { requests: *requests, per_ms, burst, key })
}

fn fault(fault: &route::Fault) -> Result<Fault, String> {
    let route::Fault { delay, abort } = fault;
    let read_delay = |delay: &route::FaultDelay| -> Result<FaultDelay, String> {
        let route::FaultDelay { duration, percent, fraction } = delay;
        let duration_ms = value::duration(duration, "fault.delay.duration", DELAY_MIN, DELAY_MAX)?;
        Ok(FaultDelay { duration_ms, share: value::fraction(*percent, fraction.as_ref())? })
    };
    let read_abort = |abort: &route::FaultAbort| -> Result<FaultAbort, String> {
        let route::FaultAbort { status, percent, fraction } = abort;
        if !(400..600).contains(status) {
            return Err(format!("fault.abort.status: {status} is not between 400 and 599"));
        }
        Ok(FaultAbort { status: *status, share: value::fraction(*percent, fraction.as_ref())? })
    };
    Ok(Fault { delay: delay.as_ref().map(read_delay).transpose()?, abort: abort.as_ref().map(read_abort).transpose()? })
}

/// A mirror. `None` if its reference does not resolve: requests must not fail because of it.
fn mirror(
    world: &World,
    route: Referrer<'_>,
    mirror: &route::RequestMirror,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<Option<Mirror>, String> {
    let route::RequestMirror { backend_ref, percent, fraction, host_suffix } = mirror;
    let route::MirrorRef { kind: _, namespace, name, port, subset } = backend_ref;
    let share = value::fraction(*percent, fraction.as_ref())?;
    let key = route.service(namespace.as_deref(), name);
    match resolve(world, route, &key, *port, subset.as_deref(), "nothing is mirrored to it", unresolved) {
        Ok(target) => Ok(Some(Mirror { target, share, host_suffix: host_suffix.clone() })),
        Err((reason, message)) => {
            unresolved.push((reason, format!("{message}: nothing is mirrored to it")));
            Ok(None)
        }
    }
}
