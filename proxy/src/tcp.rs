//! Bytes both ways, each direction closed as its sender closes it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Bytes read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// How long a connection of bytes may go on after the process was asked to stop: nothing can tell it to finish.
const DRAIN: Duration = Duration::from_secs(5);

/// Copies until both directions are closed. Gives back the bytes of each, first to second and second to first.
pub(crate) async fn copy<A, B>(first: &mut A, second: &mut B, drain: &CancellationToken) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let drained = async {
        drain.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(first, second, BUFFER, BUFFER) => copied,
        () = drained => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}
