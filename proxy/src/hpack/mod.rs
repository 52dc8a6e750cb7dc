//! HPACK header compression for HTTP/2 (RFC 7541).
//!
//! - [`decode`]: header blocks to fields.
//! - [`encode`]: fields to header blocks.
//! - [`table`]: the static table, and the dynamic table of a decoder.
//! - [`huffman`]: decodes Huffman-coded strings.
//!
//! A block is decoded whole. Frames, streams, and whether the fields make a valid message are up to `http2`. Each
//! dynamic table holds at most [`TABLE_BYTES_MAX`], or less if the peer's SETTINGS_HEADER_TABLE_SIZE is lower.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};

pub(crate) mod decode;
pub(crate) mod encode;
mod huffman;
#[cfg(test)]
mod stories;
mod table;

/// Size of a dynamic table. Source: the initial SETTINGS_HEADER_TABLE_SIZE, which gRPC and browsers keep.
pub(crate) const TABLE_BYTES_MAX: usize = 4096;

/// Size of a field beyond its name and value, in a table (RFC 7541 4.1) and in a header list (RFC 9113 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// One field of a header block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Authority(Authority),
    Method(Method),
    Path(PathAndQuery),
    Scheme(Scheme),
    Status(StatusCode),
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
pub(crate) enum BadBlock {
    #[error("integer too large")]
    Integer,
    #[error("truncated header block")]
    Truncated,
    #[error("invalid Huffman-coded string")]
    Huffman,
    #[error("no table entry at this index")]
    Index,
    #[error("table size update above SETTINGS_HEADER_TABLE_SIZE")]
    TableSize,
    #[error("table size update after the first field of a block")]
    LateTableSize,
}
