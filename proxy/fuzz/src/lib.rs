//! Fuzz targets for the parsers of untrusted input. Each checks the properties of a module, as its unit tests do. Most
//! are in `weft_codec` and `weft_identity`; the others are compiled from the proxy's source files, without the rest of
//! the proxy, so that an instrumented build takes seconds once the cryptographic library is there.
#![allow(dead_code, unused_imports, reason = "the properties use only a part of each file of the proxy")]

#[path = "../../src/path.rs"]
mod path;
#[path = "../../src/reason.rs"]
mod reason;

#[path = "."]
mod http {
    #[path = "../../src/http/head/mod.rs"]
    pub(crate) mod head;
}

/// The properties of `detect`.
pub fn detect(bytes: &[u8]) {
    weft_codec::detect::check_properties(bytes);
}

/// The properties of `path`.
pub fn path(bytes: &[u8]) {
    if let Ok(path) = str::from_utf8(bytes) {
        path::check_properties(path);
    }
}

/// The properties of `sni`.
pub fn hello(bytes: &[u8]) {
    weft_codec::sni::check_properties(bytes);
}

/// The properties of `http/head`.
pub fn head(bytes: &[u8]) {
    http::head::check_properties(bytes);
}

/// The properties of `http1/decode`.
pub fn chunks(bytes: &[u8]) {
    weft_codec::http1::decode::check_properties(bytes);
}

/// The properties of `hpack`.
pub fn block(bytes: &[u8]) {
    weft_codec::hpack::check_properties(bytes);
}

/// The properties of `http2`.
pub fn frames(bytes: &[u8]) {
    weft_codec::http2::check_properties(bytes);
}

/// The properties of `weft_identity`, at a time at which the certificates of the corpus are valid; and trust bundles.
pub fn identity(bytes: &[u8]) {
    let now = weft_identity::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    weft_identity::properties::check_properties(bytes, now);
    round_trip::<weft_identity::TrustBundle>(bytes);
}

/// Configuration documents: what was parsed and serialized parses to the same.
pub fn table(bytes: &[u8]) {
    round_trip::<weft_config::Export>(bytes);
    round_trip::<weft_config::Inbound>(bytes);
    round_trip::<weft_config::Index>(bytes);
}

fn round_trip<T>(bytes: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let Ok(document) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&document).expect("a parsed document can be serialized");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("a serialized document can be parsed"), document);
}
