//! Certificates as PEM text.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Characters in a line. Source: RFC 7468.
const LINE: usize = 64;

/// Certificates, one after another.
pub fn certificates<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    chain.into_iter().fold(String::new(), |text, certificate| text + &section("CERTIFICATE", certificate))
}

/// A private key.
pub fn private_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    section(label, key.secret_der())
}

/// The certificates of a text, in its order.
pub fn read_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// The private key of a text: PKCS #8, PKCS #1 or SEC 1.
pub fn read_private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text)
}

fn section(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(LINE) {
        let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_certificates_are_read() {
        let chain: Vec<CertificateDer<'static>> =
            [1, 47, 48, 49, 500].map(|length| CertificateDer::from(vec![7_u8; length])).into();
        assert_eq!(read_certificates(certificates(&chain).as_bytes()).unwrap(), chain);
        assert!(certificates(&chain).lines().all(|line| line.len() <= LINE));
    }
}
