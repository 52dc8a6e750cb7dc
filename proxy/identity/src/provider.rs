//! The cryptography of all connections and certificates of the mesh.

use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};

/// What rustls calculates with.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    // AES-128 first: with the processors' own AES and SHA-256 it is the cheapest, and as strong as the certificates.
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { kx_groups, cipher_suites, ..default_provider() })
});

/// The signatures that are accepted in certificates and handshakes.
pub(crate) static SIGNATURES: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| PROVIDER.signature_verification_algorithms);
