//! HTTP/2 (RFC 9113), for both sides of a connection.
//!
//! - `connection`: reads and writes frames.
//! - `state`: the state of a connection: what each frame does, and the streams.
//! - `half`: the handles of a stream and of a client connection, for the tasks that use them.
//! - `stream`: the state of one stream.
//! - `head`: header blocks to message heads, and back.
//! - [`frame`]: the layout of frames.
//! - `flow`: flow control windows.
//! - `output`: the write buffer.
//! - `error`: why a stream or a connection ended early.
//! - `limits`: limits on what the peer may send.
//! - `properties`: what holds for whatever a client sends.
//!
//! One task reads and writes a connection. Request handlers hold the handles of streams on the same thread: what they
//! send is encoded at once into the write buffer, and the connection's task writes it, with what others have sent,
//! when it next runs.

mod connection;
mod error;
mod flow;
pub mod frame;
mod half;
mod head;
mod limits;
mod output;
#[cfg(any(test, fuzzing))]
mod properties;
mod state;
mod stream;

pub use connection::{Accepted, Connection};
pub use error::{Error, Reason};
pub use half::{RecvStream, Requests, SendStream};
pub use limits::{Limits, TooLarge};
#[cfg(any(test, fuzzing))]
pub use properties::check_properties;
pub use stream::CountStreams;
