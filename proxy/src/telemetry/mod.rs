//! What the proxy says about itself: metrics, and one access event for each request or connection.

pub(crate) mod access;
pub(crate) mod alive;
pub(crate) mod metrics;
