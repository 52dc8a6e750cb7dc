//! Fuzz targets for the parsers of untrusted input. Each checks the laws of a module, as its unit tests do. The
//! modules are compiled from the proxy's source files, without the rest of the proxy, so that an instrumented build
//! takes seconds.
#![allow(dead_code, unused_imports, reason = "the laws use only a part of each file")]

#[path = "../../src/clock.rs"]
mod clock;
#[path = "../../src/detect.rs"]
mod detect;
#[path = "../../src/hpack/mod.rs"]
mod hpack;
#[path = "../../src/http2/mod.rs"]
mod http2;
#[path = "../../src/path.rs"]
mod path;
#[path = "../../src/reason.rs"]
mod reason;
#[path = "../../src/sni.rs"]
mod sni;
#[path = "../../src/read_buffer.rs"]
mod read_buffer;

#[path = "."]
mod http {
    #[path = "../../src/http/head.rs"]
    pub(crate) mod head;
    #[path = "../../src/http/interim.rs"]
    pub(crate) mod interim;
}

/// Stands in for the proxy's counters of live objects.
mod telemetry {
    pub(crate) mod alive {
        #[derive(Clone, Copy)]
        pub(crate) enum Kind {
            DownstreamStream,
            UpstreamStream,
        }

        pub(crate) struct Alive;

        impl Alive {
            pub(crate) fn new(_: Kind) -> Self {
                Self
            }
        }
    }
}

#[path = "."]
mod http1 {
    /// As in the proxy.
    pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

    #[path = "../../src/http1/decode.rs"]
    pub(crate) mod decode;
    #[path = "../../src/http1/framing.rs"]
    pub(crate) mod framing;
    #[path = "../../src/http1/parse.rs"]
    pub(crate) mod parse;
}

/// The laws of `detect`.
pub fn detect(bytes: &[u8]) {
    detect::check_laws(bytes);
}

/// The laws of `path`.
pub fn path(bytes: &[u8]) {
    if let Ok(path) = str::from_utf8(bytes) {
        path::check_laws(path);
    }
}

/// The laws of `sni`.
pub fn hello(bytes: &[u8]) {
    sni::check_laws(bytes);
}

/// The laws of `http/head`.
pub fn head(bytes: &[u8]) {
    http::head::check_laws(bytes);
}

/// The laws of `http1/decode`.
pub fn chunks(bytes: &[u8]) {
    http1::decode::check_laws(bytes);
}

/// The laws of `hpack/encode`.
pub fn block(bytes: &[u8]) {
    hpack::encode::check_laws(bytes);
}

/// The laws of `http2/connection`.
pub fn frames(bytes: &[u8]) {
    http2::connection::check_laws(bytes);
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
