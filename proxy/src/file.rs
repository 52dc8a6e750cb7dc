//! Files that are read again when they have changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How often files are checked for changes.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// Identifies the version of a file without reading it. None: there is no file.
pub(crate) fn version(path: &Path) -> Option<(u64, u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}
