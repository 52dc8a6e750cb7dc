//! Configurations of rustls. TLS 1.3 only, X25519MLKEM768 first, no resumption and no early data: each connection
//! proves its peer by the certificates and the trust bundle of now, never by a ticket from before a change. There is
//! no way to make a mutual configuration without a verifier of clients.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use crate::bundle::{Fingerprint, TrustBundle};
use crate::id::{SpiffeId, TrustDomain};
use crate::provider::{PROVIDER, SIGNATURES};
use crate::verify::{Error, Purpose, verify};

/// Whom a client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The roots of a bundle.
    Bundle(Arc<TrustBundle>),
    /// Those certificates of the server's own chain that have one of these fingerprints, as roots of this trust
    /// domain: how a proxy begins, which knows the fingerprints and no more.
    Fingerprints(TrustDomain, BTreeSet<Fingerprint>),
}

/// Verifies servers: only the expected identity will do.
#[derive(Debug)]
struct ServerVerifier {
    trust: Trust,
    expected: SpiffeId,
}

/// Verifies clients: any identity of a trusted domain.
#[derive(Debug)]
struct ClientVerifier {
    bundle: Arc<TrustBundle>,
}

/// A client that speaks only with `expected`. A server that proves another identity fails the handshake with
/// [`Error::OtherIdentity`]. `certificates` is what it presents itself.
pub fn client(
    trust: Trust,
    expected: SpiffeId,
    certificates: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, expected }));
    let mut config = match certificates {
        Some(certificates) => builder.with_client_cert_resolver(certificates),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// A server that speaks only with clients that prove an identity.
pub fn mutual_server(
    bundle: Arc<TrustBundle>,
    certificates: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    server(Some(Arc::new(ClientVerifier { bundle })), certificates, alpn)
}

/// The server of an authority: its clients prove themselves by tokens, because they have no certificate yet.
pub fn authority_server(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    server(None, certificates, &[b"http/1.1"])
}

fn server(
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    certificates: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(PROVIDER.clone()).with_protocol_versions(&[&TLS13])?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.ignore_client_order = true;
    Ok(config)
}

fn chain<'a>(leaf: &CertificateDer<'a>, issuers: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(issuers).cloned().collect()
}

/// TLS 1.2 is not offered, so rustls never asks for this.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken between proxies".to_owned()))
}

// === impl Trust ===

impl Trust {
    fn verify(&self, chain: &[CertificateDer<'_>], purpose: Purpose, now: UnixTime) -> Result<SpiffeId, Error> {
        let peer = match self {
            Self::Bundle(bundle) => verify(chain, bundle, purpose, now),
            Self::Fingerprints(domain, fingerprints) => {
                let is_root = |certificate: &&CertificateDer<'_>| fingerprints.contains(&Fingerprint::of(certificate));
                let roots = chain.iter().skip(1).filter(is_root).map(|root| root.clone().into_owned());
                let bundle = TrustBundle::new(domain.clone(), roots);
                verify(chain, &bundle.map_err(|_| Error::TrustDomain(domain.clone()))?, purpose, now)
            }
        };
        peer.map(|peer| peer.id)
    }
}

// === impl ServerVerifier ===

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = self.trust.verify(&chain(leaf, issuers), Purpose::Server, now)?;
        if presented != self.expected {
            return Err(Error::OtherIdentity { expected: self.expected.clone(), presented }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientCertVerifier for ClientVerifier {
    /// No hints: proxies have one certificate, and the names of the roots would be sent to anyone who connects.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify(&chain(leaf, issuers), &self.bundle, Purpose::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::server::ResolvesServerCertUsingSni;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::time_provider::TimeProvider;
    use rustls::{AlertDescription, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};

    use super::*;
    use crate::hostile::{Ca, now, uri};

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    /// The clock of the tests.
    #[derive(Debug)]
    struct Clock;

    impl TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(now())
        }
    }

    fn ca() -> Ca {
        Ca::root("root")
    }

    fn certified(ca: &Ca, id: &str) -> Arc<SingleCertAndKey> {
        let (leaf, key) = ca.leaf(|leaf| leaf.subject_alt_names = vec![uri(id)]);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Arc::new(CertifiedKey::from_der(vec![leaf, ca.certificate.clone()], key, &PROVIDER).unwrap().into())
    }

    fn trust(ca: &Ca) -> Arc<TrustBundle> {
        Arc::new(ca.bundle())
    }

    fn client_of(ca: &Ca, expected: &str) -> ClientConfig {
        client(Trust::Bundle(trust(ca)), expected.parse().unwrap(), Some(certified(ca, WEB)), &[b"weft-h2"]).unwrap()
    }

    fn server_of(ca: &Ca) -> ServerConfig {
        mutual_server(trust(ca), certified(ca, CART), &[b"weft-http/1.1", b"weft-h2"]).unwrap()
    }

    /// Makes a handshake in memory, and passes on what the server sends after it.
    fn handshake(
        client: &Arc<ClientConfig>,
        mut server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let mut client = ClientConfig::clone(client);
        client.time_provider = Arc::new(Clock);
        server.time_provider = Arc::new(Clock);
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let mut client = ClientConnection::new(client.into(), name).unwrap();
        let mut server = ServerConnection::new(server.into()).unwrap();
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                server.read_tls(&mut bytes).unwrap();
                server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok((client, server))
    }

    #[test]
    fn peers_agree_on_tls_1_3_with_a_post_quantum_key_exchange() {
        let ca = ca();
        let (client, server) = handshake(&Arc::new(client_of(&ca, CART)), server_of(&ca)).unwrap();
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = client.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(client.alpn_protocol(), Some(&b"weft-h2"[..]));
        let peer = crate::verify::identity(&server.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!(peer.to_string(), WEB);
    }

    #[test]
    fn server_with_another_identity_fails_the_handshake_with_an_error_of_its_own() {
        let ca = ca();
        let error = handshake(&Arc::new(client_of(&ca, WEB)), server_of(&ca)).map(drop).unwrap_err();
        let expected = Error::OtherIdentity { expected: WEB.parse().unwrap(), presented: CART.parse().unwrap() };
        assert_eq!(Error::of_handshake(&error), Some(&expected));
        let stranger = Ca::root("stranger");
        let error = handshake(&Arc::new(client_of(&ca, CART)), server_of(&stranger)).map(drop).unwrap_err();
        assert_eq!(Error::of_handshake(&error).map(Error::reason), Some("untrusted"));
    }

    /// ID-01: in the handshake.
    #[test]
    fn id_01_client_of_another_root_is_refused() {
        let (ca, stranger) = (ca(), Ca::root("stranger"));
        let client =
            client(Trust::Bundle(trust(&ca)), CART.parse().unwrap(), Some(certified(&stranger, WEB)), &[]).unwrap();
        let error = handshake(&Arc::new(client), server_of(&ca)).map(drop).unwrap_err();
        assert_eq!(Error::of_handshake(&error).map(Error::reason), Some("untrusted"));
    }

    /// ID-05: there is no mode without client authentication.
    #[test]
    fn id_05_client_without_a_certificate_is_refused() {
        let ca = ca();
        let client = client(Trust::Bundle(trust(&ca)), CART.parse().unwrap(), None, &[]).unwrap();
        let error = handshake(&Arc::new(client), server_of(&ca)).map(drop).unwrap_err();
        assert_eq!(error, rustls::Error::NoCertificatesPresented);
        let empty = mutual_server(Arc::default(), certified(&ca, CART), &[]).unwrap();
        let error = handshake(&Arc::new(client_of(&ca, CART)), empty).map(drop).unwrap_err();
        assert_eq!(
            Error::of_handshake(&error).map(Error::reason),
            Some("trust-domain"),
            "nothing is trusted by nothing"
        );
    }

    /// ID-04: a ticket or early data cannot outlive a change of trust.
    #[test]
    fn id_04_connections_are_never_resumed_and_carry_no_early_data() {
        let ca = ca();
        // A client that would resume if it could.
        let mut willing = client_of(&ca, CART);
        willing.resumption = Resumption::in_memory_sessions(8);
        willing.enable_early_data = true;
        let willing = Arc::new(willing);
        for _ in 0..3 {
            let (mut client, server) = handshake(&willing, server_of(&ca)).unwrap();
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(client.tls13_tickets_received(), 0);
            assert!(client.early_data().is_none() && server.handshake_kind() == Some(HandshakeKind::Full));
        }
        // A server that would let clients resume, and ours, which does not ask.
        let ours = Arc::new(client_of(&ca, CART));
        let mut server = server_of(&ca);
        server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
        server.send_tls13_tickets = 2;
        for _ in 0..3 {
            let (client, _) = handshake(&ours, server.clone()).unwrap();
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        }
        // A root that was removed counts from the next connection on.
        let without = mutual_server(trust(&Ca::root("new")), certified(&ca, CART), &[]).unwrap();
        assert!(handshake(&willing, without).is_err());
    }

    #[test]
    fn tls_1_2_is_refused() {
        let ca = ca();
        let mut old = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        old.alpn_protocols = vec![b"weft-h2".to_vec()];
        let error = handshake(&Arc::new(old), server_of(&ca)).map(drop).unwrap_err();
        assert!(matches!(error, rustls::Error::PeerIncompatible(_)), "{error}");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let error = handshake(&Arc::new(client_of(&ca, CART)), config).map(drop).unwrap_err();
        let refused = matches!(error, rustls::Error::PeerIncompatible(_))
            || error == rustls::Error::AlertReceived(AlertDescription::ProtocolVersion);
        assert!(refused, "{error}");
    }

    #[test]
    fn fingerprints_are_enough_to_trust_an_authority_that_presents_its_root() {
        let ca = ca();
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let pinned = |of: &Ca| [Fingerprint::of(&of.certificate)].into();
        let connect = |fingerprints, expected: &str| {
            let trust = Trust::Fingerprints(domain.clone(), fingerprints);
            let client = client(trust, expected.parse().unwrap(), None, &[b"http/1.1"]).unwrap();
            handshake(&Arc::new(client), authority_server(certified(&ca, CART)).unwrap()).map(drop)
        };
        connect(pinned(&ca), CART).unwrap();
        let reason = |error: rustls::Error| Error::of_handshake(&error).map(Error::reason);
        assert_eq!(connect(pinned(&Ca::root("root")), CART).map_err(reason), Err(Some("trust-domain")));
        assert_eq!(connect(BTreeSet::new(), CART).map_err(reason), Err(Some("trust-domain")), "nothing is pinned");
        assert_eq!(connect(pinned(&ca), WEB).map_err(reason), Err(Some("other-identity")), "any pod has a certificate");
    }
}
