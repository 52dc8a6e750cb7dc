//! Where a test happens: a network namespace, the redirection in it, and the proxy process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use weft_config::bootstrap::{ENV_PURGE_DELAY, PURGE_DELAY_MS};

/// The Service's address; its ports are those of [`Place::start`].
pub(crate) const SERVICE: [u8; 4] = [198, 19, 0, 1];
/// The pod's address.
pub(crate) const POD: [u8; 4] = [198, 18, 0, 2];
/// The address of a second pod, which [`Place::second`] stands in.
pub(crate) const SECOND_POD: [u8; 4] = [198, 18, 0, 3];
/// Where the application speaks HTTP/1.1.
pub(crate) const APP: u16 = 8080;
/// Where it speaks HTTP/2.
pub(crate) const APP_H2: u16 = 8082;

/// How long anything may take that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const INSIDE: &str = "WEFT_CORPUS_INSIDE";
pub(crate) const PROXY_UID: u32 = 15015;
const SECOND_UID: u32 = 15016;

/// A way through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

pub(crate) const BOTH: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// A proxy process, gone when this is dropped.
///
/// When it is dropped, what it holds must be what it held when it was ready: no request, stream, task or descriptor may outlive
/// the clients of a test.
pub(crate) struct Place {
    folder: PathBuf,
    child: Child,
    admin_port: u16,
    before: Held,
}

/// What a proxy holds beside idle connections to endpoints, by its own numbers. Those that idle are kept on purpose: each is a
/// descriptor, and one of HTTP/2 is a task as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    descriptors: i64,
    tasks: i64,
    requests: i64,
    downstream_connections: i64,
    downstream_streams: i64,
    upstream_streams: i64,
    /// Connections of HTTP/1.1 to endpoints with a request on them.
    upstream_busy: i64,
}

/// What may differ from one proxy to another.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Of the private document.
    pub(crate) policies: Value,
    /// Of the exported document's only Service.
    pub(crate) settings: Value,
    /// Routes of port 80.
    pub(crate) routes: Option<Value>,
    /// File descriptors that the process may have.
    pub(crate) files: Option<u32>,
    /// Whether the endpoints are in the second pod.
    pub(crate) far: bool,
    /// Whether it stands in the second pod.
    pub(crate) second: bool,
}

/// Whether this process is in a test's own network namespace.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test in a network namespace of its own: this very binary again, with that test alone.
pub(crate) fn alone(module: &str, test: &str, body: impl FnOnce()) {
    if is_alone() {
        furnish();
        return body();
    }
    let (_, module) = module.split_once("::").expect("a module of this crate");
    let output = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().expect("a running binary has a path"))
        .args([&format!("{module}::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare can be run (Debian: util-linux)");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    eprint!("{said}");
}

/// Redirects as in two pods: what a proxy sends is left alone, but for what the first one sends to the second pod.
fn furnish() {
    // As many files as may be, for clients in their thousands and for the proxies that serve them.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit of files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the limit of files can be raised");
    let (service, pod, second) = (ip(SERVICE), ip(POD), ip(SECOND_POD));
    let nat = |rule: String| format!("iptables-nft -w -t nat -A OUTPUT -p tcp {rule}");
    for command in [
        "ip link set lo up".to_owned(),
        format!("ip addr add {service}/32 dev lo"),
        format!("ip addr add {pod}/32 dev lo"),
        format!("ip addr add {second}/32 dev lo"),
        nat(format!("-m owner --uid-owner {SECOND_UID} -j RETURN")),
        nat(format!("-d {second} -j REDIRECT --to-ports 16006")),
        nat(format!("-m owner --uid-owner {PROXY_UID} -j RETURN")),
        nat(format!("-d {service} -j REDIRECT --to-ports 15001")),
        nat(format!("-d {pod} -j REDIRECT --to-ports 15006")),
    ] {
        let mut words = command.split(' ');
        let output = Command::new(words.next().expect("a program")).args(words).output();
        let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

pub(crate) fn ip(octets: [u8; 4]) -> String {
    octets.map(|octet| octet.to_string()).join(".")
}

impl Direction {
    /// Where a client connects to reach the application that speaks HTTP/1.1.
    pub(crate) fn address(self) -> SocketAddr {
        match self {
            Self::Outbound => (SERVICE, 80).into(),
            Self::Inbound => (POD, APP).into(),
        }
    }

    /// Where a client connects to reach the application that speaks HTTP/2.
    pub(crate) fn address_h2(self) -> SocketAddr {
        match self {
            Self::Outbound => (SERVICE, 81).into(),
            Self::Inbound => (POD, APP_H2).into(),
        }
    }
}

impl Place {
    /// A proxy that routes port 80 of the Service to the application over HTTP/1.1, port 81 over HTTP/2, and denies
    /// `/private`.
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("weft-corpus-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let Options { environment, policies, settings, routes, files, far, second } = options;
        let uid = if second { SECOND_UID } else { PROXY_UID };
        write(&folder, "i.shop", &private(policies));
        write(&folder, "x.shop", &exported(settings, routes, far));
        let log = File::create(folder.join("log")).expect("a file");
        let limit = files.map(|files| format!("ulimit -n {files}; ")).unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec \"$0\""), env!("CARGO_BIN_EXE_weft-proxy")]);
        command.uid(uid).gid(uid).env_clear();
        command.envs([
            ("WEFT_NAMESPACE", "shop"),
            ("WEFT_SOURCE", &format!("directory:{}", folder.display())),
            ("WEFT_LOG", "warn,access=info"),
            ("WEFT_ACCESS_LOG", "on"),
            (ENV_PURGE_DELAY, PURGE_DELAY_MS),
        ]);
        command.envs(environment);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log).spawn();
        let child = child.expect("the proxy starts");
        let (health, admin_port) = if second { (16021, 16000) } else { (15021, 15000) };
        wait("the proxy is ready", || scrape(health, "/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
        // Its workers start a moment later than its probes.
        let mut before = None;
        wait("the proxy holds nothing", || {
            let last = std::mem::replace(&mut before, Held::read(admin_port));
            before.is_some_and(|held| held.tasks > 0) && last == before
        });
        Self { folder, child, admin_port, before: before.expect("it was read") }
    }

    /// The proxy of the second pod.
    pub(crate) fn second() -> Self {
        let ports = json!({
            "outboundPort": 16001, "inboundPort": 16006, "adminPort": 16000, "metricsPort": 16020, "healthPort": 16021
        });
        Self::with(Options { environment: vec![("WEFT_LOCAL", ports.to_string())], second: true, ..Options::default() })
    }

    /// Replaces the exported document.
    pub(crate) fn export(&self, body: &Value) {
        write(&self.folder, "x.shop", body);
    }

    /// Replaces a document by whatever text.
    pub(crate) fn write_raw(&self, name: &str, text: &str) {
        write_text(&self.folder, name, text);
    }

    /// What the process has said so far.
    pub(crate) fn log(&self) -> String {
        let mut text = Vec::new();
        File::open(self.folder.join("log")).expect("a file").read_to_end(&mut text).expect("it is read");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Resident memory of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Waits until the proxy holds what it held in the beginning: to be asked when all clients are gone.
    pub(crate) fn settle(&self) {
        let begun = Instant::now();
        loop {
            let held = Held::read(self.admin_port);
            if held == Some(self.before) {
                return;
            }
            let before = &self.before;
            assert!(begun.elapsed() < PATIENCE, "still held after {PATIENCE:?}: {held:#?}, not {before:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }
}

impl Held {
    fn read(admin_port: u16) -> Option<Self> {
        let page = scrape(admin_port, "/metrics")?;
        let sum = |name: &str| -> i64 {
            let lines =
                page.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<i64>().ok());
            lines.sum()
        };
        let (http1, http2) = (
            sum("weft_upstream_connections_open{protocol=\"http1\"}"),
            sum("weft_upstream_connections_open{protocol=\"http2\"}"),
        );
        Some(Self {
            descriptors: sum("process_open_fds ") - http1 - http2,
            tasks: sum("weft_tasks_alive ") - http2,
            requests: sum("weft_requests_in_flight "),
            downstream_connections: sum("weft_connections_open{"),
            downstream_streams: sum("weft_http2_streams_open{side=\"downstream\"}"),
            upstream_streams: sum("weft_http2_streams_open{side=\"upstream\"}"),
            upstream_busy: http1 - sum("weft_upstream_connections_idle "),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The process goes first, whatever it holds.
        let settled = catch_unwind(AssertUnwindSafe(|| {
            if !std::thread::panicking() && self.is_alive() {
                self.settle();
            }
        }));
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("what the proxy said last:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let _ = fs::remove_dir_all(&self.folder);
        if let Err(panic) = settled {
            resume_unwind(panic);
        }
    }
}

fn write(folder: &Path, name: &str, body: &Value) {
    write_text(folder, name, &body.to_string());
}

fn write_text(folder: &Path, name: &str, text: &str) {
    let path = folder.join(format!("{name}.json"));
    fs::write(path.with_extension("new"), text).expect("written");
    fs::rename(path.with_extension("new"), path).expect("renamed");
}

fn private(policies: Value) -> Value {
    let fixture = json!([{"name": "fixture", "target": "namespace", "rules": [
        {"action": "deny", "paths": [{"prefix": "/private"}]}
    ]}]);
    json!({"policies": if policies.is_null() { fixture } else { policies }})
}

/// The exported document: one Service with a port for each way to speak to the application.
pub(crate) fn exported(settings: Value, routes: Option<Value>, far: bool) -> Value {
    let address = ip(if far { SECOND_POD } else { POD });
    let port = |number: u16, protocol: &str, to: u16| json!({"port": number, "protocol": protocol, "endpoints": [{"address": format!("{address}:{to}"), "hasProxy": far}]});
    let mut first = port(80, "http", APP);
    if let Some(routes) = routes {
        first["routes"] = routes;
    }
    let settings = if settings.is_null() { json!({}) } else { settings };
    json!({"services": [{
        "name": "app", "addresses": [ip(SERVICE)], "settings": settings,
        "ports": [first, port(81, "http2", APP_H2), port(82, "detect", APP)]
    }]})
}

/// An answer of the proxy about itself.
pub(crate) fn scrape(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

/// Waits until something holds.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
