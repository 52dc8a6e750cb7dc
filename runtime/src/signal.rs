//! Being asked to stop. The first signal starts a drain; the second ends the process at once, so that a person at a
//! terminal is never made to wait.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second signal, as a shell gives it for SIGINT.
const ABORTED: i32 = 130;

/// A token that is cancelled on the first SIGTERM or SIGINT. Must be called inside a tokio runtime that lives as long as
/// the process.
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
        tracing::warn!("second signal, ending at once");
        std::process::exit(ABORTED);
    });
    Ok(token)
}
