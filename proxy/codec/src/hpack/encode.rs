//! Encodes header blocks (RFC 7541 6).
//!
//! A field that a table holds is sent as an index. Any other is sent as a literal, and is inserted into the dynamic
//! table unless its value hardly ever repeats; for some such headers one value is inserted, so that the name can be
//! an index. Strings are not Huffman-coded: on the short links of a mesh that costs more than it saves.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::encoder_table::{Name, Table, VALUE_BYTES_MAX, hash};
use super::primitive::{put_integer, put_string};
use super::{FIELD_OVERHEAD, TABLE_BYTES_MAX};

/// Longest path that is indexed, in bytes. Paths of services, such as those of gRPC, are short; long ones have
/// parameters.
const PATH_BYTES_MAX: usize = 64;

/// A shorter cookie is never indexed: an attacker who can send requests and see their size could guess it (RFC 7541
/// 7.1.3).
const COOKIE_BYTES_MIN: usize = 20;

/// Names outside the static table whose value differs each time.
const VARYING_NAMES: [&str; 7] =
    ["grpc-timeout", "traceparent", "tracestate", "x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"];

// Indices into the static table: the first entry of each name.
const AUTHORITY: u8 = 1;
const METHOD: u8 = 2;
const PATH: u8 = 4;
const SCHEME: u8 = 6;
const STATUS: u8 = 8;
const ACCEPT_ENCODING: u8 = 16;
const AGE: u8 = 21;
const AUTHORIZATION: u8 = 23;
const CONTENT_LENGTH: u8 = 28;
const COOKIE: u8 = 32;
const ETAG: u8 = 34;
const IF_MODIFIED_SINCE: u8 = 40;
const IF_NONE_MATCH: u8 = 41;
const LAST_MODIFIED: u8 = 44;
const LOCATION: u8 = 46;
const PROXY_AUTHORIZATION: u8 = 49;
const SET_COOKIE: u8 = 55;

/// Encodes the blocks of one direction of a connection, in their order.
pub(crate) struct Encoder {
    table: Table,
    size_update: Option<SizeUpdate>,
}

/// Size updates of the table to send (RFC 7541 4.2).
#[derive(Clone, Copy)]
struct SizeUpdate {
    smallest: usize,
    last: usize,
}

/// How a literal is indexed (RFC 7541 6.2).
#[derive(Clone, Copy, PartialEq)]
enum Indexing {
    /// It is inserted into the table.
    Incremental,
    /// It is inserted if the table lacks its name, so that the name can be an index from then on.
    ForName,
    Without,
    /// No intermediary may insert it into a table.
    Never,
}

/// The first index of a name in the static table, or zero.
fn static_index(name: &HeaderName) -> u8 {
    match *name {
        header::ACCEPT_CHARSET => 15,
        header::ACCEPT_ENCODING => ACCEPT_ENCODING,
        header::ACCEPT_LANGUAGE => 17,
        header::ACCEPT_RANGES => 18,
        header::ACCEPT => 19,
        header::ACCESS_CONTROL_ALLOW_ORIGIN => 20,
        header::AGE => AGE,
        header::ALLOW => 22,
        header::AUTHORIZATION => AUTHORIZATION,
        header::CACHE_CONTROL => 24,
        header::CONTENT_DISPOSITION => 25,
        header::CONTENT_ENCODING => 26,
        header::CONTENT_LANGUAGE => 27,
        header::CONTENT_LENGTH => CONTENT_LENGTH,
        header::CONTENT_LOCATION => 29,
        header::CONTENT_RANGE => 30,
        header::CONTENT_TYPE => 31,
        header::COOKIE => COOKIE,
        header::DATE => 33,
        header::ETAG => ETAG,
        header::EXPECT => 35,
        header::EXPIRES => 36,
        header::FROM => 37,
        header::HOST => 38,
        header::IF_MATCH => 39,
        header::IF_MODIFIED_SINCE => IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH => IF_NONE_MATCH,
        header::IF_RANGE => 42,
        header::IF_UNMODIFIED_SINCE => 43,
        header::LAST_MODIFIED => LAST_MODIFIED,
        header::LINK => 45,
        header::LOCATION => LOCATION,
        header::MAX_FORWARDS => 47,
        header::PROXY_AUTHENTICATE => 48,
        header::PROXY_AUTHORIZATION => PROXY_AUTHORIZATION,
        header::RANGE => 50,
        header::REFERER => 51,
        header::REFRESH => 52,
        header::RETRY_AFTER => 53,
        header::SERVER => 54,
        header::SET_COOKIE => SET_COOKIE,
        header::STRICT_TRANSPORT_SECURITY => 56,
        header::TRANSFER_ENCODING => 57,
        header::USER_AGENT => 58,
        header::VARY => 59,
        header::VIA => 60,
        header::WWW_AUTHENTICATE => 61,
        _ => 0,
    }
}

/// How a header is indexed, by its name. `date` is indexed: it repeats in everything sent within a second.
fn indexing(name: Name<&HeaderName>, value: &[u8]) -> Indexing {
    match name {
        Name::Static(AUTHORIZATION | PROXY_AUTHORIZATION) => Indexing::Never,
        Name::Static(COOKIE) if value.len() < COOKIE_BYTES_MIN => Indexing::Never,
        Name::Static(
            AGE | CONTENT_LENGTH | ETAG | IF_MODIFIED_SINCE | IF_NONE_MATCH | LAST_MODIFIED | LOCATION | SET_COOKIE,
        ) => Indexing::Without,
        Name::Other(name) if VARYING_NAMES.contains(&name.as_str()) => Indexing::ForName,
        _ => Indexing::Incremental,
    }
}

// === impl Encoder ===

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), size_update: None }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE, which applies from the next block on.
    pub(crate) fn set_size_max(&mut self, bytes: usize) {
        let last = bytes.min(TABLE_BYTES_MAX);
        let smallest = self.size_update.map_or(last, |update| update.smallest.min(last));
        self.size_update = Some(SizeUpdate { smallest, last });
    }

    /// Begins a block with the size updates that are due: the smallest size since the last block, and the current one
    /// (RFC 7541 4.2).
    #[inline]
    pub(crate) fn begin(&mut self, out: &mut BytesMut) {
        if let Some(update) = self.size_update.take() {
            self.resize(update, out);
        }
    }

    fn resize(&mut self, update: SizeUpdate, out: &mut BytesMut) {
        let smallest = update.smallest.min(self.table.size_max);
        for size_max in [smallest, update.last] {
            if size_max != self.table.size_max {
                self.table.resize(size_max);
                put_integer(0b0010_0000, 5, size_max, out);
            }
        }
    }

    pub(crate) fn method(&mut self, method: &Method, out: &mut BytesMut) {
        match *method {
            Method::GET => out.put_u8(0x80 | METHOD),
            Method::POST => out.put_u8(0x80 | (METHOD + 1)),
            _ => self.field(Name::Static(METHOD), method.as_str().as_bytes(), Indexing::Incremental, out),
        }
    }

    pub(crate) fn scheme(&mut self, scheme: &str, out: &mut BytesMut) {
        match scheme {
            "http" => out.put_u8(0x80 | SCHEME),
            "https" => out.put_u8(0x80 | (SCHEME + 1)),
            _ => self.field(Name::Static(SCHEME), scheme.as_bytes(), Indexing::Incremental, out),
        }
    }

    pub(crate) fn authority(&mut self, authority: &str, out: &mut BytesMut) {
        self.field(Name::Static(AUTHORITY), authority.as_bytes(), Indexing::Incremental, out);
    }

    pub(crate) fn path(&mut self, path: &str, out: &mut BytesMut) {
        match path {
            "/" => out.put_u8(0x80 | PATH),
            "/index.html" => out.put_u8(0x80 | (PATH + 1)),
            _ => {
                let indexing = if path.len() > PATH_BYTES_MAX { Indexing::Without } else { Indexing::Incremental };
                self.field(Name::Static(PATH), path.as_bytes(), indexing, out);
            }
        }
    }

    pub(crate) fn status(&mut self, status: StatusCode, out: &mut BytesMut) {
        let offset = match status.as_u16() {
            200 => 0,
            204 => 1,
            206 => 2,
            304 => 3,
            400 => 4,
            404 => 5,
            500 => 6,
            _ => return self.field(Name::Static(STATUS), status.as_str().as_bytes(), Indexing::Incremental, out),
        };
        out.put_u8(0x80 | (STATUS + offset));
    }

    pub(crate) fn header(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
        let bytes = value.as_bytes();
        let index = static_index(name);
        let name = if index == 0 { Name::Other(name) } else { Name::Static(index) };
        if value.is_sensitive() {
            return self.field(name, bytes, Indexing::Never, out);
        }
        // The one value of a header in the static table that is not empty.
        let fixed: &[u8] = if index == ACCEPT_ENCODING { b"gzip, deflate" } else { b"" };
        if index != 0 && bytes == fixed {
            return out.put_u8(0x80 | index);
        }
        self.field(name, bytes, indexing(name, bytes), out);
    }

    fn field(&mut self, name: Name<&HeaderName>, value: &[u8], indexing: Indexing, out: &mut BytesMut) {
        let name_hash = name.hash();
        let is_short = value.len() <= VALUE_BYTES_MAX;
        if indexing == Indexing::Incremental
            && is_short
            && let Some(index) = self.table.field(hash(name_hash, value), name, value)
        {
            return put_integer(0b1000_0000, 7, index, out);
        }
        let index = match name {
            Name::Static(index) => index.into(),
            Name::Other(name) => self.table.name(name_hash, name).unwrap_or(0),
        };
        let wants_index = match indexing {
            Indexing::Incremental => is_short,
            Indexing::ForName => is_short && index == 0,
            Indexing::Without | Indexing::Never => false,
        };
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        let is_inserted = wants_index && size <= self.table.size_max;
        match indexing {
            _ if is_inserted => put_integer(0b0100_0000, 6, index, out),
            Indexing::Never => put_integer(0b0001_0000, 4, index, out),
            _ => put_integer(0, 4, index, out),
        }
        if let (Name::Other(name), 0) = (name, index) {
            put_string(name.as_str().as_bytes(), out);
        }
        put_string(value, out);
        if is_inserted {
            self.table.insert(name, name_hash, value, hash(name_hash, value), size);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::uri::{Authority, PathAndQuery, Scheme};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::hpack::decode::Decoder;
    use crate::hpack::encoder_table::slot;
    use crate::hpack::properties::{check_properties, decode, encode};
    use crate::hpack::table::STATIC;
    use crate::hpack::{Field, table};

    /// The parsed field, which may be malformed.
    fn field(name: &str, value: &str) -> Field {
        let value = value.as_bytes();
        table::Name::parse(name.as_bytes()).field(value, || Bytes::copy_from_slice(value))
    }

    fn header(name: &str, value: &str) -> Field {
        Field::Header(name.parse().expect(name), value.parse().expect(value))
    }

    /// RFC 7541 C.3.
    #[test]
    fn request_examples_of_the_rfc_match() {
        let mut encoder = Encoder::new();
        let authority = (":authority", "www.example.com");
        for (fields, block) in [
            (
                &[(":method", "GET"), (":scheme", "http"), (":path", "/"), authority][..],
                &b"\x82\x86\x84\x41\x0fwww.example.com"[..],
            ),
            (
                &[(":method", "GET"), (":scheme", "http"), (":path", "/"), authority, ("cache-control", "no-cache")],
                b"\x82\x86\x84\xbe\x58\x08no-cache",
            ),
            (
                &[
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":path", "/index.html"),
                    authority,
                    ("custom-key", "custom-value"),
                ],
                b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
            ),
        ] {
            let fields: Vec<_> = fields.iter().map(|(name, value)| field(name, value)).collect();
            assert_eq!(encode(&mut encoder, &fields), block, "{fields:?}");
        }
    }

    #[test]
    fn static_entries_encode_to_one_byte() {
        for (at, entry) in STATIC.iter().enumerate() {
            if let table::Name::Header(name) = &entry.name {
                assert_eq!(usize::from(static_index(name)), at + 1, "the index of {name}");
            }
            if entry.field != Field::Malformed {
                let block = encode(&mut Encoder::new(), std::slice::from_ref(&entry.field));
                assert_eq!(block, [0x81 + at as u8][..], "{:?}", entry.field);
                assert_eq!(decode(&mut Decoder::new(0), block), std::slice::from_ref(&entry.field));
            }
        }
    }

    /// How a field is encoded at first, and when it repeats.
    #[test]
    fn varying_values_are_not_indexed() {
        let long = "x".repeat(257);
        let [path, longer_path] = [64, 65].map(|length| format!("/{}", "x".repeat(length - 1)));
        let (indexed, for_name, without, never) = (0x40, 0x41, 0, 0x10);
        for (name, value, flags) in [
            (":authority", "app", indexed),
            (":method", "PUT", indexed),
            (":scheme", "ftp", indexed),
            (":status", "302", indexed),
            (":path", &path, indexed),
            (":path", &longer_path, without),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT", indexed),
            ("content-type", "application/grpc", indexed),
            ("content-type", &long[1..], indexed),
            ("content-type", &long, without),
            ("grpc-status", "0", indexed),
            ("te", "trailers", indexed),
            ("content-length", "5", without),
            ("age", "5", without),
            ("etag", "5", without),
            ("if-none-match", "5", without),
            ("if-modified-since", "5", without),
            ("last-modified", "5", without),
            ("location", "/", without),
            ("set-cookie", "a=b", without),
            ("grpc-timeout", "1S", for_name),
            ("traceparent", "00", for_name),
            ("tracestate", "a=b", for_name),
            ("x-request-id", "5", for_name),
            ("x-b3-traceid", "5", for_name),
            ("x-b3-spanid", "5", for_name),
            ("x-b3-parentspanid", "5", for_name),
            ("authorization", &long, never),
            ("proxy-authorization", "Basic", never),
            ("cookie", "a=0123456789abcdefg", never),
            ("cookie", "a=0123456789abcdefgh", indexed),
        ] {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
            let field = [field(name, value)];
            let first = encode(&mut encoder, &field);
            let mask = if flags & indexed != 0 { 0xc0 } else { 0xf0 };
            assert_eq!(first[0] & mask, flags & mask, "{name}: {value}");
            let again = encode(&mut encoder, &field);
            match flags {
                0x40 => assert_eq!(again, b"\xbe"[..], "{name}: {value}"),
                0x41 => assert_eq!(again[..3], [0x0f, 0x2f, value.len() as u8], "{name}: {value}"),
                _ => assert_eq!(again, first, "{name}: {value}"),
            }
            for block in [first, again] {
                let fields = decode(&mut decoder, block);
                assert_eq!(fields, field);
                let is_sensitive = matches!(&fields[..], [Field::Header(_, value)] if value.is_sensitive());
                assert_eq!(is_sensitive, flags == never, "{name}: {value}");
            }
        }
    }

    #[test]
    fn sensitive_values_are_never_indexed() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        // Even if the tables hold the field.
        for name in ["x-key", "content-type", "accept"] {
            let plain = header(name, if name == "accept" { "" } else { "a" });
            let Field::Header(_, mut value) = plain.clone() else { panic!("{plain:?} is a header") };
            value.set_sensitive(true);
            let block = encode(&mut encoder, &[plain, Field::Header(name.parse().expect(name), value)]);
            let fields = decode(&mut decoder, block);
            let sensitive = fields.iter().map(|it| matches!(it, Field::Header(_, value) if value.is_sensitive()));
            assert_eq!(sensitive.collect::<Vec<_>>(), [false, true], "{name}");
        }
    }

    #[test]
    fn names_are_literal_once() {
        let mut encoder = Encoder::new();
        let block = encode(&mut encoder, &[header("grpc-status", "0"), header("grpc-status", "1")]);
        assert_eq!(block, &b"\x40\x0bgrpc-status\x010\x7e\x011"[..]);
        let long = "x".repeat(257);
        let block = encode(&mut encoder, &[header("grpc-status", &long)]);
        assert!(block.starts_with(b"\x0f\x2f\x7f\x82\x01xxx"), "{block:?}");
    }

    #[test]
    fn size_updates_begin_the_next_block() {
        for (sizes, updates) in [
            (&[][..], &b""[..]),
            (&[4096], b""),
            (&[1 << 30], b""),
            (&[usize::MAX, 4096], b""),
            (&[100], b"\x3f\x45"),
            (&[30, 30], b"\x3e"),
            (&[0, 4096], b"\x20\x3f\xe1\x1f"),
            (&[200, 10, 20], b"\x2a\x34"),
            (&[20, 10], b"\x2a"),
        ] {
            let mut encoder = Encoder::new();
            sizes.iter().for_each(|size| encoder.set_size_max(*size));
            assert_eq!(encode(&mut encoder, &[]), updates, "{sizes:?}");
            assert_eq!(encode(&mut encoder, &[]), b""[..], "{sizes:?} is sent once");
        }
        let mut encoder = Encoder::new();
        for (size, update) in [(20, &b"\x34"[..]), (20, b""), (10, b"\x2a"), (30, b"\x3e"), (0, b"\x20"), (1, b"\x21")]
        {
            encoder.set_size_max(size);
            assert_eq!(encode(&mut encoder, &[]), update, "{size}");
        }
    }

    /// Otherwise they would be inserted again and again.
    #[test]
    fn varying_names_have_slots_of_their_own() {
        let names = VARYING_NAMES.map(|name| slot(Name::Other(&HeaderName::from_static(name)).hash()));
        let slots = std::collections::HashSet::from(names);
        assert_eq!(slots.len(), names.len(), "{names:?}");
    }

    /// A step of a random test.
    #[derive(Clone, Debug)]
    enum Step {
        SizeMax(usize),
        Block(Vec<Field>),
    }

    fn any_field() -> impl Strategy<Value = Field> {
        let name = proptest::sample::select(vec![
            ":authority",
            ":method",
            ":path",
            ":scheme",
            ":status",
            "accept",
            "authorization",
            "cookie",
            "date",
            "etag",
            "grpc-status",
            "grpc-timeout",
            "te",
            "x-a",
            "x-b",
            "x-c",
        ]);
        let length = proptest::sample::select(vec![0_usize, 1, 8, 19, 20, 63, 64, 150, 200, 255, 256, 257]);
        (name, "[a-d]", length, 100..1000_u16, prop::bool::weighted(0.1)).prop_map(
            |(name, letter, length, status, is_sensitive)| {
                let value = letter.repeat(length);
                match name {
                    ":status" => Field::Status(StatusCode::from_u16(status).expect("a status")),
                    ":path" => Field::Path(PathAndQuery::try_from(format!("/{value}")).expect("a path")),
                    ":authority" => Field::Authority(Authority::try_from(format!("a{value}")).expect("an authority")),
                    ":method" => {
                        Field::Method(Method::try_from(&format!("A{value}")[..=length.min(40)]).expect("a method"))
                    }
                    ":scheme" => Field::Scheme(Scheme::try_from(letter.as_str()).expect("a scheme")),
                    _ => {
                        let mut value = HeaderValue::try_from(value).expect("a value");
                        value.set_sensitive(is_sensitive);
                        Field::Header(HeaderName::from_static(name), value)
                    }
                }
            },
        )
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => prop_oneof![Just(0), Just(4096), 0..600_usize, 0..10_000_usize].prop_map(Step::SizeMax),
            6 => vec(any_field(), 0..12).prop_map(Step::Block),
        ]
    }

    proptest! {
        #[test]
        fn decoded_fields_encode_to_the_same(block in vec(any::<u8>(), 0..300)) {
            check_properties(&block);
        }

        /// Blocks decode to the fields that were encoded, and after each block both tables are equal.
        #[test]
        fn encoder_and_decoder_agree(steps in vec(any_step(), 0..40), before_wrap in 0..200_u32) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(TABLE_BYTES_MAX));
            encoder.table.set_inserted(100_u32.wrapping_sub(before_wrap));
            for step in steps {
                let fields = match step {
                    Step::SizeMax(bytes) => {
                        encoder.set_size_max(bytes);
                        continue;
                    }
                    Step::Block(fields) => fields,
                };
                let block = encode(&mut encoder, &fields);
                let read = decode(&mut decoder, block);
                for (field, read) in fields.iter().zip(&read) {
                    let (Field::Header(_, value), Field::Header(_, read)) = (field, read) else { continue };
                    prop_assert!(read.is_sensitive() || !value.is_sensitive(), "{:?}", field);
                }
                prop_assert_eq!(read, fields);
                let (size, size_max, sizes) = encoder.table.sizes();
                // The table of the peer, by its indices.
                let indices = indices_from(STATIC.len() + 1, sizes.len());
                prop_assert_eq!((size, size_max, sizes), decoder.sizes());
                prop_assert_eq!(decode(&mut decoder, indices), encoder.table.fields());
            }
        }
    }

    /// Indexed fields for `count` indices from `first` on.
    fn indices_from(first: usize, count: usize) -> Bytes {
        let mut out = BytesMut::new();
        (first..first + count).for_each(|index| put_integer(0x80, 7, index, &mut out));
        out.freeze()
    }
}
