//! Cookies of requests (RFC 6265 4.2). Pure.

use http::HeaderMap;
use http::header;

/// The value of a cookie; of a repeated one, the first.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    (headers.get_all(header::COOKIE).iter())
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}
