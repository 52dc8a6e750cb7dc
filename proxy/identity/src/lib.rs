//! Identities of workloads: what a certificate of the mesh is, who may issue it, and whom a proxy believes.
//!
//! ```text
//! id ──── TrustDomain, SpiffeId     spiffe://<trust domain>/ns/<namespace>/sa/<service account>
//! bundle  TrustBundle               trust domain -> roots, and their fingerprints
//! verify  chain + bundle + time  -> SpiffeId
//! tls     configurations of rustls for both sides: TLS 1.3, no resumption, no early data
//! request key pair + CSR (a proxy); CSR -> public key (an authority)
//! sign    signatures of configuration documents, certified by the same authority; signer makes them
//! issue   Issuer: public key + SpiffeId + time -> certificate          (feature `issue`)
//! authority  generated root and intermediate                           (feature `issue`)
//! ```
//!
//! No I/O and no clock: times are parameters. The random numbers are those of aws-lc-rs. The rules are those of
//! [SPIFFE's X.509-SVID](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md) and RFC 5280.

#[cfg(feature = "issue")]
pub mod authority;
pub mod bundle;
#[cfg(feature = "issue")]
mod certificate;
mod date;
mod der;
pub mod id;
#[cfg(feature = "issue")]
pub mod issue;
mod parsed;
pub mod pem;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod provider;
pub mod request;
pub mod sign;
#[cfg(feature = "issue")]
pub mod signer;
pub mod tls;
pub mod verify;

#[cfg(test)]
mod hostile;

pub use bundle::{Fingerprint, Root, TrustBundle};
pub use date::rfc3339;
pub use id::{Account, SpiffeId, TrustDomain};
pub use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
