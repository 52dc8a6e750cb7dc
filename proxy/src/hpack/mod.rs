//! Header blocks of HTTP/2 (HPACK, RFC 7541), read and written.
//!
//! - [`decode`]: fields out of a block that a peer has sent.
//! - [`encode`]: fields into a block for a peer.
//! - [`table`]: the static table, and the dynamic one of a decoder.
//! - [`huffman`]: strings that a peer has compressed.
//!
//! Nothing here knows of frames or streams: a block comes whole, and whether its fields make a message is for others to
//! say. Both tables of a connection are bounded by [`TABLE_OCTETS_MAX`], or by less if a peer wants less.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};

pub(crate) mod decode;
pub(crate) mod encode;
mod huffman;
#[cfg(test)]
mod stories;
mod table;

/// What a dynamic table may hold. Source: what HTTP/2 begins with, and what gRPC and browsers stay at.
pub(crate) const TABLE_OCTETS_MAX: usize = 4096;

/// What a field counts beyond its name and its value, in a table (RFC 7541 4.1) and in a list (RFC 9113 6.5.2).
const FIELD_OCTETS: usize = 32;

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
    /// What HTTP/2 forbids in a name or a value. Its message is malformed; the block, and with it the connection, goes
    /// on.
    Malformed,
}

/// Why a block cannot be decoded. No later one can then: the tables of both sides have parted (COMPRESSION_ERROR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBlock {
    #[error("an integer is too large")]
    Integer,
    #[error("the block breaks off")]
    Truncated,
    #[error("a string is not coded as strings are")]
    Huffman,
    #[error("no table has a field at that index")]
    Index,
    #[error("the table would be larger than allowed")]
    TableSize,
    #[error("the size of the table changes within the block")]
    LateTableSize,
}
