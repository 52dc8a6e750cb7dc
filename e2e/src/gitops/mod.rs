//! GitOps on the cluster of e2e/gitops.sh: a Git repository, and Argo CD and Flux, which sync it.

pub mod argo;
pub mod flux;
pub mod repository;
pub mod results;

pub use argo::Argo;
pub use flux::Flux;
pub use repository::Repository;
pub use results::Results;
