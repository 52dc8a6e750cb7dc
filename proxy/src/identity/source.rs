//! Where the identity of this pod comes from. One enum, so that everything behind it is the same for all.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use weft_identity::{Fingerprint, SpiffeId, TrustBundle, UnixTime, pem};

use super::authority::Authority;
use super::{Error as IdentityError, Identity, Slot};
use crate::file::{POLL, version};

/// The certificate followed by its issuers, PEM.
const CERTIFICATE: &str = "tls.crt";
/// Its key, PEM.
const KEY: &str = "tls.key";
/// The roots to trust: the document of a [`TrustBundle`].
const BUNDLE: &str = "bundle.json";

/// A source of identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The files [`CERTIFICATE`], [`KEY`] and [`BUNDLE`] of a directory, which are read again when one has changed.
    Directory(PathBuf),
    /// The certificate authority.
    Ca(CaSettings),
}

/// The pod's identity, and the authority that certifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSettings {
    /// Where the authority is.
    pub client: Authority,
    /// Who it must prove to be.
    pub authority: SpiffeId,
    /// The pod's own identity.
    pub id: SpiffeId,
    /// Fingerprints of the roots to begin with.
    pub roots: BTreeSet<Fingerprint>,
}

/// Why the files cannot be used. The identity that was read last stays in use.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read {0}: {1}")]
    Read(&'static str, #[source] io::Error),
    #[error("{CERTIFICATE} has no certificate in PEM")]
    Certificate,
    #[error("{KEY} has no private key in PEM that can be used")]
    Key,
    #[error("the key in {KEY} is not that of the certificate in {CERTIFICATE}")]
    Pair,
    #[error("{BUNDLE} is not a trust bundle: {0}")]
    Bundle(#[source] serde_json::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Keeps the identity as it is in a directory. Does not return.
pub(crate) async fn watch(directory: PathBuf, slot: Arc<Slot>) {
    let mut seen = None;
    loop {
        let versions = [CERTIFICATE, KEY, BUNDLE].map(|name| version(&directory.join(name)));
        if seen != Some(versions) {
            seen = Some(versions);
            match read(&directory, UnixTime::now()) {
                Ok(identity) => slot.set(identity),
                Err(error) => tracing::error!(
                    directory = %directory.display(), %error, "identity refused, the last good one stays in use"
                ),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn read(directory: &Path, now: UnixTime) -> Result<Identity, Error> {
    let file = |name| std::fs::read(directory.join(name)).map_err(|error| Error::Read(name, error));
    let chain = pem::read_certificates(&file(CERTIFICATE)?).ok().filter(|chain| !chain.is_empty());
    let key = pem::read_private_key(&file(KEY)?).map_err(|_| Error::Key)?;
    let certified =
        CertifiedKey::new(chain.ok_or(Error::Certificate)?, any_supported_type(&key).map_err(|_| Error::Key)?);
    certified.keys_match().map_err(|_| Error::Pair)?;
    let bundle: TrustBundle = serde_json::from_slice(&file(BUNDLE)?).map_err(Error::Bundle)?;
    Ok(Identity::new(certified, Arc::new(bundle), now)?)
}
