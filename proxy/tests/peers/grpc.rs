//! grpc-go as client and server, with its default settings.

use std::net::TcpStream;
use std::thread;

use serde_json::json;

use super::place::{self, POD, Proxy, SERVICE, in_namespace, is_in_namespace, wait};
use super::programs::{built, run, server};

const PORT: u16 = 8120;

/// The portable interoperability tests of the gRPC project.
const CASES: &str = "empty_unary large_unary client_streaming server_streaming ping_pong empty_stream \
    timeout_on_sleeping_server cancel_after_begin cancel_after_first_response custom_metadata status_code_and_message \
    special_status_message unimplemented_method unimplemented_service";

/// Runs cases in both directions at once.
fn call(test: &str, cases: &'static str) {
    if !is_in_namespace() {
        // The test's namespace has no network.
        built("go");
    }
    in_namespace(module_path!(), test, || {
        let peer = built("go");
        let proxy = Proxy::start();
        let pod = place::ip(POD);
        proxy.export(&json!({"services": [{
            "name": "peers", "addresses": [place::ip(SERVICE)], "settings": {},
            "ports": [{"port": PORT, "protocol": "http2", "endpoints": [{"address": format!("{pod}:{PORT}")}]}]
        }]}));
        let _server = server(&[peer.clone(), "grpc-server".to_owned(), PORT.to_string()]);
        wait("the server", || TcpStream::connect(("127.0.0.1", PORT)).is_ok());
        let client = |address: String, cases: &str| {
            let mut words = vec![peer.clone(), "grpc-client".to_owned(), format!("{address}:{PORT}")];
            words.extend(cases.split_whitespace().map(str::to_owned));
            run(&words)
        };
        wait("the document is in use", || {
            // Until then connections are passed through as TCP, and reach the server too.
            client(place::ip(SERVICE), "empty_unary").0 && proxy.log().contains(&format!("shop/peers:{PORT}"))
        });
        thread::scope(|scope| {
            let outbound = scope.spawn(|| client(place::ip(SERVICE), cases));
            let (passed, output) = client(pod.clone(), cases);
            let (outbound_passed, outbound_output) = outbound.join().expect("the thread ends");
            assert!(passed && outbound_passed, "inbound:\n{output}\noutbound:\n{outbound_output}");
        });
    });
}

#[test]
fn grpc_go_interoperability_tests_pass() {
    call("grpc_go_interoperability_tests_pass", CASES);
}

/// grpc-go servers close a connection that sends PINGs more often than every 5 minutes without data.
#[test]
fn grpc_go_streams_survive_75_seconds_of_silence() {
    call("grpc_go_streams_survive_75_seconds_of_silence", "silent_stream");
}
