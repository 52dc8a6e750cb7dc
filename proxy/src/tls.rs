//! TLS handshakes: with clients outside of the mesh, by a certificate of files ([`server`], [`accept`]); and between two
//! proxies, where both prove who they are ([`connect`], [`accept_mutual`]). rustls makes them and buffers at most 64
//! KiB of an incomplete one; this module adds timeouts.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::CipherSuite::{
    self, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ServerConfig, ServerConnection};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_codec::detect::Verdict;
use weft_identity::SpiffeId;
use weft_identity::verify;

use crate::identity::{Identity, Protocol};
use crate::stream::Stream;

/// ALPN protocols, in order of preference. The application is spoken to in the client's protocol: a client that
/// offers both gets HTTP/1.1, which every application understands, and a gRPC client offers HTTP/2 alone.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"h2"];

/// Cipher suites preferred over the client's order, though most clients put AES-256 first. AES-256 suites use
/// SHA-384, which has no hardware support on common processors while SHA-256 has: it alone took a tenth of a
/// handshake.
const PREFERRED_SUITES: [CipherSuite; 3] =
    [TLS13_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];

/// How long the proxy reads on after a failed handshake, so that a reset does not discard the alert that says why.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate cannot be read.
    #[error("cannot read a certificate from {0:?}")]
    Certificate(PathBuf, #[source] pem::Error),
    /// The key cannot be read.
    #[error("cannot read a private key from {0:?}")]
    Key(PathBuf, #[source] pem::Error),
    /// The certificate and the key do not match, or are of an unsupported kind.
    #[error("the certificate in {certificate:?} and the key in {key:?} cannot be used together")]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

/// The server configuration for TLS 1.3 and 1.2, from files in PEM: the certificate followed by its issuers, and the
/// key.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let unreadable = |error| Error::Certificate(certificate.into(), error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect())
        .map_err(unreadable)?;
    if chain.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| Error::Key(key.into(), error))?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !PREFERRED_SUITES.contains(&suite.suite()));
    let config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, secret));
    let mut config =
        config.map_err(|source| Error::Pair { certificate: certificate.into(), key: key.into(), source })?;
    config.ignore_client_order = true;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}

/// Makes a handshake within `limit`. Returns the stream and the protocol agreed on by ALPN, if any.
pub(crate) async fn accept(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    limit: Duration,
) -> io::Result<(Stream, Option<Verdict>)> {
    let accept = TlsAcceptor::from(config.clone()).accept(stream);
    let Ok(accepted) = tokio::time::timeout(limit, accept).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("TLS handshake timed out after {limit:?}")));
    };
    let stream = accepted?;
    let alpn = match stream.get_ref().1.alpn_protocol() {
        Some(b"http/1.1") => Some(Verdict::Http1),
        Some(b"h2") => Some(Verdict::Http2),
        _ => None,
    };
    Ok((Stream::Tls(Box::new(stream.into())), alpn))
}

/// Makes the handshake with the proxy of `peer`, and with nobody else.
pub(crate) async fn connect(
    stream: TcpStream,
    own: &Identity,
    peer: SpiffeId,
    protocol: Protocol,
) -> io::Result<TlsStream<TcpStream>> {
    let config = own.client(peer, protocol).map_err(io::Error::other)?;
    // rustls asks for a name and does not send it if it is an address. The verifier goes by the identity.
    let unnamed = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let mut stream = TlsConnector::from(config).connect(unnamed, stream).await.map_err(readable)?;
    if stream.get_ref().1.alpn_protocol() != Some(protocol.alpn()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer did not agree to the protocol of the mesh (ALPN)",
        ));
    }
    // The server's first frame says that it has accepted this side's certificate. In HTTP/1.1 the response says so; here,
    // several requests would fail together.
    if protocol.is_multiplexed() && stream.fill_buf().await?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection after the handshake"));
    }
    Ok(stream)
}

/// Makes the handshake with another proxy, whose ClientHello was read already, within `limit`. Returns the stream, the
/// protocol in it, and who the client is.
pub(crate) async fn accept_mutual(
    stream: TcpStream,
    hello: &[u8],
    own: &Identity,
    limit: Duration,
) -> io::Result<(Stream, Protocol, SpiffeId)> {
    let mut unacceptable = None;
    let read = |session: &mut ServerConnection| unacceptable = read_hello(session, hello).err();
    let accept = TlsAcceptor::from(own.server.clone()).accept_with(stream, read).into_fallible();
    // A client that was sent an alert has nothing more to say.
    let limit = if unacceptable.is_some() { CLOSE_TIMEOUT } else { limit };
    let stream = match (tokio::time::timeout(limit, accept).await, unacceptable) {
        (Err(_), None) => {
            let text = format!("the handshake was not complete within {limit:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        (Ok(Ok(stream)), None) => stream,
        (Ok(Err((error, stream))), None) => {
            close(stream).await;
            return Err(readable(error));
        }
        (_, Some(error)) => return Err(readable(error)),
    };
    let session = stream.get_ref().1;
    // A client that names none is no proxy of the mesh.
    let protocol = session.alpn_protocol().map_or(Some(Protocol::Tcp), Protocol::of_alpn);
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let (Some(protocol), Some(leaf)) = (protocol, leaf) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer has no certificate or no protocol of the mesh",
        ));
    };
    let peer = verify::identity(leaf).map_err(io::Error::other)?;
    Ok((Stream::Tls(Box::new(stream.into())), protocol, peer))
}

/// Gives a session what was read before it was created.
fn read_hello(session: &mut ServerConnection, mut hello: &[u8]) -> io::Result<()> {
    while !hello.is_empty() {
        if session.read_tls(&mut hello)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    Ok(())
}

/// Closes a connection after a failed handshake.
async fn close(mut stream: TcpStream) {
    let closing = async {
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut [0; 512]).await, Ok(1..)) {}
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
}

/// Whether a handshake failed because the peer proved another identity than the expected one.
pub(crate) fn is_other_identity(error: &io::Error) -> bool {
    let verified = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(verified, Some(verify::Error::OtherIdentity { .. }))
}

/// The error of a handshake, as people should read it: rustls quotes that of a verification in its debug form.
fn readable(error: io::Error) -> io::Error {
    match of_rustls(&error).and_then(verify::Error::of_handshake) {
        Some(refused) => io::Error::new(error.kind(), refused.clone()),
        None => error,
    }
}

/// Whether the peer has refused this side's certificate. In TLS 1.3 a client hears of that when it reads, and the server
/// has read nothing by then.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use AlertDescription as Alert;
    let alert = match of_rustls(error) {
        Some(rustls::Error::AlertReceived(alert)) => alert,
        _ => return false,
    };
    matches!(
        alert,
        Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
    )
}

fn of_rustls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
