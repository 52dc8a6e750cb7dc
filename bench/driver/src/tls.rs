//! TLS client.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// The name in the server certificate.
const SERVER_NAME: &str = "localhost";

/// A configuration that trusts one CA and never resumes sessions.
pub(crate) fn client(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

pub(crate) fn connection(config: &Arc<ClientConfig>) -> anyhow::Result<Box<ClientConnection>> {
    Ok(Box::new(ClientConnection::new(config.clone(), ServerName::try_from(SERVER_NAME)?)?))
}
