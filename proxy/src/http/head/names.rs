//! Sets of header names.

use std::borrow::Cow;
use std::collections::HashSet;

use http::header::HeaderName;

/// A set of header names. Names that differ only in `-` and `_` are equal: applications behind CGI, WSGI and the like
/// cannot tell them apart.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<HeaderName>);

/// Headers that routes and policies match, and those that rules set or remove. A peer can neither remove them by naming
/// them in `Connection` nor send them as trailers.
#[derive(Debug, Default)]
pub(crate) struct ProtectedHeaders {
    pub(crate) request: Option<Names>,
    pub(crate) response: Option<Names>,
}

/// A name with each `_` replaced by `-`.
pub(super) fn with_hyphens(name: &str) -> Cow<'_, str> {
    if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) }
}

/// Whether applications behind CGI, WSGI and the like cannot tell two names apart.
pub(crate) fn is_same_name(one: &HeaderName, other: &HeaderName) -> bool {
    let alike = |(one, other): (u8, u8)| one == other || (matches!(one, b'-' | b'_') && matches!(other, b'-' | b'_'));
    one.as_str().len() == other.as_str().len() && one.as_str().bytes().zip(other.as_str().bytes()).all(alike)
}

// === impl Names ===

impl Names {
    /// A set of these names. None: it would be empty.
    pub(crate) fn of<'a>(names: impl IntoIterator<Item = &'a HeaderName>) -> Option<Self> {
        let names: HashSet<HeaderName> = names.into_iter().map(Self::normalized).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    pub(crate) fn contains(&self, name: &HeaderName) -> bool {
        if name.as_str().contains('_') { self.0.contains(&Self::normalized(name)) } else { self.0.contains(name) }
    }

    fn normalized(name: &HeaderName) -> HeaderName {
        HeaderName::from_bytes(with_hyphens(name.as_str()).as_bytes()).unwrap_or_else(|_| name.clone())
    }
}
