//! The error of bodies, in both directions.

/// Why reading a body failed.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
