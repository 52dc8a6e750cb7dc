//! Who calls a pod in plaintext: what its proxy answers at [`CALLERS_PATH`](crate::bootstrap::CALLERS_PATH).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Clients whose plaintext a proxy has accepted in the last 10 minutes because the mode of mutual TLS is Permissive. If it
/// were Strict, they would be refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaintextCallers {
    /// Sorted by address and port.
    pub callers: Vec<PlaintextCaller>,
    /// There were more than the proxy can remember.
    pub truncated: bool,
}

/// A client, at one port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaintextCaller {
    /// Address of the client.
    pub address: IpAddr,
    /// Port of the pod.
    pub port: u16,
    /// Connections since it was first seen.
    pub connections: u64,
    /// Connections that are open.
    pub open: u32,
    /// Seconds since a connection of it was last opened or closed; 0 while one is open.
    pub seconds_ago: u64,
}
