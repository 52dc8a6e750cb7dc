//! GitOps on the cluster of e2e/gitops.sh: a Git repository, and Argo CD, which syncs it.

pub mod argo;
pub mod repository;
pub mod results;

pub use argo::Argo;
pub use repository::Repository;
pub use results::Results;
