//! Process plumbing that every Weft binary shares.
//!
//! - [`log`]: log output, format, and a filter that can be changed at run time.
//! - [`signal`]: the first SIGTERM or SIGINT starts a graceful shutdown (drain), the second ends the process.
//! - [`readiness`]: ready when every registered part is ready, with a reason for each that is not.
//! - [`admin`]: HTTP server for `/livez`, `/readyz`, `/metrics`, `/log-level`.
//! - [`connections`]: what one address may hold of it.
//! - [`metrics`]: version and process metrics.
//! - [`reference`]: the pages of docs/reference, which tests generate.
//! - [`watch`]: backoff of a Kubernetes watch that failed.

pub mod admin;
pub mod connections;
pub mod log;
pub mod metrics;
pub mod readiness;
pub mod reference;
pub mod signal;
pub mod watch;
