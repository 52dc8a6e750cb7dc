//! The difference between two pods as a JSON Patch.

use json_patch::Patch;
use serde_json::Value;

/// The patch from `original` to `mutated`. Both are whole JSON objects: applied to the object that the API server
/// sent, the patch gives exactly `mutated`.
pub fn diff(original: &Value, mutated: &Value) -> Patch {
    json_patch::diff(original, mutated)
}
