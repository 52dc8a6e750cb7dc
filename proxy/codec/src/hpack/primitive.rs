//! Integers and string literals (RFC 7541 5), of which all fields consist.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{BadBlock, huffman};

/// Bytes of an integer after its first. 32 bits need no more, even with leading zeros.
const CONTINUATIONS_MAX: u32 = 5;

/// The read position in a block.
pub(super) struct Reader<'a> {
    pub(super) block: &'a Bytes,
    at: usize,
}

/// A string literal of a block. Its range is within the block.
pub(super) struct StringLiteral {
    pub(super) range: Range<usize>,
    pub(super) is_compressed: bool,
}

/// An integer in the low `prefix` bits of a byte with these flags, and the bytes after it (RFC 7541 5.1).
#[inline]
pub(super) fn put_integer(flags: u8, prefix: u32, value: usize, out: &mut BytesMut) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.put_u8(flags | value as u8);
    }
    out.put_u8(flags | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// A string literal without Huffman coding.
pub(super) fn put_string(bytes: &[u8], out: &mut BytesMut) {
    put_integer(0, 7, bytes.len(), out);
    out.extend_from_slice(bytes);
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(block: &'a Bytes) -> Self {
        Self { block, at: 0 }
    }

    /// The next byte. None: the block is complete.
    #[inline]
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = *self.block.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// An integer in the low `prefix` bits of `first` and the bytes after it (RFC 7541 5.1).
    #[inline]
    pub(super) fn integer(&mut self, first: u8, prefix: u32) -> Result<u32, BadBlock> {
        let most = (1 << prefix) - 1;
        let value = first & most;
        if value < most { Ok(value.into()) } else { self.long_integer(most) }
    }

    fn long_integer(&mut self, prefix: u8) -> Result<u32, BadBlock> {
        let mut value = u64::from(prefix);
        for at in 0..CONTINUATIONS_MAX {
            let byte = self.next().ok_or(BadBlock::Truncated)?;
            value += u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| BadBlock::Integer);
            }
        }
        Err(BadBlock::Integer)
    }

    /// A string literal (RFC 7541 5.2).
    #[inline]
    pub(super) fn string(&mut self) -> Result<StringLiteral, BadBlock> {
        let first = self.next().ok_or(BadBlock::Truncated)?;
        let length = self.integer(first, 7)? as usize;
        if length > self.block.len() - self.at {
            return Err(BadBlock::Truncated);
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(StringLiteral { range, is_compressed: first & 0x80 != 0 })
    }
}

// === impl StringLiteral ===

impl StringLiteral {
    /// The string, Huffman-decoded into `scratch` if necessary.
    #[inline]
    pub(super) fn bytes<'a>(&self, block: &'a Bytes, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], BadBlock> {
        let bytes = &block[self.range.clone()];
        if !self.is_compressed {
            return Ok(bytes);
        }
        huffman::decode(bytes, scratch)?;
        Ok(scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541 C.1, and invalid integers.
    #[test]
    fn integers_are_read() {
        for (prefix, bytes, expected) in [
            (5, &[0x0a][..], Ok(10)),
            (5, &[0x1f, 0x9a, 0x0a], Ok(1337)),
            (8, &[0x2a], Ok(42)),
            (5, &[0xff, 0x9a, 0x0a], Ok(1337)),
            (7, &[0x7f, 0x00], Ok(127)),
            (7, &[0x7f, 0x80, 0x00], Ok(127)),
            (7, &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x00], Ok(127)),
            (7, &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], Err(BadBlock::Integer)),
            (4, &[0x0f, 0xf0, 0xff, 0xff, 0xff, 0x0f], Ok(u32::MAX)),
            (4, &[0x0f, 0xf1, 0xff, 0xff, 0xff, 0x0f], Err(BadBlock::Integer)),
            (7, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f], Err(BadBlock::Integer)),
            (7, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Err(BadBlock::Integer)),
            (7, &[0x7f], Err(BadBlock::Truncated)),
            (7, &[0x7f, 0xff, 0xff], Err(BadBlock::Truncated)),
        ] {
            let block = Bytes::from_static(bytes);
            let mut reader = Reader::new(&block);
            let first = reader.next().expect("a byte");
            // A prefix of 8 bits is the whole first byte.
            let found = if prefix == 8 { Ok(first.into()) } else { reader.integer(first, prefix) };
            assert_eq!(found, expected, "{bytes:x?} with a prefix of {prefix}");
        }
    }

    /// RFC 7541 C.1, at the limits of each byte.
    #[test]
    fn integers_are_written() {
        for (flags, prefix, value, bytes) in [
            (0, 5, 10, &[10][..]),
            (0, 5, 1337, &[31, 154, 10]),
            (0x80, 7, 126, &[0xfe]),
            (0x80, 7, 127, &[0xff, 0]),
            (0x80, 7, 254, &[0xff, 0x7f]),
            (0x80, 7, 255, &[0xff, 0x80, 1]),
        ] {
            let mut out = BytesMut::new();
            put_integer(flags, prefix, value, &mut out);
            assert_eq!(out, bytes, "{value} with a prefix of {prefix}");
        }
    }
}
