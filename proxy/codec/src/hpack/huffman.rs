//! Decodes Huffman-coded strings (RFC 7541 5.2 and Appendix B).
//!
//! The code is canonical: codes ascend by length, and codes of one length by symbol. So the lengths define it, and
//! the tables are computed at compile time. Symbols with codes of up to eight bits, nearly all in headers, take one
//! look-up; longer ones are found by comparing with the last code of each length.

use super::BadBlock;

/// The length of each symbol's code.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

/// The 256 bytes and EOS.
const SYMBOLS: usize = 257;

const LENGTH_MIN: usize = 5;
const LENGTH_MAX: u32 = 30;

/// The longest code that takes one look-up.
const SHORT_BITS: u32 = 8;

static CODE: Code = Code::new();

struct Code {
    /// By the first bits of a code: its symbol and length, or zeros if the code is longer.
    short: [(u8, u8); 1 << SHORT_BITS],
    /// The longer codes, by length.
    long: [Row; (LENGTH_MAX - SHORT_BITS) as usize],
    /// Symbols in the order of their codes.
    ranked: [u16; SYMBOLS],
}

/// The codes of one length, aligned to the upper end of 64 bits.
#[derive(Clone, Copy)]
struct Row {
    length: u32,
    /// The last code, followed by ones.
    last: u64,
    /// The first code, as a number.
    first: u64,
    /// Position of the first code among all.
    rank: usize,
}

/// Decodes a string into `scratch`, replacing its content.
pub(super) fn decode(coded: &[u8], scratch: &mut Vec<u8>) -> Result<(), BadBlock> {
    scratch.clear();
    scratch.reserve(coded.len() * 8 / LENGTH_MIN);
    let mut rest = coded;
    // The upper `bits` bits of the window are valid. Those below are zeros, or already the next bits.
    let (mut window, mut bits) = (0_u64, 0_u32);
    while let Some(next) = rest.first_chunk::<8>() {
        window |= u64::from_be_bytes(*next) >> bits;
        let bytes = (63 - bits) / 8;
        rest = &rest[bytes as usize..];
        bits += bytes * 8;
        while bits >= LENGTH_MAX {
            let (byte, length) = CODE.first(window)?;
            scratch.push(byte);
            // A code that was found is shorter than the window.
            window = window.wrapping_shl(length);
            bits = bits.wrapping_sub(length);
        }
    }
    // The rest, less than 86 bits, followed by more ones than the longest code has.
    let mut window = u128::from(window) << 64 | u128::from(upper(coded, rest.len())) << 64 >> bits;
    bits += 8 * rest.len() as u32;
    window |= u128::MAX >> bits;
    loop {
        // Padding is ones, and shorter than a byte (RFC 7541 5.2). No symbol's code looks like that.
        if bits < 8 && window >> 120 == 0xff {
            return Ok(());
        }
        let (byte, length) = CODE.first((window >> 64) as u64)?;
        if length > bits {
            return Err(BadBlock::Huffman);
        }
        scratch.push(byte);
        window <<= length;
        bits -= length;
    }
}

/// The last `count` bytes, fewer than eight, at the upper end of a word, followed by zeros.
fn upper(bytes: &[u8], count: usize) -> u64 {
    match bytes.last_chunk::<8>() {
        _ if count == 0 => 0,
        Some(last) => u64::from_be_bytes(*last) << (64 - 8 * count),
        None => bytes.iter().rev().fold(0, |word, byte| word >> 8 | u64::from(*byte) << 56),
    }
}

// === impl Code ===

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            short: [(0, 0); 1 << SHORT_BITS],
            long: [Row { length: 0, last: 0, first: 0, rank: 0 }; (LENGTH_MAX - SHORT_BITS) as usize],
            ranked: [0; SYMBOLS],
        };
        let (mut next, mut rank, mut length) = (0_u64, 0, 1);
        while length <= LENGTH_MAX {
            let (first, first_rank) = (next, rank);
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as u32 == length {
                    code.ranked[rank] = symbol as u16;
                    if length <= SHORT_BITS {
                        let mut at = next << (SHORT_BITS - length);
                        while at < (next + 1) << (SHORT_BITS - length) {
                            code.short[at as usize] = (symbol as u8, length as u8);
                            at += 1;
                        }
                    }
                    next += 1;
                    rank += 1;
                }
                symbol += 1;
            }
            if length > SHORT_BITS {
                // If no code has this length, this is the last code of the length before, which finds nothing new.
                let last = ((next - 1) << (64 - length)) | (u64::MAX >> length);
                code.long[(length - SHORT_BITS - 1) as usize] = Row { length, last, first, rank: first_rank };
            }
            next <<= 1;
            length += 1;
        }
        code
    }

    /// The byte whose code is at the upper end of a window, and the length of that code.
    #[inline]
    fn first(&self, window: u64) -> Result<(u8, u32), BadBlock> {
        match self.short[(window >> (64 - SHORT_BITS)) as usize] {
            (_, 0) => self.first_long(window),
            (byte, length) => Ok((byte, u32::from(length))),
        }
    }

    fn first_long(&self, window: u64) -> Result<(u8, u32), BadBlock> {
        // The last code of all is all ones, so no window is above it.
        let row = self.long.iter().find(|row| window <= row.last).ok_or(BadBlock::Huffman)?;
        let within = (window >> (64 - row.length)) - row.first;
        // A coded EOS is an error (RFC 7541 5.2).
        let byte = u8::try_from(self.ranked[row.rank + within as usize]).map_err(|_| BadBlock::Huffman)?;
        Ok((byte, row.length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The code of a symbol.
    fn code(symbol: usize) -> u64 {
        let mut next = 0;
        for length in 1..=LENGTHS[symbol] {
            next <<= 1;
            let before = if length == LENGTHS[symbol] { symbol } else { SYMBOLS };
            next += LENGTHS[..before].iter().filter(|&&it| it == length).count() as u64;
        }
        next
    }

    fn encode(symbols: impl IntoIterator<Item = usize>, padding: &str) -> Vec<u8> {
        let codes = symbols.into_iter().map(|it| format!("{:0length$b}", code(it), length = LENGTHS[it].into()));
        let mut bits = codes.collect::<String>() + padding;
        if padding.is_empty() {
            bits += &"1".repeat(bits.len().next_multiple_of(8) - bits.len());
        }
        assert_eq!(bits.len() % 8, 0, "{padding:?} ends a byte");
        bits.as_bytes().chunks(8).map(|it| it.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'))).collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, BadBlock> {
        let mut scratch = b"old content".to_vec();
        decode(coded, &mut scratch).map(|()| scratch)
    }

    #[test]
    fn codes_match_the_rfc() {
        for (symbol, expected) in [
            (0, 0x1ff8),
            (1, 0x7fffd8),
            (10, 0x3ffffffc),
            (22, 0x3ffffffe),
            (b'0'.into(), 0),
            (b' '.into(), 0x14),
            (b'\\'.into(), 0x7fff0),
            (b'z'.into(), 0x7b),
            (b'~'.into(), 0x1ffd),
            (128, 0xfffe6),
            (199, 0x1ffffec),
            (249, 0xffffffe),
            (255, 0x3ffffee),
            (256, 0x3fffffff),
        ] {
            assert_eq!(code(symbol), expected, "the code of {symbol}");
        }
    }

    #[test]
    fn every_byte_round_trips() {
        for byte in 0..=255_u8 {
            for times in [1, 2, 3, 8, 9, 40] {
                let coded = encode(vec![byte.into(); times], "");
                assert_eq!(decoded(&coded), Ok(vec![byte; times]), "{byte} {times} times");
            }
        }
        assert_eq!(decoded(b""), Ok(vec![]));
    }

    #[test]
    fn invalid_padding_and_eos_are_errors() {
        let eos = 256;
        for (desc, coded) in [
            ("padding of zeros", encode([b'a'.into()], "000")),
            ("padding with one zero", encode([b'a'.into()], "110")),
            ("eight bits of padding", encode(vec![b'a'.into(); 8], "11111111")),
            ("padding of one byte too many", encode([b'a'.into()], "11111111111")),
            ("nothing but padding", vec![0xff]),
            ("long padding", vec![0xff; 3]),
            ("EOS", encode([eos], "")),
            ("EOS after many bytes", encode((0..100).map(|_| usize::from(b'a')).chain([eos]), "")),
            ("EOS before many bytes", encode([eos].into_iter().chain((0..100).map(|_| usize::from(b'a'))), "")),
            ("half of a long code", vec![0xff, 0xfe]),
        ] {
            assert_eq!(decoded(&coded), Err(BadBlock::Huffman), "{desc}: {coded:x?}");
        }
        let seven = encode(vec![b'0'.into(); 5], "1111111");
        assert_eq!(decoded(&seven), Ok(b"00000".to_vec()), "seven bits of padding are not too many");
    }

    proptest! {
        #[test]
        fn strings_round_trip(bytes: Vec<u8>, text in "[ -~]{0,60}") {
            for bytes in [bytes, text.into_bytes()] {
                let coded = encode(bytes.iter().map(|&it| it.into()), "");
                prop_assert_eq!(decoded(&coded), Ok(bytes));
            }
        }

        /// A valid string has one encoding only, and decodes within the reserved capacity.
        #[test]
        fn strings_have_one_encoding(coded in vec(prop_oneof![any::<u8>(), Just(0xff), Just(0)], 0..40)) {
            if let Ok(bytes) = decoded(&coded) {
                prop_assert!(bytes.len() <= coded.len() * 8 / LENGTH_MIN);
                prop_assert_eq!(encode(bytes.iter().map(|&it| it.into()), ""), coded);
            }
        }
    }
}
