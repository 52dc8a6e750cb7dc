//! The demo: traffic to a small shop while routes are applied one after another, and a page with the clients' results.
//!
//! ```text
//! before        | 1 all v1      | 2 90/10       | 3 beta to v3  | 4 timeout     | ...
//! load, 5 times | load, 5 times | ...              each phase is one run of `weft-demo load` per client;
//!               ^ apply         ^ apply            phases follow each other without a pause
//! ```
//!
//! All printed and plotted numbers are measured by the clients; none is computed from the routes.

mod encryption;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, checkout};
use crate::gateway_api;
use crate::install::SYSTEM;
use crate::kubectl::{Condition, Kubectl};
use crate::namespace::READY;
use crate::page::{self, Answer, Outcome, Row, Step, Story, Stream, millis, summarise};
use crate::progress::{say, step};
use crate::table;
use crate::traffic::{Client, Report, RunningLoad};
use crate::wait::{eventually, eventually_every};

/// Length of the phase before the first apply.
const FIRST_PHASE: Duration = Duration::from_secs(6);
/// Length of the phase of each apply.
const PHASE: Duration = Duration::from_secs(9);
/// From the start of a phase to its apply, so that the clients are running by then.
const LEAD: Duration = Duration::from_secs(1);
/// Startup time of `kubectl exec`; the next run is started this much before the last one ends.
const EXEC_STARTUP: Duration = Duration::from_millis(250);
/// Time for proxies to read a configuration that the operator has written.
const SETTLE: Duration = Duration::from_secs(1);
/// Grace for a run beyond its duration.
const RUN_GRACE: Duration = Duration::from_secs(60);
/// Timeout for a route to be programmed.
const PROGRAMMED_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of the demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the shop. It is created, labelled, and left running.
    pub namespace: String,
    /// Output file of the page.
    pub page: PathBuf,
}

/// A client of the shop.
struct Visitor {
    name: &'static str,
    url: &'static str,
    header: Option<(&'static str, &'static str)>,
    rate: u32,
    concurrency: u16,
    /// Latency of its responses once its change is in force.
    expected_latency: Duration,
}

/// A change, and its expected effect.
struct Change {
    file: &'static str,
    kind: &'static str,
    object: &'static str,
    label: &'static str,
    title: &'static str,
    /// The affected visitors, by index, each with the expected result.
    affects: &'static [(usize, Expected)],
}

/// The expected result, as counted by a client.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// All responses come from this version.
    All(&'static str),
    /// This share of the responses comes from the version, within [`Expected::TOLERANCE`]; no request fails.
    Share(&'static str, f64),
    /// All responses have this status, with a median latency of this many milliseconds, at most half a second more.
    StatusAfter(u16, f64),
}

const QUICK: Duration = Duration::ZERO;
const SLOW: Duration = Duration::from_millis(2500);

const VISITORS: [Visitor; 5] = [
    Visitor {
        name: "reviews, any visitor",
        url: "http://reviews:9080/",
        header: None,
        rate: 20,
        concurrency: 8,
        expected_latency: QUICK,
    },
    Visitor {
        name: "reviews, beta visitor",
        url: "http://reviews:9080/",
        header: Some(("x-user", "beta")),
        rate: 20,
        concurrency: 8,
        expected_latency: QUICK,
    },
    Visitor { name: "slow", url: "http://slow:9080/", header: None, rate: 4, concurrency: 32, expected_latency: SLOW },
    Visitor {
        name: "flaky",
        url: "http://flaky:9080/",
        header: None,
        rate: 10,
        concurrency: 8,
        expected_latency: QUICK,
    },
    Visitor {
        name: "ratings",
        url: "http://ratings:9080/",
        header: None,
        rate: 20,
        concurrency: 8,
        expected_latency: QUICK,
    },
];

const CHANGES: [Change; 6] = [
    Change {
        file: "01-all-v1.yaml",
        kind: "meshroute",
        object: "reviews",
        label: "all to v1",
        title: "All requests to reviews go to v1",
        affects: &[(0, Expected::All("v1")), (1, Expected::All("v1"))],
    },
    Change {
        file: "02-canary-90-10.yaml",
        kind: "meshroute",
        object: "reviews",
        label: "90/10",
        title: "A tenth of the requests to reviews goes to v2",
        affects: &[(0, Expected::Share("v2", 0.1)), (1, Expected::Share("v2", 0.1))],
    },
    Change {
        file: "03-beta-header.yaml",
        kind: "meshroute",
        object: "reviews",
        label: "beta to v3",
        title: "Requests with x-user: beta go to v3, all others to v1",
        affects: &[(0, Expected::All("v1")), (1, Expected::All("v3"))],
    },
    Change {
        file: "04-timeout.yaml",
        kind: "meshroute",
        object: "slow",
        label: "2 s timeout",
        title: "Requests to slow, which takes 5 s, time out after 2 s",
        affects: &[(2, Expected::StatusAfter(504, 2000.0))],
    },
    Change {
        file: "05-retries.yaml",
        kind: "meshroute",
        object: "flaky",
        label: "retries",
        title: "Failed requests to flaky, every third one, are retried",
        affects: &[(3, Expected::All("v1"))],
    },
    Change {
        file: "06-http-route.yaml",
        kind: "httproute",
        object: "ratings",
        label: "HTTPRoute",
        title: "An HTTPRoute of the Gateway API sends all requests to ratings to another Service, with v2",
        affects: &[(4, Expected::All("v2"))],
    },
];

/// A run of `weft-demo load`.
struct Run {
    visitor: usize,
    load: RunningLoad,
}

/// Runs the demo. Fails if the clients' results do not match the routes, or requests were not encrypted.
pub fn run(options: &Options) -> Result<Story> {
    let cluster = Cluster::get()?;
    step("installing Weft", crate::install::ensure)?;
    step("installing the CRDs of the Gateway API, unless there are some", gateway_api::add)?;
    let shop = Kubectl::within(cluster, &options.namespace);
    step("deploying the shop", || deploy(&shop, &options.namespace))?;
    let client = Client::of(&shop, "client");
    // Warm up: DNS lookups, connections, and configuration of other namespaces.
    for visitor in VISITORS.iter().filter(|visitor| visitor.name != "slow") {
        step("waiting for the first responses", || first_response(&client, visitor))?;
    }
    let before = encryption::counted(&shop)?;
    let (mut story, mut failures) = watch(&shop, &client, environment(cluster, &options.namespace)?)?;
    story.traffic = encryption::since(&before, encryption::counted(&shop)?);
    failures.extend(encryption::report(&story.traffic));
    if let Some(folder) = options.page.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&options.page, page::html(&story)).with_context(|| format!("writing {}", options.page.display()))?;
    say(&closing_text(cluster, options));
    ensure!(failures.is_empty(), "the clients' results do not match the routes:\n  {}", failures.join("\n  "));
    Ok(story)
}

/// Removes the shop, Weft and its CRDs from a cluster.
pub fn remove(options: &Options) -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    let run = |arguments: &[&str]| {
        kubectl.run_with(arguments, "", READY)?.stdout_of_success(&format!("kubectl {}", arguments.join(" "))).map(drop)
    };
    step("removing the shop", || run(&["delete", "namespace", &options.namespace, "--ignore-not-found"]))?;
    step("removing Weft", || {
        for release in ["weft", "weft-crds"] {
            crate::install::helm(&["uninstall", release, "--namespace", SYSTEM, "--ignore-not-found", "--wait"])?;
        }
        // Helm keeps the CRDs, because deleting them deletes users' objects; the demo deletes them.
        run(&[
            "delete",
            "crd",
            "meshes.weft.dev",
            "meshroutes.weft.dev",
            "meshclusters.weft.dev",
            "meshpolicies.weft.dev",
            "--ignore-not-found",
        ])?;
        run(&["delete", "namespace", SYSTEM, "--ignore-not-found"])
    })?;
    step("removing the CRDs of the Gateway API, if the demo installed them", gateway_api::remove_added)
}

fn deploy(shop: &Kubectl, namespace: &str) -> Result<()> {
    // Fails if the namespace exists from an earlier run, which is fine.
    shop.run_with(&["create", "namespace", namespace], "", READY)?;
    shop.run(&["label", "namespace", namespace, "weft.dev/inject=enabled", "--overwrite"])?;
    let folder = checkout().join("e2e/demo");
    shop.apply(&read(&folder.join("shop.yaml"))?)?;
    // Routes of an earlier run would hide the effect of each change.
    shop.run(&["delete", "meshroutes,httproutes", "--all"])?;
    shop.apply(&read(&folder.join("routes/00-subsets.yaml"))?)?;
    shop.run_with(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=120s"], "", READY)?
        .stdout_of_success("kubectl wait deployment --all")?;
    Ok(())
}

fn first_response(client: &Client, visitor: &Visitor) -> Result<()> {
    eventually(&format!("a response from {}", visitor.url), Duration::from_secs(30), || {
        let answer = client.get(visitor.url).send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// Sends the traffic, applies the changes and prints the results of each. Returns the data of the plots, and the failed
/// expectations.
fn watch(shop: &Kubectl, client: &Client, environment: String) -> Result<(Story, Vec<String>)> {
    let mut story = Story {
        environment,
        streams: VISITORS
            .iter()
            .map(|visitor| Stream {
                name: visitor.name.to_owned(),
                description: visitor.description(),
                ..Stream::default()
            })
            .collect(),
        ..Story::default()
    };
    let mut failures = Vec::new();
    // Runs that no table waits for: responses of a slow service arrive during the next phase.
    let mut late: Vec<Run> = Vec::new();
    let start = Instant::now();
    let mut ends = start + FIRST_PHASE;
    say("\nBefore any route: the shop's clients send requests, and each request goes to any pod of its Service");
    late.extend(begin(client, FIRST_PHASE, None)?);
    let mut watched: Option<(&Change, Vec<Run>)> = None;
    for change in CHANGES.iter().map(Some).chain([None]) {
        step("watching the clients", || wait_until(ends - EXEC_STARTUP))?;
        // The next phase begins before the last one is reported, so that traffic never pauses.
        let runs = change.map(|change| begin(client, PHASE, Some(change))).transpose()?;
        if let Some((change, affected)) = watched.take() {
            affected.into_iter().try_for_each(|run| collect(run, start, &mut story))?;
            failures.extend(report(change, &story));
        }
        let (Some(change), Some(runs)) = (change, runs) else { break };
        wait_until(ends + LEAD)?;
        ends += PHASE;
        story.steps.push(apply(shop, change, start)?);
        let (affected, rest) = runs.into_iter().partition(|run: &Run| change.affects(run.visitor));
        late.extend(rest);
        watched = Some((change, affected));
    }
    step("waiting for the last responses", || late.into_iter().try_for_each(|run| collect(run, start, &mut story)))?;
    let answered = |answer: &Answer| answer.sent_ms + answer.latency_ms;
    for stream in &mut story.streams {
        stream.answers.sort_by(|a, b| a.sent_ms.total_cmp(&b.sent_ms));
    }
    story.length_ms = story.streams.iter().flat_map(|stream| &stream.answers).map(answered).fold(0.0, f64::max);
    Ok((story, failures))
}

/// Starts a run for each visitor. Runs that the phase's change affects end early enough for their last response to
/// arrive within the phase.
fn begin(client: &Client, duration: Duration, change: Option<&Change>) -> Result<Vec<Run>> {
    let begin = |(visitor, it): (usize, &Visitor)| {
        let affected = change.is_some_and(|change| change.affects(visitor));
        let duration = if affected { duration - it.expected_latency } else { duration };
        let requests = (duration.as_secs_f64() * f64::from(it.rate)).round() as u64;
        let load = client.load(it.url).rate(it.rate).concurrency(it.concurrency).requests(requests).timeline();
        let mut load = load.limit(duration + RUN_GRACE);
        if let Some((name, value)) = it.header {
            load = load.header(name, value);
        }
        Ok(Run { visitor, load: load.start()? })
    };
    VISITORS.iter().enumerate().map(begin).collect()
}

/// Waits for a run's end and adds its responses. A run reports its duration; its start is computed from its end.
fn collect(run: Run, start: Instant, story: &mut Story) -> Result<()> {
    let stream = &mut story.streams[run.visitor];
    let (report, ended): (Report, Instant) = run.load.finish_at().with_context(|| stream.name.clone())?;
    let began_ms = (ended - start).as_secs_f64() * 1000.0 - report.seconds * 1000.0;
    stream.answers.extend(report.timeline.into_iter().map(|(at, status, version, latency_ms)| Answer {
        sent_ms: (began_ms + at as f64).max(0.0),
        latency_ms,
        outcome: match status {
            0 => Outcome::Lost,
            200..400 if !version.is_empty() => Outcome::Version(version),
            status => Outcome::Status(status),
        },
    }));
    Ok(())
}

fn apply(shop: &Kubectl, change: &Change, start: Instant) -> Result<Step> {
    let yaml = read(&checkout().join("e2e/demo/routes").join(change.file))?;
    shop.apply(&yaml)?;
    let applied_ms = start.elapsed().as_secs_f64() * 1000.0;
    let every = Duration::from_millis(50);
    eventually_every(every, &format!("{} to be in force", change.object), PROGRAMMED_TIMEOUT, || {
        let found = change.programmed(shop)?;
        ensure!(found.status == "True", "{found:?}");
        Ok(())
    })?;
    let settled_ms = (start.elapsed() + SETTLE).as_secs_f64() * 1000.0;
    let status_command = change.status_command();
    let status = shop.run(&status_command.split(' ').collect::<Vec<_>>())?;
    say(&format!("\n{}\n$ kubectl apply -f e2e/demo/routes/{}", change.title, change.file));
    Ok(Step {
        label: change.label.to_owned(),
        title: change.title.to_owned(),
        yaml,
        applied_ms,
        settled_ms,
        affects: change.affects.iter().map(|(visitor, _)| VISITORS[*visitor].name.to_owned()).collect(),
        status_command: format!("kubectl {status_command}"),
        status,
    })
}

/// Prints the clients' results since a change; returns the failed expectations.
fn report(change: &Change, story: &Story) -> Vec<String> {
    let mut rows = vec![["client", "response", "count", "share", "median", "p99"].map(str::to_owned).to_vec()];
    let mut failures = Vec::new();
    let settled_ms = story.steps.last().map_or(0.0, |step| step.settled_ms);
    for (visitor, expected) in change.affects {
        let stream = &story.streams[*visitor];
        let observed = summarise(stream, settled_ms, f64::INFINITY);
        for (line, row) in observed.iter().enumerate() {
            rows.push(vec![
                if line == 0 { stream.name.clone() } else { String::new() },
                row.outcome.label(),
                row.count.to_string(),
                format!("{:.0} %", row.share * 100.0),
                millis(row.median_ms),
                millis(row.p99_ms),
            ]);
        }
        if let Err(error) = expected.check(&observed) {
            failures.push(format!("{}, {}: {error:#}", change.title, stream.name));
        }
    }
    let last = story.steps.last();
    let status = last.map(|step| format!("$ {}\n{}", step.status_command, step.status)).unwrap_or_default();
    say(&format!("{}{status}", table::text(&rows)));
    for line in &failures {
        say(&format!("UNEXPECTED: {line}"));
    }
    failures
}

/// The cluster that the demo ran on, for the page.
fn environment(cluster: &'static Cluster, namespace: &str) -> Result<String> {
    let kubectl = Kubectl::new(cluster);
    let version: serde_json::Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
    let nodes = kubectl.list("nodes", "")?.len();
    let version = version["gitVersion"].as_str().unwrap_or("of an unknown version");
    Ok(format!("Kubernetes {version}, {nodes} node{}, namespace {namespace}", if nodes == 1 { "" } else { "s" }))
}

fn closing_text(cluster: &Cluster, options: &Options) -> String {
    let namespace = &options.namespace;
    let mut out = format!("\nEverything is left running. To look around, after\n  {}\n", cluster.export_command());
    for (command, why) in [
        (format!("kubectl -n {namespace} get pods,weft"), "the pods, and the mesh objects with their conditions"),
        (
            format!(
                "kubectl -n {namespace} exec deploy/client -c client -- /weft-demo load --url http://reviews:9080/"
            ),
            "more traffic",
        ),
        (
            format!("kubectl -n {namespace} logs deploy/client -c weft-proxy --tail 5"),
            "access log: the rule that decided each request",
        ),
    ] {
        let _ = writeln!(out, "  {command}\n      {why}");
    }
    let down = match cluster.embedded() {
        Ok(_) => "make demo-down".to_owned(),
        Err(_) => format!("make demo-down KUBECONFIG={}", cluster.kubeconfig.display()),
    };
    let _ = write!(out, "\nThe page: {}\n`{down}` removes everything.", options.page.display());
    out
}

fn wait_until(deadline: Instant) -> Result<()> {
    thread::sleep(deadline.saturating_duration_since(Instant::now()));
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

// === impl Visitor ===

impl Visitor {
    fn description(&self) -> String {
        let header = self.header.map(|(name, value)| format!(" with {name}: {value}")).unwrap_or_default();
        format!("GET {}{header}, {} requests per second", self.url, self.rate)
    }
}

// === impl Change ===

impl Change {
    fn affects(&self, visitor: usize) -> bool {
        self.affects.iter().any(|(affected, _)| *affected == visitor)
    }

    /// The condition that says whether proxies read the change.
    fn programmed(&self, shop: &Kubectl) -> Result<Condition> {
        match self.kind {
            "meshroute" => shop.condition(self.kind, self.object, "Programmed"),
            kind => gateway_api::condition(shop, &format!("{kind}/{}", self.object), gateway_api::PROGRAMMED),
        }
    }

    /// Arguments of kubectl that show the statuses of this kind.
    fn status_command(&self) -> &'static str {
        match self.kind {
            "meshroute" => "get weft -A",
            _ => {
                "get httproutes -A -o custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name,\
                 CONDITIONS:.status.parents[*].conditions[*].type,STATUS:.status.parents[*].conditions[*].status"
            }
        }
    }
}

// === impl Expected ===

impl Expected {
    const TOLERANCE: f64 = 0.1;
    const MARGIN_MS: f64 = 500.0;

    fn check(self, rows: &[Row]) -> Result<()> {
        let share =
            |wanted: &Outcome| rows.iter().filter(|row| row.outcome == *wanted).map(|row| row.share).sum::<f64>();
        let observed =
            || rows.iter().map(|row| format!("{} × {}", row.count, row.outcome.label())).collect::<Vec<_>>().join(", ");
        ensure!(!rows.is_empty(), "no requests were sent");
        match self {
            Self::All(version) => {
                let all = share(&Outcome::Version(version.to_owned())) > 1.0 - 1e-9;
                ensure!(all, "all responses should come from {version}, not {}", observed());
            }
            Self::Share(version, wanted) => {
                let got = share(&Outcome::Version(version.to_owned()));
                let near = (got - wanted).abs() <= Self::TOLERANCE && got > 0.0;
                ensure!(near, "{:.0} % should come from {version}, not {:.0} %", wanted * 100.0, got * 100.0);
                let failed = rows.iter().any(|row| !matches!(row.outcome, Outcome::Version(_)));
                ensure!(!failed, "no request should fail: {}", observed());
            }
            Self::StatusAfter(status, ms) => {
                ensure!(
                    share(&Outcome::Status(status)) > 1.0 - 1e-9,
                    "all responses should be {status}, not {}",
                    observed()
                );
                let median = rows[0].median_ms;
                let in_time = (ms..ms + Self::MARGIN_MS).contains(&median);
                ensure!(in_time, "responses should take {}, not {}", millis(ms), millis(median));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: Outcome, count: usize, share: f64, median_ms: f64) -> Row {
        Row { outcome, count, share, median_ms, p99_ms: median_ms }
    }

    #[test]
    fn unexpected_results_are_reported() {
        let v1 = || Outcome::Version("v1".to_owned());
        let cases: [(Expected, Vec<Row>, Option<&str>); 7] = [
            (Expected::All("v1"), vec![row(v1(), 90, 1.0, 1.0)], None),
            (Expected::All("v1"), Vec::new(), Some("no requests")),
            (
                Expected::All("v1"),
                vec![row(v1(), 89, 0.99, 1.0), row(Outcome::Status(503), 1, 0.01, 1.0)],
                Some("89 × v1, 1 × 503"),
            ),
            (Expected::Share("v1", 0.9), vec![row(v1(), 90, 0.95, 1.0)], None),
            (Expected::Share("v1", 0.5), vec![row(v1(), 90, 1.0, 1.0)], Some("50 % should come from v1, not 100 %")),
            (Expected::StatusAfter(504, 2000.0), vec![row(Outcome::Status(504), 9, 1.0, 2004.0)], None),
            (Expected::StatusAfter(504, 2000.0), vec![row(Outcome::Status(504), 9, 1.0, 5000.0)], Some("not 5.00 s")),
        ];
        for (expected, rows, error) in cases {
            let result = expected.check(&rows).map_err(|error| error.to_string());
            match error {
                None => assert!(result.is_ok(), "{expected:?}: {result:?}"),
                Some(part) => {
                    assert!(result.as_ref().is_err_and(|text| text.contains(part)), "{expected:?}: {result:?}");
                }
            }
        }
    }

    #[test]
    fn every_route_file_of_the_demo_exists() {
        for change in &CHANGES {
            let yaml = read(&checkout().join("e2e/demo/routes").join(change.file)).expect("the file exists");
            assert!(yaml.contains(&format!("name: {}", change.object)), "{}: {yaml}", change.file);
        }
        let beta = read(&checkout().join("e2e/demo/routes/03-beta-header.yaml")).expect("the file exists");
        let (name, value) = VISITORS[1].header.expect("the beta visitor sends a header");
        assert!(
            beta.contains(&format!("name: {name}")) && beta.contains(value),
            "the route should match {name}: {value}"
        );
    }
}
