//! Comma-separated lists (RFC 9110 5.6.1). They are parsed as bytes, so that bytes beyond ASCII hide no token beside
//! them.

use http::header::HeaderValue;

/// Whether a list contains a token, compared without case.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    list_items(value).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// The items of a list, without empty ones.
pub(super) fn list_items(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}
