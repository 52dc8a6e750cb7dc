//! Compiled backends of rules: where their share of the requests goes, and what is done with it on the way.

use std::sync::Arc;

use http::StatusCode;
use http::header::HeaderValue;
use weft_config as wire;

use super::edit::Edit;
use crate::filter::cors::Cors;
use crate::filter::mirror::Mirror;
use crate::value::{CompileError, Target, parse_status, parse_value};

/// A weighted backend of a rule.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) weight: u32,
    pub(crate) target: BackendTarget,
    /// None: nothing. Boxed: rare.
    pub(crate) filters: Option<Box<BackendFilters>>,
}

/// Where the requests of a backend go.
#[derive(Debug)]
pub(crate) enum BackendTarget {
    Cluster(Target),
    /// Boxed: rare.
    Redirect(Box<Redirect>),
    /// Why the reference is invalid.
    Invalid(String),
}

/// What is done with the requests of one backend alone.
#[derive(Debug)]
pub(crate) struct BackendFilters {
    pub(crate) request_edit: Edit,
    pub(crate) response_edit: Edit,
    /// What it has replaces what the rule's rewrite has.
    pub(crate) rewrite: Rewrite,
    pub(crate) cors: Option<Cors>,
    pub(crate) mirrors: Vec<Arc<Mirror>>,
}

/// Rewrite of authority and path.
#[derive(Debug, Default)]
pub(crate) struct Rewrite {
    pub(crate) hostname: Option<HeaderValue>,
    pub(crate) path: Option<wire::PathRewrite>,
}

/// A redirect.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<wire::PathRewrite>,
    pub(crate) status: StatusCode,
}

impl Backend {
    pub(super) fn compile(backend: wire::Backend) -> Result<Self, CompileError> {
        let wire::Backend { weight, target, filters } = backend;
        let target = match target {
            wire::BackendTarget::Cluster(cluster) => BackendTarget::Cluster(Target::compile(cluster)),
            wire::BackendTarget::Redirect(redirect) => BackendTarget::Redirect(Box::new(Redirect::compile(redirect)?)),
            wire::BackendTarget::Invalid(reason) => BackendTarget::Invalid(reason),
        };
        let filters = filters.map(|filters| BackendFilters::compile(*filters)).transpose()?.map(Box::new);
        Ok(Self { weight, target, filters })
    }
}

impl BackendFilters {
    fn compile(filters: wire::BackendFilters) -> Result<Self, CompileError> {
        let wire::BackendFilters { request_headers, response_headers, rewrite, cors, mirrors } = filters;
        Ok(Self {
            request_edit: Edit::compile(request_headers)?,
            response_edit: Edit::compile(response_headers)?,
            rewrite: Rewrite::compile(rewrite)?,
            cors: cors.map(Cors::compile).transpose()?,
            mirrors: Mirror::compile_each(mirrors)?,
        })
    }
}

impl Rewrite {
    pub(super) fn compile(rewrite: wire::Rewrite) -> Result<Self, CompileError> {
        let wire::Rewrite { hostname, path } = rewrite;
        Ok(Self { hostname: hostname.map(|name| parse_value(&name)).transpose()?, path })
    }
}

impl Redirect {
    pub(super) fn compile(redirect: wire::Redirect) -> Result<Self, CompileError> {
        let wire::Redirect { scheme, hostname, port, path, status } = redirect;
        Ok(Self { scheme, hostname, port, path, status: parse_status(status)? })
    }
}
