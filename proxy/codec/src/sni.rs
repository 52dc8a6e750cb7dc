//! The server name that a TLS client asks for, and the protocols that it offers, from its ClientHello (RFC 8446 4.1.2,
//! RFC 6066 3, RFC 7301). Pure: the same bytes give the same result, however they were split into segments or TLS
//! records.

/// Size of a ClientHello, in bytes. The largest seen, with post-quantum keys and many extensions, have some 4 KiB.
const HELLO_BYTES_MAX: usize = 16 * 1024;

/// Size of the TLS records that carry it, in bytes. Only a client that splits its ClientHello into tiny records needs
/// more.
const RECORDS_BYTES_MAX: usize = 32 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const RECORD_HEADER_BYTES: usize = 5;
/// RFC 8446 5.1.
const RECORD_BYTES_MAX: usize = 1 << 14;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER_BYTES: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_HOST: u8 = 0;
/// Longest name in the DNS.
const NAME_BYTES_MAX: usize = 253;

/// The result of parsing the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The ClientHello is incomplete.
    NeedMore,
    /// A server name, in lower case.
    Name(String),
    /// A ClientHello without a server name.
    NoName,
    /// Not TLS, or malformed.
    NotTls,
}

/// The protocols that a client offers (ALPN), by the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The ClientHello is incomplete.
    NeedMore,
    /// Names of protocols, in the client's order; none if it offers none.
    Protocols(Vec<Vec<u8>>),
    /// Not TLS, or malformed.
    NotTls,
}

/// Parses all bytes that have arrived, for the server name.
pub fn client_hello(bytes: &[u8]) -> Hello {
    match message(bytes).map(|message| message.map(|message| server_name(&message))) {
        Ok(None) => Hello::NeedMore,
        Ok(Some(Some(Some(name)))) => Hello::Name(name),
        Ok(Some(Some(None))) => Hello::NoName,
        Ok(Some(None)) | Err(NotHello) => Hello::NotTls,
    }
}

/// Parses all bytes that have arrived, for the protocols that are offered.
pub fn offer(bytes: &[u8]) -> Offer {
    match message(bytes).map(|message| message.map(|message| protocols(&message))) {
        Ok(None) => Offer::NeedMore,
        Ok(Some(Some(protocols))) => Offer::Protocols(protocols),
        Ok(Some(None)) | Err(NotHello) => Offer::NotTls,
    }
}

/// The bytes are not a ClientHello.
struct NotHello;

/// The ClientHello, assembled from its records, without its header. None: it is incomplete.
fn message(bytes: &[u8]) -> Result<Option<Vec<u8>>, NotHello> {
    match assemble(bytes) {
        Ok(None) if bytes.len() >= RECORDS_BYTES_MAX => Err(NotHello),
        message => message,
    }
}

fn assemble(bytes: &[u8]) -> Result<Option<Vec<u8>>, NotHello> {
    let mut message: Vec<u8> = Vec::new();
    let mut rest = bytes;
    loop {
        // Each byte is checked as soon as it is there, so that a result never depends on later bytes.
        let header = &rest[..rest.len().min(RECORD_HEADER_BYTES)];
        let is_record = |(at, byte): (usize, &u8)| match at {
            0 => *byte == RECORD_HANDSHAKE,
            1 => *byte == 3,
            2 => *byte <= 4,
            _ => true,
        };
        if !header.iter().enumerate().all(is_record) {
            return Err(NotHello);
        }
        let [_, _, _, high, low] = header else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(NotHello);
        }
        rest = &rest[RECORD_HEADER_BYTES..];
        let fragment = &rest[..rest.len().min(length)];
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != MESSAGE_CLIENT_HELLO) {
            return Err(NotHello);
        }
        if let [_, high, middle, low, ..] = message[..] {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > HELLO_BYTES_MAX {
                return Err(NotHello);
            }
            if let Some(body) = message.get(MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + length) {
                return Ok(Some(body.to_vec()));
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        rest = &rest[length..];
    }
}

/// The extensions of a ClientHello. None: it is malformed.
fn extensions(message: &[u8]) -> Option<Reader<'_>> {
    let mut message = Reader(message);
    message.take(2 + 32)?; // version, random
    message.vector8()?; // session
    message.vector16()?; // cipher suites
    message.vector8()?; // compression
    if message.0.is_empty() {
        return Some(Reader(&[]));
    }
    message.vector16().map(Reader)
}

/// The server name of a ClientHello. The outer None: it is malformed.
fn server_name(message: &[u8]) -> Option<Option<String>> {
    let mut extensions = extensions(message)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let extension = extensions.vector16()?;
        if kind != EXTENSION_SERVER_NAME {
            continue;
        }
        let mut names = Reader(Reader(extension).vector16()?);
        while !names.0.is_empty() {
            let kind = names.take(1)?[0];
            let name = names.vector16()?;
            if kind == NAME_HOST {
                return host_name(name).map(Some);
            }
        }
    }
    Some(None)
}

/// The protocols that a ClientHello offers. None: it is malformed.
fn protocols(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut extensions = extensions(message)?;
    let mut protocols = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let extension = extensions.vector16()?;
        if kind != EXTENSION_ALPN {
            continue;
        }
        let mut names = Reader(Reader(extension).vector16()?);
        while !names.0.is_empty() {
            protocols.push(names.vector8()?.to_vec());
        }
    }
    Some(protocols)
}

fn host_name(name: &[u8]) -> Option<String> {
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().all(is_host) {
        return None;
    }
    std::str::from_utf8(name).ok().map(str::to_ascii_lowercase)
}

/// A read position. Methods return None if too few bytes are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(length.into())
    }
}

/// A result stays the same when more bytes come, and a name is valid.
#[cfg(any(test, fuzzing))]
pub fn check_properties(bytes: &[u8]) {
    let results = (0..=bytes.len()).map(|end| client_hello(&bytes[..end]));
    let results: Vec<Hello> = results.skip_while(|result| *result == Hello::NeedMore).collect();
    assert!(results.iter().all(|result| *result == results[0]), "{results:?} of {bytes:?}");
    let offers = (0..=bytes.len()).map(|end| offer(&bytes[..end]));
    let offers: Vec<Offer> = offers.skip_while(|offer| *offer == Offer::NeedMore).collect();
    assert!(offers.iter().all(|offer| *offer == offers[0]), "{offers:?} of {bytes:?}");
    assert_eq!(offers.len(), results.len(), "both are known with the same byte of {bytes:?}");
    if let Some(Hello::Name(name)) = results.first() {
        assert!((1..=NAME_BYTES_MAX).contains(&name.len()), "{name:?} of {bytes:?}");
        assert!(!name.contains(|letter: char| letter.is_ascii_uppercase() || letter.is_ascii_control()), "{name:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello with these extensions, or without any for None.
    fn message(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        if let Some(extensions) = extensions {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes(), &(body.len() as u16).to_be_bytes(), body].concat()
    }

    fn server_name_extension(name: &str) -> Vec<u8> {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes(), &entry[..]].concat())
    }

    /// Splits a message into records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    /// The records of a ClientHello for a server name.
    fn hello(name: &str) -> Vec<u8> {
        let extensions = [extension(0xff01, &[0]), server_name_extension(name), extension(43, &[2, 3, 4])].concat();
        records(&message(Some(&extensions)), RECORD_BYTES_MAX)
    }

    #[test]
    fn offered_protocols_are_read() {
        let alpn = |names: &[&str]| {
            let list =
                names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect::<Vec<u8>>();
            extension(16, &[&(list.len() as u16).to_be_bytes(), &list[..]].concat())
        };
        let hello = |extensions: &[u8]| records(&message(Some(extensions)), RECORD_BYTES_MAX);
        let offered = |names: &[&str]| Offer::Protocols(names.iter().map(|name| name.as_bytes().to_vec()).collect());
        let name = server_name_extension("shop.example");
        for (desc, bytes, expected) in [
            ("one", hello(&alpn(&["weft-h2"])), offered(&["weft-h2"])),
            ("several", hello(&[name.clone(), alpn(&["h2", "http/1.1"])].concat()), offered(&["h2", "http/1.1"])),
            ("in small records", records(&message(Some(&alpn(&["weft-tcp"]))), 3), offered(&["weft-tcp"])),
            ("none", hello(&name), offered(&[])),
            ("no extensions", records(&message(None), 100), offered(&[])),
            ("a name that is cut off", hello(&extension(16, &[0, 3, 9, b'h', b'2'])), Offer::NotTls),
            ("a list that is cut off", hello(&extension(16, &[0, 9, 2, b'h', b'2'])), Offer::NotTls),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Offer::NotTls),
            ("no bytes", vec![], Offer::NeedMore),
        ] {
            assert_eq!(offer(&bytes), expected, "{desc}");
            check_properties(&bytes);
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let texts: Vec<String> = serde_json::from_str(include_str!("../seeds/hellos.json")).expect("a list of texts");
        // Each character stands for one byte.
        texts.iter().map(|text| text.chars().map(|byte| byte as u8).collect()).collect()
    }

    /// The message of bytes that are exactly one record.
    fn only_record(bytes: &[u8]) -> Option<&[u8]> {
        let (header, message) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
        let is_record = header[..2] == [22, 3] && header[2] <= 4;
        (is_record && header[3..] == (message.len() as u16).to_be_bytes()).then_some(message)
    }

    #[test]
    fn known_hellos_give_stable_results() {
        let seeds = seeds();
        seeds.iter().for_each(|bytes| check_properties(bytes));
        let names = seeds.iter().filter(|bytes| matches!(client_hello(bytes), Hello::Name(_))).count();
        assert!(names >= 10, "{names} of {} have a name", seeds.len());
    }

    #[test]
    fn result_does_not_depend_on_record_boundaries() {
        let mut cut = 0;
        for bytes in seeds() {
            let Some(message) = only_record(&bytes).filter(|message| !message.is_empty()) else { continue };
            let whole = client_hello(&bytes);
            for at in 1..message.len() {
                let two = [records(&message[..at], at), records(&message[at..], message.len())].concat();
                check_properties(&two);
                assert_eq!(client_hello(&two), whole, "in records of {at} and {} bytes: {bytes:?}", message.len() - at);
                cut += 1;
            }
        }
        assert!(cut > 1_000, "{cut} cuts");
    }

    fn name(name: &str) -> Hello {
        Hello::Name(name.into())
    }

    #[test]
    fn server_name_is_read() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = hello("shop.example");
            bytes[at] = byte;
            bytes
        };
        let other_name = extension(0, &[0, 4, 9, 0, 1, b'x']);
        for (desc, bytes, expected) in [
            ("a name", hello("shop.example"), name("shop.example")),
            ("in lower case", hello("Shop.EXAMPLE"), name("shop.example")),
            ("with what follows", [hello("a.example"), vec![23, 3, 3, 0, 1, 0]].concat(), name("a.example")),
            ("no name", records(&message(Some(&extension(43, &[2, 3, 4]))), 100), Hello::NoName),
            ("a name of another kind", records(&message(Some(&other_name)), 100), Hello::NoName),
            ("no extensions", records(&message(None), 100), Hello::NoName),
            ("an empty name", hello(""), Hello::NotTls),
            ("an invalid host name", hello("a b"), Hello::NotTls),
            ("a name too long", hello(&"a".repeat(254)), Hello::NotTls),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Hello::NotTls),
            ("another record", changed(0, 23), Hello::NotTls),
            ("another version", changed(1, 2), Hello::NotTls),
            ("another minor version", changed(2, 5), Hello::NotTls),
            ("another message", changed(5, 2), Hello::NotTls),
            ("a message too long", changed(6, 1), Hello::NotTls),
            ("an empty record", vec![22, 3, 1, 0, 0], Hello::NotTls),
            ("a record too long", vec![22, 3, 1, 0x40, 1], Hello::NotTls),
            ("no bytes", vec![], Hello::NeedMore),
            ("a message shorter than its lengths", changed(8, 40), Hello::NotTls),
        ] {
            assert_eq!(client_hello(&bytes), expected, "{desc}");
        }
    }

    #[test]
    fn oversized_hello_is_rejected() {
        // A message of the longest length, in records of one byte.
        let mut message = vec![1, 0, 0x40, 0];
        message.resize(HELLO_BYTES_MAX, 0);
        let records = records(&message, 1);
        assert_eq!(client_hello(&records[..RECORDS_BYTES_MAX - 1]), Hello::NeedMore);
        assert_eq!(client_hello(&records[..RECORDS_BYTES_MAX]), Hello::NotTls);
    }

    /// The ClientHello of rustls, with post-quantum keys: it is longer than a segment, so it comes in pieces, and is known
    /// with its last byte.
    #[test]
    fn post_quantum_client_hello_is_known_when_it_is_complete() {
        let mut config =
            rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        config.alpn_protocols = vec![b"weft-h2".to_vec()];
        let server = "shop.example".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(config.into(), server).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("writes");
        assert!(bytes.len() > 1200, "{} bytes: it has post-quantum keys", bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Hello::NeedMore, "after {end} of {}", bytes.len());
            assert_eq!(offer(&bytes[..end]), Offer::NeedMore, "after {end} of {}", bytes.len());
        }
        assert_eq!(client_hello(&bytes), name("shop.example"));
        assert_eq!(offer(&bytes), Offer::Protocols(vec![b"weft-h2".to_vec()]));
        check_properties(&bytes);
    }

    proptest! {
        /// A ClientHello gives the same result however it is split, and none before it is complete.
        #[test]
        fn result_does_not_depend_on_segmentation(host in "[a-z]{1,20}(\\.[a-z]{1,10}){0,3}", size in 1_usize..400) {
            let extensions = [extension(51, &[9; 120]), server_name_extension(&host)].concat();
            let bytes = records(&message(Some(&extensions)), size);
            for end in 0..bytes.len() {
                prop_assert_eq!(client_hello(&bytes[..end]), Hello::NeedMore, "after {} of {}", end, bytes.len());
            }
            prop_assert_eq!(client_hello(&bytes), name(&host));
        }

        /// Arbitrary bytes never panic, and the result stays the same when more come.
        #[test]
        fn arbitrary_bytes_give_stable_results(bytes in prop::collection::vec(any::<u8>(), 0..600), is_hello in any::<bool>(), at in 0_usize..200) {
            let bytes = if is_hello {
                let mut hello = hello("shop.example");
                let at = at.min(hello.len());
                hello.splice(at.., bytes);
                hello
            } else {
                bytes
            };
            check_properties(&bytes);
        }

        /// The same for known ClientHellos with bytes changed.
        #[test]
        fn mutated_hellos_give_stable_results(
            seed in prop::sample::select(seeds()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            let mut bytes = seed;
            for (at, byte) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            check_properties(&bytes);
        }
    }
}
