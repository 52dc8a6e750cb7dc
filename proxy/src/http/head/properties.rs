//! What holds for any bytes. Checked by unit tests and by fuzzing.

use http::Method;
use http::header::{self, HeaderName};
use weft_codec::http1::parse;

use super::check::check;
use super::hop_by_hop::HOP_BY_HOP;
use super::rewrite::{authority, for_upstream};

/// A request that is accepted has one framing and at most one host, and what is sent
/// upstream has no hop-by-hop headers.
pub(crate) fn check_properties(bytes: &[u8]) {
    if let Ok(Some((_, length))) = parse::response(bytes, &Method::GET) {
        assert!(length <= bytes.len());
    }
    let Ok(Some((head, length))) = parse::request(bytes) else { return };
    assert!(!matches!(parse::request(&bytes[..length - 1]), Ok(Some(_))), "the head ended earlier");
    let request = head.request;
    if check(&request).is_err() || request.method() == Method::CONNECT {
        return;
    }
    let headers = request.headers();
    let count = |name: HeaderName| headers.get_all(name).iter().count();
    assert!(count(header::HOST) <= 1 && count(header::TRANSFER_ENCODING) <= 1, "{request:?}");
    assert!(count(header::TRANSFER_ENCODING) == 0 || count(header::CONTENT_LENGTH) == 0, "{request:?}");
    let host = authority(&request);
    for http2 in [false, true] {
        let mut parts = request.clone().into_parts().0;
        for_upstream(&mut parts, host.clone(), None, http2, None).expect("valid");
        assert_eq!(parts.headers.contains_key(header::HOST), !http2 && host.is_some(), "{request:?}");
        for name in HOP_BY_HOP.iter().filter(|name| !http2 || **name != header::TE) {
            assert!(!parts.headers.contains_key(name), "{name} of {request:?}");
        }
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH), "{request:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request with these header lines, each character one byte.
    fn from_lines(lines: &[String]) -> Vec<u8> {
        let text =
            format!("GET /a HTTP/1.1\r\n{}\r\n", lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
        text.chars().map(|byte| byte as u8).collect()
    }

    #[test]
    fn properties_hold_for_seed_heads() {
        let heads: Vec<Vec<String>> =
            serde_json::from_str(include_str!("../../../tests/corpus/seeds/heads.json")).expect("a list of heads");
        heads.iter().for_each(|lines| check_properties(&from_lines(lines)));
    }

    proptest::proptest! {
        #[test]
        fn properties_hold_for_any_head(lines in proptest::collection::vec(
            "(host|connection|transfer-encoding|content-length|te|upgrade|x-a|keep-alive): (a|a:80|a,b|u@a|\\[::1\\]|chunked|chunked, chunked|gzip|[0-9]{0,3}|x-a|close, x-a|host|[ -~]{0,12})",
            0..8,
        )) {
            check_properties(&from_lines(&lines));
        }
    }
}
