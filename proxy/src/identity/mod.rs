//! Who this pod is: its certificate and key, and the roots that it trusts.
//!
//! ```text
//! authority   one request: token + CSR -> certificate     schedule   when to make one
//! ca          keeps a certificate, and puts each into the Slot
//! trust       the roots that are held, and what may replace them
//! ```
//!
//! A source puts each new [`Identity`] into the [`Slot`], and connections that are made from then on use it. Open
//! connections keep the one that they were made with.

pub(crate) mod authority;
pub(crate) mod ca;
#[cfg(test)]
pub(crate) mod fake;
mod schedule;
pub(crate) mod trust;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;
use weft_identity::verify::{self, Purpose};
use weft_identity::{SpiffeId, TrustBundle, UnixTime};

/// Who this pod is, and whom it trusts.
pub(crate) struct Identity {
    pub(crate) id: SpiffeId,
    pub(crate) bundle: Arc<TrustBundle>,
    /// When the certificate expires.
    pub(crate) not_after: UnixTime,
}

/// The identity of this pod at present.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    current: ArcSwapOption<Identity>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Peers would refuse it.
    #[error("peers would refuse the certificate: {0}")]
    Certificate(#[source] verify::Error),
}

// === impl Identity ===

impl Identity {
    /// An identity of a certificate with its key, and the roots to trust. A certificate that peers with the same roots
    /// would refuse at `now` is refused.
    pub(crate) fn new(certified: CertifiedKey, bundle: Arc<TrustBundle>, now: UnixTime) -> Result<Self, Error> {
        verify::verify(&certified.cert, &bundle, Purpose::Client, now).map_err(Error::Certificate)?;
        let own = verify::verify(&certified.cert, &bundle, Purpose::Server, now).map_err(Error::Certificate)?;
        Ok(Self { id: own.id, bundle, not_after: own.not_after })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity {} until {}", self.id, weft_identity::rfc3339(self.not_after))
    }
}

// === impl Slot ===

impl Slot {
    /// The identity at present.
    pub(crate) fn load(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// Replaces the identity.
    pub(crate) fn set(&self, identity: Identity) {
        tracing::info!(id = %identity.id, not_after = weft_identity::rfc3339(identity.not_after), "identity in use");
        self.current.store(Some(Arc::new(identity)));
    }
}
