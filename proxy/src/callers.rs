//! Who calls this pod in plaintext where the mode of mutual TLS is Permissive: whom Strict would refuse.
//!
//! One table for the pod. Only plaintext connections touch it, when they begin and when they end. Pure: the time is a
//! parameter.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use weft_config::{PlaintextCaller, PlaintextCallers};

/// Callers that are remembered. A new one replaces the one that was seen longest ago.
const CALLERS_MAX: usize = 256;

/// How long a caller is remembered after its last connection.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The callers of this pod.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<Table>);

/// An open connection of a caller.
#[derive(Debug)]
pub(crate) struct OpenCall {
    callers: Arc<Callers>,
    caller: Caller,
}

/// Address of the client and port of the pod.
type Caller = (IpAddr, u16);

#[derive(Debug, Default)]
struct Table {
    seen: HashMap<Caller, Seen>,
    /// When a caller was last replaced that would still be remembered.
    replaced_at: Option<Duration>,
}

#[derive(Debug, Default)]
struct Seen {
    connections: u64,
    open: u32,
    last: Duration,
}

// === impl Callers ===

impl Callers {
    /// Records a connection, which is open until [`OpenCall::end`].
    pub(crate) fn begin(self: &Arc<Self>, address: IpAddr, port: u16, now: Duration) -> OpenCall {
        let caller = (address, port);
        let mut table = self.lock();
        if table.seen.len() >= CALLERS_MAX && !table.seen.contains_key(&caller) {
            table.make_room(now);
        }
        let seen = table.seen.entry(caller).or_default();
        seen.connections += 1;
        seen.open += 1;
        seen.last = now;
        drop(table);
        OpenCall { callers: self.clone(), caller }
    }

    /// The callers at present.
    pub(crate) fn report(&self, now: Duration) -> PlaintextCallers {
        let mut table = self.lock();
        table.forget(now);
        let caller = |((address, port), seen): (&Caller, &Seen)| PlaintextCaller {
            address: *address,
            port: *port,
            connections: seen.connections,
            open: seen.open,
            seconds_ago: if seen.open > 0 { 0 } else { now.saturating_sub(seen.last).as_secs() },
        };
        let mut callers: Vec<_> = table.seen.iter().map(caller).collect();
        callers.sort_by_key(|caller| (caller.address, caller.port));
        PlaintextCallers { callers, truncated: table.replaced_at.is_some() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No critical section leaves the table half changed: it is usable after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OpenCall ===

impl OpenCall {
    /// The connection has ended.
    pub(crate) fn end(self, now: Duration) {
        // It may have been replaced meanwhile, and recorded anew for other connections.
        if let Some(seen) = self.callers.lock().seen.get_mut(&self.caller) {
            seen.open = seen.open.saturating_sub(1);
            seen.last = now;
        }
    }
}

// === impl Table ===

impl Table {
    /// Removes callers that were not seen for long.
    fn forget(&mut self, now: Duration) {
        let is_recent = |at: Duration| now.saturating_sub(at) < REMEMBERED;
        self.seen.retain(|_, seen| seen.open > 0 || is_recent(seen.last));
        self.replaced_at = self.replaced_at.filter(|at| is_recent(*at));
    }

    /// Removes at least one caller.
    fn make_room(&mut self, now: Duration) {
        self.forget(now);
        if self.seen.len() < CALLERS_MAX {
            return;
        }
        let oldest = self.seen.iter().min_by_key(|(_, seen)| (seen.open > 0, seen.last)).map(|(caller, _)| *caller);
        if let Some(oldest) = oldest {
            self.seen.remove(&oldest);
            self.replaced_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn address(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        [198, 18, high, low].into()
    }

    #[test]
    fn callers_are_remembered_for_ten_minutes_after_their_last_connection() {
        let callers = Arc::new(Callers::default());
        let call = callers.begin(address(1), 8080, at(0));
        callers.begin(address(1), 9090, at(100)).end(at(100));
        let seen = |now: u64| -> Vec<(u16, u64, u32, u64)> {
            let of = |it: PlaintextCaller| (it.port, it.connections, it.open, it.seconds_ago);
            callers.report(at(now)).callers.into_iter().map(of).collect()
        };
        assert_eq!(seen(130), [(8080, 1, 1, 0), (9090, 1, 0, 30)]);
        assert_eq!(seen(700), [(8080, 1, 1, 0)], "one that is open is never forgotten");
        call.end(at(800));
        callers.begin(address(1), 8080, at(801)).end(at(802));
        assert_eq!(seen(810), [(8080, 2, 0, 8)]);
        assert_eq!(seen(1402), []);
    }

    #[test]
    fn a_new_caller_replaces_the_one_seen_longest_ago() {
        let callers = Arc::new(Callers::default());
        let open = callers.begin(address(0), 80, at(0));
        for number in 1..300 {
            callers.begin(address(number), 80, at(number.into())).end(at(number.into()));
        }
        let report = callers.report(at(300));
        let known = |number: u16| report.callers.iter().any(|caller| caller.address == address(number));
        assert_eq!(report.callers.len(), CALLERS_MAX);
        assert!(known(0) && known(299) && known(45) && !known(1) && !known(44), "open ones stay, then the newest");
        assert!(report.truncated);
        open.end(at(300));
        assert!(!callers.report(at(2000)).truncated);
    }

    #[test]
    fn connections_of_a_replaced_caller_end_without_effect() {
        let callers = Arc::new(Callers::default());
        let calls: Vec<OpenCall> = (0..300).map(|number| callers.begin(address(number), 80, at(1))).collect();
        assert_eq!(callers.report(at(1)).callers.len(), CALLERS_MAX);
        calls.into_iter().for_each(|call| call.end(at(2)));
        assert!(callers.report(at(2)).callers.iter().all(|caller| caller.open == 0));
    }
}
