//! Decodes header blocks (RFC 7541 3.2 and 6).
//!
//! ```text
//! block --> representation --> index ------------------------> field
//!                 |              `-- of a name --.
//!                 `------> literal --------------+--> value --> field, and a copy into the table
//! ```
//!
//! A value that is neither Huffman-coded nor indexed is a slice of the block. An indexed value is copied, so that a
//! table does not keep blocks alive; the table and the field share the copy.

use bytes::Bytes;

use super::primitive::Reader;
use super::table::{Entry, Name, Table};
use super::{BadBlock, FIELD_OVERHEAD, Field};

/// Capacity of the buffer for decoded strings that is kept between blocks: enough for common strings.
const SCRATCH_KEPT_MAX: usize = 1024;

/// Decodes the blocks of one direction of a connection, in their order.
pub struct Decoder {
    table: Table,
    size_max: usize,
    /// Buffer for Huffman-decoded strings.
    scratch: Vec<u8>,
}

/// How a literal is indexed (RFC 7541 6.2).
#[derive(Clone, Copy, PartialEq)]
enum Indexing {
    /// It is inserted into the table.
    Incremental,
    Without,
    /// No intermediary may insert it into a table.
    Never,
}

// === impl Decoder ===

impl Decoder {
    /// `size_max`: our SETTINGS_HEADER_TABLE_SIZE.
    pub fn new(size_max: usize) -> Self {
        Self { table: Table::new(size_max), size_max, scratch: Vec::new() }
    }

    /// Decodes a block. Calls `each` with each field and its size, as SETTINGS_MAX_HEADER_LIST_SIZE counts it. An
    /// error is a connection error, and the fields before it are void.
    pub fn decode(&mut self, block: Bytes, mut each: impl FnMut(Field, usize)) -> Result<(), BadBlock> {
        let mut reader = Reader::new(&block);
        let mut has_fields = false;
        while let Some(first) = reader.next() {
            if first & 0b1000_0000 != 0 {
                let entry = self.table.entry(reader.integer(first, 7)?)?;
                each(entry.field.clone(), entry.size);
            } else {
                let (prefix, indexing) = match first >> 4 {
                    0b0000 => (4, Indexing::Without),
                    0b0001 => (4, Indexing::Never),
                    0b0010 | 0b0011 if has_fields => return Err(BadBlock::LateTableSize),
                    0b0010 | 0b0011 => {
                        let size = reader.integer(first, 5)? as usize;
                        if size > self.size_max {
                            return Err(BadBlock::TableSize);
                        }
                        self.table.resize(size);
                        continue;
                    }
                    _ => (6, Indexing::Incremental),
                };
                let index = reader.integer(first, prefix)?;
                let (field, size) = self.literal(&mut reader, index, indexing)?;
                each(field, size);
            }
            has_fields = true;
        }
        if self.scratch.capacity() > SCRATCH_KEPT_MAX {
            self.scratch = Vec::new();
        }
        Ok(())
    }

    /// A literal field. Its name is literal too if `index` is zero.
    fn literal(&mut self, reader: &mut Reader<'_>, index: u32, indexing: Indexing) -> Result<(Field, usize), BadBlock> {
        let name = if index == 0 {
            let text = reader.string()?;
            Name::parse(text.bytes(reader.block, &mut self.scratch)?)
        } else {
            self.table.entry(index)?.name.clone()
        };
        let text = reader.string()?;
        let value = text.bytes(reader.block, &mut self.scratch)?;
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        let table_name = (indexing == Indexing::Incremental).then(|| name.clone());
        let mut field = name.field(value, || {
            if table_name.is_some() || text.is_compressed {
                Bytes::copy_from_slice(value)
            } else {
                reader.block.slice(text.range.clone())
            }
        });
        if let Some(name) = table_name {
            self.table.insert(Entry { name, field: field.clone(), size });
        } else if indexing == Indexing::Never
            && let Field::Header(_, value) = &mut field
        {
            value.set_sensitive(true);
        }
        Ok((field, size))
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, Vec<usize>) {
        self.table.sizes()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::hpack::TABLE_BYTES_MAX;

    /// Parses hexadecimal bytes, as the RFC writes them.
    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> = text.bytes().filter(|it| !it.is_ascii_whitespace()).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect(text);
        digits.chunks(2).map(byte).collect()
    }

    /// Formats a field as the RFC does.
    fn shown(field: &Field) -> String {
        match field {
            Field::Authority(it) => format!(":authority: {it}"),
            Field::Method(it) => format!(":method: {it}"),
            Field::Path(it) => format!(":path: {it}"),
            Field::Scheme(it) => format!(":scheme: {it}"),
            Field::Status(it) => format!(":status: {}", it.as_str()),
            Field::Header(name, value) => format!("{name}: {}", value.to_str().unwrap()),
            Field::Protocol => ":protocol".to_owned(),
            Field::Malformed => "malformed".to_owned(),
        }
    }

    /// The fields of a block and the sum of their sizes.
    fn decode(decoder: &mut Decoder, block: Bytes) -> Result<(Vec<Field>, usize), BadBlock> {
        let (mut fields, mut sum) = (Vec::new(), 0);
        decoder.decode(block, |field, size| {
            fields.push(field);
            sum += size;
        })?;
        Ok((fields, sum))
    }

    #[track_caller]
    fn check(decoder: &mut Decoder, block: &str, fields: &[&str], sizes: &[usize]) {
        let (found, sum) = decode(decoder, hex(block)).expect(block);
        assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), fields, "fields of {block}");
        if found.iter().all(|field| *field != Field::Malformed && *field != Field::Protocol) {
            let lengths = fields.iter().map(|it| it.len() - ": ".len() + FIELD_OVERHEAD);
            assert_eq!(sum, lengths.sum::<usize>(), "size of {block}");
        }
        let (size, size_max, held) = decoder.sizes();
        assert_eq!((held.iter().sum(), held.as_slice()), (size, sizes), "the table after {block}");
        assert!(size <= size_max, "the table is not larger than it may be");
    }

    /// RFC 7541 C.2.
    #[test]
    fn literals_and_indices() {
        for (block, field, sizes) in [
            ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header", &[55][..]),
            ("040c2f73616d706c652f70617468", ":path: /sample/path", &[]),
            ("100870617373776f726406736563726574", "password: secret", &[]),
            ("82", ":method: GET", &[]),
        ] {
            check(&mut Decoder::new(4096), block, &[field], sizes);
        }
    }

    /// RFC 7541 C.3 and C.4.
    #[test]
    fn requests() {
        let first = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        let second = [&first[..], &["cache-control: no-cache"]].concat();
        let third = [
            ":method: GET",
            ":scheme: https",
            ":path: /index.html",
            ":authority: www.example.com",
            "custom-key: custom-value",
        ];
        for blocks in [
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ] {
            let mut decoder = Decoder::new(4096);
            check(&mut decoder, blocks[0], &first, &[57]);
            check(&mut decoder, blocks[1], &second, &[53, 57]);
            check(&mut decoder, blocks[2], &third, &[54, 53, 57]);
        }
    }

    /// RFC 7541 C.5 and C.6: fields are evicted.
    #[test]
    fn responses() {
        let common =
            ["cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT", "location: https://www.example.com"];
        let first = [&[":status: 302"], &common[..]].concat();
        let second = [&[":status: 307"], &common[..]].concat();
        let third = [
            ":status: 200",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:22 GMT",
            "location: https://www.example.com",
            "content-encoding: gzip",
            "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ];
        for blocks in [
            [
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768
                 747470733a2f2f7777772e6578616d706c652e636f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153
                 444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e
                 3d31",
            ],
            [
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8
                 e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b
                 3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
        ] {
            let mut decoder = Decoder::new(256);
            check(&mut decoder, blocks[0], &first, &[63, 65, 52, 42]);
            check(&mut decoder, blocks[1], &second, &[42, 63, 65, 52]);
            check(&mut decoder, blocks[2], &third, &[98, 52, 65]);
        }
    }

    #[test]
    fn invalid_blocks_are_errors() {
        for (desc, block, error) in [
            ("an index of zero", "80", BadBlock::Index),
            ("an index beyond the tables", "be", BadBlock::Index),
            ("an index far beyond integers", "ffffffffff0f", BadBlock::Integer),
            ("the largest index", "ff80ffffff0f", BadBlock::Index),
            ("a name beyond the tables", "7e0161", BadBlock::Index),
            ("an index one beyond the table", "4001610162 bf", BadBlock::Index),
            ("an index into a table that was emptied", "20 be", BadBlock::Index),
            ("a truncated index", "ff", BadBlock::Truncated),
            ("an index that is too long", "ff808080808000", BadBlock::Integer),
            ("a literal without a name", "40", BadBlock::Truncated),
            ("a literal without a value", "400161", BadBlock::Truncated),
            ("a name that is longer than its block", "400561", BadBlock::Truncated),
            ("a value that is longer than its block", "4001610262", BadBlock::Truncated),
            ("a value that is much longer than its block", "4001617f80ffffff0f", BadBlock::Truncated),
            ("a name with an invalid Huffman code", "408100", BadBlock::Huffman),
            ("a value with an invalid Huffman code", "40016184ffffffff", BadBlock::Huffman),
            ("a table that is too large", "3fe21f", BadBlock::TableSize),
            ("a truncated table size", "3f", BadBlock::Truncated),
            ("a table size behind an index", "82 20", BadBlock::LateTableSize),
            ("a table size behind a literal", "4001610162 3fe11f 82", BadBlock::LateTableSize),
        ] {
            assert_eq!(decode(&mut Decoder::new(4096), hex(block)), Err(error), "{desc}: {block}");
        }
        check(&mut Decoder::new(4096), "20 3fe11f 82", &[":method: GET"], &[]);
        check(&mut Decoder::new(4096), "", &[], &[]);
    }

    /// A malformed field is indexed like any other, so later indices stay right.
    #[test]
    fn malformed_fields_keep_the_tables_in_step() {
        let text = |text: &str| {
            format!("{:02x}{}", text.len(), text.bytes().map(|it| format!("{it:02x}")).collect::<String>())
        };
        for (name, value) in [
            ("", "x"),
            ("A", "x"),
            ("a b", "x"),
            ("a:", "x"),
            ("a", "x\r\n"),
            ("a", "\0"),
            ("a", "\x7f"),
            ("a", " "),
            ("a", "\t"),
            ("a", " x"),
            ("a", "x "),
            ("a", "\tx"),
            ("a", "x\t"),
            ("a\"b", "x"),
            (":a", "x"),
            (":", "x"),
            (":Path", "/"),
            (":authority", ""),
            (":authority", "a/b"),
            (":method", ""),
            (":method", "G T"),
            (":method", &"A".repeat(65)),
            (":path", ""),
            (":path", "a"),
            (":path", "/ "),
            (":path", "?a"),
            (":path", "#"),
            (":path", "**"),
            (":scheme", ""),
            (":scheme", "a b"),
            (":scheme", "1a"),
            (":status", ""),
            (":status", "20"),
            (":status", "099"),
            (":status", "2000"),
            (":status", "two"),
        ] {
            let mut decoder = Decoder::new(4096);
            let size = name.len() + value.len() + FIELD_OVERHEAD;
            let literal = format!("40{}{}", text(name), text(value));
            let given = decode(&mut decoder, hex(&literal));
            assert_eq!(given, Ok((vec![Field::Malformed], size)), "{name:?}: {value:?}");
            check(&mut decoder, "be", &["malformed"], &[size]);
            check(&mut decoder, "4001620163 bf be", &["b: c", "malformed", "b: c"], &[34, size]);
            // Its name stays valid for other values.
            let (fields, _) = decode(&mut decoder, hex("7f0003323030")).expect(name);
            let expected = Name::parse(name.as_bytes()).field(b"200", || Bytes::from_static(b"200"));
            assert_eq!(fields, [expected], "another {name:?}");
        }
        let mut decoder = Decoder::new(4096);
        check(&mut decoder, "81", &["malformed"], &[]);
        check(&mut decoder, &format!("40{}{} be", text(":protocol"), text("websocket")), &[":protocol"; 2], &[50]);
    }

    #[test]
    fn valid_values_are_decoded() {
        for (desc, block, name, value) in [
            ("an empty value", "00016100", "a", &b""[..]),
            ("whitespace within", "0001610578ff200979", "a", b"x\xff \ty"),
            ("an empty value, by index", "95", "age", b""),
        ] {
            let expected = Field::Header(HeaderName::from_static(name), HeaderValue::from_bytes(value).expect(desc));
            assert_eq!(decode(&mut Decoder::new(4096), hex(block)).expect(desc).0, [expected], "{desc}");
        }
    }

    #[test]
    fn never_indexed_values_are_sensitive() {
        for (block, is_sensitive) in
            [("1001610162", true), ("0001610162", false), ("4001610162", false), ("1f080162", true)]
        {
            let (fields, _) = decode(&mut Decoder::new(4096), hex(block)).expect(block);
            let [Field::Header(_, value)] = &fields[..] else { panic!("{fields:?} is one header") };
            assert_eq!(value.is_sensitive(), is_sensitive, "{block}");
        }
    }

    /// Indexed values are copies, so a table keeps no block alive; literals that are not indexed are slices of the
    /// block.
    #[test]
    fn only_indexed_values_are_copied() {
        for (block, is_part) in
            [("0001610562626262 62", true), ("4001610562626262 62", false), ("0001618925a849e95bb8e8b4bf", false)]
        {
            let block = hex(block);
            let lies = block.as_ptr_range();
            let (fields, _) = decode(&mut Decoder::new(4096), block.clone()).expect("a block");
            let [Field::Header(_, value)] = &fields[..] else { panic!("{fields:?} is one header") };
            assert_eq!(lies.contains(&value.as_bytes().as_ptr()), is_part, "{block:x?}");
        }
    }

    #[test]
    fn entry_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new(64);
        check(&mut decoder, "4001610162", &["a: b"], &[34]);
        let long = format!("40016120{}", "62".repeat(32));
        check(&mut decoder, &long, &[&format!("a: {}", "b".repeat(32))], &[]);
        check(&mut decoder, "4001610162 4001610163", &["a: b", "a: c"], &[34]);
        // The name may come from the entry that the insertion evicts.
        check(&mut decoder, "7e0164", &["a: d"], &[34]);
    }

    proptest! {
        /// Whatever the input, the table stays within its bound, and a large scratch buffer is freed.
        #[test]
        fn arbitrary_blocks_stay_within_bounds(blocks in vec(vec(prop_oneof![any::<u8>(), 0..0x62_u8, 0xbe..0xc4_u8], 0..60), 0..20)) {
            let mut decoder = Decoder::new(TABLE_BYTES_MAX);
            for block in blocks {
                let result = decode(&mut decoder, block.into());
                let (size, size_max, held) = decoder.sizes();
                prop_assert_eq!(held.iter().sum::<usize>(), size);
                prop_assert!(size <= size_max && size_max <= TABLE_BYTES_MAX);
                prop_assert!(result.is_err() || decoder.scratch.capacity() <= SCRATCH_KEPT_MAX);
            }
        }
    }
}
