//! Logging: one line for each event, JSON or text, with a filter that can be changed while running.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Why logging could not be set up, or the filter not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("{filter:?} is not a log filter (example: \"info,weft_proxy=debug\"): {source}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The form is not one.
    #[error("{0:?} is not a log format: use \"json\" or \"text\"")]
    Format(String),
    /// A subscriber was there before.
    #[error("logging is set up already")]
    Twice,
}

/// Changes the filter while running.
#[derive(Clone)]
pub struct Filter {
    handle: Arc<reload::Handle<EnvFilter, Registry>>,
}

/// Sends events that pass `filter` to standard output, as `json` or `text`.
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
    /// Takes another filter from now on.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        // The subscriber lives as long as the process, so the handle is never dangling.
        let _ = self.handle.reload(parse(filter)?);
        Ok(())
    }
}
