//! Reads a document: checks it and compiles it for this pod, or says why it is refused.

use std::sync::Arc;

use weft_config::{DecodeError, Envelope, Export, Header, Index};
use weft_identity::{TrustBundle, UnixTime};

use super::inbound::Inbound;
use super::namespace::Namespace;
use super::pods::Pods;
use super::source::Document;
use crate::bootstrap::Pod;
use crate::clock::time_of_day;
use crate::identity::trust::{Refusal, Trust};
use crate::value::CompileError;

/// A document, compiled.
pub(super) enum Compiled {
    Namespace(Arc<Namespace>),
    Inbound(Arc<Inbound>),
    Pods(Arc<Pods>),
    Index(Index),
    Trust(TrustBundle),
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("the document is for namespace {found:?}")]
    Namespace { found: String },
    #[error(transparent)]
    Trust(#[from] Refusal),
    #[error("this proxy has no identity")]
    NoIdentity,
}

/// With roots, only a document that the operator has signed is read.
pub(super) fn read(
    pod: &Pod,
    trust: Option<&Trust>,
    document: &Document,
    envelope: &Envelope,
) -> Result<(Header, Compiled), Rejection> {
    let now = || UnixTime::since_unix_epoch(time_of_day());
    let check_signature =
        |header: &Header| trust.map_or(Ok(()), |trust| trust.check(&document.to_string(), header, now()));
    let check_namespace = |header: &Header, namespace: &str| match header.namespace == namespace {
        true => Ok(()),
        false => Err(Rejection::Namespace { found: header.namespace.clone() }),
    };
    match document {
        Document::Export(namespace) => {
            let (header, export) = envelope.read::<Export>()?;
            check_signature(&header)?;
            check_namespace(&header, namespace)?;
            Ok((header, Compiled::Namespace(Arc::new(Namespace::compile(pod, namespace, export)?))))
        }
        Document::Inbound(namespace) => {
            let (header, inbound) = envelope.read::<weft_config::Inbound>()?;
            check_signature(&header)?;
            check_namespace(&header, namespace)?;
            Ok((header, Compiled::Inbound(Arc::new(Inbound::compile(pod, inbound)?))))
        }
        Document::Pods(prefix) => {
            let (header, pods) = envelope.read::<weft_config::Pods>()?;
            check_signature(&header)?;
            check_namespace(&header, &document.to_string())?;
            Ok((header, Compiled::Pods(Arc::new(Pods::compile(*prefix, pods)?))))
        }
        Document::Index => {
            let (header, index) = envelope.read::<Index>()?;
            check_signature(&header)?;
            Ok((header, Compiled::Index(index)))
        }
        Document::Trust => {
            let trust = trust.ok_or(Rejection::NoIdentity)?;
            let (header, bundle) = envelope.read::<TrustBundle>()?;
            trust.check_roots(&header, &bundle, now())?;
            Ok((header, Compiled::Trust(bundle)))
        }
    }
}
