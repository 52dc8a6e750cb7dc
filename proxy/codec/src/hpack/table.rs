//! The static table (RFC 7541 Appendix A), and the dynamic table of a decoder (RFC 7541 2.3).
//!
//! Both hold parsed fields: an indexed field is a clone.

use std::collections::VecDeque;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{BadBlock, FIELD_OVERHEAD, Field};

/// Longest method, in bytes. A clone of a long one is a copy, and one byte of a block can refer to it: a block could
/// ask for thousands of copies.
const METHOD_BYTES_MAX: usize = 64;

pub(super) static STATIC: [Entry; 61] = [
    Entry::pseudo(":authority", "", Name::Authority, Field::Malformed),
    Entry::pseudo(":method", "GET", Name::Method, Field::Method(Method::GET)),
    Entry::pseudo(":method", "POST", Name::Method, Field::Method(Method::POST)),
    Entry::pseudo(":path", "/", Name::Path, Field::Path(PathAndQuery::from_static("/"))),
    Entry::pseudo(":path", "/index.html", Name::Path, Field::Path(PathAndQuery::from_static("/index.html"))),
    Entry::pseudo(":scheme", "http", Name::Scheme, Field::Scheme(Scheme::HTTP)),
    Entry::pseudo(":scheme", "https", Name::Scheme, Field::Scheme(Scheme::HTTPS)),
    Entry::pseudo(":status", "200", Name::Status, Field::Status(StatusCode::OK)),
    Entry::pseudo(":status", "204", Name::Status, Field::Status(StatusCode::NO_CONTENT)),
    Entry::pseudo(":status", "206", Name::Status, Field::Status(StatusCode::PARTIAL_CONTENT)),
    Entry::pseudo(":status", "304", Name::Status, Field::Status(StatusCode::NOT_MODIFIED)),
    Entry::pseudo(":status", "400", Name::Status, Field::Status(StatusCode::BAD_REQUEST)),
    Entry::pseudo(":status", "404", Name::Status, Field::Status(StatusCode::NOT_FOUND)),
    Entry::pseudo(":status", "500", Name::Status, Field::Status(StatusCode::INTERNAL_SERVER_ERROR)),
    Entry::header("accept-charset", ""),
    Entry::header("accept-encoding", "gzip, deflate"),
    Entry::header("accept-language", ""),
    Entry::header("accept-ranges", ""),
    Entry::header("accept", ""),
    Entry::header("access-control-allow-origin", ""),
    Entry::header("age", ""),
    Entry::header("allow", ""),
    Entry::header("authorization", ""),
    Entry::header("cache-control", ""),
    Entry::header("content-disposition", ""),
    Entry::header("content-encoding", ""),
    Entry::header("content-language", ""),
    Entry::header("content-length", ""),
    Entry::header("content-location", ""),
    Entry::header("content-range", ""),
    Entry::header("content-type", ""),
    Entry::header("cookie", ""),
    Entry::header("date", ""),
    Entry::header("etag", ""),
    Entry::header("expect", ""),
    Entry::header("expires", ""),
    Entry::header("from", ""),
    Entry::header("host", ""),
    Entry::header("if-match", ""),
    Entry::header("if-modified-since", ""),
    Entry::header("if-none-match", ""),
    Entry::header("if-range", ""),
    Entry::header("if-unmodified-since", ""),
    Entry::header("last-modified", ""),
    Entry::header("link", ""),
    Entry::header("location", ""),
    Entry::header("max-forwards", ""),
    Entry::header("proxy-authenticate", ""),
    Entry::header("proxy-authorization", ""),
    Entry::header("range", ""),
    Entry::header("referer", ""),
    Entry::header("refresh", ""),
    Entry::header("retry-after", ""),
    Entry::header("server", ""),
    Entry::header("set-cookie", ""),
    Entry::header("strict-transport-security", ""),
    Entry::header("transfer-encoding", ""),
    Entry::header("user-agent", ""),
    Entry::header("vary", ""),
    Entry::header("via", ""),
    Entry::header("www-authenticate", ""),
];

/// A decoder's dynamic table, the newest entry first.
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
}

/// A table entry.
pub(super) struct Entry {
    /// Later fields may refer to the name, even if this field is malformed.
    pub(super) name: Name,
    pub(super) field: Field,
    /// Size as RFC 7541 4.1 counts it.
    pub(super) size: usize,
}

/// The name of a field, which decides how its value is parsed.
#[derive(Clone)]
pub(super) enum Name {
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
    Header(HeaderName),
    /// An invalid name of this length.
    Malformed(usize),
}

// === impl Table ===

impl Table {
    pub(super) fn new(size_max: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max }
    }

    /// The entry at an index, which counts from 1 and continues from the static into the dynamic table (RFC 7541
    /// 2.3.3).
    #[inline]
    pub(super) fn entry(&self, index: u32) -> Result<&Entry, BadBlock> {
        let at = (index as usize).checked_sub(1).ok_or(BadBlock::Index)?;
        match at.checked_sub(STATIC.len()) {
            None => STATIC.get(at),
            Some(at) => self.entries.get(at),
        }
        .ok_or(BadBlock::Index)
    }

    pub(super) fn resize(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(size_max);
    }

    /// Inserts an entry. An entry larger than the table empties it (RFC 7541 4.4).
    pub(super) fn insert(&mut self, entry: Entry) {
        match self.size_max.checked_sub(entry.size) {
            Some(room) => {
                self.evict(room);
                self.size += entry.size;
                self.entries.push_front(entry);
            }
            None => self.evict(0),
        }
    }

    /// Evicts the oldest entries until the size is at most `size`.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }

    /// The size, its limit, and the size of each entry, the newest first.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, Vec<usize>) {
        (self.size, self.size_max, self.entries.iter().map(|entry| entry.size).collect())
    }
}

// === impl Entry ===

impl Entry {
    const fn pseudo(name: &str, value: &str, kind: Name, field: Field) -> Self {
        Self { name: kind, field, size: name.len() + value.len() + FIELD_OVERHEAD }
    }

    const fn header(name: &'static str, value: &'static str) -> Self {
        let field = Field::Header(HeaderName::from_static(name), HeaderValue::from_static(value));
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        Self { name: Name::Header(HeaderName::from_static(name)), field, size }
    }
}

// === impl Name ===

impl Name {
    pub(super) fn parse(name: &[u8]) -> Self {
        match name {
            b":authority" => Self::Authority,
            b":method" => Self::Method,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":scheme" => Self::Scheme,
            b":status" => Self::Status,
            // `HeaderName` accepts a quotation mark, which is not a token character (RFC 9110 5.6.2).
            _ if name.contains(&b'"') => Self::Malformed(name.len()),
            _ => HeaderName::from_lowercase(name).map_or(Self::Malformed(name.len()), Self::Header),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Authority => ":authority".len(),
            Self::Method => ":method".len(),
            Self::Path => ":path".len(),
            Self::Protocol => ":protocol".len(),
            Self::Scheme => ":scheme".len(),
            Self::Status => ":status".len(),
            Self::Header(name) => name.as_str().len(),
            Self::Malformed(length) => *length,
        }
    }

    /// Parses a field with this name. `shared` returns the value as `Bytes`, for fields that keep it.
    pub(super) fn field(self, value: &[u8], shared: impl FnOnce() -> Bytes) -> Field {
        let field = match self {
            Self::Authority => Authority::from_maybe_shared(shared()).ok().map(Field::Authority),
            Self::Method => method(value).map(Field::Method),
            Self::Path => path(value, shared).map(Field::Path),
            Self::Protocol => Some(Field::Protocol),
            Self::Scheme => scheme(value).map(Field::Scheme),
            Self::Status => StatusCode::from_bytes(value).ok().map(Field::Status),
            Self::Header(_) if is_padded(value) => None,
            Self::Header(name) => HeaderValue::from_maybe_shared(shared()).ok().map(|value| Field::Header(name, value)),
            Self::Malformed(_) => None,
        };
        field.unwrap_or(Field::Malformed)
    }
}

/// Whether whitespace surrounds a value (forbidden by RFC 9113 8.2.1). HTTP/1.1 strips it; in HTTP/2 the value would
/// differ from the one that a policy names.
fn is_padded(value: &[u8]) -> bool {
    [value.first(), value.last()].into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
}

fn method(value: &[u8]) -> Option<Method> {
    if value.len() > METHOD_BYTES_MAX { None } else { Method::from_bytes(value).ok() }
}

/// Parses a path: it begins with a slash, or is `*` (RFC 9113 8.3.1). A fragment is dropped, as in HTTP/1.1.
fn path(value: &[u8], shared: impl FnOnce() -> Bytes) -> Option<PathAndQuery> {
    if !matches!(value, [b'/', ..] | b"*") {
        return None;
    }
    PathAndQuery::from_maybe_shared(shared()).ok()
}

/// Parses a scheme, which begins with a letter (RFC 3986 3.1). `Scheme` alone also accepts others, and an empty one.
fn scheme(value: &[u8]) -> Option<Scheme> {
    if !value.first().is_some_and(u8::is_ascii_alphabetic) {
        return None;
    }
    Scheme::try_from(value).ok()
}
