//! Limits on what the peer may send.

/// Limits on what the peer may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Concurrent streams that the peer may open (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub streams: u32,
    /// Initial receive window of a stream, in bytes. At least 65,535: a peer may send that much before it has our
    /// SETTINGS.
    pub stream_window: u32,
    /// Receive window of the connection, in bytes.
    pub connection_window: u32,
    /// Decoded size of a head, as RFC 9113 6.5.2 counts it (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub head_bytes: u32,
}

/// The head of a request exceeds [`Limits::head_bytes`]. Its stream is open, so that a response can be sent.
#[derive(Clone, Copy, Debug)]
pub struct TooLarge;
