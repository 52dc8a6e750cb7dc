//! The issuer as files of a directory, in the layout of its Secret: for a key that must not be in a Secret, but is mounted
//! by a CSI driver or written by an agent beside the operator.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::secret::FIELDS;

/// Interval of reads. A change counts once two reads in a row have found it, because a writer without Kubernetes' link
/// writes one file after another.
const POLL: Duration = Duration::from_millis(250);
/// The link that Kubernetes swaps, so that all files of a volume change at once.
const LINK: &str = "..data";
/// Maximum size of a file in bytes: that of a Secret.
const BYTES_MAX: u64 = 1 << 20;

/// Follows a directory until `stop`. The result is `None` until it was read; `changed` gets a signal with each change.
pub fn follow(
    directory: PathBuf,
    changed: mpsc::Sender<()>,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> watch::Receiver<Option<Secret>> {
    let (sender, receiver) = watch::channel(None);
    let poll = async move {
        let mut before = None;
        loop {
            let directory = directory.clone();
            // Not on the threads of the runtime: a volume may be slow. Its only error is a panic.
            let Ok(now) = tokio::task::spawn_blocking(move || Some(read(&directory))).await else { return };
            let is_settled = now == before;
            if is_settled && sender.send_if_modified(|sent| std::mem::replace(sent, now.clone()) != now) {
                // If the channel is full, a signal is pending already.
                let _ = changed.try_send(());
            }
            before = now;
            tokio::time::sleep(POLL).await;
        }
    };
    tasks.spawn(async move {
        tokio::select! { () = poll => {}, () = stop.cancelled() => {} }
    });
    receiver
}

/// The files as the data of a Secret; those that cannot be read are missing.
fn read(directory: &Path) -> Secret {
    // Resolved once, so that all files are of the same version.
    let version = fs::canonicalize(directory.join(LINK)).unwrap_or_else(|_| directory.to_owned());
    let mut data = BTreeMap::new();
    for name in FIELDS {
        match read_file(&version.join(name)) {
            Ok(bytes) => drop(data.insert(name.to_owned(), ByteString(bytes))),
            Err(error) => tracing::debug!(directory = %directory.display(), file = name, %error, "cannot read a file"),
        }
    }
    Secret { data: Some(data), ..Secret::default() }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
