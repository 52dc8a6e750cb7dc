//! What every Weft process needs around its work, and nothing about the work itself.
//!
//! - [`log`]: where log lines go, in which form, and how the filter is changed while running.
//! - [`signal`]: the first SIGTERM or SIGINT asks for a drain, the second ends the process.
//! - [`readiness`]: ready when every part that was promised has reported, with a reason for each that has not.
//! - [`admin`]: `/livez`, `/readyz`, `/metrics`, `/log-level`.
//! - [`watch`]: how soon a watch that broke is taken up again.

pub mod admin;
pub mod log;
pub mod readiness;
pub mod signal;
pub mod watch;
