//! Traffic from inside the cluster: the demo application's client commands, run in a pod by `kubectl exec`, and their
//! reports.

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

/// Time limit of `kubectl exec`, longer than the client's own timeouts.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// A pod that sends requests.
#[derive(Clone, Debug)]
pub struct Client {
    kubectl: Kubectl,
    /// What `kubectl exec` takes: `deployment/NAME` or `pod/NAME`.
    workload: String,
    container: String,
}

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    client: Client,
    arguments: Vec<String>,
}

/// The result of one request.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// Status; 0 without a response, with the reason in `error`.
    pub status: u16,
    /// Headers of the response, names in lower case.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Body of the response.
    pub body: String,
    /// Duration in milliseconds.
    pub ms: u64,
    /// Why there is no response.
    pub error: Option<String>,
}

/// A load of many requests to send.
#[derive(Clone, Debug)]
pub struct Load {
    client: Client,
    arguments: Vec<String>,
    limit: Duration,
}

/// A load that is running.
#[derive(Debug)]
pub struct RunningLoad {
    running: Running,
    limit: Duration,
}

/// The results of a load.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Requests sent.
    pub requests: u64,
    /// Requests answered 2xx or 3xx.
    pub ok: u64,
    /// Requests answered with another status, or without a complete response.
    pub failed: u64,
    /// Responses by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Responses by version of the server.
    pub by_version: BTreeMap<String, u64>,
    /// Responses by pod of the server.
    pub by_pod: BTreeMap<String, u64>,
    /// Responses of proxies, by their reason.
    pub by_reason: BTreeMap<String, u64>,
    /// Requests without a complete response, by error.
    pub errors: BTreeMap<String, u64>,
    /// Latency in milliseconds: `p50`, `p90`, `p99`, `max`.
    pub latency_ms: BTreeMap<String, f64>,
    /// Duration of the load.
    pub seconds: f64,
    /// For each request: start (ms), status (0: none), version, latency (ms).
    #[serde(default)]
    pub timeline: Vec<(u64, u16, String, f64)>,
}

/// A TCP connection that is open.
#[derive(Debug)]
pub struct RunningTcp {
    running: Running,
}

/// The result of a TCP connection.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpAnswer {
    /// Bytes received before anything was sent.
    pub first: String,
    /// When they arrived, in milliseconds.
    pub first_ms: Option<u64>,
    /// Bytes received afterwards.
    pub received: String,
    /// Duration in milliseconds.
    pub ms: u64,
    /// The error, if it failed.
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

    /// The client in an existing Deployment.
    pub fn of(kubectl: &Kubectl, name: &str) -> Self {
        Self { kubectl: kubectl.clone(), workload: format!("deployment/{name}"), container: name.to_owned() }
    }

    /// The client in the container of an existing pod.
    pub fn within(kubectl: &Kubectl, pod: &str, container: &str) -> Self {
        Self { kubectl: kubectl.clone(), workload: format!("pod/{pod}"), container: container.to_owned() }
    }

    /// A GET of that URL.
    pub fn get(&self, url: &str) -> Request {
        Request { client: self.clone(), arguments: words(&["request", "--url", url]) }
    }

    /// Many GETs of that URL.
    pub fn load(&self, url: &str) -> Load {
        Load { client: self.clone(), arguments: words(&["load", "--url", url]), limit: EXEC_LIMIT }
    }

    /// A TCP connection, by the arguments of `weft-demo tcp-client`.
    pub fn tcp(&self, address: &str, arguments: &[&str]) -> Result<TcpAnswer> {
        self.tcp_start(address, arguments)?.finish()
    }

    /// As [`Client::tcp`], in the background.
    pub fn tcp_start(&self, address: &str, arguments: &[&str]) -> Result<RunningTcp> {
        let mut all = words(&["tcp-client", "--address", address]);
        all.extend(words(arguments));
        Ok(RunningTcp { running: self.kubectl.start(&borrowed(&self.exec(&all)))? })
    }

    /// As [`Client::tcp`], repeated until it succeeds: the client's proxy closes connections until it has learned of
    /// the server's pod.
    pub fn tcp_reached(&self, address: &str, arguments: &[&str]) -> Result<TcpAnswer> {
        eventually(&format!("a connection to {address}"), SOON, || {
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
        let mut all = words(&["exec", &self.workload, "-c", &self.container, "--", PROGRAM]);
        all.extend_from_slice(arguments);
        all
    }
}

// === impl Request ===

impl Request {
    /// With this method; the default is GET.
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

    /// With this timeout.
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

    /// Why a proxy answered instead of a server.
    pub fn reason(&self) -> Option<&str> {
        self.header("weft-reason")
    }

    /// The object and rule that decided: `kind/namespace/name/rule`.
    pub fn source(&self) -> Option<&str> {
        self.header("weft-source")
    }

    /// The body as JSON: the demo server's description of the request.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("the body is not a demo server's JSON: {self:?}"))
    }

    /// Fails unless the status is this one.
    pub fn expect_status(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "the status should be {status}: {self:?}");
        Ok(self)
    }
}

// === impl Load ===

impl Load {
    /// With this number of requests.
    pub fn requests(self, requests: u64) -> Self {
        self.with(&["--requests", &requests.to_string()])
    }

    /// For this duration.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.limit += duration;
        self.with(&["--duration", &format!("{}ms", duration.as_millis())])
    }

    /// With this number of concurrent requests.
    pub fn concurrency(self, concurrency: u16) -> Self {
        self.with(&["--concurrency", &concurrency.to_string()])
    }

    /// With this number of requests per second.
    pub fn rate(self, rate: u32) -> Self {
        self.with(&["--rate", &rate.to_string()])
    }

    /// With a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(&["--header", &format!("{name}={value}")])
    }

    /// With this method; the default is GET.
    pub fn method(self, method: &str) -> Self {
        self.with(&["--method", method])
    }

    /// With an entry per request in the report.
    pub fn timeline(self) -> Self {
        self.with(&["--timeline"])
    }

    /// With other arguments of `weft-demo load`.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(words(arguments));
        self
    }

    /// With this time limit for the whole run.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the load.
    pub fn run(&self) -> Result<Report> {
        self.start()?.finish()
    }

    /// Starts the load in the background.
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
    /// Whether it is still running.
    pub fn is_running(&mut self) -> Result<bool> {
        self.running.is_running()
    }

    /// Waits for its end.
    pub fn finish(self) -> Result<Report> {
        self.finish_at().map(|(report, _)| report)
    }

    /// Waits for its end; returns the time of the end too. The report was written slightly earlier.
    pub fn finish_at(self) -> Result<(Report, Instant)> {
        let output = self.running.finish(self.limit)?;
        let ended = output.ended;
        Ok((Report::parse(&output.stdout_of_success("weft-demo load")?)?, ended))
    }
}

// === impl RunningTcp ===

impl RunningTcp {
    /// Whether it is still open.
    pub fn is_open(&mut self) -> Result<bool> {
        self.running.is_running()
    }

    /// Waits for its end.
    pub fn finish(self) -> Result<TcpAnswer> {
        let printed = self.running.finish(EXEC_LIMIT)?.stdout_of_success("weft-demo tcp-client")?;
        serde_json::from_str(&printed).with_context(|| format!("reading what tcp-client printed: {printed}"))
    }
}

// === impl Report ===

impl Report {
    /// Parses the output of `weft-demo load`.
    pub fn parse(printed: &str) -> Result<Self> {
        // In a log the report is the last JSON line.
        let line = printed.lines().rfind(|line| line.starts_with('{')).unwrap_or(printed);
        serde_json::from_str(line).with_context(|| format!("reading what load printed: {printed}"))
    }

    /// The share of requests that were answered by a version.
    pub fn share(&self, version: &str) -> f64 {
        self.by_version.get(version).copied().unwrap_or(0) as f64 / self.requests.max(1) as f64
    }

    /// The number of responses with a status.
    pub fn status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }

    /// Fails unless all requests were answered 2xx or 3xx, and at least this many were sent.
    pub fn expect_none_failed(&self, at_least: u64) -> Result<()> {
        ensure!(self.failed == 0, "{} of {} requests failed: {}", self.failed, self.requests, self.summary());
        ensure!(self.requests >= at_least, "only {} requests were sent, not {at_least}", self.requests);
        Ok(())
    }

    /// The report without the timeline, in one line.
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
