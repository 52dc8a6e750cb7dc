//! TLS with downstream: the server configuration and the handshake.
//!
//! The certificate is read once, from the files given to [`server`]; there is no notion of identity here. rustls
//! makes the handshake and buffers at most 64 KiB of an incomplete one; this module adds the timeout.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::CipherSuite::{
    self, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use weft_codec::detect::Verdict;

use crate::stream::Stream;

/// ALPN protocols, in order of preference. The application is spoken to in the client's protocol: a client that
/// offers both gets HTTP/1.1, which every application understands, and a gRPC client offers HTTP/2 alone.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"h2"];

/// Cipher suites preferred over the client's order, though most clients put AES-256 first. AES-256 suites use
/// SHA-384, which has no hardware support on common processors while SHA-256 has: it alone took a tenth of a
/// handshake.
const PREFERRED_SUITES: [CipherSuite; 3] =
    [TLS13_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];

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
    Ok((Stream::Tls(Box::new(stream)), alpn))
}
