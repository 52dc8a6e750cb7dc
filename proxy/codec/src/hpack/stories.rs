//! Interoperability: stories (sequences of blocks on one connection) exchanged with two independent codecs,
//! python-hyper's hpack and Go's `golang.org/x/net/http2/hpack`.
//!
//! ```text
//! their encoder ──> blocks ──> our decoder ──> the same fields?
//!              └──> fields ──> our encoder ──> blocks ──> each of their decoders ──> the same fields?
//! ```
//!
//! Both peers generate their stories from a seed, with changing table sizes, strings with and without Huffman coding,
//! fields that are never indexed, and fields larger than the table.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use serde_json::{Value, json};

use super::decode::Decoder;
use super::encode::Encoder;
use super::properties::encode;
use super::table::Name;
use super::{Field, TABLE_BYTES_MAX};

const SEED: &str = "7541";
const STORIES: usize = 12;
const BLOCKS: usize = 250;

#[derive(Clone, Copy, Debug)]
enum Peer {
    Python,
    Go,
}

/// A block of a story.
struct Block {
    story: u64,
    /// Table sizes that are set before the block, in this order.
    sizes: Vec<usize>,
    bytes: Bytes,
    fields: Vec<Plain>,
}

/// A field in a form that all codecs share: name, value, and whether it is never indexed.
#[derive(Debug, PartialEq)]
struct Plain(String, Vec<u8>, bool);

/// Runs a peer's program.
fn run(peer: Peer, arguments: &[&str], input: Vec<u8>) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers");
    let setup = |part: &str| {
        let output = Command::new(folder.join("setup.sh")).arg(part).output().expect("the script can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a path").trim().to_owned()
    };
    let mut command = match peer {
        Peer::Python => Command::new(setup("python")),
        Peer::Go => Command::new(setup("go")),
    };
    match peer {
        Peer::Python => command.arg(folder.join("hpack_stories.py")),
        Peer::Go => command.arg("hpack"),
    };
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that fails stops reading, and explains on stderr.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("the thread ends");
    assert!(output.status.success(), "{peer:?} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn stories(peer: Peer) -> Vec<Block> {
    let output = run(peer, &["encode", SEED, &STORIES.to_string(), &BLOCKS.to_string()], Vec::new());
    let blocks: Vec<Block> = output.lines().map(|line| block(&serde_json::from_str(line).expect(line))).collect();
    assert_eq!(blocks.len(), STORIES * BLOCKS);
    blocks
}

fn block(json: &Value) -> Block {
    let list = |name: &str| json[name].as_array().expect("a list").iter();
    let hex = json["block"].as_str().expect("text");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    Block {
        story: json["story"].as_u64().expect("a number"),
        sizes: list("sizes").map(|size| size.as_u64().expect("a number") as usize).collect(),
        bytes: (0..hex.len()).step_by(2).map(byte).collect(),
        fields: list("fields").map(plain).collect(),
    }
}

/// In JSON each character of a value stands for one byte.
fn plain(json: &Value) -> Plain {
    let text = |at: usize| json[at].as_str().expect("text");
    let bytes = text(1).chars().map(|it| u8::try_from(u32::from(it)).expect("a byte")).collect();
    Plain(text(0).to_owned(), bytes, json[2].as_bool().expect("yes or no"))
}

/// A field of our decoder. It knows `never` of headers only; for other fields that is taken from the story.
fn found(field: Field, wanted: Option<&Plain>) -> Plain {
    let never = wanted.is_some_and(|Plain(.., never)| *never);
    let pseudo = |name: &str, value: &str| Plain(name.to_owned(), value.as_bytes().to_vec(), never);
    match field {
        Field::Authority(it) => pseudo(":authority", it.as_str()),
        Field::Method(it) => pseudo(":method", it.as_str()),
        Field::Path(it) => pseudo(":path", it.as_str()),
        Field::Scheme(it) => pseudo(":scheme", it.as_str()),
        Field::Status(it) => pseudo(":status", it.as_str()),
        Field::Header(name, value) => Plain(name.as_str().to_owned(), value.as_bytes().to_vec(), value.is_sensitive()),
        Field::Protocol => pseudo(":protocol", ""),
        Field::Malformed => pseudo("malformed", ""),
    }
}

/// A field for our encoder.
fn field(Plain(name, value, never): &Plain) -> Field {
    let mut field = Name::parse(name.as_bytes()).field(value, || Bytes::copy_from_slice(value));
    if let Field::Header(_, value) = &mut field {
        value.set_sensitive(*never);
    }
    field
}

#[test]
fn our_decoder_reads_what_other_encoders_wrote() {
    for peer in [Peer::Python, Peer::Go] {
        let (mut decoder, mut story) = (Decoder::new(TABLE_BYTES_MAX), 0);
        for (number, block) in stories(peer).into_iter().enumerate() {
            if block.story != story {
                (decoder, story) = (Decoder::new(TABLE_BYTES_MAX), block.story);
            }
            let mut fields = Vec::new();
            let result = decoder.decode(block.bytes.clone(), |field, size| {
                let field = found(field, block.fields.get(fields.len()));
                assert_eq!(size, field.0.len() + field.1.len() + 32, "{peer:?}, block {number}: the size of {field:?}");
                fields.push(field);
            });
            assert_eq!(result, Ok(()), "{peer:?}, block {number}");
            assert_eq!(fields, block.fields, "{peer:?}, block {number}");
        }
    }
}

#[test]
fn other_decoders_read_what_our_encoder_wrote() {
    for writer in [Peer::Python, Peer::Go] {
        let blocks = stories(writer);
        for reader in [Peer::Python, Peer::Go] {
            let output = run(reader, &["decode"], encoded(&blocks, reader));
            assert_eq!(output.trim(), blocks.len().to_string(), "blocks of {writer:?} that {reader:?} read");
        }
    }
}

/// The stories as our encoder writes them.
fn encoded(blocks: &[Block], reader: Peer) -> Vec<u8> {
    let (mut encoder, mut story, mut lines) = (Encoder::new(), 0, Vec::new());
    for block in blocks {
        if block.story != story {
            (encoder, story) = (Encoder::new(), block.story);
        }
        let mut sizes = block.sizes.as_slice();
        if matches!(reader, Peer::Go) {
            // Go's decoder rejects a second size update in a block, which RFC 7541 4.2 allows, unless its table is
            // empty.
            sizes = &sizes[sizes.len().saturating_sub(1)..];
        }
        sizes.iter().for_each(|size| encoder.set_size_max(*size));
        let bytes = encode(&mut encoder, &block.fields.iter().map(field).collect::<Vec<_>>());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let fields: Vec<Value> = block.fields.iter().map(to_json).collect();
        let line = json!({"story": story, "sizes": sizes, "block": hex, "fields": fields});
        lines.extend(format!("{line}\n").into_bytes());
    }
    lines
}

fn to_json(Plain(name, value, never): &Plain) -> Value {
    // Our encoder has no never-indexed pseudo-headers.
    let never = *never && !name.starts_with(':');
    json!([name, value.iter().map(|byte| char::from(*byte)).collect::<String>(), never])
}
