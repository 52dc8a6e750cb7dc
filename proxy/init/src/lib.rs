//! Redirects a pod's TCP traffic to Weft's proxy with iptables.
//!
//! [`rules`] is pure: the configuration and the present rules go in, a script for `iptables-restore` comes out, and the
//! output of `iptables-save` afterwards is compared with it. [`apply`] runs the commands. Neither knows Kubernetes; the
//! injector sets the arguments.
//!
//! ```text
//!   application ──► OUTPUT ──► WEFT_OUTPUT ──► proxy (outbound port)   not redirected: proxy's own, loopback, excluded
//!   peer ──► PREROUTING ──► WEFT_INBOUND ──► proxy (inbound port)      not redirected: metrics, health, excluded
//! ```

pub mod apply;
pub mod rules;
