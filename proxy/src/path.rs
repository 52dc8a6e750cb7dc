//! What applications make of a path.
//!
//! A rule about paths is worth something only if it is held against what the application takes the path for, and applications
//! read paths in different ways. So a path that can be read in several ways has several readings here, and a policy is held
//! against all of them; what is forwarded is the path as it came. The readings come of these steps, each taken or not, in
//! every order, because every order is some application's:
//!
//! | step | example | some that take it |
//! |---|---|---|
//! | decode `%2F` to a slash | `/a%2Fb` is `/a/b` | WSGI, PHP, Tomcat with `encodedSolidusHandling` |
//! | take a backslash for a slash, also `%5C` | `/a\b` is `/a/b` | IIS, Tomcat with `allowBackslash` |
//! | drop the parameters of segments, also behind `%3B` | `/a;x=1/b` is `/a/b` | Tomcat, Jetty, Spring |
//! | merge slashes | `//a` is `/a` | nginx, Tomcat, Express behind a proxy |
//! | resolve dot segments | `/a/../b` is `/b` | nginx, Tomcat, Go |
//! | end the path at `%00` | `/a%00b` is `/a` | what is written in C |
//! | decode again | `/%2570` is `/p` | nginx before an application |
//!
//! In all of them `%XX` stands for its octet, once. Letter case is left alone, and so are encodings that were never allowed (overlong UTF-8,
//! `%u0041`), names of files that Windows takes for others, and a percent sign that encodes nothing, which stands for itself.

/// Readings of one path. Most paths with something to decide have two to four.
const READINGS_MAX: usize = 32;

/// Bytes of all readings of one path, so that a long one costs no more than a few copies of the longest head.
const READINGS_BYTES_MAX: usize = 256 * 1024;

/// The steps. None: it changes nothing.
const STEPS: [fn(&str) -> Option<String>; 8] = [
    |path| path.contains("%2F").then(|| path.replace("%2F", "/")),
    |path| path.contains("%5C").then(|| path.replace("%5C", "/")),
    |path| path.contains("%3B").then(|| path.replace("%3B", ";")),
    |path| path.find("%00").map(|end| path[..end].to_owned()),
    |path| path.contains("%25").then(|| canonical(&path.replace("%25", "%"))),
    without_parameters,
    with_slashes_merged,
    with_dots_resolved,
];

/// What a path can be read as.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readings<'a> {
    /// One thing only.
    One(&'a str),
    /// These, in the form of [`canonical`].
    Several(Vec<String>),
}

/// It can be read in more ways than are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyReadings;

/// All readings of a path. One in which nothing can be read differently costs one look at its bytes.
pub(crate) fn readings(path: &str) -> Result<Readings<'_>, TooManyReadings> {
    if is_plain(path) {
        return Ok(Readings::One(path));
    }
    let mut readings = vec![canonical(path)];
    let (mut at, mut bytes) = (0, readings[0].len());
    while at < readings.len() {
        for step in STEPS {
            let Some(reading) = step(&readings[at]).filter(|reading| !readings.contains(reading)) else { continue };
            bytes += reading.len();
            if readings.len() == READINGS_MAX || bytes > READINGS_BYTES_MAX {
                return Err(TooManyReadings);
            }
            readings.push(reading);
        }
        at += 1;
    }
    Ok(Readings::Several(readings))
}

/// The form in which paths are held against each other: what needs no encoding is decoded, and the rest encoded in capital letters.
/// An octet that decides how a path is read stays encoded where it was.
pub(crate) fn canonical(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut form = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let encoded = if byte == b'%' { encoded(bytes, at) } else { None };
        let octet = encoded.unwrap_or(byte);
        at += if encoded.is_some() { 3 } else { 1 };
        let stands_for_itself = match octet {
            b'/' | b';' => encoded.is_none(),
            b'%' | b'\\' | b'?' | b'#' => false,
            _ => octet.is_ascii_graphic(),
        };
        if stands_for_itself {
            form.push(octet as char);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            form.push('%');
            form.push(DIGITS[usize::from(octet >> 4)] as char);
            form.push(DIGITS[usize::from(octet & 15)] as char);
        }
    }
    form
}

/// Whether a path has one reading, which is itself. What is no path (`*` of OPTIONS) has no other either.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    !path.starts_with('/')
        || bytes.iter().enumerate().all(|(at, byte)| match byte {
            b'%' | b'\\' | b';' => false,
            b'/' => !matches!(bytes.get(at + 1), Some(b'/' | b'.')),
            _ => byte.is_ascii_graphic(),
        })
}

/// The octet that is encoded here.
fn encoded(bytes: &[u8], at: usize) -> Option<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    Some(hex(*bytes.get(at + 1)?)? * 16 + hex(*bytes.get(at + 2)?)?)
}

fn without_parameters(path: &str) -> Option<String> {
    let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    path.contains(';').then(|| path.split('/').map(name).collect::<Vec<_>>().join("/"))
}

fn with_slashes_merged(path: &str) -> Option<String> {
    if !path.contains("//") {
        return None;
    }
    let mut merged = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !merged.ends_with('/') {
            merged.push(letter);
        }
    }
    Some(merged)
}

/// RFC 3986 5.2.4.
fn with_dots_resolved(path: &str) -> Option<String> {
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    if !path.split('/').any(is_dots) {
        return None;
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    if path.rsplit('/').next().is_some_and(is_dots) {
        segments.push("");
    }
    Some(format!("/{}", segments.join("/")))
}

/// What holds for every path.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(path: &str) {
    let form = canonical(path);
    assert_eq!(canonical(&form), form, "{path}: it is canonical already");
    let Ok(Readings::Several(readings)) = readings(path) else { return };
    assert!(readings.len() <= READINGS_MAX, "{path}");
    assert_eq!(readings[0], form, "{path}");
    for reading in &readings {
        assert!(reading.starts_with('/'), "{path} became {reading}");
        assert_eq!(canonical(reading), *reading, "{path}: {reading} is canonical");
        for step in STEPS {
            assert!(
                step(reading).is_none_or(|next| readings.contains(&next)),
                "{path}: a step from {reading} leads out"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &[&str]) {
        let found = match readings(path) {
            Ok(Readings::One(path)) => vec![path.to_owned()],
            Ok(Readings::Several(readings)) => readings,
            Err(TooManyReadings) => Vec::new(),
        };
        let (mut sorted, mut expected) = (found.clone(), expected.to_vec());
        sorted.sort();
        expected.sort();
        assert_eq!(sorted, expected, "{path}: {found:?}");
    }

    #[test]
    fn paths_with_one_reading() {
        for path in ["/", "/a/b", "/a/b/", "/a..b/c.", "/a~b-_", "/a=b,c!$&'()*+:@", "/A", "*", "", "/{a}|\"<>^`"] {
            assert_eq!(readings(path), Ok(Readings::One(path)), "{path}");
        }
        for (path, form) in [
            ("/%41", "/A"),
            ("/a%2eb", "/a.b"),
            ("/a%7Eb%2d", "/a~b-"),
            ("/a%3db", "/a=b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%", "/a%25"),
            ("/%zz", "/%25zz"),
        ] {
            check(path, &[form]);
        }
    }

    #[test]
    fn paths_with_several_readings() {
        check("/a%2fb", &["/a%2Fb", "/a/b"]);
        check("/a\\b", &["/a%5Cb", "/a/b"]);
        check("/a%5cb", &["/a%5Cb", "/a/b"]);
        check("/a;x=/b", &["/a;x=/b", "/a/b"]);
        check("/a%3bx", &["/a%3Bx", "/a;x", "/a"]);
        check("//a", &["//a", "/a"]);
        check("/a/./b", &["/a/./b", "/a/b"]);
        check("/a/..", &["/a/..", "/"]);
        check("/a/%2e%2E/b", &["/a/../b", "/b"]);
        check("/a%00b", &["/a%00b", "/a"]);
        check("/%2541", &["/%2541", "/A"]);
        check("/a%252fb", &["/a%252fb", "/a%2Fb", "/a/b"]);
        check("/x/..;/a", &["/x/..;/a", "/x/../a", "/a"]);
        check("/.;/a", &["/.;/a", "/./a", "/a"]);
        check("/a//../b", &["/a//../b", "/a/../b", "/a/b", "/b"]);
        check("/../../b", &["/../../b", "/b"]);
    }

    #[test]
    fn what_can_be_read_in_too_many_ways_is_not_looked_at() {
        let many = format!("/{}", "..;a%2f%5c/%252e//%00".repeat(50));
        assert_eq!(readings(&many), Err(TooManyReadings));
        let long = format!("/a%2f{}", "b".repeat(READINGS_BYTES_MAX / 2));
        assert_eq!(readings(&long), Err(TooManyReadings), "two copies of it are too large");
        let long = format!("/a%20{}", "b".repeat(60 * 1024));
        assert_eq!(readings(&long), Ok(Readings::Several(vec![long.clone()])), "one is not");
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
        fn laws_where_dots_and_encodings_abound(path in "(/|\\.|\\.\\.|%2[eEfF5]|%5[cC]|%[0-9a-fA-F]{2}|%|a|;|é|\\\\){0,16}") {
            check_laws(&format!("/{path}"));
        }
    }
}
