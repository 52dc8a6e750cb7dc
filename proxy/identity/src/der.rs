//! Writes DER: the few types that certificates and requests are made of. docs/adr/009-certificates-of-our-own.md says
//! why no library does.

#[cfg(feature = "issue")]
pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
#[cfg(feature = "issue")]
pub(crate) const OCTET_STRING: u8 = 0x04;
#[cfg(feature = "issue")]
pub(crate) const OID: u8 = 0x06;
#[cfg(feature = "issue")]
pub(crate) const UTF8_STRING: u8 = 0x0c;
#[cfg(feature = "issue")]
pub(crate) const UTC_TIME: u8 = 0x17;
#[cfg(feature = "issue")]
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
#[cfg(feature = "issue")]
pub(crate) const SET: u8 = 0x31;

/// The tag `[number]` of a primitive value.
#[cfg(feature = "issue")]
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// The tag `[number]` of a value that contains others.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// A value: its tag, its length and its content, which is the concatenation of `parts`.
pub(crate) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut written = vec![tag];
    if length < 0x80 {
        written.extend(length.to_be_bytes().last());
    } else {
        let bytes = length.to_be_bytes();
        let skipped = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[skipped..];
        written.extend((0x80 | bytes.len()).to_be_bytes().last());
        written.extend_from_slice(bytes);
    }
    written.extend(parts.iter().flat_map(|part| part.iter()));
    written
}

/// A SEQUENCE of values.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, parts)
}

/// A BIT STRING of whole octets.
pub(crate) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    value(BIT_STRING, &[&[0], bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_the_shortest_form() {
        for (length, head) in [
            (0, &[SEQUENCE, 0][..]),
            (127, &[SEQUENCE, 127]),
            (128, &[SEQUENCE, 0x81, 128]),
            (255, &[SEQUENCE, 0x81, 255]),
            (256, &[SEQUENCE, 0x82, 1, 0]),
            (65_536, &[SEQUENCE, 0x83, 1, 0, 0]),
        ] {
            let content = vec![7; length];
            let written = sequence(&[&content]);
            assert_eq!(written, [head, &content].concat(), "{length}");
        }
    }

    #[test]
    fn parts_are_concatenated() {
        let bits = bit_string(&[1, 2]);
        assert_eq!(sequence(&[&bits, &[9]]), [SEQUENCE, 6, BIT_STRING, 3, 0, 1, 2, 9]);
        assert_eq!(value(context_constructed(3), &[]), [0xa3, 0]);
    }
}
