//! Readiness of the process: ready when every registered part is, with a reason for each that is not.
//!
//! [`Readiness::part`] registers a part, which reports its state through the returned [`Part`]. A part that is ready
//! may add a detail for people to see (a rejected document, say).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The state of all parts. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, State>>>,
}

/// Handle by which one part reports its state.
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
    /// Registers a part; the process is not ready until the part is.
    pub fn part(&self, name: &str) -> Part {
        let part = Part { readiness: self.clone(), name: name.to_owned() };
        part.report(false, "starting");
        part
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|state| state.ready)
    }

    /// A line for each part: name, `ready` or `waiting`, and its detail.
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
        // A panic while holding this lock leaves the map intact: every critical section is one insertion or one read.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Part ===

impl Part {
    /// Reports ready.
    pub fn ready(&self) {
        self.report(true, "");
    }

    /// Reports a state, with a detail for people.
    pub fn report(&self, ready: bool, detail: &str) {
        self.readiness.lock().insert(self.name.clone(), State { ready, detail: detail.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_ready_when_every_part_is() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready(), "no part is registered");
        let (config, certificate) = (readiness.part("config"), readiness.part("certificate"));
        config.ready();
        assert!(!readiness.is_ready(), "certificate is not ready");
        certificate.report(true, "expires tomorrow");
        assert!(readiness.is_ready());
        assert_eq!(readiness.detail(), "certificate: ready: expires tomorrow\nconfig: ready\n");
        config.report(false, "gone");
        assert_eq!(readiness.detail(), "certificate: ready: expires tomorrow\nconfig: waiting: gone\n");
    }
}
