//! Telemetry: metrics, and the access log with one event for each request or TCP connection.

pub(crate) mod access;
pub(crate) mod alive;
pub(crate) mod config;
pub(crate) mod handles;
pub(crate) mod identity;
mod labels;
pub(crate) mod metrics;
#[cfg(test)]
mod reference;
mod series;
pub(crate) mod sweep;

pub(crate) use labels::RpcStatus;
