//! Hostile input for the real proxy process, outbound and inbound. The application behind it records every request and
//! accepts nothing but strict HTTP.
//!
//! Each test runs in its own network namespace, with the iptables rules of a pod: connections to the Service's
//! address are redirected to the proxy's outbound port, connections to the pod's address to its inbound port. Needs
//! root, `unshare`, `ip` and iptables, and fails where they are missing.
//!
//! ```text
//!   raw client ── 198.19.0.1:80 ──> outbound ──┐
//!              └─ 198.18.0.2:8080 ─> inbound ──┴──> application at 198.18.0.2:8080
//! ```
//!
//! | module | tests |
//! |---|---|
//! | `framing` | HTTP/1.1 requests: message length, request smuggling, malformed heads, detection, upgrades |
//! | `meaning` | paths, hosts, methods and headers that a policy and an application could read differently |
//! | `responses` | HTTP/1.1 responses: ambiguous framing, disconnects at each point, early responses |
//! | `early` | responses that come before the request is complete, over both versions, and the rest of that request |
//! | `interim` | 1xx responses and `Expect: 100-continue` |
//! | `halves` | peers that half-close: they shut down their sending side and go on reading |
//! | `http2` | HTTP/2: malformed heads and frames, and floods |
//! | `bounds` | limits and timeouts of applications and clients (docs/bounds.md) |
//! | `h2spec` | h2spec, the HTTP/2 conformance tests |
//! | `resources` | slow clients, many clients, exhausted file descriptors, memory |
//! | `grpc` | gRPC calls and streams through two proxies |
//! | `swaps` | requests while the configuration changes |
//!
//! `place` has the namespace and the proxy process, `client` and `app` speak HTTP/1.1, `frames` speaks HTTP/2: valid
//! frames are laid out by `weft_codec`, malformed bytes by hand. After each test the proxy must hold what it held when
//! it started (`place::Resources`): no request, stream, task, connection or descriptor outlives the clients of the test.
//!
//! The proxy's HTTP/1.1, HTTP/2 and HPACK codecs are its own (ADR 002), so their behavior is tested here too. The
//! `h2` crate is only a peer, in `frames`, `http2` and `grpc`.
//!
//! Not tested here, and why:
//!
//! - Identities: mutual TLS between two proxies is tested in `proxy/tests/mtls.rs`, certificates in `proxy/identity`; policies
//!   know no callers yet. TLS termination outside of a pod is tested in `proxy/tests/tls.rs`.
//! - The operator, the webhook and the redirection: they have their own tests.
//! - Headers that proxies add and trust (`x-forwarded-*` and the like): this proxy reads none of them, and adds only
//!   `x-forwarded-client-cert` (`proxy/tests/mtls.rs`).
//! - Bodies, globs and names inside expressions in policies: policies have none of them. Fields that an older proxy
//!   does not know: `proxy/config` refuses them and tests that.
//! - Compression bombs: the proxy decompresses only its own configuration, which `proxy/config` tests.
//! - Letter case in paths: most applications distinguish it. `docs/policy.md` lists the readings that policies
//!   consider.

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
