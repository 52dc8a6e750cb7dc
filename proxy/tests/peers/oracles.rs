//! h11 and hyper-h2, independent implementations, check every message that the proxy forwards.

use super::place::{APP, APP_H2, BOTH, Direction, Proxy, in_namespace, is_in_namespace};
use super::programs::{built, run, source};

const SEED: &str = "9112";

/// Runs an oracle outbound and inbound. Its program is both the client and the application.
fn check(test: &str, program: &str, address: impl Fn(Direction) -> std::net::SocketAddr, listen: u16, count: u32) {
    if !is_in_namespace() {
        // The test's namespace has no network.
        built("python");
    }
    in_namespace(module_path!(), test, || {
        let _proxy = Proxy::start();
        for direction in BOTH {
            let (address, count, listen) = (address(direction).to_string(), count.to_string(), listen.to_string());
            let (passed, output) = run(&[built("python"), source(program), SEED.to_owned(), count, address, listen]);
            eprintln!("{direction:?}: {output}");
            assert!(passed, "{direction:?}: {output}");
        }
    });
}

#[test]
fn h11_parses_every_forwarded_message_identically() {
    check("h11_parses_every_forwarded_message_identically", "h11_oracle.py", Direction::address, APP, 600);
}

#[test]
fn hyper_h2_accepts_every_forwarded_stream() {
    check("hyper_h2_accepts_every_forwarded_stream", "h2_oracle.py", Direction::address_h2, APP_H2, 800);
}
