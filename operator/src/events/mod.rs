//! Kubernetes Events: what `kubectl describe` and `kubectl events` show about an object.
//!
//! ```text
//! conditions before and after a write ──condition──┐
//! definitions of the Gateway API ─────definition──┤
//! pods of a namespace, reported ones ──pod────────┴──> Events ──Recorder (bounded, limited)──> API server
//! ```
//!
//! [`condition`], [`definition`] and [`pod`] decide which Events there are, and `budget` how many; all of these are pure. [`Recorder`]
//! writes them, in a task of its own: a slow API server delays no reconciliation.

mod budget;
pub mod condition;
pub mod definition;
mod event;
pub mod pod;
mod recorder;

pub use event::{Event, Object, Severity};
pub use recorder::Recorder;
