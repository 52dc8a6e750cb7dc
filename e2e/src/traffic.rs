//! Traffic from inside the cluster: the demo application's client side, run in a pod by `kubectl exec`, and what it saw.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::command::Running;
use crate::kubectl::Kubectl;
use crate::namespace::{Namespace, READY, SOON};
use crate::wait::eventually;
use crate::workload::{self, PROGRAM};

/// Beyond what the client itself waits for.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// A pod that sends requests.
#[derive(Clone, Debug)]
pub struct Client {
    kubectl: Kubectl,
    /// The Deployment, and the container in its pod.
    name: String,
}

/// A request that is put together.
#[derive(Clone, Debug)]
pub struct Request {
    client: Client,
    arguments: Vec<String>,
}

/// What came of one request.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// 0 where there was no response; `error` says why.
    pub status: u16,
    /// Headers of the response, names in lower case.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Its body.
    pub body: String,
    /// How long it took.
    pub ms: u64,
    /// Why there is no response.
    pub error: Option<String>,
}

/// Many requests that are put together.
#[derive(Clone, Debug)]
pub struct Load {
    client: Client,
    arguments: Vec<String>,
    limit: Duration,
}

/// Many requests under way.
#[derive(Debug)]
pub struct RunningLoad {
    running: Running,
    limit: Duration,
}

/// What came of many requests.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// How many were sent.
    pub requests: u64,
    /// Answered 2xx or 3xx.
    pub ok: u64,
    /// Answered otherwise, or not at all.
    pub failed: u64,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Answers by version of the server.
    pub by_version: BTreeMap<String, u64>,
    /// Answers by the server's pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Answers of proxies, by their reason.
    pub by_reason: BTreeMap<String, u64>,
    /// Requests without a whole answer, by what happened.
    pub errors: BTreeMap<String, u64>,
    /// How long answers took, in milliseconds: `p50`, `p90`, `p99`, `max`.
    pub latency_ms: BTreeMap<String, f64>,
    /// How long all of it took.
    pub seconds: f64,
    /// For each request: when it began (ms), status (0: none), version, how long it took (ms).
    #[serde(default)]
    pub timeline: Vec<(u64, u16, String, f64)>,
}

/// What came of a conversation without HTTP.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpAnswer {
    /// What the server said before it was told anything.
    pub first: String,
    /// When it did.
    pub first_ms: Option<u64>,
    /// What it said after.
    pub received: String,
    /// How long all of it took.
    pub ms: u64,
    /// What went wrong.
    pub error: Option<String>,
}

// === impl Client ===

impl Client {
    /// Deploys one in the namespace and waits until it is ready.
    pub fn deploy(namespace: &Namespace) -> Result<Self> {
        namespace.apply(&workload::client())?;
        namespace.rolled_out("deployment/client", READY)?;
        Ok(Self::of(namespace, "client"))
    }

    /// The Deployment of that name, which is there already.
    pub fn of(kubectl: &Kubectl, name: &str) -> Self {
        Self { kubectl: kubectl.clone(), name: name.to_owned() }
    }

    /// A GET of that URL.
    pub fn get(&self, url: &str) -> Request {
        Request { client: self.clone(), arguments: words(&["request", "--url", url]) }
    }

    /// Many GETs of that URL.
    pub fn load(&self, url: &str) -> Load {
        Load { client: self.clone(), arguments: words(&["load", "--url", url]), limit: EXEC_LIMIT }
    }

    /// A conversation without HTTP, by the arguments of `weft-demo tcp-client`.
    pub fn tcp(&self, address: &str, arguments: &[&str]) -> Result<TcpAnswer> {
        let mut all = words(&["tcp-client", "--address", address]);
        all.extend(words(arguments));
        let printed = self.run(&all)?;
        serde_json::from_str(&printed).with_context(|| format!("reading what tcp-client printed: {printed}"))
    }

    /// The same with a server whose pod has only just become ready: until the client's proxy has heard of it, connections are
    /// closed at once, and made again.
    pub fn tcp_reached(&self, address: &str, arguments: &[&str]) -> Result<TcpAnswer> {
        eventually(&format!("{address} to be reached"), SOON, || {
            let answer = self.tcp(address, arguments)?;
            ensure!(answer.error.is_none(), "{answer:?}");
            Ok(answer)
        })
    }

    fn run(&self, arguments: &[String]) -> Result<String> {
        let arguments = self.exec(arguments);
        let what = format!("kubectl {}", arguments.join(" "));
        self.kubectl.run_with(&borrowed(&arguments), "", EXEC_LIMIT)?.stdout_of_success(&what)
    }

    fn exec(&self, arguments: &[String]) -> Vec<String> {
        let mut all = words(&["exec", &format!("deployment/{}", self.name), "-c", &self.name, "--", PROGRAM]);
        all.extend_from_slice(arguments);
        all
    }
}

// === impl Request ===

impl Request {
    /// With another method.
    pub fn method(self, method: &str) -> Self {
        self.with(&["--method", method])
    }

    /// With a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(&["--header", &format!("{name}={value}")])
    }

    /// With a body.
    pub fn body(self, body: &str) -> Self {
        self.with(&["--body", body])
    }

    /// Over HTTP/2.
    pub fn http2(self) -> Self {
        self.with(&["--http2"])
    }

    /// Given up after this.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(&["--timeout", &format!("{}ms", timeout.as_millis())])
    }

    /// Sends it.
    pub fn send(&self) -> Result<Answer> {
        let printed = self.client.run(&self.arguments)?;
        serde_json::from_str(&printed).with_context(|| format!("reading what request printed: {printed}"))
    }

    fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(words(arguments));
        self
    }
}

// === impl Answer ===

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.first().map(String::as_str)
    }

    /// The version of the server that answered.
    pub fn version(&self) -> Option<&str> {
        self.header("x-version")
    }

    /// Why a proxy answered in a server's stead.
    pub fn reason(&self) -> Option<&str> {
        self.header("weft-reason")
    }

    /// Which object and rule decided that: `kind/namespace/name/rule`.
    pub fn source(&self) -> Option<&str> {
        self.header("weft-source")
    }

    /// What the server says that it was asked.
    pub fn told(&self) -> Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("no server of the demo application answered: {self:?}"))
    }

    /// Fails unless the status is this one.
    pub fn expect_status(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "the status should be {status}: {self:?}");
        Ok(self)
    }
}

// === impl Load ===

impl Load {
    /// So many.
    pub fn requests(self, requests: u64) -> Self {
        self.with(&["--requests", &requests.to_string()])
    }

    /// Begun within this time.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.limit += duration;
        self.with(&["--duration", &format!("{}ms", duration.as_millis())])
    }

    /// So many in flight at once.
    pub fn concurrency(self, concurrency: u16) -> Self {
        self.with(&["--concurrency", &concurrency.to_string()])
    }

    /// So many begun in a second.
    pub fn rate(self, rate: u32) -> Self {
        self.with(&["--rate", &rate.to_string()])
    }

    /// With a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(&["--header", &format!("{name}={value}")])
    }

    /// With another method.
    pub fn method(self, method: &str) -> Self {
        self.with(&["--method", method])
    }

    /// With a line for each request.
    pub fn timeline(self) -> Self {
        self.with(&["--timeline"])
    }

    /// With other arguments of `weft-demo load`.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(words(arguments));
        self
    }

    /// All of it may take this long.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends them.
    pub fn run(&self) -> Result<Report> {
        self.start()?.finish()
    }

    /// Begins to send them.
    pub fn start(&self) -> Result<RunningLoad> {
        let arguments = self.client.exec(&self.arguments);
        Ok(RunningLoad { running: self.client.kubectl.start(&borrowed(&arguments))?, limit: self.limit })
    }

    /// The arguments, for a Job.
    pub fn arguments(&self) -> Vec<String> {
        self.arguments.clone()
    }
}

// === impl RunningLoad ===

impl RunningLoad {
    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        self.running.is_running()
    }

    /// Waits for its end.
    pub fn finish(self) -> Result<Report> {
        self.finish_at().map(|(report, _)| report)
    }

    /// Waits for its end; says when that was. Somewhat earlier the report was written.
    pub fn finish_at(self) -> Result<(Report, Instant)> {
        let output = self.running.finish(self.limit)?;
        let ended = output.ended;
        Ok((Report::parse(&output.stdout_of_success("weft-demo load")?)?, ended))
    }
}

// === impl Report ===

impl Report {
    /// Reads what `weft-demo load` printed.
    pub fn parse(printed: &str) -> Result<Self> {
        // Of the lines of a log the last is the report.
        let line = printed.lines().rfind(|line| line.starts_with('{')).unwrap_or(printed);
        serde_json::from_str(line).with_context(|| format!("reading what load printed: {printed}"))
    }

    /// The share of requests that a version answered.
    pub fn share(&self, version: &str) -> f64 {
        self.by_version.get(version).copied().unwrap_or(0) as f64 / self.requests.max(1) as f64
    }

    /// How many were answered so.
    pub fn status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }

    /// Fails unless every request was answered 2xx or 3xx, and at least so many were sent.
    pub fn expect_none_failed(&self, at_least: u64) -> Result<()> {
        ensure!(self.failed == 0, "of {} requests {} failed: {}", self.requests, self.failed, self.summary());
        ensure!(self.requests >= at_least, "only {} requests were sent, not {at_least}", self.requests);
        Ok(())
    }

    /// All but the timeline, in a line.
    pub fn summary(&self) -> String {
        format!(
            "statuses {:?}, versions {:?}, reasons {:?}, errors {:?}, {:?} ms",
            self.by_status, self.by_version, self.by_reason, self.errors, self.latency_ms
        )
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
