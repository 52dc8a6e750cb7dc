//! Which upgrades of a connection are forwarded (RFC 9110 7.8).

use http::Version;
use http::header::{self, HeaderMap, HeaderValue};
use weft_codec::is_token;

use super::list::{has_token, list_items};

/// Upgrades that are not forwarded, because the new protocol carries requests that rules and policies would not see:
/// HTTP in any version, and TLS, which may carry HTTP. Clients must open a connection with these protocols directly.
const REFUSED_UPGRADES: [&[u8]; 5] = [b"h2c", b"h2", b"http", b"tls", b"shttp"];

/// The value of a request's Upgrade header, if the upgrade may be forwarded: there is one Upgrade header, it is
/// valid, and none of its protocols is in [`REFUSED_UPGRADES`].
pub(crate) fn wants_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let protocol = protocols.next()?;
    if protocols.next().is_some() || !headers.get_all(header::CONNECTION).iter().any(|it| has_token(it, "upgrade")) {
        return None;
    }
    list_items(protocol).all(is_upgrade_allowed).then(|| protocol.clone())
}

/// Whether the protocols that a server switches to were all requested by the client.
pub(crate) fn is_requested(requested: &HeaderValue, accepted: &HeaderValue) -> bool {
    list_items(accepted).all(|protocol| list_items(requested).any(|other| other.eq_ignore_ascii_case(protocol)))
}

/// Whether an item of an Upgrade header is `name` or `name/version`, and not one of [`REFUSED_UPGRADES`].
fn is_upgrade_allowed(protocol: &[u8]) -> bool {
    let mut parts = protocol.split(|byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    is_token(name)
        && parts.next().is_none_or(is_token)
        && parts.next().is_none()
        && !REFUSED_UPGRADES.iter().any(|refused| name.eq_ignore_ascii_case(refused))
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

    #[test]
    fn upgrades_to_http_and_tls_are_not_forwarded() {
        let upgrade = |connection, protocol| {
            let request = request("GET", "/", &[("host", "a"), ("connection", connection), ("upgrade", protocol)]);
            wants_upgrade(request.version(), request.headers()).is_some()
        };
        assert!(upgrade("Upgrade", "websocket"));
        assert!(upgrade("keep-alive, upgrade", "websocket"));
        assert!(!upgrade("keep-alive", "websocket"), "Connection does not name Upgrade");
        for protocol in ["h2c", "H2C", "websocket, h2c", "h2", "HTTP/2.0", "TLS/1.0", "a/b/c", "a b", "a;b", "/1"] {
            assert!(!upgrade("Upgrade, HTTP2-Settings", protocol), "{protocol}");
        }
        assert!(upgrade("Upgrade", "websocket, other/1.2,"));
        let mut bytes = request("GET", "/", &[("host", "a"), ("connection", "upgrade")]);
        for value in [&b"h2c, \xff"[..], b"websocket, \xff", b"\xff"] {
            bytes.headers_mut().insert(header::UPGRADE, HeaderValue::from_bytes(value).expect("a value"));
            assert_eq!(wants_upgrade(bytes.version(), bytes.headers()), None, "{value:?}");
        }
        let of = |text: &'static str| HeaderValue::from_static(text);
        assert!(is_requested(&of("a, websocket"), &of("WebSocket")));
        assert!(!is_requested(&of("websocket"), &of("websocket, h2c")));
    }
}
