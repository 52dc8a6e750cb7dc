//! Latency from `kubectl apply` of a route until requests follow it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_e2e::mesh::{self, route, route_in_force};
use weft_e2e::namespace::{await_quiet, in_mesh};
use weft_e2e::page::quantile;

const APPLIES: usize = 25;
/// Interval between two applies, so that each takes effect before the next.
const INTERVAL: Duration = Duration::from_secs(3);
/// Allowance for a busy machine: this many times the p99 latency of the requests.
const BUSY_FACTOR: f64 = 10.0;
/// Requests per second that observe the effect.
const RATE: u32 = 200;

#[test]
fn route_changes_take_effect_within_a_second() -> Result<()> {
    await_quiet()?;
    in_mesh("latency", |ns| {
        let client = mesh::echo(ns)?;
        let to = |version: &str| format!("- backendRefs: [{{name: echo, port: 9080, subset: {version}}}]\n");
        route_in_force(ns, &client, "echo", &to("v1"))?;
        let length = INTERVAL * (APPLIES as u32 + 3);
        let load = client.load("http://echo:9080/").rate(RATE).duration(length).timeline().start()?;
        let mut applies = Vec::new();
        let start = Instant::now();
        for number in 0..APPLIES {
            std::thread::sleep((start + INTERVAL * (number as u32 + 1)).saturating_duration_since(Instant::now()));
            let version = if number % 2 == 0 { "v2" } else { "v1" };
            let began = Instant::now();
            ns.apply(&route("echo", &to(version)))?;
            applies.push((version, began, Instant::now()));
        }
        let (report, ended) = load.finish_at()?;
        report.expect_none_failed(1_000)?;
        // The report has the duration of the load, not its start. The report arrives a little after it was written,
        // so the requests, and with them the effect, are dated too late, never too early.
        let load_began = ended - Duration::from_secs_f64(report.seconds);
        let mut took = Vec::new();
        let mut from_start = Vec::new();
        for (index, (version, began, applied)) in applies.iter().enumerate() {
            let until = applies.get(index + 1).map_or(ended, |(_, next, _)| *next);
            // The first request after the last one (before the next apply) that went to the previous version.
            let in_time = |at: &u64| {
                let at = load_began + Duration::from_millis(*at);
                at >= *began && at < until
            };
            let sent: Vec<_> = report.timeline.iter().filter(|(at, ..)| in_time(at)).collect();
            let last_before = sent.iter().rposition(|(_, _, answered, _)| answered != version);
            let first = sent.get(last_before.map_or(0, |last| last + 1)).with_context(|| {
                format!("apply {index} to {version} had no effect within {INTERVAL:?}: {} requests", sent.len())
            })?;
            let effect = load_began + Duration::from_millis(first.0);
            took.push(effect.saturating_duration_since(*applied).as_secs_f64() * 1000.0);
            from_start.push(effect.saturating_duration_since(*began).as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        from_start.sort_by(f64::total_cmp);
        let (p50, p99) = (quantile(&took, 0.5), quantile(&took, 0.99));
        println!(
            "from the end of `kubectl apply` to its effect, {APPLIES} applies: p50 {p50:.0} ms, p99 {p99:.0} ms; from its start: p50 {:.0} ms, p99 {:.0} ms",
            quantile(&from_start, 0.5),
            quantile(&from_start, 0.99)
        );
        // The effect passes through three processes, which wait for the CPU as requests do. On an idle machine the
        // p99 of requests is a few milliseconds.
        let busy = BUSY_FACTOR * report.latency_ms.get("p99").copied().unwrap_or_default();
        ensure!(
            p99 < 1000.0 + busy,
            "the slowest took {p99:.0} ms, {busy:.0} of them allowed for a busy machine: {took:.0?}"
        );
        Ok(())
    })
}
