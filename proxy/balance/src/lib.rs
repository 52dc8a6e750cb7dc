//! Load balancing: which endpoint gets the next request, which one is ejected, and how much may be retried.
//!
//! ```text
//! Members, Settings, health ── rebuild ──> Candidates ── pick(Request, EndpointView of each) ──> position
//! Outcome ── record ──> OutlierStats ── try_eject ──> candidates are rebuilt
//! Budget: the retries of a Service, shared by all workers
//! ```
//!
//! Pure: time, random numbers and the state of endpoints are passed in. An endpoint is a position in the caller's
//! list, a hash key or a session is a number. The crate knows no connection, table, worker, metric or HTTP message;
//! of the configuration it knows the settings that it compiles. The proxy owns the endpoints, says which are healthy,
//! and connects to the one that was picked.

mod budget;
mod candidates;
mod endpoint;
mod ewma;
pub mod hash;
pub mod outlier;
mod pick;
mod priority;
mod rng;
mod slow_start;

pub use budget::Budget;
pub use candidates::{Candidates, Members, Settings};
pub use endpoint::EndpointView;
pub use ewma::PeakEwma;
pub use pick::Request;
pub use rng::Rng;
pub use slow_start::SlowStart;
