//! Logging: one line per event, as JSON or text, with a filter that can be changed at run time.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Why logging could not be set up or the filter not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("{filter:?} is not a log filter (example: \"info,weft_proxy=debug\"): {source}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// The parse error.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The format is neither `json` nor `text`.
    #[error("{0:?} is not a log format: use \"json\" or \"text\"")]
    Format(String),
    /// A global subscriber is already set.
    #[error("logging is set up already")]
    Twice,
}

/// Handle to change the filter at run time.
#[derive(Clone)]
pub struct Filter {
    handle: Arc<reload::Handle<EnvFilter, Registry>>,
}

/// Writes events that pass `filter` to standard output, as `json` or `text`.
pub fn init(filter: &str, format: &str) -> Result<Filter, Error> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    match format {
        "json" => registry.with(fmt::layer().json().flatten_event(true)).try_init(),
        "text" => registry.with(fmt::layer()).try_init(),
        other => return Err(Error::Format(other.to_owned())),
    }
    .map_err(|_| Error::Twice)?;
    Ok(Filter { handle: Arc::new(handle) })
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

// === impl Filter ===

impl Filter {
    /// Replaces the filter.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        // The subscriber lives as long as the process, so the handle is never dangling.
        let _ = self.handle.reload(parse(filter)?);
        Ok(())
    }
}
