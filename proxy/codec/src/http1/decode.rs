//! Finds the end of a body, and decodes chunks (RFC 9112 6 and 7).

use std::ops::Range;

use http::HeaderMap;
use http_body::SizeHint;

use super::framing::Framing;
use super::parse::{self, BadMessage};
use crate::limits::HEAD_BYTES_MAX;

/// Size of all chunk extensions of a body. They are ignored. Source: hyper.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;

/// The state of a body that is being received.
#[derive(Clone, Debug)]
pub enum Decoder {
    /// Bytes that remain of `content-length`.
    Length(u64),
    /// A chunked body.
    Chunked(Box<Chunked>),
    /// The body ends with the connection.
    Close,
}

/// A chunked body (RFC 9112 7.1).
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Bytes that remain of a chunk; while its size is being read, that size so far.
    left: u64,
    extensions: usize,
    trailers: Vec<u8>,
}

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first digit of a chunk size.
    Size,
    /// Another digit, or the end of the chunk size.
    Digit,
    /// Whitespace after a chunk size.
    Blank,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// The first character of a line after the last chunk.
    Line,
    Trailer,
    TrailerEnd,
    LastEnd,
    End,
}

/// A decoded part of a body.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Data, at this range of the input.
    Data(Range<usize>),
    Trailers(HeaderMap),
    End,
    /// The input is used up.
    More,
}

// === impl Decoder ===

impl Decoder {
    /// A decoder for a body with this framing.
    #[inline]
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::chunked(),
            Framing::Close => Self::Close,
        }
    }

    fn chunked() -> Self {
        Self::Chunked(Box::new(Chunked { state: State::Size, left: 0, extensions: 0, trailers: Vec::new() }))
    }

    /// Whether the end was reached. False for a body that ends with its connection.
    #[inline]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::End,
            Self::Close => false,
        }
    }

    /// Whether the body ends within `bytes`, which come next.
    pub(super) fn ends_within(&self, mut bytes: &[u8]) -> bool {
        let mut decoder = self.clone();
        while !decoder.has_ended() {
            match decoder.decode(bytes) {
                Ok((step, count)) if step != Step::More => bytes = &bytes[count..],
                _ => break,
            }
        }
        decoder.has_ended()
    }

    /// Lower bound of the bytes to come.
    #[inline]
    pub(super) fn min_remaining(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(chunked) if chunked.state == State::Data => chunked.left,
            Self::Chunked(_) | Self::Close => 0,
        }
    }

    /// The size of what remains of the body.
    #[inline]
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::Close => SizeHint::default(),
        }
    }

    /// Decodes the next part. Returns it with the number of bytes consumed.
    #[inline]
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Result<(Step, usize), BadMessage> {
        match self {
            _ if self.has_ended() => Ok((Step::End, 0)),
            _ if bytes.is_empty() => Ok((Step::More, 0)),
            Self::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                Ok((Step::Data(0..count), count))
            }
            Self::Close => Ok((Step::Data(0..bytes.len()), bytes.len())),
            Self::Chunked(chunked) => chunked.decode(bytes),
        }
    }
}

// === impl Chunked ===

impl Chunked {
    fn decode(&mut self, bytes: &[u8]) -> Result<(Step, usize), BadMessage> {
        let mut at = 0;
        while self.state != State::End {
            let Some(&byte) = bytes.get(at) else { return Ok((Step::More, at)) };
            if self.state == State::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= count as u64;
                if self.left == 0 {
                    self.state = State::DataReturn;
                }
                return Ok((Step::Data(at..at + count), at + count));
            }
            self.state = self.next(byte)?;
            at += 1;
        }
        if self.trailers.is_empty() {
            return Ok((Step::End, at));
        }
        let trailers = std::mem::take(&mut self.trailers);
        Ok((Step::Trailers(parse::trailers(&trailers)?), at))
    }

    fn next(&mut self, byte: u8) -> Result<State, BadMessage> {
        let bad = |text| Err(BadMessage::new(text));
        Ok(match (self.state, byte) {
            (State::Size | State::Digit, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                let size = self.left.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)));
                let Some(size) = size else { return bad("chunk size too large") };
                self.left = size;
                State::Digit
            }
            (State::Digit | State::Blank, b' ' | b'\t') => State::Blank,
            (State::Digit | State::Blank, b';') => State::Extension,
            (State::Digit | State::Blank | State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, b'\n') => return bad("line ending in a chunk extension"),
            (State::Extension, _) => {
                self.extensions += 1;
                if self.extensions > EXTENSION_BYTES_MAX {
                    return bad("chunk extensions larger than 16 KiB");
                }
                State::Extension
            }
            (State::SizeEnd, b'\n') if self.left == 0 => State::Line,
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size,
            (State::Line, b'\r') if self.trailers.is_empty() => State::LastEnd,
            (State::Line, b'\r') => self.trailer(byte, State::LastEnd)?,
            (State::Line | State::Trailer, b'\n') => return bad("invalid line ending in the trailers"),
            (State::Trailer, b'\r') => self.trailer(byte, State::TrailerEnd)?,
            (State::Line | State::Trailer, _) => self.trailer(byte, State::Trailer)?,
            (State::TrailerEnd, b'\n') => self.trailer(byte, State::Line)?,
            (State::LastEnd, b'\n') if self.trailers.is_empty() => State::End,
            (State::LastEnd, b'\n') => self.trailer(byte, State::End)?,
            _ => return bad("invalid chunked encoding"),
        })
    }

    fn trailer(&mut self, byte: u8, next: State) -> Result<State, BadMessage> {
        if self.trailers.len() == HEAD_BYTES_MAX {
            return Err(BadMessage::new("trailers larger than 64 KiB"));
        }
        self.trailers.push(byte);
        Ok(next)
    }
}

/// Decodes a body from pieces: its data, the names of its trailers, and the number of bytes after it.
#[cfg(any(test, fuzzing))]
fn decode(mut decoder: Decoder, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<String>, usize), &'static str> {
    let (mut data, mut trailers, mut at) = (Vec::new(), Vec::new(), 0);
    let mut here = 0;
    while !decoder.has_ended() {
        let (step, used) = decoder.decode(&bytes[at..here]).map_err(|bad| bad.text)?;
        match step {
            Step::Data(part) => data.extend_from_slice(&bytes[at..][part]),
            Step::Trailers(found) => trailers.extend(found.keys().map(|name| name.to_string())),
            Step::End => {}
            Step::More if here == bytes.len() => return Err("incomplete"),
            Step::More => here = (here + piece).min(bytes.len()),
        }
        at += used;
    }
    Ok((data, trailers, bytes.len() - at))
}

/// A chunked body decodes the same however it is split, and its data is shorter than its encoding.
#[cfg(any(test, fuzzing))]
pub fn check_properties(bytes: &[u8]) {
    let whole = decode(Decoder::chunked(), bytes, bytes.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(decode(Decoder::chunked(), bytes, piece), whole, "in pieces of {piece}");
    }
    if let Ok((data, _, left)) = whole {
        assert!(data.len() + left < bytes.len(), "{} and {left} of {}", data.len(), bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunked_bodies_decode_the_same_however_split() {
        for (text, body, trailers, left) in [
            ("5\r\nhello\r\n0\r\n\r\n", "hello", vec![], 0),
            ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nGET /", "hello world", vec![], 5),
            ("0000a ;x=\"y\"\r\n0123456789\r\n00\r\n\r\n", "0123456789", vec![], 0),
            ("A\r\n0123456789\r\n0\r\nX-A: 1\r\nx-b: 2\r\n\r\nrest", "0123456789", vec!["x-a", "x-b"], 4),
            ("0\r\n\r\n", "", vec![], 0),
        ] {
            for piece in [1, 2, 3, 7, text.len()] {
                let found = decode(Decoder::chunked(), text.as_bytes(), piece);
                let expected = Ok((body.as_bytes().to_vec(), trailers.iter().map(|it| it.to_string()).collect(), left));
                assert_eq!(found, expected, "{text:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn invalid_chunks_are_errors() {
        let invalid = "invalid chunked encoding";
        for (text, error) in [
            ("g\r\n", invalid),
            ("\r\n", invalid),
            (" 5\r\nhello", invalid),
            ("-5\r\nhello", invalid),
            ("0x5\r\nhello", invalid),
            ("5 5\r\nhello", invalid),
            ("5\nhello", invalid),
            ("5\r\nhelloX\r\n", invalid),
            ("5\r\nhello\r5\r\n", invalid),
            ("5;a\nb\r\nhello", "line ending in a chunk extension"),
            ("10000000000000000\r\n", "chunk size too large"),
            ("0\r\nX-A: 1\rX-B: 2\r\n\r\n", invalid),
            ("0\r\nX-A: 1\nX-B: 2\r\n\r\n", "invalid line ending in the trailers"),
            ("0\r\nno colon\r\n\r\n", "invalid header name"),
            ("5\r\nhel", "incomplete"),
            ("5\r\nhello\r\n0\r\n", "incomplete"),
        ] {
            for piece in [1, text.len()] {
                assert_eq!(
                    decode(Decoder::chunked(), text.as_bytes(), piece),
                    Err(error),
                    "{text:?} in pieces of {piece}"
                );
            }
        }
        let extensions = format!("5;{}\r\nhello", "x".repeat(EXTENSION_BYTES_MAX + 1));
        assert_eq!(decode(Decoder::chunked(), extensions.as_bytes(), 1000), Err("chunk extensions larger than 16 KiB"));
        let trailers = format!("0\r\nx: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(decode(Decoder::chunked(), trailers.as_bytes(), 1000), Err("trailers larger than 64 KiB"));
    }

    proptest::proptest! {
        #[test]
        fn split_input_gives_the_same_result(text in "([0-9a-f]{1,2}(;[a-z]{0,3})?\r\n|hello|\r\n|0\r\n|x: y\r\n|[ -~]|\n){0,12}") {
            check_properties(text.as_bytes());
        }
    }

    #[test]
    fn content_length_ends_the_body() {
        assert_eq!(decode(Decoder::Length(5), b"hello, world", 4), Ok((b"hello".to_vec(), vec![], 7)));
        assert_eq!(decode(Decoder::Length(0), b"hello", 4), Ok((vec![], vec![], 5)));
        assert_eq!(decode(Decoder::Length(u64::MAX), b"hello", 4), Err("incomplete"));
    }
}
