//! The difference between two pods as a JSON Patch.

use json_patch::Patch;
use serde_json::Value;

/// What makes `mutated` out of `original`. Both are whole JSON objects, so the API server, which applies the patch to the
/// object it sent, gets exactly `mutated`.
pub fn diff(original: &Value, mutated: &Value) -> Patch {
    json_patch::diff(original, mutated)
}
