//! How near the proxy is to the memory that its container may use. Past one mark connections are not kept after their
//! request and bodies are not kept to be sent again, past a second new requests are refused, past a third nothing is read
//! from clients and new connections wait in the kernel's queue: better a 503 for some than the kernel's kill for all that is
//! open.
//!
//! Read from the control group, version 2 or 1, by the control thread, which may be late where processors are scarce; so
//! also by whoever has read much from clients, before more is. A request reads one byte.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

/// How often the control thread looks while there is room.
const PERIOD: Duration = Duration::from_millis(250);

/// How often it looks from [`NEAR_PERCENT`] on. What waits for room is woken as often.
const PERIOD_NEAR: Duration = Duration::from_millis(20);

/// Percent of the limit from which looks are frequent.
const NEAR_PERCENT: u8 = 70;

/// Which part of the limit may be read from clients between two looks: a 32nd while there is room, a 256th from
/// [`NEAR_PERCENT`] on. A look takes about 30 us.
const PART: u64 = 32;
const PART_NEAR: u64 = 256;

/// Percent of the limit from which connections are not kept. Source: Envoy's example configuration.
const CLOSE_PERCENT: u8 = 92;

/// Percent of the limit from which requests are refused. Source: Envoy's example configuration.
const REFUSE_PERCENT: u8 = 95;

/// Percent of the limit from which nothing is read from clients and no connection is accepted: each byte takes some memory
/// to be refused.
const REST_PERCENT: u8 = 97;

/// How long clients wait at a time. A process that stays full nevertheless says so instead: it refuses.
const REST: Duration = Duration::from_secs(10);

/// Memory in use, in percent of the limit. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Memory {
    places: [Files; 2],
    percent: AtomicU8,
    /// It has been full for [`REST`].
    rested: AtomicBool,
    /// In bytes; 0 is none.
    limit: AtomicU64,
    /// Bytes that were read from clients since somebody looked.
    read: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
}

/// Where a control group tells.
#[derive(Debug)]
struct Files {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// Of the file cache, what is dropped before anybody is killed.
    inactive: &'static str,
}

/// What a control group tells, in bytes.
struct State {
    used: u64,
    limit: u64,
}

// === impl Memory ===

impl Memory {
    /// `cgroup`: the folder of control groups as the container sees it.
    pub(crate) fn new(cgroup: &Path) -> Self {
        Self {
            places: places(cgroup),
            percent: AtomicU8::new(0),
            rested: AtomicBool::new(false),
            limit: AtomicU64::new(0),
            read: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Whether a connection is to be closed after its request, and a body is not to be kept.
    pub(crate) fn is_scarce(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= CLOSE_PERCENT
    }

    /// Whether a request is to be refused.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= REFUSE_PERCENT
    }

    /// Whether clients are to wait until they are read, and connections until they are accepted.
    pub(crate) fn is_full(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= REST_PERCENT && !self.rested.load(Ordering::Relaxed)
    }

    /// Wakes `waker` at the next look.
    pub(crate) fn wait(&self, waker: Waker) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    /// Notes what was read from a client, and looks if that makes much since the last look.
    pub(crate) fn note_read(&self, bytes: usize) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let part = if self.percent.load(Ordering::Relaxed) < NEAR_PERCENT { PART } else { PART_NEAR };
        let bytes = bytes as u64;
        if self.read.fetch_add(bytes, Ordering::Relaxed) + bytes >= limit / part {
            self.look();
        }
    }

    /// Reads the control group. Where there is no limit nothing is ever refused.
    fn look(&self) -> u8 {
        self.read.store(0, Ordering::Relaxed);
        // A few short reads from memory; the file system is the kernel's own.
        let state = self.places.iter().find_map(Files::read);
        let percent = state.as_ref().map_or(0, State::percent);
        self.limit.store(state.map_or(0, |state| state.limit), Ordering::Relaxed);
        let before = self.percent.swap(percent, Ordering::Relaxed);
        if (before >= REFUSE_PERCENT) != (percent >= REFUSE_PERCENT) {
            let refused = percent >= REFUSE_PERCENT;
            tracing::warn!(percent, refused, "memory in use is at the limit of the container, or below it again");
        }
        percent
    }
}

/// Keeps `memory` current, for ever.
pub(crate) async fn watch(memory: Arc<Memory>, gauge: Gauge) {
    let mut room = Instant::now();
    loop {
        let percent = memory.look();
        if percent < REST_PERCENT {
            room = Instant::now();
        }
        memory.rested.store(room.elapsed() >= REST, Ordering::Relaxed);
        gauge.set(i64::from(percent));
        let waiting = std::mem::take(&mut *memory.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
        tokio::time::sleep(if percent < NEAR_PERCENT { PERIOD } else { PERIOD_NEAR }).await;
    }
}

fn places(cgroup: &Path) -> [Files; 2] {
    let v1 = cgroup.join("memory");
    [
        Files {
            limit: cgroup.join("memory.max"),
            usage: cgroup.join("memory.current"),
            stat: cgroup.join("memory.stat"),
            inactive: "inactive_file",
        },
        Files {
            limit: v1.join("memory.limit_in_bytes"),
            usage: v1.join("memory.usage_in_bytes"),
            stat: v1.join("memory.stat"),
            inactive: "total_inactive_file",
        },
    ]
}

// === impl Files ===

impl Files {
    /// None: this is not the place, or there is no limit ("max").
    fn read(&self) -> Option<State> {
        let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        // In version 1, no limit is a number beyond all memory.
        let limit = number(&self.limit).filter(|limit| *limit > 0 && *limit < 1 << 60)?;
        let usage = number(&self.usage)?;
        let stat = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(self.inactive)?.trim().parse().ok()).unwrap_or(0);
        Some(State { used: usage.saturating_sub(inactive), limit })
    }
}

// === impl State ===

impl State {
    fn percent(&self) -> u8 {
        u8::try_from(u128::from(self.used) * 100 / u128::from(self.limit)).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let folder = std::env::temp_dir().join(format!("weft-memory-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("memory")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        let read = || places(&folder).iter().find_map(Files::read).map(|state| state.percent());
        assert_eq!(read(), None, "no control group");
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "970\n");
        write("memory/memory.stat", "cache 50\ntotal_inactive_file 20\n");
        assert_eq!(read(), Some(95), "version 1");
        write("memory.max", "max\n");
        write("memory.current", "500\n");
        write("memory.stat", "anon 1\ninactive_file 100\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(read(), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(read(), Some(40), "version 2, without what the kernel can drop");
        write("memory.current", "5000\n");
        assert_eq!(read(), Some(u8::MAX), "beyond what can be said");
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn the_marks() {
        let memory = Memory::new(Path::new("/nowhere"));
        let marks =
            [(0, [false; 3]), (91, [false; 3]), (92, [true, false, false]), (95, [true, true, false]), (97, [true; 3])];
        for (percent, expected) in marks {
            memory.percent.store(percent, Ordering::Relaxed);
            assert_eq!([memory.is_scarce(), memory.is_exhausted(), memory.is_full()], expected, "{percent} %");
        }
    }

    #[test]
    fn whoever_reads_much_looks() {
        let folder = std::env::temp_dir().join(format!("weft-memory-read-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        let memory = Memory::new(&folder);
        memory.note_read(1 << 30);
        assert_eq!(memory.look(), 0, "no limit, nothing to look at");
        write("memory.max", "25600\n");
        write("memory.current", "2560\n");
        assert_eq!(memory.look(), 10);
        write("memory.current", "20480\n");
        memory.note_read(799);
        assert_eq!(memory.percent.load(Ordering::Relaxed), 10, "less than a 32nd");
        memory.note_read(1);
        assert_eq!(memory.percent.load(Ordering::Relaxed), 80);
        write("memory.current", "25600\n");
        memory.note_read(99);
        assert!(!memory.is_full(), "less than a 256th");
        memory.note_read(1);
        assert!(memory.is_full());
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
