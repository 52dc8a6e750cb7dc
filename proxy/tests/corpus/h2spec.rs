//! h2spec, the conformance tests for HTTP/2 servers, through the proxy in both directions.

use std::path::Path;
use std::process::Command;

use super::frames::{END_HEADERS, END_STREAM, End, HEADERS, Http2App, Wire, frame, head};
use super::place::{BOTH, Proxy, in_namespace, is_in_namespace};

/// Test cases in this release of h2spec. Its newest version, which Go module proxies do not serve, has one more:
/// [`NEWER_CASE`].
const CASES: usize = 146;

/// A literal whose name index is 70, where the table has 61 entries (RFC 7541 2.3.3).
const NEWER_CASE: &[u8] = b"\x7f\x07\x00";

const COMPRESSION_ERROR: u32 = 9;

fn h2spec(arguments: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/h2spec.sh");
    let output = Command::new(script).args(arguments).output().expect("the script can be run");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[test]
fn h2spec_passes() {
    if !is_in_namespace() {
        // Builds h2spec if needed. The test's namespace has no network.
        let (built, output) = h2spec(&["--version"]);
        assert!(built, "{output}");
    }
    in_namespace(module_path!(), "h2spec_passes", || {
        let _app = Http2App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            let address = direction.address_h2();
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let (passed, output) =
                h2spec(&["--host", &host, "--port", &port, "--path", "/x", "--timeout", "3", "--strict"]);
            let summary = output.lines().rev().find(|line| line.contains("tests,")).unwrap_or_default().to_owned();
            eprintln!("{direction:?}: {summary}");
            assert!(
                passed && summary.starts_with(&format!("{CASES} tests, {CASES} passed")),
                "{direction:?}: {output}"
            );
            let mut wire = Wire::connect(address);
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&head("GET", "/x"), NEWER_CASE].concat()));
            assert_eq!(wire.end(1), End::GoAway(COMPRESSION_ERROR), "{direction:?}");
        }
    });
}
