//! The authority's own certificate, which its server presents: issued by itself, with the root at the end of the chain,
//! so that a proxy that knows no more than the root's fingerprint can verify it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use weft_identity::request::{self, Pending};
use weft_identity::{SpiffeId, UnixTime};

use super::secret::Issuing;

/// Lifetime of the certificate; it is renewed at half of that, and with each change of the issuer.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval of checks, by the wall clock: timers stand still while a machine sleeps.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The certificate that is presented. None until there is an issuer: handshakes fail then.
#[derive(Debug, Default)]
pub struct Serving {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

/// Keeps the certificate up to date while there are issuers.
pub async fn follow(serving: Arc<Serving>, id: SpiffeId, mut issuing: watch::Receiver<Option<Arc<Issuing>>>) {
    let mut renewal = 0;
    loop {
        let now = UnixTime::now();
        let changed = issuing.has_changed().unwrap_or(false);
        let current = issuing.borrow_and_update().clone();
        if let Some(current) = current.filter(|_| changed || now.as_secs() >= renewal) {
            match certify(&current, &id, now) {
                Ok(certified) => {
                    renewal = now.as_secs() + LIFETIME.as_secs() / 2;
                    serving.set(certified);
                }
                // The last one is presented until it expires.
                Err(error) => tracing::error!(error, "cannot issue the authority's own certificate"),
            }
        }
        tokio::select! {
            changed = issuing.changed() => match changed {
                Ok(()) => issuing.mark_changed(),
                Err(_) => return,
            },
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
}

fn certify(issuing: &Issuing, id: &SpiffeId, now: UnixTime) -> Result<CertifiedKey, String> {
    let pending = Pending::generate().map_err(|error| error.to_string())?;
    let key = request::read(pending.request()).map_err(|error| error.to_string())?;
    let issued = issuing.issuer.issue(&key, id, now, LIFETIME).map_err(|error| error.to_string())?;
    let chain = [&issued.chain[..], std::slice::from_ref(issuing.issuer.root())].concat();
    pending.certified(chain).map_err(|error| error.to_string())
}

// === impl Serving ===

impl Serving {
    fn set(&self, certified: CertifiedKey) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
