//! How many Events there may be about one object. Pure; the time is a parameter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Maximum Events about one object in a window.
const OBJECT_MAX: u32 = 10;
/// Length of a window. Its end forgets all objects, which also bounds the memory.
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// Events of the current window, by the UID of their object.
pub(super) struct Budget {
    since: Instant,
    spent: HashMap<String, u32>,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, spent: HashMap::new() }
    }

    /// Counts an Event about an object; false: there were too many already.
    pub(super) fn spend(&mut self, uid: &str, now: Instant) -> bool {
        if now.duration_since(self.since) >= WINDOW {
            *self = Self::new(now);
        }
        let spent = self.spent.entry(uid.to_owned()).or_default();
        *spent += 1;
        *spent <= OBJECT_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_about_one_object_are_limited_in_each_window() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..100).filter(|_| budget.spend("a", start)).count();
        assert_eq!(allowed, 10);
        assert!(budget.spend("b", start), "each object has its own");
        assert!(budget.spend("a", start + WINDOW), "the next window");
    }
}
