//! Readings of a path: the ways in which applications interpret it.
//!
//! A rule about paths is effective only if it is checked against the path that the application will act on, and
//! applications differ. So this module computes every reading of a path, and policies are checked against all of
//! them. The path is forwarded as it came. Readings come from these steps, each taken or not, in every order, because
//! every order occurs in some application:
//!
//! | step | example | some that do it |
//! |---|---|---|
//! | decode `%2F` to a slash | `/a%2Fb` is `/a/b` | WSGI, PHP, Tomcat with `encodedSolidusHandling` |
//! | replace a backslash by a slash, also `%5C` | `/a\b` is `/a/b` | IIS, Tomcat with `allowBackslash` |
//! | drop the parameters of segments, also behind `%3B` | `/a;x=1/b` is `/a/b` | Tomcat, Jetty, Spring |
//! | merge slashes | `//a` is `/a` | nginx, Tomcat, Express behind a proxy |
//! | resolve dot segments | `/a/../b` is `/b` | nginx, Tomcat, Go |
//! | end the path at `%00` | `/a%00b` is `/a` | C string functions |
//! | decode again | `/%2570` is `/p` | nginx before an application |
//!
//! In all of them `%XX` stands for its octet, decoded once. Not covered: letter case, encodings that were never valid
//! (overlong UTF-8, `%u0041`), file names that Windows treats as equal, and a percent sign without two hexadecimal
//! digits, which stands for itself.

/// Readings of one path. Most paths with special octets have two to four.
const READINGS_MAX: usize = 32;

/// Bytes of all readings of one path together: a few copies of the longest head.
const READINGS_BYTES_MAX: usize = 256 * 1024;

/// The steps. None: the step changes nothing.
const STEPS: [fn(&str) -> Option<String>; 8] = [
    |path| path.contains("%2F").then(|| path.replace("%2F", "/")),
    |path| path.contains("%5C").then(|| path.replace("%5C", "/")),
    |path| path.contains("%3B").then(|| path.replace("%3B", ";")),
    |path| path.find("%00").map(|end| path[..end].to_owned()),
    |path| path.contains("%25").then(|| canonical(&path.replace("%25", "%"))),
    drop_parameters,
    merge_slashes,
    resolve_dots,
];

/// The readings of a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readings<'a> {
    /// The path has one reading only.
    One(&'a str),
    /// Several readings, each in the form of [`canonical`].
    Several(Vec<String>),
}

/// The path has more readings than [`READINGS_MAX`] or [`READINGS_BYTES_MAX`] allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyReadings;

/// Computes all readings of a path. A path without special octets costs one scan.
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

/// The canonical form, in which paths are compared: octets that need no encoding are decoded, others encoded with
/// upper case digits. An octet that affects how a path is read (`/`, `%`, `\`, `;`) stays encoded where it was
/// encoded.
pub(crate) fn canonical(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut form = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let encoded = if byte == b'%' { encoded(bytes, at) } else { None };
        let octet = encoded.unwrap_or(byte);
        at += if encoded.is_some() { 3 } else { 1 };
        let is_literal = match octet {
            b'/' | b';' => encoded.is_none(),
            b'%' | b'\\' | b'?' | b'#' => false,
            _ => octet.is_ascii_graphic(),
        };
        if is_literal {
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

/// Whether a path has one reading, the path itself. Also true for a target that is not a path (`*` of OPTIONS).
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    !path.starts_with('/')
        || bytes.iter().enumerate().all(|(at, byte)| match byte {
            b'%' | b'\\' | b';' => false,
            b'/' => !matches!(bytes.get(at + 1), Some(b'/' | b'.')),
            _ => byte.is_ascii_graphic(),
        })
}

/// The octet that is percent-encoded at this position.
fn encoded(bytes: &[u8], at: usize) -> Option<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    Some(hex(*bytes.get(at + 1)?)? * 16 + hex(*bytes.get(at + 2)?)?)
}

fn drop_parameters(path: &str) -> Option<String> {
    let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    path.contains(';').then(|| path.split('/').map(name).collect::<Vec<_>>().join("/"))
}

fn merge_slashes(path: &str) -> Option<String> {
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

/// Removes dot segments (RFC 3986 5.2.4).
fn resolve_dots(path: &str) -> Option<String> {
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

/// Properties of every path.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_properties(path: &str) {
    let form = canonical(path);
    assert_eq!(canonical(&form), form, "{path}: canonical is idempotent");
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
    fn paths_with_too_many_readings_are_refused() {
        let many = format!("/{}", "..;a%2f%5c/%252e//%00".repeat(50));
        assert_eq!(readings(&many), Err(TooManyReadings));
        let long = format!("/a%2f{}", "b".repeat(READINGS_BYTES_MAX / 2));
        assert_eq!(readings(&long), Err(TooManyReadings), "two readings exceed the byte limit");
        let long = format!("/a%20{}", "b".repeat(60 * 1024));
        assert_eq!(readings(&long), Ok(Readings::Several(vec![long.clone()])), "one reading does not");
    }

    #[test]
    fn properties_hold_for_seed_paths() {
        let paths: Vec<String> =
            serde_json::from_str(include_str!("../tests/corpus/seeds/paths.json")).expect("a list of paths");
        paths.iter().for_each(|path| check_properties(path));
    }

    proptest::proptest! {
        #[test]
        fn properties_hold_for_any_path(path in ".{0,40}") {
            check_properties(&path);
        }

        #[test]
        fn properties_hold_for_paths_with_dots_and_encodings(path in "(/|\\.|\\.\\.|%2[eEfF5]|%5[cC]|%[0-9a-fA-F]{2}|%|a|;|é|\\\\){0,16}") {
            check_properties(&format!("/{path}"));
        }
    }
}
