//! Strings that a peer has compressed (RFC 7541 5.2 and Appendix B).
//!
//! The code is canonical: codes ascend by length, and those of one length by symbol. So all of it follows from the
//! lengths, and the compiler makes the tables. Symbols with codes of up to eight bits, which is nearly all that headers
//! have, take one look-up; longer ones are found by comparing with the last code of each length.

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

/// Each octet, and the end of a string.
const SYMBOLS: usize = 257;

const LENGTH_MIN: usize = 5;
const LENGTH_MAX: u32 = 30;

/// The longest code that takes one look-up.
const SHORT: u32 = 8;

static CODE: Code = Code::new();

struct Code {
    /// By the first bits of a code: its symbol and its length, or zeros if it is longer than that.
    short: [(u8, u8); 1 << SHORT],
    /// The longer ones, by their length.
    long: [Row; (LENGTH_MAX - SHORT) as usize],
    /// Symbols as their codes ascend.
    ranked: [u16; SYMBOLS],
}

/// The codes of one length. A code is at the upper end of 64 bits.
#[derive(Clone, Copy)]
struct Row {
    length: u32,
    /// The last of them, with ones behind it.
    last: u64,
    /// The first of them, as a number.
    first: u64,
    /// The place of the first of them among all.
    rank: usize,
}

/// Decodes a string into `room`, in place of what is there.
pub(super) fn decode(coded: &[u8], room: &mut Vec<u8>) -> Result<(), BadBlock> {
    room.clear();
    room.reserve(coded.len() * 8 / LENGTH_MIN);
    let mut rest = coded;
    // Bits at the upper end of the window. Those below them are zeros, or already what comes next.
    let (mut window, mut bits) = (0_u64, 0_u32);
    while let Some(next) = rest.first_chunk::<8>() {
        window |= u64::from_be_bytes(*next) >> bits;
        let octets = (63 - bits) / 8;
        rest = &rest[octets as usize..];
        bits += octets * 8;
        while bits >= LENGTH_MAX {
            let (octet, length) = CODE.first(window)?;
            room.push(octet);
            // What has a code has a length below that of the window.
            window = window.wrapping_shl(length);
            bits = bits.wrapping_sub(length);
        }
    }
    // What is left, which is less than 86 bits. Behind it are ones, and more of them than a code has bits.
    let mut window = u128::from(window) << 64 | u128::from(upper(coded, rest.len())) << 64 >> bits;
    bits += 8 * rest.len() as u32;
    window |= u128::MAX >> bits;
    loop {
        // Padding is of ones, and shorter than an octet. No symbol's code is.
        if bits < 8 && window >> 120 == 0xff {
            return Ok(());
        }
        let (octet, length) = CODE.first((window >> 64) as u64)?;
        if length > bits {
            return Err(BadBlock::Huffman);
        }
        room.push(octet);
        window <<= length;
        bits -= length;
    }
}

/// The last octets, less than eight, at the upper end of a word, and zeros.
fn upper(octets: &[u8], count: usize) -> u64 {
    match octets.last_chunk::<8>() {
        _ if count == 0 => 0,
        Some(last) => u64::from_be_bytes(*last) << (64 - 8 * count),
        None => octets.iter().rev().fold(0, |word, octet| word >> 8 | u64::from(*octet) << 56),
    }
}

// === impl Code ===

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            short: [(0, 0); 1 << SHORT],
            long: [Row { length: 0, last: 0, first: 0, rank: 0 }; (LENGTH_MAX - SHORT) as usize],
            ranked: [0; SYMBOLS],
        };
        let (mut next, mut rank, mut length) = (0_u64, 0, 1);
        while length <= LENGTH_MAX {
            let (first, first_rank) = (next, rank);
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as u32 == length {
                    code.ranked[rank] = symbol as u16;
                    if length <= SHORT {
                        let mut at = next << (SHORT - length);
                        while at < (next + 1) << (SHORT - length) {
                            code.short[at as usize] = (symbol as u8, length as u8);
                            at += 1;
                        }
                    }
                    next += 1;
                    rank += 1;
                }
                symbol += 1;
            }
            if length > SHORT {
                // If there is none, this is the last of the length before: nothing is found here that was not found
                // there.
                let last = ((next - 1) << (64 - length)) | (u64::MAX >> length);
                code.long[(length - SHORT - 1) as usize] = Row { length, last, first, rank: first_rank };
            }
            next <<= 1;
            length += 1;
        }
        code
    }

    /// The octet whose code is at the upper end of a window, and the length of that code.
    #[inline]
    fn first(&self, window: u64) -> Result<(u8, u32), BadBlock> {
        match self.short[(window >> (64 - SHORT)) as usize] {
            (_, 0) => self.first_long(window),
            (octet, length) => Ok((octet, u32::from(length))),
        }
    }

    fn first_long(&self, window: u64) -> Result<(u8, u32), BadBlock> {
        // The last code of all is of ones, so that no window is beyond it.
        let row = self.long.iter().find(|row| window <= row.last).ok_or(BadBlock::Huffman)?;
        let within = (window >> (64 - row.length)) - row.first;
        // The end of a string is where its octets end. A code that says so is none.
        let octet = u8::try_from(self.ranked[row.rank + within as usize]).map_err(|_| BadBlock::Huffman)?;
        Ok((octet, row.length))
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
        assert_eq!(bits.len() % 8, 0, "{padding:?} ends an octet");
        bits.as_bytes().chunks(8).map(|it| it.iter().fold(0, |octet, bit| octet << 1 | (bit - b'0'))).collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, BadBlock> {
        let mut room = b"what was before".to_vec();
        decode(coded, &mut room).map(|()| room)
    }

    #[test]
    fn the_code_is_that_of_the_rfc() {
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
    fn each_octet_is_what_it_was() {
        for octet in 0..=255_u8 {
            for times in [1, 2, 3, 8, 9, 40] {
                let coded = encode(vec![octet.into(); times], "");
                assert_eq!(decoded(&coded), Ok(vec![octet; times]), "{octet} {times} times");
            }
        }
        assert_eq!(decoded(b""), Ok(vec![]));
    }

    #[test]
    fn what_ends_otherwise_is_refused() {
        let eos = 256;
        for (desc, coded) in [
            ("padding of zeros", encode([b'a'.into()], "000")),
            ("padding with one zero", encode([b'a'.into()], "110")),
            ("eight bits of padding", encode(vec![b'a'.into(); 8], "11111111")),
            ("padding of an octet too many", encode([b'a'.into()], "11111111111")),
            ("nothing but padding", vec![0xff]),
            ("much padding", vec![0xff; 3]),
            ("an end", encode([eos], "")),
            ("an end behind much", encode((0..100).map(|_| usize::from(b'a')).chain([eos]), "")),
            ("an end before much", encode([eos].into_iter().chain((0..100).map(|_| usize::from(b'a'))), "")),
            ("half of a long code", vec![0xff, 0xfe]),
        ] {
            assert_eq!(decoded(&coded), Err(BadBlock::Huffman), "{desc}: {coded:x?}");
        }
        let seven = encode(vec![b'0'.into(); 5], "1111111");
        assert_eq!(decoded(&seven), Ok(b"00000".to_vec()), "seven bits of padding are not too many");
    }

    proptest! {
        #[test]
        fn a_string_is_what_it_was(octets: Vec<u8>, text in "[ -~]{0,60}") {
            for octets in [octets, text.into_bytes()] {
                let coded = encode(octets.iter().map(|&it| it.into()), "");
                prop_assert_eq!(decoded(&coded), Ok(octets));
            }
        }

        /// What decodes is coded in one way only, and in no more room than was made for it.
        #[test]
        fn there_is_one_way_to_code(coded in vec(prop_oneof![any::<u8>(), Just(0xff), Just(0)], 0..40)) {
            if let Ok(octets) = decoded(&coded) {
                prop_assert!(octets.len() <= coded.len() * 8 / LENGTH_MIN);
                prop_assert_eq!(encode(octets.iter().map(|&it| it.into()), ""), coded);
            }
        }
    }
}
