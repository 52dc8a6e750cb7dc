//! How near the proxy is to the memory that its container may use. Past one mark connections are not kept after their
//! request, past a second new requests are refused: better a 503 for some than the kernel's kill for all that is open.
//!
//! Read from the control group, version 2 or 1, by the control thread; a request reads one byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

/// How often it is read. What fills the last percents faster than this is not refused in time.
const PERIOD: Duration = Duration::from_millis(250);

/// Percent of the limit from which connections are not kept. Source: Envoy's example configuration.
const CLOSE_PERCENT: u8 = 92;

/// Percent of the limit from which requests are refused. Source: Envoy's example configuration.
const REFUSE_PERCENT: u8 = 95;

/// Memory in use, in percent of the limit. Shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    percent: AtomicU8,
}

/// Where a control group tells.
struct Files {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// Of the file cache, what is dropped before anybody is killed.
    inactive: &'static str,
}

// === impl Memory ===

impl Memory {
    /// Whether a connection is to be closed after its request.
    pub(crate) fn is_scarce(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= CLOSE_PERCENT
    }

    /// Whether a request is to be refused.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.percent.load(Ordering::Relaxed) >= REFUSE_PERCENT
    }
}

/// Keeps `memory` current, for ever. Where there is no limit nothing is ever refused.
pub(crate) async fn watch(memory: Arc<Memory>, cgroup: PathBuf, gauge: Gauge) {
    let places = places(&cgroup);
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tick.tick().await;
        // A few short reads from memory; the file system is the kernel's own.
        let percent = places.iter().find_map(Files::percent).unwrap_or(0);
        gauge.set(i64::from(percent));
        let before = memory.percent.swap(percent, Ordering::Relaxed);
        if (before >= REFUSE_PERCENT) != (percent >= REFUSE_PERCENT) {
            let refused = percent >= REFUSE_PERCENT;
            tracing::warn!(percent, refused, "memory in use is at the limit of the container, or below it again");
        }
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
    /// None: this is not the place, or there is no limit ("max", and in version 1 a number beyond all memory).
    fn percent(&self) -> Option<u8> {
        let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limit = number(&self.limit).filter(|limit| *limit > 0)?;
        let usage = number(&self.usage)?;
        let stat = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(self.inactive)?.trim().parse().ok()).unwrap_or(0);
        let percent = u128::from(usage.saturating_sub(inactive)) * 100 / u128::from(limit);
        Some(u8::try_from(percent).unwrap_or(u8::MAX))
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
        let read = || places(&folder).iter().find_map(Files::percent);
        assert_eq!(read(), None, "no control group");
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "970\n");
        write("memory/memory.stat", "cache 50\ntotal_inactive_file 20\n");
        assert_eq!(read(), Some(95), "version 1");
        write("memory.max", "max\n");
        write("memory.current", "500\n");
        write("memory.stat", "anon 1\ninactive_file 100\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(read(), Some(0), "no limit that matters");
        write("memory.max", "1000\n");
        assert_eq!(read(), Some(40), "version 2, without what the kernel can drop");
        write("memory.current", "5000\n");
        assert_eq!(read(), Some(u8::MAX), "beyond what can be said");
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn the_marks() {
        let memory = Memory::default();
        for (percent, scarce, exhausted) in [(0, false, false), (91, false, false), (92, true, false), (95, true, true)]
        {
            memory.percent.store(percent, Ordering::Relaxed);
            assert_eq!((memory.is_scarce(), memory.is_exhausted()), (scarce, exhausted), "{percent} %");
        }
    }
}
