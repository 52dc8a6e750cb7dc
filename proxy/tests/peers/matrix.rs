//! Every client with every server, through the proxy: inbound where both speak the same version, outbound also from
//! HTTP/1.1 to HTTP/2. The expected results are those without a proxy, as the RFCs define them.
//!
//! A client reads one command per line from its standard input, and prints the result as a line of JSON:
//!
//! ```text
//! get ADDRESS ID PATH                  a request without a body
//! leave ADDRESS ID PATH                the same, aborted within the response body
//! post ADDRESS ID PATH SIZE OPTION,... a request with a body: length (else chunked), trailers, expect,
//!                                      pause (sends 64 KiB, waits for the response, and sends the rest),
//!                                      leave-head, leave-body, leave-end (aborts after the head, within the body, before its end)
//! raw ADDRESS ID KIND                  what client libraries cannot do: parts of messages, half-closed connections
//! ```
//!
//! Servers respond by path, record the state of each request by `x-id`, and count the requests in flight. The test
//! queries both at a control port, not through the proxy. `go/server.go` has all paths.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::place::{self, POD, Proxy, SERVICE, in_namespace, is_in_namespace, wait};
use super::programs::{CommandClient, Process, built, need, server, source};

/// How long a server may take to finish an aborted request.
const SETTLING: Duration = Duration::from_secs(2);

const LARGE: usize = 12 << 20;

/// Bytes of a download that the client aborts: more than all sockets between server and client hold, 10 MiB for each
/// hop. Otherwise the server may have sent everything before it hears of that.
const ABORTED: usize = 64 << 20;

const MIDDLE: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    Http1,
    Http2,
}
use Version::{Http1, Http2};

/// How a client reaches a server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Without the proxy: failures here are not the proxy's.
    Direct,
    Outbound,
    Inbound,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Outbound, Way::Inbound];

struct Server {
    name: &'static str,
    version: Version,
    port: u16,
    /// The control port.
    control: Option<u16>,
}

/// HTTP/1.1 and HTTP/2 servers, without TLS. nginx answers some paths itself and proxies the others to Go's server.
const SERVERS: [Server; 7] = [
    Server { name: "node-h1", version: Http1, port: 8101, control: Some(9101) },
    Server { name: "node-h2", version: Http2, port: 8102, control: Some(9102) },
    Server { name: "go-h1", version: Http1, port: 8103, control: Some(9103) },
    Server { name: "go-h2", version: Http2, port: 8104, control: Some(9104) },
    Server { name: "java-h1", version: Http1, port: 8105, control: Some(9105) },
    Server { name: "nginx-h1", version: Http1, port: 8106, control: None },
    Server { name: "nginx-h2", version: Http2, port: 8107, control: None },
];

/// Ports of the nginx in front of the proxy: the server's port plus this offset, by [`Way`].
const FRONTS: [u16; 3] = [10_000, 11_000, 12_000];

struct Client {
    name: &'static str,
    version: Version,
    program: Vec<String>,
    /// Whether its requests go through an nginx in front of the proxy.
    nginx: bool,
}

/// A command, and its expected result.
struct Scenario {
    name: &'static str,
    /// The command's verb, and in `rest` its arguments after the address and the ID.
    verb: &'static str,
    rest: String,
    expected: Expected,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    /// 200 with this text.
    Text(&'static str),
    /// 200 with this many octets of the pattern.
    Pattern(usize),
    /// 200, and the server received this many octets and this trailer.
    Received(usize, &'static str),
    /// 200 at once; then the server receives the whole body, or sees it truncated.
    Early(usize),
    /// This status, with any body.
    Refused(u16),
    /// The same, without a 100 before it.
    Rejected(u16),
    /// 200 with a trailer.
    Trailer,
    /// 200 with this text, after this interim response.
    Interim(u16, &'static str),
    /// 200 after a 100, and the server received this many octets.
    Continued(usize),
    /// An error, or a truncated response.
    Truncated,
    /// The client aborts: the server must not see a complete request.
    Aborted,
}

fn scenarios() -> Vec<Scenario> {
    let scenario = |name, verb, rest: &str, expected| Scenario { name, verb, rest: rest.to_owned(), expected };
    let mut all = vec![
        scenario("plain", "get", "/plain", Expected::Text("plain")),
        scenario("large download", "get", &format!("/download?n={LARGE}"), Expected::Pattern(LARGE)),
        scenario("large upload", "post", &format!("/upload {LARGE} length"), Expected::Received(LARGE, "")),
        scenario("chunked upload", "post", &format!("/upload {MIDDLE} -"), Expected::Received(MIDDLE, "")),
        scenario("echo", "post", &format!("/echo {MIDDLE} -"), Expected::Pattern(MIDDLE)),
        scenario("early response", "post", &format!("/early {MIDDLE} pause"), Expected::Early(MIDDLE)),
        scenario("early 413", "post", &format!("/refuse {LARGE} length"), Expected::Refused(413)),
        scenario("request trailers", "post", &format!("/upload {MIDDLE} trailers"), Expected::Received(MIDDLE, " up")),
        scenario("response trailers", "get", "/trailers", Expected::Trailer),
        scenario("103", "get", "/hints", Expected::Interim(103, "hints")),
        scenario("100 sent", "post", &format!("/upload {MIDDLE} length,expect"), Expected::Continued(MIDDLE)),
        scenario("100 refused", "post", &format!("/reject {MIDDLE} length,expect"), Expected::Rejected(401)),
        scenario("half-close", "raw", "half-close", Expected::Text("plain")),
        scenario("half-close, body", "raw", "half-close-upload", Expected::Received(16, "")),
        scenario("abort at once", "raw", "nothing", Expected::Aborted),
        scenario("abort in head", "raw", "mid-head", Expected::Aborted),
        scenario("RST NO_ERROR", "raw", "reset-no-error", Expected::Aborted),
        scenario("RST CANCEL", "raw", "reset-cancel", Expected::Aborted),
        scenario("abort with GOAWAY", "raw", "go-away", Expected::Aborted),
    ];
    for (name, option) in
        [("abort after head", "leave-head"), ("abort in body", "leave-body"), ("abort before end", "leave-end")]
    {
        all.push(scenario(name, "post", &format!("/upload {MIDDLE} {option}"), Expected::Aborted));
    }
    all.push(scenario("abort in download", "leave", &format!("/download?n={ABORTED}"), Expected::Aborted));
    for (name, query) in [
        ("truncated at once", "start"),
        ("truncated after head", "head"),
        ("truncated in body", "body"),
        ("truncated before end", "end"),
        ("truncated, NO_ERROR", "body&how=no-error"),
        ("truncated, connection", "body&how=go-away"),
    ] {
        all.push(scenario(name, "get", &format!("/cut?at={query}"), Expected::Truncated));
    }
    all.push(scenario("truncated in upload", "post", &format!("/cut?at=upload {MIDDLE} -"), Expected::Truncated));
    all
}

/// Why a client cannot run a scenario.
fn client_unsupported(client: &Client, scenario: &Scenario) -> Option<&'static str> {
    let family = client.name.split('-').next().unwrap_or_default();
    Some(match (family, client.version, scenario.name) {
        ("curl" | "java" | "nginx", _, _) if scenario.verb == "raw" => "sends no parts of messages",
        ("node", Http1, "half-close, body" | "abort at once" | "abort in head") => "covered by Go's client",
        ("node", Http2, _) if scenario.verb == "raw" => "covered by Go's client",
        ("go", Http1, "RST NO_ERROR" | "RST CANCEL" | "abort with GOAWAY") => "HTTP/1.1 has no such frame",
        ("node", Http1, "RST NO_ERROR" | "RST CANCEL" | "abort with GOAWAY") => "HTTP/1.1 has no such frame",
        ("curl" | "java" | "nginx", _, "request trailers") => "sends no trailers",
        ("java", _, "response trailers") => "does not show trailers",
        ("java", _, "103" | "100 sent") => "does not show interim responses",
        ("java", _, "100 refused") => "hangs after some refusals, also without a proxy",
        ("java", _, "early response" | "echo") => {
            "sends the whole body before it reads over HTTP/1.1, which an Upgrade begins with"
        }
        ("curl", Http2, "100 sent") => "sends the body without waiting for 100",
        ("curl", _, "early response") => "cannot wait for the response within a body",
        ("java" | "nginx", _, "early 413") | ("curl", Http2, "early 413" | "100 refused") => {
            "may report a write error instead of the response"
        }
        ("nginx", _, "response trailers" | "103" | "100 sent" | "100 refused") => "nginx 1.22 forwards none",
        _ => return None,
    })
}

/// Why a server cannot serve a scenario.
fn server_unsupported(server: &Server, scenario: &Scenario) -> Option<&'static str> {
    let family = server.name.split('-').next().unwrap_or_default();
    Some(match (family, server.version, scenario.name) {
        ("java", _, "request trailers" | "response trailers" | "103" | "100 refused") => {
            "not supported by com.sun.net.httpserver"
        }
        ("nginx", _, "request trailers" | "response trailers" | "103" | "100 refused") => "nginx 1.22 forwards none",
        ("nginx", Http2, "100 sent") => "nginx 1.22 sends no 100 over HTTP/2",
        ("nginx", _, "echo") => "nginx buffers the request body",
        ("go" | "java" | "nginx", _, "truncated, NO_ERROR" | "truncated, connection") => "cannot choose how to reset",
        (_, Http1, "truncated, NO_ERROR" | "truncated, connection") => "HTTP/1.1 has no such frame",
        _ => return None,
    })
}

/// The checksum of this many octets of the pattern: the first 16 hex digits of their SHA-256.
fn checksum(size: usize) -> &'static str {
    match size {
        16 => "9f9f5111f7b27a78",
        MIDDLE => "aca1cd027e979588",
        LARGE => "30611e340f5f248a",
        _ => panic!("no known checksum of {size} octets"),
    }
}

impl Expected {
    /// Checks a client's result.
    fn check_result(self, result: &Value) -> Result<(), String> {
        let (status, text) = (&result["status"], &result["text"]);
        let whole = |status_wanted: u16| *status == status_wanted && result["error"] == "";
        let interim = |wanted: u16| {
            result["interim"].as_array().is_some_and(|statuses| statuses.iter().any(|status| *status == wanted))
        };
        let holds = match self {
            Self::Text(wanted) => whole(200) && text == wanted,
            Self::Pattern(size) => whole(200) && result["length"] == size && result["sum"] == checksum(size),
            Self::Received(size, trailer) => whole(200) && *text == format!("{size} {}{trailer}", checksum(size)),
            Self::Early(_) => whole(200) && text == "early",
            Self::Refused(wanted) => *status == wanted,
            Self::Rejected(wanted) => *status == wanted && !interim(100),
            Self::Trailer => whole(200) && result["length"] == 1000 && result["trailer"] == "down",
            Self::Interim(wanted, text_wanted) => whole(200) && interim(wanted) && text == text_wanted,
            Self::Continued(size) => whole(200) && interim(100) && *text == format!("{size} {}", checksum(size)),
            Self::Truncated => {
                !(*status == 200 && result["error"] == "") && (*status == 200 || *status == 0 || *status == 502)
            }
            Self::Aborted => result["error"] != "",
        };
        if holds { Ok(()) } else { Err(result.to_string()) }
    }

    /// Checks a server's record of the request.
    fn check_server(self, seen: &str) -> Result<(), String> {
        let holds = match self {
            Self::Early(size) => seen == format!("complete {size} {}", checksum(size)) || seen.starts_with("cut"),
            Self::Aborted => !seen.starts_with("complete"),
            _ => true,
        };
        if holds { Ok(()) } else { Err(format!("the server saw: {seen}")) }
    }
}

/// Queries a server's control port.
fn query(control: u16, path: &str) -> String {
    let page = place::scrape(control, path).unwrap_or_default();
    page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// Queries a control port while `passing` holds, for at most [`SETTLING`].
fn query_while(control: u16, path: &str, passing: impl Fn(&str) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let answer = query(control, path);
        if !passing(&answer) || begun.elapsed() > SETTLING {
            return answer;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Starts the servers, and nginx as server and as front.
fn start_servers(folder: &Path) -> Vec<Process> {
    let mut processes = Vec::new();
    for Server { name, port, control, .. } in &SERVERS {
        let control = control.unwrap_or_default();
        let program = match *name {
            "node-h1" => format!("node {} {port} {control} h1", source("node/server.js")),
            "node-h2" => format!("node {} {port} {control} h2", source("node/server.js")),
            "go-h1" => format!("{} server {port} {control} h1", built("go")),
            "go-h2" => format!("{} server {port} {control} h2", built("go")),
            "java-h1" => {
                format!("java -Xshare:auto -XX:TieredStopAtLevel=1 -cp {} Server {port} {control}", built("java"))
            }
            _ => continue,
        };
        processes.push(server(&words(&program)));
    }
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, nginx(folder)).expect("written");
    processes.push(server(&words(&format!("nginx -p {} -c {}", folder.display(), configuration.display()))));
    processes
}

/// Configuration of nginx: a server of both versions, and a proxy in front of ours, which it calls over HTTP/1.1
/// (proxy_pass) or HTTP/2 (grpc_pass).
fn nginx(folder: &Path) -> String {
    let folder = folder.display();
    let mut servers = String::new();
    for (port, http2) in [(8106, ""), (8107, " http2")] {
        let _ = write!(
            servers,
            "server {{ listen {port}{http2};
               location = /plain {{ return 200 plain; }}
               location = /early {{ return 200 early; }}
               location = /refuse {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:8103; }}
               location = /download {{ alias {folder}/download; }}
               location / {{ proxy_pass http://127.0.0.1:8103; }} }}\n"
        );
    }
    for Server { port, version, .. } in &SERVERS {
        for way in WAYS {
            let target = address(way, *port);
            let front = front(way, *port);
            let pass = match version {
                Http1 => format!("proxy_pass http://{target};"),
                Http2 => format!("grpc_pass grpc://{target};"),
            };
            let _ = writeln!(servers, "server {{ listen 127.0.0.1:{front}; location / {{ {pass} }} }}");
        }
    }
    format!(
        "daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
         events {{ worker_connections 512; }}
         http {{
           access_log off; client_max_body_size 100m; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
           fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
           proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off; proxy_next_upstream off;
           grpc_next_upstream off; default_type text/plain;
           {servers}
         }}"
    )
}

fn front(way: Way, port: u16) -> u16 {
    port + FRONTS[way as usize]
}

/// The address that a client uses for the server at a port.
fn address(way: Way, port: u16) -> String {
    match way {
        Way::Direct => format!("127.0.0.1:{port}"),
        Way::Outbound => format!("{}:{port}", place::ip(SERVICE)),
        Way::Inbound => format!("{}:{port}", place::ip(POD)),
    }
}

/// The exported document: one Service with the ports of all servers.
fn document() -> Value {
    let port = |server: &Server| {
        let protocol = if server.version == Http1 { "http" } else { "http2" };
        json!({"port": server.port, "protocol": protocol, "endpoints": [{"address": format!("{}:{}", place::ip(POD), server.port)}]})
    };
    let ports: Vec<Value> = SERVERS.iter().map(port).collect();
    json!({"services": [{"name": "peers", "addresses": [place::ip(SERVICE)], "settings": {}, "ports": ports}]})
}

/// Results of all scenarios of one client.
#[derive(Default)]
struct Matrix {
    /// By scenario and column: `ok`, `FAIL`, `-` for unsupported, `no` for a failure without the proxy.
    cells: Vec<Vec<&'static str>>,
    columns: Vec<String>,
    reasons: Vec<String>,
    failures: Vec<String>,
}

impl Matrix {
    fn skip(&mut self, what: &str, scenario: &str, why: &str) -> &'static str {
        let reason = format!("- {what}, {scenario}: {why}");
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
        "-"
    }

    fn count(&self, cell: &str) -> usize {
        self.cells.iter().flatten().filter(|found| **found == cell).count()
    }

    fn table(&self, client: &str, scenarios: &[Scenario]) -> String {
        let mut text = format!("{client:21}");
        for column in &self.columns {
            let _ = write!(text, " {column:>12}");
        }
        for (scenario, cells) in scenarios.iter().zip(&self.cells) {
            let _ = write!(text, "\n{:21}", scenario.name);
            for cell in cells {
                let _ = write!(text, " {cell:>12}");
            }
        }
        for line in self.reasons.iter().chain(&self.failures) {
            let _ = write!(text, "\n{line}");
        }
        text + "\n"
    }
}

/// Runs all scenarios of a client, with each server and by each way.
fn run(client: &Client) -> Matrix {
    let mut matrix = Matrix::default();
    let scenarios = scenarios();
    let mut program = CommandClient::new(client.program.clone());
    let pairs: Vec<(&Server, Way)> = SERVERS
        .iter()
        .flat_map(|server| WAYS.map(|way| (server, way)))
        .filter(|(server, way)| {
            // Outbound, HTTP/1.1 requests are forwarded as HTTP/2 to a port declared as HTTP/2.
            server.version == client.version || (client.version == Http1 && !client.nginx && *way == Way::Outbound)
        })
        .collect();
    for (server, way) in &pairs {
        let prefix = match way {
            Way::Direct => "= ",
            Way::Outbound => "> ",
            Way::Inbound => "< ",
        };
        matrix.columns.push(format!("{prefix}{}", server.name));
    }
    let mut count = 0;
    for scenario in &scenarios {
        let mut cells = Vec::new();
        // The failure of the scenario without the proxy.
        let mut direct_failure: Option<String> = None;
        for (server, way) in &pairs {
            if *way == Way::Direct || server.version != client.version {
                direct_failure = None;
            }
            let cell = if let Some(why) = client_unsupported(client, scenario) {
                matrix.skip(client.name, scenario.name, why)
            } else if let Some(why) = server_unsupported(server, scenario) {
                matrix.skip(server.name, scenario.name, why)
            } else if let Some(failure) = &direct_failure {
                let why = format!("fails without the proxy: {failure}");
                matrix.skip(&format!("{} to {}", client.name, server.name), scenario.name, &why)
            } else {
                count += 1;
                let id = format!("{}-{count}", client.name);
                match run_scenario(&mut program, client, server, *way, scenario, &id) {
                    Ok(()) => "ok",
                    Err(failure) if *way == Way::Direct => {
                        direct_failure = Some(failure);
                        "no"
                    }
                    Err(failure) => {
                        matrix.failures.push(format!("FAIL {}, {way:?} to {}: {failure}", scenario.name, server.name));
                        "FAIL"
                    }
                }
            };
            cells.push(cell);
        }
        matrix.cells.push(cells);
    }
    program.end();
    matrix
}

fn run_scenario(
    program: &mut CommandClient,
    client: &Client,
    server: &Server,
    way: Way,
    scenario: &Scenario,
    id: &str,
) -> Result<(), String> {
    let target = match client.nginx {
        true => format!("127.0.0.1:{}", front(way, server.port)),
        false => address(way, server.port),
    };
    let open_before = server.control.map(|control| query(control, "/"));
    let result = program.send(&format!("{} {target} {id} {}", scenario.verb, scenario.rest));
    scenario.expected.check_result(&result)?;
    let (Some(control), Some(open_before)) = (server.control, open_before) else { return Ok(()) };
    let seen = query_while(control, &format!("/?id={id}"), |seen| seen == "open");
    scenario.expected.check_server(&seen).map_err(|error| format!("{error}; the client: {result}"))?;
    let number = |open: &str| open.parse::<u32>().unwrap_or(u32::MAX);
    let open = query_while(control, "/", |open| number(open) > number(&open_before));
    match number(&open) <= number(&open_before) {
        true => Ok(()),
        false => Err(format!("{open} requests are in flight, {open_before} were before")),
    }
}

fn table_path(family: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peers-{family}.txt"))
}

/// Runs the clients of a family in a network namespace. After each, the proxy must hold what it held before.
fn check(test: &str, family: &str, clients: impl FnOnce() -> Vec<Client>) {
    if !is_in_namespace() {
        // The test's namespace has no network.
        ["go", "java"].into_iter().for_each(|part| drop(built(part)));
        ["node", "java", "nginx", "curl", "python3", "setpriv"].into_iter().for_each(need);
        let _ = fs::remove_file(table_path(family));
    }
    in_namespace(module_path!(), test, || {
        let folder = std::env::temp_dir().join(format!("weft-peers-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("download"), b"0123456789abcdef".repeat(LARGE / 16)).expect("written");
        let proxy = Proxy::start();
        proxy.export(&document());
        let servers = start_servers(&folder);
        for Server { name, port, control, .. } in &SERVERS {
            for port in [Some(*port), *control].into_iter().flatten() {
                wait(name, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
            }
        }
        let mut go = CommandClient::new(words(&format!("{} client h1", built("go"))));
        wait("the document is in use", || {
            // Until then connections are passed through as TCP, and reach the servers too.
            let result = go.send(&format!("get {} ready /plain", address(Way::Outbound, 8106)));
            result["status"] == 200 && proxy.log().contains("shop/peers:8106")
        });
        go.end();
        let (mut tables, mut failures) = (String::new(), Vec::new());
        for client in clients() {
            let begun = Instant::now();
            let matrix = run(&client);
            tables += &matrix.table(client.name, &scenarios());
            let _ = writeln!(
                tables,
                "{}: {} ok, {} failed, {} unsupported, {} s",
                client.name,
                matrix.count("ok"),
                matrix.count("FAIL"),
                matrix.count("-"),
                begun.elapsed().as_secs()
            );
            fs::write(table_path(family), &tables).expect("written");
            // The client is closed, so all its requests must end.
            proxy.settle();
            failures.extend(matrix.failures.into_iter().map(|failure| format!("{}: {failure}", client.name)));
        }
        drop(servers);
        let _ = fs::remove_dir_all(&folder);
        fs::write(table_path(family).with_extension("log"), proxy.log()).expect("written");
        assert!(failures.is_empty(), "{tables}\n{}", failures.join("\n"));
    });
    if !is_in_namespace() {
        // Written to stderr directly, because the test harness shows captured output only for failed tests.
        let tables = fs::read_to_string(table_path(family)).expect("a table");
        let sums: Vec<&str> = tables.lines().filter(|line| line.contains(" ok, ")).collect();
        let _ = writeln!(std::io::stderr(), "{}\n  {}", sums.join("\n"), table_path(family).display());
    }
}

fn client(name: &'static str, version: Version, program: &str) -> Client {
    Client { name, version, program: words(program), nginx: name.starts_with("nginx") }
}

#[test]
fn node_clients_work_with_every_server() {
    check("node_clients_work_with_every_server", "node", || {
        let program = source("node/client.js");
        vec![
            client("node-h1", Http1, &format!("node {program} h1")),
            client("node-h2", Http2, &format!("node {program} h2")),
        ]
    });
}

#[test]
fn go_clients_work_with_every_server() {
    check("go_clients_work_with_every_server", "go", || {
        let program = built("go");
        vec![
            client("go-h1", Http1, &format!("{program} client h1")),
            client("go-h2", Http2, &format!("{program} client h2")),
        ]
    });
}

/// Without TLS, Java starts HTTP/2 with an Upgrade, which a proxy may ignore.
#[test]
fn java_clients_work_with_every_server() {
    check("java_clients_work_with_every_server", "java", || {
        let program = format!("java -XX:TieredStopAtLevel=1 -cp {} Client", built("java"));
        vec![
            client("java-h1", Http1, &format!("{program} h1")),
            client("java-upgrade", Http1, &format!("{program} h2")),
        ]
    });
}

#[test]
fn curl_clients_work_with_every_server() {
    check("curl_clients_work_with_every_server", "curl", || {
        let program = format!("python3 {}", source("curl.py"));
        vec![
            client("curl-h1", Http1, &format!("{program} --http1.1")),
            client("curl-upgrade", Http1, &format!("{program} --http2")),
            client("curl-h2", Http2, &format!("{program} --http2-prior-knowledge")),
        ]
    });
}

/// nginx as a proxy in front of ours, called by Node's client over HTTP/1.1.
#[test]
fn nginx_in_front_works_with_every_server() {
    check("nginx_in_front_works_with_every_server", "nginx", || {
        let program = format!("node {} h1", source("node/client.js"));
        vec![client("nginx-h1", Http1, &program), client("nginx-h2", Http2, &program)]
    });
}
