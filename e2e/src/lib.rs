//! The harness of the real-cluster tests and the demo: drives a Kubernetes cluster as a user would.
//!
//! ```text
//! Cluster ── kubectl, helm (the real binaries, as subprocesses)
//!    └── install::ensure()      CRDs and control plane, by Helm, once for all tests
//!    └── Namespace              temporary: workloads, objects, conditions; logs are kept when its test fails
//!           └── traffic::Client a pod that sends requests from inside the mesh and reports the responses
//! ```
//!
//! The harness uses the Kubernetes API only through kubectl and helm, and no traffic leaves the cluster: a user could
//! type what a test does. A missing cluster fails a test; it never skips one.

pub mod browser;
pub mod cluster;
pub mod command;
pub mod conformance;
pub mod demo;
pub mod docs;
pub mod gateway_api;
pub mod gitops;
pub mod install;
pub mod kubectl;
pub mod mesh;
pub mod metrics;
pub mod mistakes;
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
