//! HPACK header compression for HTTP/2 (RFC 7541).
//!
//! - [`decode`]: header blocks to fields.
//! - `encode`: fields to header blocks.
//! - `table`: the static table, and the dynamic table of a decoder.
//! - `encoder_table`: the dynamic table of an encoder.
//! - `primitive`: integers and string literals.
//! - `huffman`: decodes Huffman-coded strings.
//! - `properties`: what holds for any header blocks.
//!
//! A block is decoded whole. Frames, streams, and whether the fields make a valid message are up to `http2`. Each
//! dynamic table holds at most [`TABLE_BYTES_MAX`], or less if the peer's SETTINGS_HEADER_TABLE_SIZE is lower.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};

pub mod decode;
pub(crate) mod encode;
mod encoder_table;
mod huffman;
mod primitive;
#[cfg(any(test, fuzzing))]
mod properties;
#[cfg(test)]
mod stories;
mod table;

#[cfg(any(test, fuzzing))]
pub use properties::check_properties;

/// Size of a dynamic table, in bytes. Source: the initial SETTINGS_HEADER_TABLE_SIZE, which gRPC and browsers keep.
pub const TABLE_BYTES_MAX: usize = 4096;

/// Size of a field beyond its name and value, in a table (RFC 7541 4.1) and in a header list (RFC 9113 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// One field of a header block.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// `:authority`.
    Authority(Authority),
    /// `:method`.
    Method(Method),
    /// `:path`.
    Path(PathAndQuery),
    /// `:scheme`.
    Scheme(Scheme),
    /// `:status`.
    Status(StatusCode),
    /// A field that is no pseudo-header. Its value is sensitive if it must never be indexed.
    Header(HeaderName, HeaderValue),
    /// `:protocol` (RFC 8441).
    Protocol,
    /// A name or value that HTTP/2 forbids. Its message is malformed; decoding of the block and the connection goes
    /// on.
    Malformed,
}

/// Why a block cannot be decoded: a connection error of type COMPRESSION_ERROR, as the tables of both sides may
/// differ from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBlock {
    /// An integer is above 2^32 - 1, or has more than five bytes after its first.
    #[error("integer too large")]
    Integer,
    /// The block ends within a field.
    #[error("truncated header block")]
    Truncated,
    /// A Huffman-coded string has an unknown code, or padding that is too long or not ones.
    #[error("invalid Huffman-coded string")]
    Huffman,
    /// An index is zero, or beyond both tables.
    #[error("no table entry at this index")]
    Index,
    /// The dynamic table would be larger than this side allows.
    #[error("table size update above SETTINGS_HEADER_TABLE_SIZE")]
    TableSize,
    /// The size of the dynamic table changes within a block.
    #[error("table size update after the first field of a block")]
    LateTableSize,
}
