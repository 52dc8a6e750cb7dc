//! A minimal HTTP/1.1 parser for well-behaved peers: the end of a message, its status and `Connection: close`.

pub(crate) mod backend;
pub(crate) mod load;

use memchr::memmem;

const HEAD_END: &[u8] = b"\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A complete message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Length in bytes, with the body.
    pub(crate) length: usize,
    /// Whether it is a response with status 200.
    pub(crate) ok: bool,
    /// Whether it has `Connection: close`.
    pub(crate) close: bool,
}

/// The first message in the bytes. None: incomplete. Nothing may follow a chunked message.
pub(crate) fn first_message(bytes: &[u8]) -> Option<Message> {
    let head_length = memmem::find(bytes, HEAD_END)? + HEAD_END.len();
    let (head, rest) = bytes.split_at(head_length);
    let body_length = match header(head, b"content-length") {
        Some(value) => std::str::from_utf8(value).ok()?.trim().parse().ok()?,
        None if header(head, b"transfer-encoding").is_some() => {
            if !rest.ends_with(LAST_CHUNK) {
                return None;
            }
            rest.len()
        }
        None => 0,
    };
    (rest.len() >= body_length).then(|| Message {
        length: head_length + body_length,
        ok: head.get(8..12) == Some(b" 200"),
        close: header(head, b"connection").is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"close")),
    })
}

/// The value of a header. `name` is in lower case.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut lines = memmem::find_iter(head, b"\r\n").map(|at| &head[at + 2..]);
    let line =
        lines.find(|line| line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name))?;
    let value = &line[name.len() + 1..];
    Some(&value[..memmem::find(value, b"\r\n")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_message_finds_the_end_of_the_message() {
        let whole = |length, ok, close| Some(Message { length, ok, close });
        for (bytes, expected) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", whole(27, false, false)),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", whole(37, false, true)),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP", whole(41, true, false)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", None),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", whole(38, false, false)),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", None),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", whole(58, true, false)),
        ] {
            assert_eq!(first_message(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
