//! Edits of headers.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use weft_config as wire;

use crate::http::head::is_same_name;
use crate::value::{CompileError, parse_name, parse_value};

/// Header edits.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

// === impl Edit ===

impl Edit {
    pub(super) fn compile(edit: wire::HeaderEdit) -> Result<Self, CompileError> {
        let wire::HeaderEdit { remove, set, add } = edit;
        let pairs = |headers: Vec<wire::HeaderValue>| {
            headers
                .into_iter()
                .map(|wire::HeaderValue { name, value }| Ok((parse_name(&name)?, parse_value(&value)?)))
                .collect::<Result<Box<[_]>, CompileError>>()
        };
        Ok(Self {
            remove: remove.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?,
            set: pairs(set)?,
            add: pairs(add)?,
        })
    }

    /// The headers that the edits change.
    pub(super) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter().chain(self.set.iter().chain(&self.add).map(|(name, _)| name))
    }

    /// Applies the edits to a request. Other spellings of a removed or replaced name (`-` and `_`) are removed too.
    pub(crate) fn apply_to_request(&self, headers: &mut HeaderMap) {
        let removes = !self.remove.is_empty() || !self.set.is_empty();
        if removes && headers.keys().any(|name| name.as_str().contains('_')) {
            let gone = || self.remove.iter().chain(self.set.iter().map(|(name, _)| name));
            let respelled = |other: &&HeaderName| gone().any(|name| name != *other && is_same_name(name, other));
            while let Some(name) = headers.keys().find(respelled).cloned() {
                headers.remove(name);
            }
        }
        self.apply(headers);
    }

    /// Applies the edits: removes, then sets, then adds.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_remove_then_set_then_add() {
        let value = |name: &str, value: &str| wire::HeaderValue { name: name.into(), value: value.into() };
        let edit = Edit::compile(wire::HeaderEdit {
            remove: vec!["x-old".into(), "x-both".into()],
            set: vec![value("x-set", " new\t")],
            add: vec![value("x-both", "again"), value("x-add", "2")],
        })
        .expect("compiles");
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-old", "1"), ("x-both", "1"), ("x-set", "a"), ("x-set", "b"), ("x-add", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edit.apply(&mut headers);
        let of = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(of("x-old"), Vec::<&str>::new());
        assert_eq!(of("x-both"), ["again"]);
        assert_eq!(of("x-set"), ["new"]);
        assert_eq!(of("x-add"), ["1", "2"]);
    }
}
