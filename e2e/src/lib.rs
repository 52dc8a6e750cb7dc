//! The real-cluster harness: what tests and the demo use to drive a Kubernetes cluster as a user would.
//!
//! ```text
//! Cluster ── kubectl, helm (the real binaries, as subprocesses)
//!    └── install::ensure()      CRDs and control plane, by Helm, once for all tests
//!    └── Namespace              a temporary one: workloads, objects, conditions; logs are kept when its test fails
//!           └── traffic::Client a pod that sends requests from inside the mesh, and says what came back
//! ```
//!
//! Nothing here talks to the Kubernetes API by itself, and no traffic leaves the cluster: what a test does, a person could
//! type. A missing cluster fails a test; it never skips one.

pub mod browser;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod install;
pub mod kubectl;
pub mod mesh;
pub mod metrics;
pub mod namespace;
pub mod page;
pub mod progress;
pub mod table;
pub mod traffic;
pub mod wait;
pub mod workload;

pub use cluster::Cluster;
pub use namespace::Namespace;
pub use wait::eventually;
