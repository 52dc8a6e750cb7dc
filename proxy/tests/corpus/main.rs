//! Hostile input, thrown at the real proxy process in both directions, with an application behind it that writes down
//! every request and takes nothing that is not strictly HTTP.
//!
//! Each test has a network namespace of its own, where iptables redirects as it does in a pod: what is sent to the
//! Service's address arrives at the proxy's outbound port, what is sent to the pod's at the inbound one. Needs root,
//! `unshare`, `ip` and iptables, and fails where they are missing.
//!
//! ```text
//!   raw client ── 198.19.0.1:80 ──> outbound ──┐
//!              └─ 198.18.0.2:8080 ─> inbound ──┴──> application at 198.18.0.2:8080
//! ```
//!
//! | module | is about |
//! |---|---|
//! | `framing` | where a request of HTTP/1.1 ends, and what is a request at all |
//! | `meaning` | paths, hosts, methods and headers that a policy could take for something else than the application does |
//! | `responses` | what applications answer: doubtful framing, resets at each point, answers that come too early |
//! | `early` | responses that come before their request is complete, over both versions, and what becomes of the rest of it |
//! | `interim` | responses of status 1xx, and `Expect: 100-continue` |
//! | `halves` | peers that close their sending half and read on |
//! | `http2` | frames that a well-behaved client would not send, and floods of those that it would |
//! | `bounds` | what applications and clients may do too much of, or take too long for (docs/bounds.md) |
//! | `h2spec` | the conformance tests of that name |
//! | `resources` | slow clients, many clients, no file descriptors left, and the memory that all this takes |
//! | `grpc` | calls and streams through two proxies |
//! | `swaps` | requests while the configuration changes all the time |
//!
//! At the end of each test the proxy must hold what it held at its beginning (`place::Held`): no request, stream, task,
//! connection or descriptor outlives the clients of a test.
//!
//! Left out, and why:
//!
//! - What needs identities (certificates of clients, peers in policies): the proxy has none yet. TLS that it terminates has
//!   its tests in `proxy/tests/tls.rs`: it is not for pods yet.
//! - What is of the operator, the webhook or the redirection: they have tests of their own.
//! - Headers that proxies add and trust (`x-forwarded-*` and their kin): this proxy reads none and adds none.
//! - Bodies in policies, globs, and names inside expressions: policies have none of them. Fields that an old proxy does
//!   not know: `proxy/config` refuses them, and tests that.
//! - gzip and its bombs: the proxy unpacks nothing but its own configuration, which `proxy/config` tests.
//! - Letter case in paths: most applications tell it apart. The readings that policies know are in `docs/policy.md`.

mod app;
mod bounds;
mod client;
mod early;
mod frames;
mod framing;
mod grpc;
mod h2spec;
mod halves;
mod http2;
mod interim;
mod meaning;
mod place;
mod resources;
mod responses;
mod swaps;
