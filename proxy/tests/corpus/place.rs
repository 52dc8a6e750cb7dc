//! The network namespace of a test, the redirection in it, and the proxy process.

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

/// The Service's address. [`Proxy::start`] lists its ports.
pub(crate) const SERVICE: [u8; 4] = [198, 19, 0, 1];
/// The pod's address.
pub(crate) const POD: [u8; 4] = [198, 18, 0, 2];
/// The address of the second pod, whose proxy is [`Proxy::second`].
pub(crate) const SECOND_POD: [u8; 4] = [198, 18, 0, 3];
/// Port of the application that speaks HTTP/1.1.
pub(crate) const APP: u16 = 8080;
/// Port of the application that speaks HTTP/2.
pub(crate) const APP_H2: u16 = 8082;

/// Limit for everything that should happen at once.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Environment variable that marks a process inside a test's namespace.
const INSIDE: &str = "WEFT_CORPUS_INSIDE";
pub(crate) const PROXY_UID: u32 = 15015;
const SECOND_UID: u32 = 15016;

/// Which side of the proxy a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

pub(crate) const BOTH: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// A proxy process. Dropping it ends the process.
///
/// Before that, its [`Resources`] must be what they were when it became ready: no request, stream, task or descriptor
/// may outlive the clients of a test.
pub(crate) struct Proxy {
    folder: PathBuf,
    child: Child,
    admin_port: u16,
    before: Resources,
    memory_before: u64,
}

/// Memory beyond that at its start that a proxy may keep when all clients are gone, in bytes: partly used pages of the
/// allocator, HPACK tables and idle connections to endpoints.
const MEMORY_KEPT_MAX: u64 = 32 * 1024 * 1024;

/// What a proxy holds, by its own metrics. Idle upstream connections do not count, because it pools them on purpose:
/// each is a descriptor, and an HTTP/2 connection is a task as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    descriptors: i64,
    tasks: i64,
    requests: i64,
    downstream_connections: i64,
    downstream_streams: i64,
    upstream_streams: i64,
    /// HTTP/1.1 connections to endpoints that carry a request.
    upstream_busy: i64,
}

/// Settings of one proxy.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) environment: Vec<(&'static str, String)>,
    /// `policies` of the namespace's private document.
    pub(crate) policies: Value,
    /// `settings` of the only Service in the exported document.
    pub(crate) settings: Value,
    /// `routes` of port 80.
    pub(crate) routes: Option<Value>,
    /// Limit of file descriptors.
    pub(crate) files: Option<u32>,
    /// Whether the namespace's private document is missing.
    pub(crate) without_policies: bool,
    /// Whether the endpoints are in the second pod.
    pub(crate) remote: bool,
    /// Whether this is the proxy of the second pod.
    pub(crate) second: bool,
}

/// Whether this process runs inside a test's network namespace.
pub(crate) fn is_in_namespace() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test in a new network namespace, by starting this binary again for that test only.
pub(crate) fn in_namespace(module: &str, test: &str, body: impl FnOnce()) {
    if is_in_namespace() {
        set_up_namespace();
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
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    eprint!("{text}");
}

/// Redirects as in two pods. Traffic of the proxies is not redirected, except that from the first proxy to the second
/// pod.
fn set_up_namespace() {
    // Thousands of clients, and the proxies that serve them, need many descriptors.
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
    /// The address that leads to the HTTP/1.1 application.
    pub(crate) fn address(self) -> SocketAddr {
        match self {
            Self::Outbound => (SERVICE, 80).into(),
            Self::Inbound => (POD, APP).into(),
        }
    }

    /// The address that leads to the HTTP/2 application.
    pub(crate) fn address_h2(self) -> SocketAddr {
        match self {
            Self::Outbound => (SERVICE, 81).into(),
            Self::Inbound => (POD, APP_H2).into(),
        }
    }
}

impl Proxy {
    /// Starts a proxy with the default document: Service port 80 goes to the HTTP/1.1 application, port 81 to the
    /// HTTP/2 application, port 82 detects the protocol, and a policy denies `/private`.
    pub(crate) fn start() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("weft-corpus-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let Options { environment, policies, settings, routes, files, without_policies, remote, second } = options;
        let uid = if second { SECOND_UID } else { PROXY_UID };
        if !without_policies {
            write(&folder, "i.shop", &private(policies));
        }
        write(&folder, "x.shop", &exported(settings, routes, remote));
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
        let expected = if without_policies { "HTTP/1.1 503" } else { "HTTP/1.1 200" };
        wait("the proxy's readiness", || scrape(health, "/readyz").is_some_and(|page| page.starts_with(expected)));
        // The probes answer a moment before the workers have started.
        let mut before = None;
        wait("the proxy's resources are stable", || {
            let last = std::mem::replace(&mut before, Resources::read(admin_port));
            before.is_some_and(|held| held.tasks > 0) && last == before
        });
        let mut proxy = Self { folder, child, admin_port, before: before.expect("it was read"), memory_before: 0 };
        proxy.memory_before = proxy.memory();
        proxy
    }

    /// Starts the proxy of the second pod.
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

    /// Replaces a document with any text.
    pub(crate) fn write_raw(&self, name: &str, text: &str) {
        write_text(&self.folder, name, text);
    }

    /// Everything that the process has printed.
    pub(crate) fn log(&self) -> String {
        let mut text = Vec::new();
        File::open(self.folder.join("log")).expect("a file").read_to_end(&mut text).expect("it is read");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Resident memory (RSS) of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Waits until the proxy's resources are what they were at the start, and its memory nearly so. Call it when all clients
    /// are closed.
    pub(crate) fn settle(&self) {
        let begun = Instant::now();
        loop {
            let (held, memory) = (Resources::read(self.admin_port), self.memory());
            if held == Some(self.before) && memory <= self.memory_before + MEMORY_KEPT_MAX {
                return;
            }
            let before = &self.before;
            assert!(
                begun.elapsed() < TIMEOUT,
                "still held after {TIMEOUT:?}: {held:#?} and {memory} bytes, not {before:#?} and {} bytes",
                self.memory_before
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }
}

impl Resources {
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
            downstream_connections: sum("weft_downstream_connections_open{"),
            downstream_streams: sum("weft_http2_streams_open{side=\"downstream\"}"),
            upstream_streams: sum("weft_http2_streams_open{side=\"upstream\"}"),
            upstream_busy: http1 - sum("weft_upstream_connections_idle "),
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The process is ended even if this panics.
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
            eprintln!("last lines of the proxy's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
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

/// The exported document: one Service with a port for HTTP/1.1, one for HTTP/2 and one with protocol detection.
pub(crate) fn exported(settings: Value, routes: Option<Value>, remote: bool) -> Value {
    let address = ip(if remote { SECOND_POD } else { POD });
    let port = |number: u16, protocol: &str, to: u16| json!({"port": number, "protocol": protocol, "endpoints": [{"address": format!("{address}:{to}"), "hasProxy": remote}]});
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

/// GETs a page from an admin port of the proxy.
pub(crate) fn scrape(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

/// Waits until a condition holds.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
