//! The demo: traffic to a small shop, routes applied one after another, and what the clients saw of it.
//!
//! ```text
//! before        | 1 all v1      | 2 90/10       | 3 beta to v3  | 4 timeout     | 5 retries
//! load, 4 times | load, 4 times | ...              each part is a run of `weft-demo load` for each client;
//!               ^ apply         ^ apply            they follow each other without a pause
//! ```
//!
//! What is printed and plotted is what the clients measured; nothing is computed from what was asked for.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, checkout};
use crate::install::SYSTEM;
use crate::kubectl::Kubectl;
use crate::namespace::READY;
use crate::page::{self, Answer, Outcome, Row, Step, Story, Stream, millis, summarise};
use crate::progress::{say, step};
use crate::table;
use crate::traffic::{Client, Report, RunningLoad};
use crate::wait::{eventually, eventually_every};

/// How long the clients are watched before the first apply.
const BEFORE: Duration = Duration::from_secs(6);
/// How long they are watched after each.
const WATCHED: Duration = Duration::from_secs(9);
/// From the start of a part to its apply, so that the clients run by then.
const LEAD: Duration = Duration::from_secs(1);
/// What `kubectl exec` takes to start; the next run begins so much before the last one ends.
const EXEC: Duration = Duration::from_millis(250);
/// What a proxy may take to read a configuration that the operator has written.
const SETTLE: Duration = Duration::from_secs(1);
/// What a run may take longer than it should.
const LIMIT: Duration = Duration::from_secs(60);
/// For an apply to be in force.
const PROGRAMMED: Duration = Duration::from_secs(10);

/// What the demo is run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the shop. It is created, labelled, and left running.
    pub namespace: String,
    /// Where the page is written.
    pub page: PathBuf,
}

/// A client of the shop.
struct Visitor {
    name: &'static str,
    url: &'static str,
    header: Option<(&'static str, &'static str)>,
    rate: u32,
    concurrency: u16,
    /// How long its answers take once its change is in force.
    patience: Duration,
}

/// A change, and what should come of it.
struct Change {
    file: &'static str,
    object: &'static str,
    label: &'static str,
    title: &'static str,
    /// The visitors that it is about, by index, with what is right for each.
    about: &'static [(usize, Expected)],
}

/// What is right, by the clients' own count.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Every answer is of this version.
    All(&'static str),
    /// This share is of the version, within [`Expected::TOLERANCE`], and the rest of another; nothing fails.
    Share(&'static str, f64),
    /// Every request is answered with this status, after no less than this many milliseconds and at most half a second more.
    StatusAfter(u16, f64),
}

const QUICK: Duration = Duration::ZERO;
const SLOW: Duration = Duration::from_millis(2500);

const VISITORS: [Visitor; 4] = [
    Visitor {
        name: "reviews, any visitor",
        url: "http://reviews:9080/",
        header: None,
        rate: 20,
        concurrency: 8,
        patience: QUICK,
    },
    Visitor {
        name: "reviews, beta visitor",
        url: "http://reviews:9080/",
        header: Some(("x-user", "beta")),
        rate: 20,
        concurrency: 8,
        patience: QUICK,
    },
    Visitor { name: "slow", url: "http://slow:9080/", header: None, rate: 4, concurrency: 32, patience: SLOW },
    Visitor { name: "flaky", url: "http://flaky:9080/", header: None, rate: 10, concurrency: 8, patience: QUICK },
];

const CHANGES: [Change; 5] = [
    Change {
        file: "01-all-v1.yaml",
        object: "reviews",
        label: "all to v1",
        title: "Every request to reviews goes to v1",
        about: &[(0, Expected::All("v1")), (1, Expected::All("v1"))],
    },
    Change {
        file: "02-canary-90-10.yaml",
        object: "reviews",
        label: "90/10",
        title: "A tenth of the requests to reviews goes to v2",
        about: &[(0, Expected::Share("v2", 0.1)), (1, Expected::Share("v2", 0.1))],
    },
    Change {
        file: "03-beta-header.yaml",
        object: "reviews",
        label: "beta to v3",
        title: "Who sends x-user: beta gets v3, everyone else v1",
        about: &[(0, Expected::All("v1")), (1, Expected::All("v3"))],
    },
    Change {
        file: "04-timeout.yaml",
        object: "slow",
        label: "2 s timeout",
        title: "A request to slow, which takes 5 s, is given up after 2 s",
        about: &[(2, Expected::StatusAfter(504, 2000.0))],
    },
    Change {
        file: "05-retries.yaml",
        object: "flaky",
        label: "retries",
        title: "What flaky fails, every third request, is tried again",
        about: &[(3, Expected::All("v1"))],
    },
];

/// A run of `weft-demo load`.
struct Run {
    visitor: usize,
    load: RunningLoad,
}

/// Runs the demo. It fails when the clients saw something else than the routes say.
pub fn run(options: &Options) -> Result<Story> {
    let cluster = Cluster::get()?;
    step("installing Weft", crate::install::ensure)?;
    let shop = Kubectl::within(cluster, &options.namespace);
    step("deploying the shop", || deploy(&shop, &options.namespace))?;
    let client = Client::of(&shop, "client");
    // Names are looked up, connections are made, configuration of other namespaces is fetched: before it counts.
    for visitor in VISITORS.iter().filter(|visitor| visitor.name != "slow") {
        step("waiting for the first answers", || first_answer(&client, visitor))?;
    }
    let (story, wrong) = watch(&shop, &client, place(cluster, &options.namespace)?)?;
    if let Some(folder) = options.page.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&options.page, page::html(&story)).with_context(|| format!("writing {}", options.page.display()))?;
    say(&farewell(cluster, options));
    ensure!(wrong.is_empty(), "the clients saw something else than the routes say:\n  {}", wrong.join("\n  "));
    Ok(story)
}

/// Takes the shop, Weft and its kinds away from a cluster that stays.
pub fn remove(options: &Options) -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    let gone = |arguments: &[&str]| {
        kubectl.run_with(arguments, "", READY)?.stdout_of_success(&format!("kubectl {}", arguments.join(" "))).map(drop)
    };
    step("removing the shop", || gone(&["delete", "namespace", &options.namespace, "--ignore-not-found"]))?;
    step("removing Weft", || {
        for release in ["weft", "weft-crds"] {
            crate::install::helm(&["uninstall", release, "--namespace", SYSTEM, "--ignore-not-found", "--wait"])?;
        }
        // Helm leaves the kinds, because users' objects go with them: here that is what is wanted.
        gone(&[
            "delete",
            "crd",
            "meshroutes.weft.dev",
            "meshclusters.weft.dev",
            "meshpolicies.weft.dev",
            "--ignore-not-found",
        ])?;
        gone(&["delete", "namespace", SYSTEM, "--ignore-not-found"])
    })
}

fn deploy(shop: &Kubectl, namespace: &str) -> Result<()> {
    // It is there already when the demo was run before.
    shop.run_with(&["create", "namespace", namespace], "", READY)?;
    shop.run(&["label", "namespace", namespace, "weft.dev/inject=enabled", "--overwrite"])?;
    let folder = checkout().join("e2e/demo");
    shop.apply(&read(&folder.join("shop.yaml"))?)?;
    // What an earlier demo left; the clients shall see each change happen.
    shop.run(&["delete", "meshroutes", "--all"])?;
    shop.apply(&read(&folder.join("routes/00-subsets.yaml"))?)?;
    shop.run_with(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=120s"], "", READY)?
        .stdout_of_success("kubectl wait deployment --all")?;
    Ok(())
}

fn first_answer(client: &Client, visitor: &Visitor) -> Result<()> {
    eventually(&format!("an answer of {}", visitor.url), Duration::from_secs(30), || {
        let answer = client.get(visitor.url).send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// Sends the traffic, applies the changes, prints what came of each. Gives back what to plot, and what was not right.
fn watch(shop: &Kubectl, client: &Client, place: String) -> Result<(Story, Vec<String>)> {
    let mut story = Story {
        place,
        streams: VISITORS
            .iter()
            .map(|visitor| Stream { name: visitor.name.to_owned(), sends: visitor.sends(), ..Stream::default() })
            .collect(),
        ..Story::default()
    };
    let mut wrong = Vec::new();
    // Runs whose answers no table waits for: a slow service's come when the next part runs.
    let mut late: Vec<Run> = Vec::new();
    let start = Instant::now();
    let mut ends = start + BEFORE;
    say("\nBefore any route: the shop's clients send requests, and each goes to any pod of its Service");
    late.extend(begin(client, BEFORE, None)?);
    let mut watched: Option<(&Change, Vec<Run>)> = None;
    for change in CHANGES.iter().map(Some).chain([None]) {
        step("watching the clients", || wait_until(ends - EXEC))?;
        // The next part begins before the last one is told about, so that traffic never pauses.
        let runs = change.map(|change| begin(client, WATCHED, Some(change))).transpose()?;
        if let Some((change, about)) = watched.take() {
            about.into_iter().try_for_each(|run| collect(run, start, &mut story))?;
            wrong.extend(report(change, &story));
        }
        let (Some(change), Some(runs)) = (change, runs) else { break };
        wait_until(ends + LEAD)?;
        ends += WATCHED;
        story.steps.push(apply(shop, change, start)?);
        let (about, rest) = runs.into_iter().partition(|run: &Run| change.is_about(run.visitor));
        late.extend(rest);
        watched = Some((change, about));
    }
    step("waiting for the last answers", || late.into_iter().try_for_each(|run| collect(run, start, &mut story)))?;
    let answered = |answer: &Answer| answer.sent_ms + answer.latency_ms;
    for stream in &mut story.streams {
        stream.answers.sort_by(|a, b| a.sent_ms.total_cmp(&b.sent_ms));
    }
    story.length_ms = story.streams.iter().flat_map(|stream| &stream.answers).map(answered).fold(0.0, f64::max);
    Ok((story, wrong))
}

/// Starts a run for each visitor. Those that the coming change is about end early enough for the last answer to be there
/// when the part ends.
fn begin(client: &Client, duration: Duration, change: Option<&Change>) -> Result<Vec<Run>> {
    let begin = |(visitor, it): (usize, &Visitor)| {
        let waited_for = change.is_some_and(|change| change.is_about(visitor));
        let duration = if waited_for { duration - it.patience } else { duration };
        let requests = (duration.as_secs_f64() * f64::from(it.rate)).round() as u64;
        let load = client.load(it.url).rate(it.rate).concurrency(it.concurrency).requests(requests).timeline();
        let mut load = load.limit(duration + LIMIT);
        if let Some((name, value)) = it.header {
            load = load.header(name, value);
        }
        Ok(Run { visitor, load: load.start()? })
    };
    VISITORS.iter().enumerate().map(begin).collect()
}

/// Waits for a run's end and adds its answers. A run says how long it took; when it began follows from when it ended.
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
    eventually_every(every, &format!("meshroute/{} to be in force", change.object), PROGRAMMED, || {
        let found = shop.condition("meshroute", change.object, "Programmed")?;
        ensure!(found.status == "True", "{found:?}");
        Ok(())
    })?;
    let settled_ms = (start.elapsed() + SETTLE).as_secs_f64() * 1000.0;
    let weft = shop.run(&["get", "weft", "-A"])?;
    say(&format!("\n{}\n$ kubectl apply -f e2e/demo/routes/{}", change.title, change.file));
    Ok(Step {
        label: change.label.to_owned(),
        title: change.title.to_owned(),
        yaml,
        applied_ms,
        settled_ms,
        about: change.about.iter().map(|(visitor, _)| VISITORS[*visitor].name.to_owned()).collect(),
        weft,
    })
}

/// Prints what the clients observed since a change; gives back what is not right.
fn report(change: &Change, story: &Story) -> Vec<String> {
    let mut rows = vec![["client", "answer", "count", "share", "median", "p99"].map(str::to_owned).to_vec()];
    let mut wrong = Vec::new();
    let settled_ms = story.steps.last().map_or(0.0, |step| step.settled_ms);
    for (visitor, expected) in change.about {
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
            wrong.push(format!("{}, {}: {error:#}", change.title, stream.name));
        }
    }
    let weft = story.steps.last().map(|step| step.weft.as_str()).unwrap_or_default();
    say(&format!("{}$ kubectl get weft -A\n{weft}", table::text(&rows)));
    for line in &wrong {
        say(&format!("NOT AS IT SHOULD BE: {line}"));
    }
    wrong
}

/// Where the demo ran, for the page.
fn place(cluster: &'static Cluster, namespace: &str) -> Result<String> {
    let kubectl = Kubectl::new(cluster);
    let version: serde_json::Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"])?)?;
    let nodes = kubectl.list("nodes", "")?.len();
    let version = version["gitVersion"].as_str().unwrap_or("of an unknown version");
    Ok(format!("Kubernetes {version}, {nodes} node{}, namespace {namespace}", if nodes == 1 { "" } else { "s" }))
}

fn farewell(cluster: &Cluster, options: &Options) -> String {
    let namespace = &options.namespace;
    let mut out = format!("\nEverything is left running. To look around, after\n  {}\n", cluster.exports());
    for (command, why) in [
        (format!("kubectl -n {namespace} get pods,weft"), "what runs, and what Weft says about it"),
        (
            format!(
                "kubectl -n {namespace} exec deploy/client -c client -- /weft-demo load --url http://reviews:9080/"
            ),
            "more traffic",
        ),
        (
            format!("kubectl -n {namespace} logs deploy/client -c weft-proxy --tail 5"),
            "which rule decided each request",
        ),
    ] {
        let _ = writeln!(out, "  {command}\n      {why}");
    }
    let down = match cluster.embedded() {
        Ok(_) => "make demo-down".to_owned(),
        Err(_) => format!("make demo-down KUBECONFIG={}", cluster.kubeconfig.display()),
    };
    let _ = write!(out, "\nThe page: {}\n`{down}` removes every trace.", options.page.display());
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
    fn sends(&self) -> String {
        let header = self.header.map(|(name, value)| format!(" with {name}: {value}")).unwrap_or_default();
        format!("GET {}{header}, {} times a second", self.url, self.rate)
    }
}

// === impl Change ===

impl Change {
    fn is_about(&self, visitor: usize) -> bool {
        self.about.iter().any(|(about, _)| *about == visitor)
    }
}

// === impl Expected ===

impl Expected {
    const TOLERANCE: f64 = 0.1;
    const MARGIN_MS: f64 = 500.0;

    fn check(self, rows: &[Row]) -> Result<()> {
        let share =
            |wanted: &Outcome| rows.iter().filter(|row| row.outcome == *wanted).map(|row| row.share).sum::<f64>();
        let said =
            || rows.iter().map(|row| format!("{} × {}", row.count, row.outcome.label())).collect::<Vec<_>>().join(", ");
        ensure!(!rows.is_empty(), "no requests were sent");
        match self {
            Self::All(version) => {
                let all = share(&Outcome::Version(version.to_owned())) > 1.0 - 1e-9;
                ensure!(all, "every answer should be of {version}, not {}", said());
            }
            Self::Share(version, wanted) => {
                let got = share(&Outcome::Version(version.to_owned()));
                let near = (got - wanted).abs() <= Self::TOLERANCE && got > 0.0;
                ensure!(near, "{:.0} % should be of {version}, not {:.0} %", wanted * 100.0, got * 100.0);
                let failed = rows.iter().any(|row| !matches!(row.outcome, Outcome::Version(_)));
                ensure!(!failed, "nothing should fail: {}", said());
            }
            Self::StatusAfter(status, ms) => {
                ensure!(
                    share(&Outcome::Status(status)) > 1.0 - 1e-9,
                    "every answer should be {status}, not {}",
                    said()
                );
                let median = rows[0].median_ms;
                let timely = (ms..ms + Self::MARGIN_MS).contains(&median);
                ensure!(timely, "answers should take {}, not {}", millis(ms), millis(median));
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
    fn what_is_not_right_is_said() {
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
            (Expected::Share("v1", 0.5), vec![row(v1(), 90, 1.0, 1.0)], Some("50 % should be of v1, not 100 %")),
            (Expected::StatusAfter(504, 2000.0), vec![row(Outcome::Status(504), 9, 1.0, 2004.0)], None),
            (Expected::StatusAfter(504, 2000.0), vec![row(Outcome::Status(504), 9, 1.0, 5000.0)], Some("not 5.00 s")),
        ];
        for (expected, rows, wrong) in cases {
            let said = expected.check(&rows).map_err(|error| error.to_string());
            match wrong {
                None => assert!(said.is_ok(), "{expected:?}: {said:?}"),
                Some(words) => assert!(said.as_ref().is_err_and(|said| said.contains(words)), "{expected:?}: {said:?}"),
            }
        }
    }

    #[test]
    fn every_route_of_the_demo_is_there() {
        for change in &CHANGES {
            let yaml = read(&checkout().join("e2e/demo/routes").join(change.file)).expect("the file is there");
            assert!(yaml.contains(&format!("name: {}", change.object)), "{}: {yaml}", change.file);
        }
        let beta = read(&checkout().join("e2e/demo/routes/03-beta-header.yaml")).expect("the file is there");
        let (name, value) = VISITORS[1].header.expect("the beta visitor sends a header");
        assert!(beta.contains(&format!("name: {name}")) && beta.contains(value), "the route looks for {name}: {value}");
    }
}
