//! The operator: compiles what users wrote and what the cluster is into what proxies read.
//!
//! ```text
//! watch ──events──> reconcile ──> World ──> compile ──> render ──> apply   (weft-config/x.<ns>, weft-inbound/i.<ns>)
//!                       │                      └─ diagnostics ─> status ──> apply   (conditions on the users' objects)
//!                       └── lease: one process writes, the others keep their World warm
//! ```
//!
//! The unit of work is a namespace (a *scope*), because its two documents are what is written; which objects made it
//! dirty does not matter. Watches only send events; one loop owns the [`world::World`] and everything that follows.
//! [`world`], [`compile`], [`render`] and [`status`] are pure: no client, no clock, no randomness.
//!
//! Beside that loop runs [`webhook`], which keeps the injector's certificate and the webhook's `caBundle` in order.

pub mod app;
pub mod apply;
pub mod compile;
pub mod lease;
pub mod metrics;
pub mod reconcile;
pub mod render;
pub mod status;
pub mod watch;
pub mod webhook;
pub mod world;
