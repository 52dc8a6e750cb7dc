//! The mirror of a rule or backend: where copies of its requests go, and how many. [`crate::http::mirror`] sends them.

use std::sync::Arc;

use weft_config as wire;

use super::fraction::Fraction;
use crate::value::{CompileError, Target};

/// The mirror of a rule or backend: the target, and the fraction of requests to mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) target: Target,
    /// `namespace/service:port`.
    pub(crate) service: String,
    pub(crate) share: Fraction,
    pub(crate) host_suffix: Option<String>,
}

impl Mirror {
    /// Compiles the mirrors of a rule or backend.
    pub(crate) fn compile_each(mirrors: Vec<wire::Mirror>) -> Result<Vec<Arc<Self>>, CompileError> {
        mirrors.into_iter().map(|mirror| Self::compile(mirror).map(Arc::new)).collect()
    }

    fn compile(mirror: wire::Mirror) -> Result<Self, CompileError> {
        let wire::Mirror { target, share, host_suffix } = mirror;
        let service = format!("{}/{}:{}", target.namespace, target.service, target.port);
        Ok(Self { target: Target::compile(target), service, share: Fraction::compile(share)?, host_suffix })
    }
}
