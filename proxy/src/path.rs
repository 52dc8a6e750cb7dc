//! The one path that is authorised and forwarded.
//!
//! A rule about paths is worth something only if the application sees the path that the rule was held against. So where
//! rules about paths apply, what needs no encoding is decoded, dot segments are resolved and repeated slashes merged before
//! anybody looks, and what is sent on is the result. What applications read differently from one another (an encoded slash,
//! a backslash) is refused there. Source of the rules: RFC 3986 6.2.2 and the merge-slashes normalisation of Envoy and Istio.

use std::borrow::Cow;

/// Why a path has no one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ambiguous {
    /// `%2F` or `%5C`: a slash to some, a character to others.
    EncodedSlash,
    /// A backslash: a slash to some.
    Backslash,
    /// `%00`, or a percent sign that encodes nothing.
    BadEncoding,
    /// It does not begin with a slash.
    NotAbsolute,
}

/// The canonical form of a path. Idempotent, and its result has no `.` or `..` segment, no empty one but the last, and no
/// encoding of a character that needs none.
pub(crate) fn normalize(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Ambiguous::NotAbsolute);
    }
    let mut plain = true;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\\' => return Err(Ambiguous::Backslash),
            b'%' => match decode(bytes, at) {
                Some(b'/' | b'\\') => return Err(Ambiguous::EncodedSlash),
                None | Some(0) => return Err(Ambiguous::BadEncoding),
                Some(_) => plain = false,
            },
            b'/' if matches!(bytes.get(at + 1), Some(b'/' | b'.')) => plain = false,
            _ => {}
        }
    }
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut open = false;
    for segment in decoded.split('/').skip(1) {
        open = true;
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => {
                segments.push(name);
                open = false;
            }
        }
    }
    let mut result = String::with_capacity(decoded.len());
    for segment in &segments {
        result.push('/');
        result.push_str(segment);
    }
    if open || segments.is_empty() {
        result.push('/');
    }
    Ok(Cow::Owned(result))
}

/// Decodes what needs no encoding; the digits of what stays encoded become upper case, so that each path has one spelling.
fn decode_unreserved(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let start = bytes.len() - rest.len() + at;
        decoded.push_str(&rest[..at]);
        match decode(bytes, start) {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                decoded.push(byte as char)
            }
            // Two ASCII digits follow: the caller has refused a percent sign that encodes nothing.
            _ => decoded.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    decoded
}

fn decode(bytes: &[u8], at: usize) -> Option<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    Some(hex(*bytes.get(at + 1)?)? * 16 + hex(*bytes.get(at + 2)?)?)
}

/// What holds for every path.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(path: &str) {
    let Ok(canonical) = normalize(path) else { return };
    assert_eq!(normalize(&canonical).as_deref(), Ok(&*canonical), "{path}: normalising twice changes nothing");
    assert!(canonical.len() <= path.len(), "{path} became longer: {canonical}");
    assert!(canonical.starts_with('/'), "{path} became {canonical}");
    let segments: Vec<&str> = canonical.split('/').skip(1).collect();
    assert!(segments.iter().all(|segment| !matches!(*segment, "." | "..")), "{path} became {canonical}");
    assert!(segments[..segments.len() - 1].iter().all(|segment| !segment.is_empty()), "{path} became {canonical}");
    let lower = canonical.to_ascii_lowercase();
    assert!(["%2e", "%2f", "%5c", "%00", "\\"].iter().all(|never| !lower.contains(never)), "{path} became {canonical}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2eb", "/a.b"),
            ("/a..b/.c", "/a..b/.c"),
            ("/%41", "/A"),
            ("/%73ecret", "/secret"),
            ("/a%7Eb%2d", "/a~b-"),
            ("/a%3db%c3%a9", "/a%3Db%C3%A9"),
            ("/%252e", "/%252e"),
            ("/a;x=y/b", "/a;x=y/b"),
        ] {
            assert_eq!(normalize(path).as_deref(), Ok(expected), "{path}");
            assert_eq!(normalize(expected).as_deref(), Ok(expected), "{path}: normalising twice changes nothing");
        }
    }

    #[test]
    fn refusals() {
        for (path, expected) in [
            ("/a%2fb", Ambiguous::EncodedSlash),
            ("/a%5Cb", Ambiguous::EncodedSlash),
            ("/a\\b", Ambiguous::Backslash),
            ("/a%00", Ambiguous::BadEncoding),
            ("/a%", Ambiguous::BadEncoding),
            ("/a%2", Ambiguous::BadEncoding),
            ("/%zz", Ambiguous::BadEncoding),
            ("a", Ambiguous::NotAbsolute),
            ("", Ambiguous::NotAbsolute),
            ("*", Ambiguous::NotAbsolute),
        ] {
            assert_eq!(normalize(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn paths_that_were_seen_before() {
        let paths: Vec<String> =
            serde_json::from_str(include_str!("../tests/corpus/seeds/paths.json")).expect("a list of paths");
        paths.iter().for_each(|path| check_laws(path));
    }

    proptest::proptest! {
        #[test]
        fn laws(path in ".{0,40}") {
            check_laws(&path);
        }

        #[test]
        fn laws_where_dots_and_encodings_abound(path in "(/|\\.|\\.\\.|%2[eEfF5]|%5[cC]|%[0-9a-fA-F]{2}|%|a|;|é){0,16}") {
            check_laws(&format!("/{path}"));
        }
    }
}
