//! HTTP: one connection from downstream, its requests one by one, and what becomes of each.
//!
//! - [`serve`]: the server side of a connection, HTTP/1.1 or HTTP/2, drained when the process is.
//! - [`watch`]: what moves on that connection, and when it has lasted too long as it is.
//! - [`head`]: the duties of a proxy: one authority, one framing, no hop-by-hop header passed on.
//! - [`forward`]: attempts, timeouts, retries.
//! - [`hedge`]: attempts side by side, for rules that want them.
//! - [`requests`]: the requests of a connection of HTTP/1.1, one after the other.
//! - [`streams`]: those of a connection of HTTP/2, side by side.
//! - [`incoming`] and [`pipe`]: bodies as they come, and as they go into a stream of HTTP/2.
//! - [`upload`]: the rest of a request whose response came first.
//! - [`interim`]: responses before the response.
//! - [`respond`]: the one place where an answer of the proxy's own is made.
//! - [`body`]: bodies that can be sent again, and bodies that know when they are complete.
//! - [`kept`]: what is kept of a body to send it again.
//! - [`pace`]: how long a client may be waited for while it sends a body.
//! - [`upgrade`]: what was HTTP and is bytes from now on.
//! - [`tunnel`]: CONNECT, which is bytes from its head on.

pub(crate) mod body;
mod date;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod hedge;
pub(crate) mod incoming;
pub(crate) mod interim;
mod kept;
mod pace;
pub(crate) mod pipe;
pub(crate) mod requests;
pub(crate) mod respond;
pub(crate) mod serve;
mod streams;
pub(crate) mod tunnel;
pub(crate) mod upgrade;
pub(crate) mod upload;
pub(crate) mod watch;

/// HTTP/2 windows, on both sides, in bytes: what may be buffered for one slow stream, and for one connection.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
