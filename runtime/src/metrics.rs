//! Metrics that every Weft process has: its version, and what the kernel counts about the process, under the names that
//! Prometheus client libraries use.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Clock ticks in a second, in the files of /proc (USER_HZ): 100 on every architecture that Weft is built for.
const TICKS: f64 = 100.0;

/// A registry with the metrics of this module. `component` is the binary's name without `weft-`.
pub fn registry(component: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("component", component), ("version", version)]);
    registry.register("weft_build", "Version of the running program; the value is always 1", build);
    registry.register_collector(Box::new(Process));
    registry
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in [
            ("process_open_fds", "Open file descriptors", open_files()),
            ("process_max_fds", "Limit of open file descriptors", max_files()),
            ("process_resident_memory_bytes", "Resident memory in bytes", status_bytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Virtual memory in bytes", status_bytes("VmSize:")),
        ] {
            let Some(value) = value else { continue };
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let stat = stat.as_deref();
        if let Some(started) = stat.and_then(|stat| Some(boot_time()? + field(stat, 22)? / TICKS)) {
            let help = "Time when the process started, in seconds since 1970";
            let descriptor = encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(started).encode(descriptor)?;
        }
        let Some(ticks) = stat.and_then(|stat| Some(field(stat, 14)? + field(stat, 15)?)) else { return Ok(()) };
        let help = "CPU time of the process in user and kernel mode, in seconds";
        let descriptor = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(ticks / TICKS).encode(descriptor)
    }
}

/// A field of /proc/self/stat, numbered from 1 as in proc(5). The second field, the name of the program, may contain
/// spaces and is in parentheses.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number - 3)?.trim().parse().ok()
}

/// When the kernel started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_files() -> Option<u64> {
    // Without the one that reads the directory.
    fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as u64)
}

/// The soft limit. None: unlimited.
fn max_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{SystemTime, UNIX_EPOCH};

    use prometheus_client::encoding::text;

    use super::*;
    use crate::reference::{check, metrics_table};

    #[test]
    fn every_process_has_build_and_process_metrics() {
        let mut page = String::new();
        text::encode(&mut page, &registry("proxy", "1.2.3")).expect("encodes");
        assert!(page.contains("\nweft_build_info{component=\"proxy\",version=\"1.2.3\"} 1\n"), "{page}");
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name}:\n{page}")).parse().expect("a number")
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
        assert!(value("process_cpu_seconds_total") < 86_400.0);
        let files = page.lines().find_map(|line| line.strip_prefix("process_open_fds ")?.parse::<u32>().ok());
        assert!(files.is_some(), "a whole number: {page}");
        assert!((3.0..value("process_max_fds")).contains(&value("process_open_fds")), "{page}");
        let (resident, size) = (value("process_resident_memory_bytes"), value("process_virtual_memory_bytes"));
        assert!(1e5 < resident && resident <= size, "{resident} of {size}");
    }

    #[test]
    fn page_of_metrics_lists_those_of_every_process() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
        check(&page, "process", &metrics_table(&registry("proxy", "0.0.0")));
    }

    #[test]
    fn program_names_with_spaces_and_parentheses_are_skipped() {
        let stat = "7 (a) b) R 1 7 7 0 -1 4194304 90 0 0 0 12 34 0 0 20 0 1 0 5678 9 1";
        assert_eq!([field(stat, 14), field(stat, 15), field(stat, 22)], [Some(12.0), Some(34.0), Some(5678.0)]);
        assert_eq!(field("", 14), None);
    }
}
