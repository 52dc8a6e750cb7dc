//! Slow clients, many clients, exhausted file descriptors, and the memory that they take. Well-behaved clients are
//! served meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::app::{After, App, Reply};
use super::client::{Client, get};
use super::place::{BOTH, Direction, Options, Proxy, TIMEOUT, exported, in_namespace, scrape, wait};

/// Concurrent clients with slow heads.
const SLOW: usize = 5000;

fn timeouts(values: serde_json::Value) -> Vec<(&'static str, String)> {
    vec![("WEFT_TIMEOUTS_MS", values.to_string())]
}

/// A well-behaved client: sends one request after the other until it is stopped.
struct Legitimate {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    /// Statuses other than 200; 0 is no response.
    failed: Arc<Mutex<Vec<u16>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Legitimate {
    fn start(direction: Direction) -> Self {
        let (stop, sent, failed) = <(Arc<AtomicBool>, Arc<AtomicU32>, Arc<Mutex<Vec<u16>>>)>::default();
        let shared = (stop.clone(), sent.clone(), failed.clone());
        let thread = thread::spawn(move || {
            let (stop, sent, failed) = shared;
            while !stop.load(Ordering::SeqCst) {
                let status = get(direction.address(), "/legitimate");
                sent.fetch_add(1, Ordering::SeqCst);
                if status != 200 {
                    failed.lock().expect("not poisoned").push(status);
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, sent, failed, thread: Some(thread) }
    }

    fn assert_all_served(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("once").join().expect("it does not panic");
        let (sent, failed) = (self.sent.load(Ordering::SeqCst), self.failed.lock().expect("not poisoned"));
        assert!(sent > 10, "{sent} requests in all");
        assert!(failed.is_empty(), "of {sent} requests of a well-behaved client failed: {failed:?}");
    }
}

/// Clients that request a large response and do not read it.
fn clients_that_do_not_read(direction: Direction, count: usize) -> Vec<Client> {
    let ask = |_| {
        let mut client = Client::connect(direction.address());
        client.send("GET /big HTTP/1.1\r\nHost: app\r\n\r\n");
        client
    };
    (0..count).map(ask).collect()
}

/// Uploads with Content-Length must keep a minimum rate, over both versions. A body without one may be a stream,
/// which may be silent.
#[test]
fn slow_uploads_answer_408() {
    use super::frames::{DATA, END_HEADERS, END_STREAM, End, HEADERS, Http2App, Wire, frame, head, literal};
    const STEP: Duration = Duration::from_millis(50);
    in_namespace(module_path!(), "slow_uploads_answer_408", || {
        let app = App::start();
        let _http2 = Http2App::start();
        let _proxy = Proxy::with(Options { environment: timeouts(json!({"upload": 1000})), ..Options::default() });
        for direction in BOTH {
            let mut client = Client::connect(direction.address());
            let begun = Instant::now();
            client.send("POST /slow HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\n");
            let mut drip = Client { stream: client.stream.try_clone().expect("a socket"), buffer: Vec::new() };
            let dripping = thread::spawn(move || {
                for _ in 0..40 {
                    drip.send("x");
                    thread::sleep(STEP);
                }
            });
            let response = client.response().expect("a response");
            let took = begun.elapsed();
            assert_eq!((response.status, response.header("weft-reason")), (408, Some("slow-request")), "{direction:?}");
            assert!(
                took > Duration::from_millis(950) && took < Duration::from_secs(2),
                "{direction:?}: after {took:?}"
            );
            dripping.join().expect("it does not panic");
            assert!(client.closes_within(TIMEOUT), "{direction:?}");

            let mut client = Client::connect(direction.address());
            client.send("POST /stream HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send("5\r\nhello\r\n");
            thread::sleep(Duration::from_millis(1500));
            client.send("0\r\n\r\n");
            assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}: a stream");

            let mut wire = Wire::connect(direction.address_h2());
            let block = [head("POST", "/slow"), literal("content-length", "1000")].concat();
            wire.send(frame(HEADERS, END_HEADERS, 1, &block));
            for _ in 0..30 {
                wire.send(frame(DATA, 0, 1, b"x"));
                thread::sleep(STEP);
            }
            assert_eq!(wire.end(1), End::Status(408), "{direction:?}");
            wire.send(frame(HEADERS, END_HEADERS, 3, &head("POST", "/stream")));
            thread::sleep(Duration::from_millis(1500));
            wire.send(frame(DATA, END_STREAM, 3, b"hello"));
            assert_eq!(wire.end(3), End::Status(200), "{direction:?}: a stream, on the same connection");
        }
        let whole = app.take().into_iter().map(|seen| seen.target).collect::<Vec<_>>();
        assert_eq!(whole, ["/stream", "/stream"], "slow uploads are truncated, not ended");
    });
}

/// RS-01, RS-02, RS-03: incomplete heads, prefaces and ClientHellos time out.
#[test]
fn slow_heads_time_out() {
    in_namespace(module_path!(), "slow_heads_time_out", || {
        let _app = App::start();
        let proxy =
            Proxy::with(Options { environment: timeouts(json!({"head": 1000, "idle": 3000})), ..Options::default() });
        let begins: [&[u8]; 8] = [
            b"",
            b"G",
            b"GET /slow HT",
            b"GET /slow HTTP/1.1\r\n",
            b"GET /slow HTTP/1.1\r\nHost: app\r\nX-A: ",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x09\x01\x04\0\0\0\x01",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        ];
        for direction in BOTH {
            let legitimate = Legitimate::start(direction);
            let before = proxy.memory();
            let mut slow: Vec<Client> = (0..SLOW)
                .map(|at| {
                    let mut client = Client::connect(direction.address());
                    client.send(begins[at % begins.len()]);
                    client
                })
                .collect();
            let memory = proxy.memory().saturating_sub(before);
            assert!(
                memory / (slow.len() as u64) < 64 * 1024,
                "{direction:?}: {memory} bytes for {} clients",
                slow.len()
            );
            // Further bytes do not extend the timeout: it runs from the head's first byte.
            let dripping = Instant::now();
            while dripping.elapsed() < Duration::from_millis(1500) {
                for (at, client) in slow.iter_mut().enumerate() {
                    if matches!(at % begins.len(), 3 | 4) {
                        client.send("x");
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
            let begun = Instant::now();
            for (at, client) in slow.iter_mut().enumerate() {
                let left = TIMEOUT.saturating_sub(begun.elapsed()).max(Duration::from_millis(10));
                assert!(
                    client.closes_within(left),
                    "{direction:?}: {:?} does not time out",
                    String::from_utf8_lossy(begins[at % begins.len()])
                );
            }
            // A pipelined incomplete head times out too.
            let mut client = Client::connect(direction.address());
            client.send("GET /first HTTP/1.1\r\nHost: app\r\n\r\nGET /slow HT");
            assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}");
            assert!(
                client.closes_within(Duration::from_millis(2500)),
                "{direction:?}: the next head does not time out"
            );
            legitimate.assert_all_served();
        }
    });
}

/// A connection may be idle between requests for longer than the head timeout.
#[test]
fn idle_connections_outlive_the_head_timeout() {
    in_namespace(module_path!(), "idle_connections_outlive_the_head_timeout", || {
        let _app = App::start();
        let _proxy =
            Proxy::with(Options { environment: timeouts(json!({"head": 300, "idle": 1500})), ..Options::default() });
        for direction in BOTH {
            let mut client = Client::connect(direction.address());
            for _ in 0..2 {
                client.send("GET /a HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}");
                thread::sleep(Duration::from_millis(700));
            }
            client.send("GET /a HT");
            assert!(
                client.closes_within(Duration::from_millis(1000)),
                "{direction:?}: the next head has the head timeout"
            );
            let mut client = Client::connect(direction.address());
            client.send("GET /a HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}");
            assert!(
                client.closes_within(Duration::from_millis(3000)),
                "{direction:?}: the idle timeout closes the connection"
            );
        }
    });
}

/// RS-02: stalled request bodies, unread responses, applications that do not respond, and idle tunnels time out.
#[test]
fn stalled_bodies_and_tunnels_time_out() {
    in_namespace(module_path!(), "stalled_bodies_and_tunnels_time_out", || {
        let app = App::start();
        let proxy =
            Proxy::with(Options { environment: timeouts(json!({"idle": 3000, "stall": 3000})), ..Options::default() });
        let big =
            [b"HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n".to_vec(), vec![b'x'; 16 * 1024 * 1024]].concat();
        app.reply("/big", Reply::new(big, After::Close));
        app.reply("/hang", Reply::new("", After::Hang));
        app.reply("/stops", Reply::new("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", After::Hang));
        app.reply(
            "/switch",
            Reply::new("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", After::Echo),
        );
        for direction in BOTH {
            let legitimate = Legitimate::start(direction);
            let begun = Instant::now();
            let still = [
                "POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello",
                "POST /a HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
                "GET /hang HTTP/1.1\r\nHost: app\r\n\r\n",
                "GET /stops HTTP/1.1\r\nHost: app\r\n\r\n",
                "GET /hang HTTP/1.1\r\nHost: app\r\n\r\nGET /pipelined HTTP/1.1\r\nHost: app\r\n\r\n",
                "GET /switch HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello",
            ];
            let mut clients_that_wait = still.map(|request| {
                let mut client = Client::connect(direction.address());
                client.send(request);
                client
            });
            for (client, request) in clients_that_wait.iter_mut().zip(still) {
                assert!(client.closes_within(TIMEOUT), "{direction:?} {request:?}");
                let took = begun.elapsed();
                let fine = Duration::from_millis(2900)..Duration::from_millis(8000);
                assert!(fine.contains(&took), "{direction:?} {request:?}: closed after {took:?}");
            }
            // An active tunnel stays open.
            let mut client = Client::connect(direction.address());
            client.send("GET /switch HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
            assert_eq!(client.response().map(|response| response.status), Ok(101), "{direction:?}");
            for round in 0..6 {
                thread::sleep(Duration::from_millis(700));
                client.send("still");
                assert_eq!(client.bytes(5), b"still", "{direction:?} {round}");
            }
            let before = proxy.memory();
            let mut slow = clients_that_do_not_read(direction, 100);
            thread::sleep(Duration::from_millis(500));
            let each = proxy.memory().saturating_sub(before) / slow.len() as u64;
            eprintln!("{direction:?}: {each} bytes for each unread response");
            assert!(each < 512 * 1024, "{direction:?}: {each} bytes for each unread response");
            thread::sleep(Duration::from_millis(2500));
            for client in &mut slow {
                assert!(client.closes_within(TIMEOUT), "{direction:?}: a client that does not read does not time out");
            }
            legitimate.assert_all_served();
        }
    });
}

/// Memory of a burst of clients is returned to the kernel when they are gone.
#[test]
fn memory_is_returned_after_a_burst() {
    in_namespace(module_path!(), "memory_is_returned_after_a_burst", || {
        let app = App::start();
        let big = format!("HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n{}", "x".repeat(8_000_000));
        app.reply("/big", Reply::new(big, After::Close));
        let proxy = Proxy::start();
        for direction in BOTH {
            assert_eq!(get(direction.address(), "/first"), 200);
            let before = proxy.memory();
            let burst = clients_that_do_not_read(direction, 300);
            // All responses have begun.
            for client in &burst {
                client.stream.peek(&mut [0]).expect("a response begins");
            }
            thread::sleep(Duration::from_millis(500));
            let taken = proxy.memory().saturating_sub(before);
            assert!(taken > 2 * 1024 * 1024, "{direction:?}: the burst took only {taken} bytes");
            drop(burst);
            wait("memory is returned", || {
                get(direction.address(), "/after");
                proxy.memory().saturating_sub(before) < taken / 3
            });
        }
    });
}

/// RS-05, D13: without free file descriptors open connections are served; when some are freed, new connections are.
#[test]
fn proxy_recovers_from_file_descriptor_exhaustion() {
    in_namespace(module_path!(), "proxy_recovers_from_file_descriptor_exhaustion", || {
        let app = App::start();
        let mut proxy = Proxy::with(Options { files: Some(128), ..Options::default() });
        for direction in BOTH {
            let mut early = Client::connect(direction.address());
            early.send("GET /early HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(early.response().map(|response| response.status), Ok(200), "{direction:?}");
            let many: Vec<Client> = (0..300)
                .map(|_| {
                    let mut client = Client::connect(direction.address());
                    client.send("GET /many HT");
                    client
                })
                .collect();
            wait("no descriptors are left", || proxy.log().contains("cannot accept"));
            early.send("GET /early HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(
                early.response().map(|response| response.status),
                Ok(200),
                "{direction:?}: an open connection is served"
            );
            drop(many);
            let begun = Instant::now();
            while get(direction.address(), "/late") != 200 {
                assert!(
                    begun.elapsed() < Duration::from_secs(2),
                    "{direction:?}: not served {:?} after descriptors were freed",
                    begun.elapsed()
                );
            }
            for _ in 0..50 {
                assert_eq!(get(direction.address(), "/later"), 200, "{direction:?}");
            }
        }
        assert!(proxy.is_alive());
        app.take();
    });
}

/// RS-06: client input does not create metric series.
#[test]
fn client_input_does_not_create_metric_series() {
    in_namespace(module_path!(), "client_input_does_not_create_metric_series", || {
        let _app = App::start();
        let _proxy = Proxy::start();
        let series = || scrape(15020, "/metrics").map_or(0, |page| page.lines().count());
        for direction in BOTH {
            assert_eq!(get(direction.address(), "/warm"), 200);
        }
        let before = series();
        for direction in BOTH {
            let mut client = Client::connect(direction.address());
            for at in 0..1_000 {
                client.send(format!(
                    "M{at} /path-{at}?q={at} HTTP/1.1\r\nHost: host-{at}\r\nUser-Agent: agent-{at}\r\nX-{at}: 1\r\n\r\n"
                ));
                assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?} {at}");
            }
        }
        let after = series();
        // All unknown methods together have one histogram on each side.
        assert!(after < before + 100, "{before} lines of metrics became {after}");
    });
}

/// RS-07, RS-08: malicious documents are refused, and the last good one stays in use.
#[test]
fn malicious_documents_are_refused_and_the_last_good_one_stays() {
    in_namespace(module_path!(), "malicious_documents_are_refused_and_the_last_good_one_stays", || {
        let _app = App::start();
        let mut proxy = Proxy::start();
        let before = proxy.memory();
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let regex = |pattern: &str| {
            exported(json!({}), Some(json!({"matches": [{"rule": 0, "path": {"regex": pattern}}], "rules": []})), false)
                .to_string()
        };
        for (name, text) in [
            ("deep", deep(1_000_000)),
            ("deep within", format!("{{\"services\":{}}}", deep(100_000))),
            ("invalid JSON", "{".into()),
            ("another shape", "\"text\"".into()),
            ("a number", "1e999".into()),
            ("not UTF-8", "\u{fffd}".into()),
            ("an expression that is too large", regex("(a{1000}){1000}")),
            ("nested repetitions", regex("((((a*)*)*)*)*(")),
            ("a missing rule", regex("a")),
            ("empty", String::new()),
        ] {
            proxy.write_raw("x.shop", &text);
            thread::sleep(Duration::from_millis(250));
            for direction in BOTH {
                assert_eq!(get(direction.address(), "/still"), 200, "{direction:?} after {name}");
            }
        }
        assert!(proxy.is_alive());
        let after = proxy.memory();
        assert!(after < before + 64 * 1024 * 1024, "{before} bytes became {after}");
        proxy.export(&exported(json!({}), Some(json!({"matches": [{"rule": 0}], "rules": [{"route": {"namespace": "shop", "name": "r"}, "name": "0", "action": {"respond": {"status": 418}}}]})), false));
        wait("a valid document is used", || get(Direction::Outbound.address(), "/new") == 418);
    });
}
