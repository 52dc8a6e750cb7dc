//! Routes of the Gateway API with a Service as parent. The official conformance suite compares statuses, headers and the
//! pod that answered; these tests also hold what it does not look at: the host and path that a pod sees, `Location`, the
//! status of routes, and fields that it has no test for.

mod grpc;
mod http;
mod invalid;
mod matches;
mod parents;
mod resilience;
mod status;
mod streams;
