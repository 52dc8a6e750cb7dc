//! The parts of the proxy that read what strangers send, and what holds for each whatever comes. They are the proxy's own files,
//! without the rest of it, so that a build with instrumentation takes seconds; the laws are those of their unit tests.
#![allow(dead_code, unused_imports, reason = "only what the laws need is used of each file")]

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
#[path = "../../src/sni.rs"]
mod sni;
#[path = "../../src/space.rs"]
mod space;

#[path = "."]
mod http {
    #[path = "../../src/http/head.rs"]
    pub(crate) mod head;
    #[path = "../../src/http/interim.rs"]
    pub(crate) mod interim;
}

/// As in the proxy, which counts what is alive.
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
    #[path = "../../src/http1/parse.rs"]
    pub(crate) mod parse;
}

/// See the laws of `detect`.
pub fn detect(bytes: &[u8]) {
    detect::check_laws(bytes);
}

/// See the laws of `path`.
pub fn path(bytes: &[u8]) {
    if let Ok(path) = str::from_utf8(bytes) {
        path::check_laws(path);
    }
}

/// See the laws of `sni`.
pub fn hello(bytes: &[u8]) {
    sni::check_laws(bytes);
}

/// See the laws of `http/head`.
pub fn head(bytes: &[u8]) {
    http::head::check_laws(bytes);
}

/// See the laws of `http1/decode`.
pub fn chunks(bytes: &[u8]) {
    http1::decode::check_laws(bytes);
}

/// See the laws of `hpack/encode`.
pub fn block(bytes: &[u8]) {
    hpack::encode::check_laws(bytes);
}

/// See the laws of `http2/connection`.
pub fn frames(bytes: &[u8]) {
    http2::connection::check_laws(bytes);
}

/// A document that is read is the same when it is written and read again.
pub fn table(bytes: &[u8]) {
    again::<weft_config::Export>(bytes);
    again::<weft_config::Inbound>(bytes);
    again::<weft_config::Index>(bytes);
}

fn again<T>(bytes: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let Ok(document) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&document).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), document);
}
