//! Shutdown signals. The first signal starts a graceful shutdown (drain); the second ends the process immediately, so
//! that a person at a terminal never has to wait.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: that of a shell for SIGINT (128 + 2).
const ABORTED: i32 = 130;

/// Returns a token that is cancelled on the first SIGTERM or SIGINT. Must be called inside a tokio runtime that lives as
/// long as the process.
pub fn drain() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let drain = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("draining");
        drain.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("second signal, exiting without drain");
        std::process::exit(ABORTED);
    });
    Ok(token)
}
