//! The certificate authority with an API server: three replicas, of which one is the leader, and their servers.

mod api;
mod fixture;
mod flood;
mod installation;
mod reload;
mod requests;
