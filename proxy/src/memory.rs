//! Overload protection by memory usage: how close the proxy is to the memory limit of its container. From
//! [`CLOSE_PERCENT`] on, connections are closed after their request and bodies are not kept for retries; from
//! [`REFUSE_PERCENT`] on, new requests are refused; from [`PAUSE_PERCENT`] on, nothing is read from clients and new
//! connections wait in the accept queue. A 503 for some requests is better than an OOM kill, which ends all of them.
//!
//! Usage is read from the cgroup, version 2 or 1, by the control thread. That thread may be late when the CPU is
//! scarce, so a worker that has read a lot from clients refreshes it too. A request loads one atomic byte.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

/// How often the control thread refreshes the usage.
const PERIOD: Duration = Duration::from_millis(250);

/// How often it does from [`NEAR_PERCENT`] on. Paused readers are woken as often.
const PERIOD_NEAR: Duration = Duration::from_millis(20);

/// Percent of the limit from which refreshes are frequent.
const NEAR_PERCENT: u8 = 70;

/// The share of the limit that may be read from clients between two refreshes: 1/32, and 1/256 from [`NEAR_PERCENT`]
/// on. A refresh takes about 30 us.
const READ_SHARE: u64 = 32;
const READ_SHARE_NEAR: u64 = 256;

/// Percent of the limit from which connections are closed after their request. Source: Envoy's example configuration.
const CLOSE_PERCENT: u8 = 92;

/// Percent of the limit from which requests are refused. Source: Envoy's example configuration.
const REFUSE_PERCENT: u8 = 95;

/// Percent of the limit from which nothing is read from clients and no connection is accepted: even refusing a
/// request takes memory for its bytes.
const PAUSE_PERCENT: u8 = 97;

/// How long reading from clients is paused at most. If the memory is still full then, requests are read and refused.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Memory usage in percent of the limit. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Memory {
    cgroups: [CgroupFiles; 2],
    percent: AtomicU8,
    /// Usage has been above [`PAUSE_PERCENT`] for [`PAUSE_MAX`].
    paused_too_long: AtomicBool,
    /// In bytes; 0 means no limit.
    limit: AtomicU64,
    /// Bytes that were read from clients since the last refresh.
    read: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

/// The files of a memory cgroup.
#[derive(Debug)]
struct CgroupFiles {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// The field for inactive file cache, which the kernel drops before it kills a process.
    inactive: &'static str,
}

/// Memory usage of a cgroup, in bytes.
struct Usage {
    used: u64,
    limit: u64,
}

// === impl Memory ===

impl Memory {
    /// `cgroup`: the cgroup directory as the container sees it.
    pub(crate) fn new(cgroup: &Path) -> Self {
        Self {
            cgroups: cgroups(cgroup),
            percent: AtomicU8::new(0),
            paused_too_long: AtomicBool::new(false),
            limit: AtomicU64::new(0),
            read: AtomicU64::new(0),
            wakers: Mutex::default(),
        }
    }

    /// Whether connections are to be closed after their request, and bodies not kept for retries.
    pub(crate) fn is_scarce(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= CLOSE_PERCENT
    }

    /// Whether requests are to be refused.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= REFUSE_PERCENT
    }

    /// Whether reading from clients and accepting connections is to pause.
    pub(crate) fn is_full(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= PAUSE_PERCENT && !self.paused_too_long.load(Ordering::Relaxed)
    }

    /// Wakes `waker` at the next refresh by the control thread.
    pub(crate) fn wait(&self, waker: Waker) {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    /// Counts bytes read from a client, and refreshes the usage if many were read since the last refresh.
    pub(crate) fn record_read(&self, bytes: usize) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let share = if self.percent.load(Ordering::Relaxed) < NEAR_PERCENT { READ_SHARE } else { READ_SHARE_NEAR };
        let bytes = bytes as u64;
        if self.read.fetch_add(bytes, Ordering::Relaxed) + bytes >= limit / share {
            self.refresh();
        }
    }

    /// Reads the usage from the cgroup. Without a limit, it counts as 0 percent.
    fn refresh(&self) -> u8 {
        self.read.store(0, Ordering::Relaxed);
        // A few short reads of a virtual file system, so this may block the thread.
        let usage = self.cgroups.iter().find_map(CgroupFiles::read);
        let percent = usage.as_ref().map_or(0, Usage::percent);
        self.limit.store(usage.map_or(0, |usage| usage.limit), Ordering::Relaxed);
        let before = self.percent.swap(percent, Ordering::Relaxed);
        if (before >= REFUSE_PERCENT) != (percent >= REFUSE_PERCENT) {
            let refused = percent >= REFUSE_PERCENT;
            tracing::warn!(percent, refused, "memory usage crossed the limit for refusing requests");
        }
        percent
    }
}

/// Refreshes `memory` forever, and sets `gauge` to the used share of the limit.
pub(crate) async fn run(memory: Arc<Memory>, gauge: Gauge<f64, AtomicU64>) {
    let mut below_limit_since = Instant::now();
    loop {
        let percent = memory.refresh();
        if percent < PAUSE_PERCENT {
            below_limit_since = Instant::now();
        }
        memory.paused_too_long.store(below_limit_since.elapsed() >= PAUSE_MAX, Ordering::Relaxed);
        gauge.set(f64::from(percent) / 100.0);
        let wakers = std::mem::take(&mut *memory.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
        tokio::time::sleep(if percent < NEAR_PERCENT { PERIOD } else { PERIOD_NEAR }).await;
    }
}

fn cgroups(cgroup: &Path) -> [CgroupFiles; 2] {
    let v1 = cgroup.join("memory");
    [
        CgroupFiles {
            limit: cgroup.join("memory.max"),
            usage: cgroup.join("memory.current"),
            stat: cgroup.join("memory.stat"),
            inactive: "inactive_file",
        },
        CgroupFiles {
            limit: v1.join("memory.limit_in_bytes"),
            usage: v1.join("memory.usage_in_bytes"),
            stat: v1.join("memory.stat"),
            inactive: "total_inactive_file",
        },
    ]
}

// === impl CgroupFiles ===

impl CgroupFiles {
    /// None: there is no such cgroup, or no limit ("max").
    fn read(&self) -> Option<Usage> {
        let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        // In version 1, no limit is a number close to 2^63.
        let limit = number(&self.limit).filter(|limit| *limit > 0 && *limit < 1 << 60)?;
        let usage = number(&self.usage)?;
        let stat = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(self.inactive)?.trim().parse().ok()).unwrap_or(0);
        Some(Usage { used: usage.saturating_sub(inactive), limit })
    }
}

// === impl Usage ===

impl Usage {
    fn percent(&self) -> u8 {
        u8::try_from(u128::from(self.used) * 100 / u128::from(self.limit)).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_versions_1_and_2_are_read() {
        let folder = std::env::temp_dir().join(format!("weft-memory-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("memory")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        let read = || cgroups(&folder).iter().find_map(CgroupFiles::read).map(|usage| usage.percent());
        assert_eq!(read(), None, "no cgroup");
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
        assert_eq!(read(), Some(40), "version 2, without inactive file cache");
        write("memory.current", "5000\n");
        assert_eq!(read(), Some(u8::MAX), "saturates");
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn thresholds_apply_from_their_percentage() {
        let memory = Memory::new(Path::new("/nowhere"));
        let cases =
            [(0, [false; 3]), (91, [false; 3]), (92, [true, false, false]), (95, [true, true, false]), (97, [true; 3])];
        for (percent, expected) in cases {
            memory.percent.store(percent, Ordering::Relaxed);
            assert_eq!([memory.is_scarce(), memory.is_exhausted(), memory.is_full()], expected, "{percent} %");
        }
    }

    #[test]
    fn reading_much_from_clients_refreshes_the_usage() {
        let folder = std::env::temp_dir().join(format!("weft-memory-read-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        let memory = Memory::new(&folder);
        memory.record_read(1 << 30);
        assert_eq!(memory.refresh(), 0, "no limit");
        write("memory.max", "25600\n");
        write("memory.current", "2560\n");
        assert_eq!(memory.refresh(), 10);
        write("memory.current", "20480\n");
        memory.record_read(799);
        assert_eq!(memory.percent.load(Ordering::Relaxed), 10, "less than a 32nd");
        memory.record_read(1);
        assert_eq!(memory.percent.load(Ordering::Relaxed), 80);
        write("memory.current", "25600\n");
        memory.record_read(99);
        assert!(!memory.is_full(), "less than a 256th");
        memory.record_read(1);
        assert!(memory.is_full());
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
