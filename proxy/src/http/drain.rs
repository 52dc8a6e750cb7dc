//! The rest of a response that no client gets: of an attempt that is retried, or of a copied request.

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;

use super::incoming::Incoming;

/// Bytes of an unused response that are read for its connection to be reused. After more, the connection is closed:
/// reading on would take longer than opening another. The same as for the unread rest of a request body.
const BYTES_MAX: usize = 64 * 1024;

/// Reads and discards a body. True: it has ended, and its connection can be reused.
pub(super) async fn drain(body: &mut Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BYTES_MAX {
            return false;
        }
    }
    body.is_end_stream()
}
