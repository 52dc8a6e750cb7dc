//! The operator: compiles MeshRoutes, MeshClusters, MeshPolicies, the Mesh, Services, EndpointSlices and pods to the documents
//! that proxies read.
//!
//! ```text
//! watch ──events──> reconcile ──> World ──> compile ──> render ──> apply   (weft-config/x.<ns>, weft-inbound/i.<ns>)
//!                       │                      └─ diagnostics ─> status ──> apply   (conditions of the users' objects)
//!                       │                         └─ events ─> Recorder   (Kubernetes Events)
//!                       └── lease: the leader writes, the standbys keep their World up to date
//! ```
//!
//! The unit of work is a namespace (a *scope*), since one scope has two documents; any change to an object of the
//! namespace marks the scope dirty. Watches only send events; one loop owns the [`world::World`] and all later steps.
//! [`world`], [`compile`], [`render`] and [`status`] are pure: no client, no clock, no randomness.
//!
//! Beside that loop, [`webhook`] maintains the injector's certificate and the webhook's `caBundle`, and [`identity`] is
//! the certificate authority of the mesh. [`callers`] asks the pods' proxies who calls them in plaintext.

pub mod app;
pub mod apply;
pub mod callers;
pub mod compile;
pub mod events;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod reconcile;
pub mod render;
pub mod signing;
pub mod status;
pub mod watch;
pub mod webhook;
pub mod world;
