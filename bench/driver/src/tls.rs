//! TLS client.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// The name in the server certificate.
const SERVER_NAME: &str = "localhost";

/// Options of a client.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use TLS, and trust the CA certificate in this file.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Present the certificate in this file.
    #[arg(long, requires_all = ["tls", "key"])]
    certificate: Option<PathBuf>,
    /// The file with its key.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

/// A configuration that trusts one CA and never resumes sessions. None: no TLS.
pub(crate) fn client(options: &Options) -> anyhow::Result<Option<Arc<ClientConfig>>> {
    let Some(ca) = &options.tls else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Some(Arc::new(config)))
}

pub(crate) fn connection(config: &Arc<ClientConfig>) -> anyhow::Result<Box<ClientConnection>> {
    Ok(Box::new(ClientConnection::new(config.clone(), ServerName::try_from(SERVER_NAME)?)?))
}

/// Reads decrypted bytes, and sends what the handshake has to send. Returns 0 at the end of the stream.
pub(crate) fn read(tls: &mut ClientConnection, stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read,
        }
        if tls.read_tls(stream)? == 0 {
            return Ok(0);
        }
        tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        // Sends handshake messages, and the request that waited for the handshake.
        flush(tls, stream)?;
    }
}

pub(crate) fn flush(tls: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(stream)?;
    }
    Ok(())
}
