//! Load balancing: which endpoint gets the next request, which one is ejected, and how much may be retried.
//!
//! Everything here is pure: time, random numbers and the state of endpoints are passed in. The crate knows no
//! connection, worker, metric or HTTP message. An endpoint is a position in the caller's list, a hash key or a session
//! is a number.

mod budget;
mod ewma;
pub mod hash;
pub mod outlier;
pub mod priority;
mod rng;
mod slow_start;

pub use budget::Budget;
pub use ewma::PeakEwma;
pub use rng::{Rng, pick_two};
pub use slow_start::SlowStart;
