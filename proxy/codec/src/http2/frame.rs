//! The layout of frames and settings (RFC 9113 4 and 6).

use bytes::{BufMut, BytesMut};

use super::error::Reason;

/// Size of a frame header, in bytes.
pub const HEADER_BYTES: usize = 9;

/// Largest payload that is accepted and sent, in bytes: the initial SETTINGS_MAX_FRAME_SIZE, which every peer accepts. Longer
/// frames would save little.
pub(super) const PAYLOAD_MAX: usize = 16 * 1024;

/// The client connection preface (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames.

/// RFC 9113 6.1.
pub const DATA: u8 = 0;
/// RFC 9113 6.2.
pub const HEADERS: u8 = 1;
/// RFC 9113 6.3.
pub const PRIORITY: u8 = 2;
/// RFC 9113 6.4.
pub const RST_STREAM: u8 = 3;
/// RFC 9113 6.5.
pub const SETTINGS: u8 = 4;
/// RFC 9113 6.6.
pub(super) const PUSH_PROMISE: u8 = 5;
/// RFC 9113 6.7.
pub const PING: u8 = 6;
/// RFC 9113 6.8.
pub const GOAWAY: u8 = 7;
/// RFC 9113 6.9.
pub const WINDOW_UPDATE: u8 = 8;
/// RFC 9113 6.10.
pub const CONTINUATION: u8 = 9;

// Flags of frames.

/// Of SETTINGS and PING: it acknowledges one of the peer.
pub const ACK: u8 = 1;
/// Of HEADERS and DATA: the last of this side's frames on the stream, but for CONTINUATION.
pub const END_STREAM: u8 = 1;
/// Of HEADERS and CONTINUATION: the header block ends with it.
pub const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
/// Of HEADERS: a priority precedes the header block.
pub(super) const PRIORITY_FLAG: u8 = 32;

/// The header of a frame (RFC 9113 4.1).
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    /// Length of the payload, in bytes.
    pub length: usize,
    /// One of the types above, or an unknown one.
    pub kind: u8,
    /// The flags above, combined, and unknown ones.
    pub flags: u8,
    /// Identifier of the stream. 0: the connection.
    pub stream: u32,
}

/// A setting of the peer that this side acts on or checks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Setting {
    HeaderTableSize(u32),
    EnablePush(bool),
    MaxConcurrentStreams(u32),
    InitialWindowSize(u32),
    /// Largest payload that the peer accepts.
    MaxFrameSize(u32),
}

// === impl FrameHeader ===

impl FrameHeader {
    /// Parses a header. The length may exceed every limit.
    #[inline]
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(id) & 0x7fff_ffff,
        }
    }

    /// Whether a flag is set.
    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn encode(kind: u8, flags: u8, stream: u32, length: usize) -> [u8; HEADER_BYTES] {
        // Payloads are at most [`PAYLOAD_MAX`], so the length fits into three bytes.
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        [a, b, c, kind, flags, d, e, f, g]
    }
}

/// Appends a frame to `out`. The payload is copied, and shorter than 16 MiB.
pub fn put(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(&FrameHeader::encode(kind, flags, stream, payload.len()));
    out.extend_from_slice(payload);
}

/// Appends a SETTINGS frame with these identifiers and values to `out`.
pub fn put_settings(settings: &[(u16, u32)], out: &mut BytesMut) {
    out.extend_from_slice(&FrameHeader::encode(SETTINGS, 0, 0, settings.len() * 6));
    for (name, value) in settings {
        out.put_u16(*name);
        out.put_u32(*value);
    }
}

/// Parses one setting. None: an unknown identifier, which is ignored (RFC 9113 6.5.2).
pub(super) fn setting(bytes: [u8; 6]) -> Result<Option<Setting>, Reason> {
    let [a, b, value @ ..] = bytes;
    let value = u32::from_be_bytes(value);
    Ok(Some(match u16::from_be_bytes([a, b]) {
        1 => Setting::HeaderTableSize(value),
        2 if value > 1 => return Err(Reason::PROTOCOL_ERROR),
        2 => Setting::EnablePush(value == 1),
        3 => Setting::MaxConcurrentStreams(value),
        4 if value > super::flow::WINDOW_MAX as u32 => return Err(Reason::FLOW_CONTROL_ERROR),
        4 => Setting::InitialWindowSize(value),
        5 if !(PAYLOAD_MAX..1 << 24).contains(&(value as usize)) => return Err(Reason::PROTOCOL_ERROR),
        5 => Setting::MaxFrameSize(value),
        _ => return Ok(None),
    }))
}

/// The range of a payload without its padding and without the priority of a HEADERS frame.
pub(super) fn content(head: &FrameHeader, payload: &[u8]) -> Result<std::ops::Range<usize>, Reason> {
    let (mut start, mut end) = (0, payload.len());
    if head.has(PADDED) {
        let padding = usize::from(*payload.first().ok_or(Reason::FRAME_SIZE_ERROR)?);
        start = 1;
        end = end.checked_sub(padding).filter(|end| *end >= start).ok_or(Reason::PROTOCOL_ERROR)?;
    }
    if head.kind == HEADERS && head.has(PRIORITY_FLAG) {
        start += 5;
        if start > end {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
    }
    Ok(start..end)
}

/// The 31-bit stream identifier at the start of `bytes`: a dependency in a priority, or the last stream of a GOAWAY.
pub(super) fn stream_id(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?) & 0x7fff_ffff)
}
