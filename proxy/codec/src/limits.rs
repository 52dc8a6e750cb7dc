//! Limits of messages in both versions of HTTP.

/// Maximum bytes of a head or of trailers, as sent in HTTP/1.1 and as decoded in HTTP/2.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Maximum number of headers of a message, each value counted. Source: Envoy's default.
pub const HEADERS_MAX: usize = 100;

/// Maximum number of interim (1xx) responses before a response: one a second, as a keep-alive, for more than two
/// hours.
pub const INTERIM_MAX: u32 = 10_000;
