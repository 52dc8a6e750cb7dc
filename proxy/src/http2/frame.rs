//! Frames: nine octets that say what follows, and what follows (RFC 9113 4 and 6).

use bytes::{BufMut, BytesMut};

use super::Reason;

/// Octets in front of each frame.
pub(super) const HEAD: usize = 9;

/// The longest payload that is taken and, unless the peer allows more, sent. It is not asked for more than what any peer
/// allows: longer frames save nothing that counts.
pub(super) const PAYLOAD_MAX: usize = 16 * 1024;

/// What a client begins with (RFC 9113 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 32;

/// What stands in front of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

/// What a peer says of itself, as far as it concerns us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Setting {
    TableSize(u32),
    Push(bool),
    Streams(u32),
    Window(u32),
    /// The longest payload that it takes.
    Payload(u32),
}

// === impl Head ===

impl Head {
    pub(super) fn read(octets: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = octets;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(id) & 0x7fff_ffff,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn octets(kind: u8, flags: u8, stream: u32, length: usize) -> [u8; HEAD] {
        // No frame of ours is longer than three octets tell.
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        [a, b, c, kind, flags, d, e, f, g]
    }
}

/// Puts a short frame behind others.
pub(super) fn put(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(&Head::octets(kind, flags, stream, payload.len()));
    out.extend_from_slice(payload);
}

/// Puts settings behind others, by their numbers.
pub(super) fn put_settings(settings: &[(u16, u32)], out: &mut BytesMut) {
    out.extend_from_slice(&Head::octets(SETTINGS, 0, 0, settings.len() * 6));
    for (name, value) in settings {
        out.put_u16(*name);
        out.put_u32(*value);
    }
}

/// One setting, of its six octets. None: one that is not known, which is no error.
pub(super) fn setting(octets: [u8; 6]) -> Result<Option<Setting>, Reason> {
    let [a, b, value @ ..] = octets;
    let value = u32::from_be_bytes(value);
    Ok(Some(match u16::from_be_bytes([a, b]) {
        1 => Setting::TableSize(value),
        2 if value > 1 => return Err(Reason::PROTOCOL_ERROR),
        2 => Setting::Push(value == 1),
        3 => Setting::Streams(value),
        4 if value > super::flow::WINDOW_MAX as u32 => return Err(Reason::FLOW_CONTROL_ERROR),
        4 => Setting::Window(value),
        5 if !(PAYLOAD_MAX..1 << 24).contains(&(value as usize)) => return Err(Reason::PROTOCOL_ERROR),
        5 => Setting::Payload(value),
        _ => return Ok(None),
    }))
}

/// Where the content of a payload is that may have padding behind it, and in front of it how much, and the priority of a
/// stream, which is of no interest but must not be of the stream itself.
pub(super) fn content(head: &Head, payload: &[u8]) -> Result<std::ops::Range<usize>, Reason> {
    let (mut start, mut end) = (0, payload.len());
    if head.has(PADDED) {
        let padding = usize::from(*payload.first().ok_or(Reason::FRAME_SIZE_ERROR)?);
        start = 1;
        end = end.checked_sub(padding).filter(|end| *end >= start).ok_or(Reason::PROTOCOL_ERROR)?;
    }
    if head.kind == HEADERS && head.has(WITH_PRIORITY) {
        start += 5;
        if start > end {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
    }
    Ok(start..end)
}

/// The stream that a priority makes a stream depend on.
pub(super) fn depends_on(octets: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*octets.first_chunk()?) & 0x7fff_ffff)
}
