//! Telemetry: metrics, and the access log with one event for each request or TCP connection.

pub(crate) mod access;
pub(crate) mod alive;
pub(crate) mod metrics;
