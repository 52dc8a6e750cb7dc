//! Copies of documents on disk, so that a proxy can start while the API server cannot be reached.

use std::io;
use std::path::{Path, PathBuf};

use weft_config::Envelope;

use super::source::Document;

/// The copy of a document, if there is a valid one.
pub(super) fn read(folder: &Path, document: &Document) -> Option<Envelope> {
    serde_json::from_slice(&std::fs::read(path(folder, document)).ok()?).ok()
}

/// Writes to a temporary file and renames it, so that a copy is never incomplete.
pub(super) fn write(folder: &Path, document: &Document, envelope: &Envelope) -> io::Result<()> {
    let path = path(folder, document);
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(envelope)?)?;
    std::fs::rename(temporary, path)
}

/// Removes the copy of a document, if there is one.
pub(super) fn remove(folder: &Path, document: &Document) {
    // What is left is replaced when the document is opened again.
    let _ = std::fs::remove_file(path(folder, document));
}

fn path(folder: &Path, document: &Document) -> PathBuf {
    folder.join(format!("{document}.json"))
}
