//! Sends a pod's TCP traffic to Weft's proxy.
//!
//! [`rules`] is pure: configuration and what is in force already go in, a script for `iptables-restore` comes out, and
//! what `iptables-save` prints afterwards is held against it. [`apply`] runs the commands. Neither knows anything of
//! Kubernetes; the injector writes the arguments.
//!
//! ```text
//!   application ──► OUTPUT ──► WEFT_OUTPUT ──► proxy (outbound port)     left alone: the proxy's own, loopback, excluded
//!   peer ──► PREROUTING ──► WEFT_INBOUND ──► proxy (inbound port)        left alone: metrics, health, excluded
//! ```

pub mod apply;
pub mod rules;
