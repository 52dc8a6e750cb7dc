//! TLS with those who connect: what the proxy presents to them, and the handshake.
//!
//! What is presented is read once, from the files that [`server`] is given; it knows nothing of identities. A handshake is
//! done by rustls, which holds no more than 64 KiB of one that is not complete; here it gets its time.

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

use crate::detect::Verdict;
use crate::stream::Stream;

/// What clients may ask for by ALPN. The application is spoken to as its client speaks: a client to whom both are right
/// gets what every application understands, and one of gRPC asks for HTTP/2 alone.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"h2"];

/// What is agreed on with whoever knows it, though most clients name AES-256 first. SHA-384, which comes with that, is one
/// that processors do not compute themselves, as they do SHA-256: it alone was a tenth of a handshake.
const CHEAPEST: [CipherSuite; 3] =
    [TLS13_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];

/// Why there is nothing to present.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate cannot be read.
    #[error("cannot read a certificate from {0:?}")]
    Certificate(PathBuf, #[source] pem::Error),
    /// The key cannot be read.
    #[error("cannot read a private key from {0:?}")]
    Key(PathBuf, #[source] pem::Error),
    /// They are not for each other, or for no use that is known.
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

/// How clients are served that speak TLS 1.3 or 1.2: with a certificate, those that it is issued by behind it, and its key,
/// in PEM.
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
    provider.cipher_suites.sort_by_key(|suite| !CHEAPEST.contains(&suite.suite()));
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

/// Makes a handshake, within `limit` from here to its end. Beside the stream: what was agreed on by ALPN, if anything was.
pub(crate) async fn accept(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    limit: Duration,
) -> io::Result<(Stream, Option<Verdict>)> {
    let accept = TlsAcceptor::from(config.clone()).accept(stream);
    let Ok(accepted) = tokio::time::timeout(limit, accept).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end of the handshake within {limit:?}")));
    };
    let stream = accepted?;
    let agreed = match stream.get_ref().1.alpn_protocol() {
        Some(b"http/1.1") => Some(Verdict::Http1),
        Some(b"h2") => Some(Verdict::Http2),
        _ => None,
    };
    Ok((Stream::Tls(Box::new(stream)), agreed))
}
