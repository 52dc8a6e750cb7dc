//! Readiness: ready when every part that was promised is, with a reason for each that is not.
//!
//! A part is promised by [`Readiness::part`] and reports through the [`Part`] it gets. A part may also add notes that do
//! not make the process unready but that a person should see (a refused document, say).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The state of all parts. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, State>>>,
}

/// One part's way to report.
#[derive(Clone, Debug)]
pub struct Part {
    readiness: Readiness,
    name: String,
}

#[derive(Clone, Debug, Default)]
struct State {
    ready: bool,
    detail: String,
}

// === impl Readiness ===

impl Readiness {
    /// Promises a part; the process is not ready before it is.
    pub fn part(&self, name: &str) -> Part {
        let part = Part { readiness: self.clone(), name: name.to_owned() };
        part.report(false, "starting");
        part
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|state| state.ready)
    }

    /// A line for each part: name, `ready` or `waiting`, and what it says.
    pub fn detail(&self) -> String {
        self.lock()
            .iter()
            .map(|(name, State { ready, detail })| {
                let word = if *ready { "ready" } else { "waiting" };
                if detail.is_empty() { format!("{name}: {word}\n") } else { format!("{name}: {word}: {detail}\n") }
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, State>> {
        // A panic while holding this lock leaves a whole map behind: every critical section is one insertion or read.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Part ===

impl Part {
    /// Reports ready.
    pub fn ready(&self) {
        self.report(true, "");
    }

    /// Reports a state, with what a person should know about it.
    pub fn report(&self, ready: bool, detail: &str) {
        self.readiness.lock().insert(self.name.clone(), State { ready, detail: detail.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_is() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready(), "nothing was promised");
        let (config, certificate) = (readiness.part("config"), readiness.part("certificate"));
        config.ready();
        assert!(!readiness.is_ready(), "one is missing");
        certificate.report(true, "expires tomorrow");
        assert!(readiness.is_ready());
        assert_eq!(readiness.detail(), "certificate: ready: expires tomorrow\nconfig: ready\n");
        config.report(false, "gone");
        assert_eq!(readiness.detail(), "certificate: ready: expires tomorrow\nconfig: waiting: gone\n");
    }
}
