//! Who this pod is: its certificate and key, the roots that it trusts, and the TLS configurations made of both.
//!
//! ```text
//! source      where it comes from: files, or
//! ca          the certificate authority: authority makes a request, schedule says when
//! trust       the roots that are held, and what may replace them
//! ```
//!
//! A [`source`] puts each new [`Identity`] into the [`Slot`], and connections that are made from then on use it. Open
//! connections keep the one that they were made with.

pub mod authority;
pub(crate) mod ca;
#[cfg(test)]
pub(crate) mod fake;
mod schedule;
pub mod source;
pub(crate) mod trust;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use hashbrown::HashMap;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;
use weft_config::MtlsMode;
use weft_identity::tls::{self, Trust};
use weft_identity::verify::{self, Purpose};
use weft_identity::{SpiffeId, TrustBundle, UnixTime};

/// What two proxies of the mesh speak inside of their TLS, by ALPN. A ClientHello without one of these names is the
/// application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Requests of HTTP/1.1, as streams of HTTP/2: the application is spoken to in HTTP/1.1.
    MultiplexedHttp1,
    /// Any bytes; the server's proxy detects what they are.
    Tcp,
}

/// Who this pod is, and whom it trusts.
pub(crate) struct Identity {
    pub(crate) id: SpiffeId,
    pub(crate) bundle: Arc<TrustBundle>,
    /// When the certificate expires.
    pub(crate) not_after: UnixTime,
    /// For connections of other proxies of the mesh.
    pub(crate) server: Arc<ServerConfig>,
    certificate: Arc<SingleCertAndKey>,
    /// For connections to each peer. Connections share them: each would hold as much memory again.
    clients: Mutex<HashMap<(SpiffeId, Protocol), Arc<ClientConfig>>>,
}

/// The identity of this pod at present, and what is to be done without one.
#[derive(Debug)]
pub(crate) struct Slot {
    current: ArcSwapOption<Identity>,
    /// Cancelled when there is one.
    synced: CancellationToken,
    /// This pod has an identity, or will have one when its source has delivered it.
    is_expected: bool,
    /// A [`MtlsMode`], or [`UNKNOWN`].
    outbound: AtomicU8,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Peers would refuse it.
    #[error("peers would refuse the certificate: {0}")]
    Certificate(#[source] verify::Error),
    /// rustls refuses it.
    #[error("the certificate cannot be used in TLS: {0}")]
    Tls(#[source] rustls::Error),
}

/// Configurations for peers that are kept. A pod has fewer; when there are more, all are made again.
const CLIENTS_MAX: usize = 1024;

/// The mode of outbound connections is not known yet.
const UNKNOWN: u8 = u8::MAX;

// === impl Protocol ===

impl Protocol {
    /// All, in the order that a server prefers.
    pub(crate) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::MultiplexedHttp1, Self::Tcp];

    /// Its name in ALPN.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"weft-http/1.1",
            Self::Http2 => b"weft-h2",
            Self::MultiplexedHttp1 => b"weft-http/1.1-h2",
            Self::Tcp => b"weft-tcp",
        }
    }

    /// HTTP/2 or HTTP/1.1, as such.
    pub(crate) fn of_version(http2: bool) -> Self {
        if http2 { Self::Http2 } else { Self::Http1 }
    }

    /// Whether requests share a connection.
    pub(crate) fn is_multiplexed(self) -> bool {
        matches!(self, Self::Http2 | Self::MultiplexedHttp1)
    }

    /// The protocol of a name in ALPN, if it is one of these.
    pub(crate) fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == name)
    }
}

// === impl Identity ===

impl Identity {
    /// An identity of a certificate with its key, and the roots to trust. A certificate that peers with the same roots
    /// would refuse at `now` is refused.
    pub(crate) fn new(certified: CertifiedKey, bundle: Arc<TrustBundle>, now: UnixTime) -> Result<Self, Error> {
        verify::verify(&certified.cert, &bundle, Purpose::Client, now).map_err(Error::Certificate)?;
        let own = verify::verify(&certified.cert, &bundle, Purpose::Server, now).map_err(Error::Certificate)?;
        let certificate = Arc::new(SingleCertAndKey::from(certified));
        let alpn = Protocol::ALL.map(Protocol::alpn);
        let server = tls::mutual_server(bundle.clone(), certificate.clone(), &alpn).map_err(Error::Tls)?;
        Ok(Self {
            id: own.id,
            bundle,
            not_after: own.not_after,
            server: Arc::new(server),
            certificate,
            clients: Mutex::default(),
        })
    }

    /// Whether peers whose clocks are right refuse the certificate, because it has expired.
    pub(crate) fn is_expired(&self, now: UnixTime) -> bool {
        self.not_after.as_secs() + verify::CLOCK_SKEW.as_secs() < now.as_secs()
    }

    /// The configuration for a connection to `peer`, and to nobody else.
    pub(crate) fn client(&self, peer: SpiffeId, protocol: Protocol) -> Result<Arc<ClientConfig>, rustls::Error> {
        // No critical section leaves the map half changed: it is usable after a panic.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (peer, protocol);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let (trust, own) = (Trust::Bundle(self.bundle.clone()), self.certificate.clone());
        let client = Arc::new(tls::client(trust, key.0.clone(), Some(own), &[protocol.alpn()])?);
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity {} until {}", self.id, weft_identity::rfc3339(self.not_after))
    }
}

// === impl Slot ===

impl Slot {
    /// Without an identity. `is_expected`: a source will deliver one.
    pub(crate) fn new(is_expected: bool) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            synced: CancellationToken::new(),
            is_expected,
            outbound: AtomicU8::new(UNKNOWN),
        }
    }

    /// The identity at present.
    pub(crate) fn load(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// Waits for the first identity, if one is expected.
    pub(crate) async fn synced(&self) {
        if self.is_expected {
            self.synced.cancelled().await;
        }
    }

    /// Whether this pod has an identity, or will have one.
    pub(crate) fn is_expected(&self) -> bool {
        self.is_expected
    }

    /// Replaces the identity.
    pub(crate) fn set(&self, identity: Identity) {
        tracing::info!(id = %identity.id, not_after = weft_identity::rfc3339(identity.not_after), "identity in use");
        self.current.store(Some(Arc::new(identity)));
        self.synced.cancel();
    }

    /// Sets the mode of outbound connections.
    pub(crate) fn set_outbound(&self, mode: MtlsMode) {
        self.outbound.store(mode as u8, Ordering::Relaxed);
    }

    /// Whether requests may be sent in plaintext. As long as a pod with an identity does not know its mode, they may
    /// not: the mode could be Strict.
    pub(crate) fn may_send_plaintext(&self) -> bool {
        match self.outbound.load(Ordering::Relaxed) {
            UNKNOWN => !self.is_expected,
            mode => mode != MtlsMode::Strict as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_identity::TrustDomain;
    use weft_identity::authority::Authority;
    use weft_identity::issue::Issuer;
    use weft_identity::request::{self, Pending};

    use super::*;

    #[test]
    fn plaintext_is_sent_only_in_permissive_mode() {
        for (desc, is_expected, mode, expected) in [
            ("no identity, no documents", false, None, true),
            ("no identity", false, Some(MtlsMode::Permissive), true),
            ("no identity and Strict", false, Some(MtlsMode::Strict), false),
            ("mode not known", true, None, false),
            ("Permissive", true, Some(MtlsMode::Permissive), true),
            ("Strict", true, Some(MtlsMode::Strict), false),
        ] {
            let slot = Slot::new(is_expected);
            if let Some(mode) = mode {
                slot.set_outbound(mode);
            }
            assert_eq!(slot.may_send_plaintext(), expected, "{desc}");
        }
    }

    /// An identity that an authority of its own issued at `from`, for an hour, as seen at `now`.
    fn issued(from: UnixTime, now: UnixTime) -> Result<Identity, Error> {
        let domain: TrustDomain = "cluster.local".parse().expect("a domain");
        let root = Authority::root(&domain, from).expect("a root");
        let bundle = TrustBundle::new(domain.clone(), [root.certificate.clone()]).expect("a bundle");
        let issuer = Issuer::new(&[root.certificate], &root.key, domain, &bundle, from).expect("an issuer");
        let pending = Pending::generate().expect("a key");
        let key = request::read(pending.request()).expect("a request");
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an id");
        let issued = issuer.issue(&key, &id, from, Duration::from_secs(3600)).expect("issued");
        Identity::new(pending.certified(issued.chain).expect("a pair"), Arc::new(bundle), now)
    }

    #[test]
    fn expired_certificate_is_no_identity() {
        let at = |hours: u64| UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000 + hours * 3600));
        let identity = issued(at(0), at(0)).expect("valid");
        assert_eq!(identity.id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(identity.not_after.as_secs(), at(1).as_secs());
        let after = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(at(1).as_secs() + seconds));
        assert!(!identity.is_expired(after(20)) && identity.is_expired(after(21)), "peers tolerate 20 s");
        let error = issued(at(0), at(2)).expect_err("expired").to_string();
        assert!(error.contains("expired at"), "{error}");
    }

    #[test]
    fn connections_to_one_peer_share_a_configuration() {
        let identity = issued(UnixTime::now(), UnixTime::now()).expect("valid");
        let client = |account: &str, protocol| {
            let peer = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().expect("an id");
            identity.client(peer, protocol).expect("a configuration")
        };
        let first = client("a", Protocol::Http1);
        assert!(Arc::ptr_eq(&first, &client("a", Protocol::Http1)));
        for other in [client("b", Protocol::Http1), client("a", Protocol::Tcp)] {
            assert!(!Arc::ptr_eq(&first, &other));
        }
        for account in 0..CLIENTS_MAX + 10 {
            client(&format!("sa-{account}"), Protocol::Http1);
        }
        assert!(identity.clients.lock().expect("not poisoned").len() <= CLIENTS_MAX);
    }

    #[test]
    fn names_in_alpn_are_told_apart() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::of_alpn(protocol.alpn()), Some(protocol));
        }
        for name in [&b"h2"[..], b"http/1.1", b"", b"weft", b"weft-tcp2", b"Weft-Tcp"] {
            assert_eq!(Protocol::of_alpn(name), None, "{name:?}");
        }
    }
}
