//! h2spec, the conformance tests of HTTP/2 servers, through the proxy in both directions.

use std::path::Path;
use std::process::Command;

use super::frames::Http2App;
use super::place::{BOTH, Place, alone, is_alone};

/// How many cases this h2spec has, and how many of them it skips by itself.
const CASES: usize = 145;

fn h2spec(arguments: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/h2spec.sh");
    let output = Command::new(script).args(arguments).output().expect("the script can be run");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

#[test]
fn all_cases() {
    if !is_alone() {
        // Built here if need be, where there is a network.
        let (built, said) = h2spec(&["--version"]);
        assert!(built, "{said}");
    }
    alone(module_path!(), "all_cases", || {
        let _app = Http2App::start();
        let _place = Place::start();
        for direction in BOTH {
            let address = direction.address_h2();
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let (passed, said) = h2spec(&["--host", &host, "--port", &port, "--path", "/x", "--timeout", "3"]);
            let summary = said.lines().rev().find(|line| line.contains("tests,")).unwrap_or_default().to_owned();
            eprintln!("{direction:?}: {summary}");
            assert!(passed && summary.starts_with(&format!("{CASES} tests, {CASES} passed")), "{direction:?}: {said}");
        }
    });
}
