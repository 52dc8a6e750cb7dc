//! How long it takes from `kubectl apply` until requests go elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_e2e::mesh::{self, route, route_in_force};
use weft_e2e::namespace::{await_quiet, in_mesh};
use weft_e2e::page::quantile;

const APPLIES: usize = 25;
/// Between two applies, so that each has its effect before the next.
const BETWEEN: Duration = Duration::from_secs(3);
/// How many times what the slowest in a hundred requests take an effect may take longer on a machine that is busy with other things.
const BUSY_FACTOR: f64 = 10.0;
/// Of the requests that look for the effect.
const RATE: u32 = 200;

#[test]
fn an_apply_has_its_effect_within_a_second() -> Result<()> {
    await_quiet()?;
    in_mesh("latency", |ns| {
        let client = mesh::echo(ns)?;
        let to = |version: &str| format!("- backendRefs: [{{name: echo, port: 9080, subset: {version}}}]\n");
        route_in_force(ns, &client, "echo", &to("v1"))?;
        let length = BETWEEN * (APPLIES as u32 + 3);
        let load = client.load("http://echo:9080/").rate(RATE).duration(length).timeline().start()?;
        let mut applies = Vec::new();
        let start = Instant::now();
        for number in 0..APPLIES {
            std::thread::sleep((start + BETWEEN * (number as u32 + 1)).saturating_duration_since(Instant::now()));
            let version = if number % 2 == 0 { "v2" } else { "v1" };
            let began = Instant::now();
            ns.apply(&route("echo", &to(version)))?;
            applies.push((version, began, Instant::now()));
        }
        let (report, ended) = load.finish_at()?;
        report.expect_none_failed(1_000)?;
        // The load says how long it took, not when it began. Its report arrives a little after it was written, so its
        // requests are taken to be later than they were, and the effect too: never earlier.
        let load_began = ended - Duration::from_secs_f64(report.seconds);
        let mut took = Vec::new();
        let mut from_start = Vec::new();
        for (index, (version, began, applied)) in applies.iter().enumerate() {
            let until = applies.get(index + 1).map_or(ended, |(_, next, _)| *next);
            // The first request after which, up to the next apply, none goes where they went before.
            let in_time = |at: &u64| {
                let at = load_began + Duration::from_millis(*at);
                at >= *began && at < until
            };
            let sent: Vec<_> = report.timeline.iter().filter(|(at, ..)| in_time(at)).collect();
            let last_before = sent.iter().rposition(|(_, _, answered, _)| answered != version);
            let first = sent.get(last_before.map_or(0, |last| last + 1)).with_context(|| {
                format!("apply {index} to {version} had no effect within {BETWEEN:?}: {} requests", sent.len())
            })?;
            let effect = load_began + Duration::from_millis(first.0);
            took.push(effect.saturating_duration_since(*applied).as_secs_f64() * 1000.0);
            from_start.push(effect.saturating_duration_since(*began).as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        from_start.sort_by(f64::total_cmp);
        let (p50, p99) = (quantile(&took, 0.5), quantile(&took, 0.99));
        println!(
            "from the end of `kubectl apply` to its effect, {APPLIES} times: p50 {p50:.0} ms, p99 {p99:.0} ms; from its start: p50 {:.0} ms, p99 {:.0} ms",
            quantile(&from_start, 0.5),
            quantile(&from_start, 0.99)
        );
        // An effect has to come through three processes that wait for the CPU as requests do. What these wait when the machine does
        // nothing else is a few milliseconds.
        let busy = BUSY_FACTOR * report.latency_ms.get("p99").copied().unwrap_or_default();
        ensure!(
            p99 < 1000.0 + busy,
            "the slowest took {p99:.0} ms, {busy:.0} of them allowed for a busy machine: {took:.0?}"
        );
        Ok(())
    })
}
