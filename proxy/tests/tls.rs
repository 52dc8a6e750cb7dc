//! TLS termination on the inbound side: the real proxy process, rustls clients, and the certificates of
//! `bench/certs.sh`.

use std::convert::Infallible;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::{Value, json};

/// Limit for everything that should happen at once.
const TIMEOUT: Duration = Duration::from_secs(10);

const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
const BULK: usize = 20 << 20;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A proxy that terminates TLS. Dropping it ends the process.
struct Proxy {
    process: Child,
    address: SocketAddr,
    metrics: SocketAddr,
    folder: PathBuf,
}

impl Proxy {
    fn start(application: SocketAddr) -> Self {
        Self::with(application, json!({}))
    }

    /// Starts a proxy with these timeouts for clients (`WEFT_TIMEOUTS_MS`).
    fn with(application: SocketAddr, timeouts: Value) -> Self {
        let (address, metrics) = (free_address(), free_address());
        let folder = folder();
        let local = json!({
            "inboundPort": address.port(), "metricsPort": metrics.port(), "application": application,
            "certificate": certificates().join("b.pem"), "key": certificates().join("b.key")
        });
        let log = File::create(folder.join("log")).expect("a file");
        let process = proxy(&folder, &local)
            .env("WEFT_TIMEOUTS_MS", timeouts.to_string())
            .stdout(log)
            .spawn()
            .expect("the proxy starts");
        let proxy = Self { process, address, metrics, folder };
        wait("the proxy is ready", || proxy.page("/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200")));
        proxy
    }

    /// GETs a page from the proxy's metrics port.
    fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    /// Failed handshakes, by the metrics.
    fn failed_handshakes(&self) -> u32 {
        let page = self.page("/metrics").expect("metrics");
        let lines = page.lines().filter(|line| {
            line.starts_with("weft_tcp_connections_total{") && line.contains("reason=\"tls-handshake\"")
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).expect("a log")
    }

    /// Resident memory (RSS), in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
    }

    fn connect(&self) -> Tls {
        self.connect_as(&[&TLS13], &[])
    }

    fn connect_as(&self, versions: &[&'static SupportedProtocolVersion], protocols: &[&str]) -> Tls {
        let stream = TcpStream::connect(self.address).expect("connects");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        stream.set_write_timeout(Some(TIMEOUT)).expect("set");
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(config(versions, protocols), name).expect("a client");
        StreamOwned::new(session, stream)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("the proxy's log: {}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The proxy's command, configured to run outside of a pod.
fn proxy(folder: &Path, local: &Value) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    for name in ["i.shop", "x.shop"] {
        std::fs::write(folder.join(name).with_extension("shop.json"), "{}").expect("written");
    }
    command.env_clear().stdin(Stdio::null()).envs([
        ("WEFT_NAMESPACE", "shop"),
        ("WEFT_SOURCE", &format!("directory:{}", folder.display())),
        ("WEFT_LOCAL", &local.to_string()),
    ]);
    command
}

fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("weft-tls-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port")
}

/// The folder with `ca.pem`, `b.pem` and `b.key`.
fn certificates() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("certs-{}", std::process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/certs.sh");
        let output = Command::new(script).arg(&folder).output().expect("the script runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

fn config(versions: &[&'static SupportedProtocolVersion], protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates().join("ca.pem")).expect("a certificate")).expect("a CA");
    let mut config = ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config.into()
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Starts an application that runs `serve` for each connection, and returns its address.
fn application(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Answers each request with its body. `/cut`: with a truncated response. An upgrade: with 101, then echoes every
/// byte until the client closes its side, and sends `bye`.
fn echo(mut stream: TcpStream) {
    while let Some((head, body)) = read_message(&mut stream) {
        if head.contains("upgrade: echo") {
            let _ =
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
            let _ = std::io::copy(&mut stream.try_clone().expect("cloned"), &mut stream);
            let _ = stream.write_all(b"bye");
            return;
        }
        if head.starts_with("GET /cut ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
            return;
        }
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(&body);
    }
}

/// Reads a head, and the body of its Content-Length. None: end of stream.
fn read_message(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// Reads a response: status and body.
fn read_response(stream: &mut impl Read) -> Option<(u16, Vec<u8>)> {
    let (head, body) = read_message(stream)?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}

/// Bytes in which any loss, duplication or reordering shows.
fn bulk() -> Vec<u8> {
    (0..BULK).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn requests_are_answered_over_tls_1_2_and_1_3() {
    let proxy = Proxy::start(application(echo));
    for (version, expected) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        for (offered, agreed) in [
            (vec![], None),
            (vec!["http/1.1"], Some("http/1.1")),
            // HTTP/1.1 is preferred, because every application speaks it.
            (vec!["h2", "http/1.1"], Some("http/1.1")),
        ] {
            let desc = format!("{expected:?} {offered:?}");
            let mut client = proxy.connect_as(&[version], &offered);
            // One request after 800 ms without traffic, when the connection holds no buffers.
            for rest in [0, 0, 800, 0] {
                thread::sleep(Duration::from_millis(rest));
                write!(client, "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nok").expect("asks");
                assert_eq!(read_response(&mut client), Some((200, b"ok".to_vec())), "{desc} after {rest} ms");
            }
            assert_eq!(client.conn.protocol_version(), Some(expected), "{desc}");
            let suite = client.conn.negotiated_cipher_suite().expect("one").suite();
            assert!(format!("{suite:?}").ends_with("AES_128_GCM_SHA256"), "{desc}: {suite:?}");
            assert_eq!(client.conn.alpn_protocol(), agreed.map(str::as_bytes), "{desc}");
        }
    }
    assert_eq!(proxy.failed_handshakes(), 0);
}

/// As without TLS, a client may send its first request long after the handshake: the head timeout starts with the
/// first byte.
#[test]
fn head_timeout_starts_with_the_first_byte_after_the_handshake() {
    let proxy = Proxy::with(application(echo), json!({"head": 300}));
    for offered in [vec![], vec!["http/1.1"]] {
        let mut client = proxy.connect_as(&[&TLS13], &offered);
        client.conn.complete_io(&mut client.sock).expect("a handshake");
        thread::sleep(Duration::from_millis(900));
        client.write_all(GET.as_bytes()).expect("asks");
        assert_eq!(read_response(&mut client), Some((200, vec![])), "{offered:?}");
        client.write_all(b"GET / HT").expect("writes");
        let begun = Instant::now();
        let _ = client.read(&mut [0; 16]);
        assert!(begun.elapsed() < Duration::from_secs(3), "{offered:?}: an incomplete head still times out");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_detected_by_alpn_and_by_preface() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let version = request.version();
                let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let response = Response::builder().header("x-version", format!("{version:?}"));
                Ok::<_, Infallible>(response.body(Full::new(body)).expect("a response"))
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    let proxy = tokio::task::block_in_place(|| Proxy::start(address));
    let body = Bytes::from(bulk());
    for offered in [vec!["h2"], vec![]] {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.expect("connects");
        let connector = tokio_rustls::TlsConnector::from(config(&[&TLS13], &offered));
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = connector.connect(name, stream).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), offered.first().map(|protocol| protocol.as_bytes()));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        let requests = [Bytes::from_static(b"ok"), body.clone()].map(|body| {
            let request = Request::post("https://localhost/").body(Full::new(body.clone())).expect("a request");
            let response = sender.send_request(request);
            async move {
                let response = response.await.expect("is answered");
                assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
                assert_eq!(response.headers()["x-version"], "HTTP/2.0", "the application gets the client's protocol");
                let got = response.into_body().collect().await.expect("a body").to_bytes();
                assert!(got == body, "{} of {} bytes, or others", got.len(), body.len());
            }
        });
        futures_util::future::join_all(requests).await;
    }
    assert_eq!(proxy.failed_handshakes(), 0);
}

#[test]
fn large_bodies_arrive_unchanged_in_both_directions() {
    let proxy = Proxy::start(application(echo));
    let client = proxy.connect_as(&[&TLS13], &["http/1.1"]);
    let body = bulk();
    let head = format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {BULK}\r\n\r\n");
    let mut client = write_while_reading(client, [head.as_bytes(), &body].concat());
    let (status, got) = read_response(&mut client).expect("an answer");
    assert!(status == 200 && got == body, "{status}: {} bytes, or others", got.len());
}

/// Writes all bytes in a thread that also reads, so that echoed data cannot block the write. Returns a reader of that
/// data.
fn write_while_reading(mut client: Tls, bytes: Vec<u8>) -> impl Read {
    let (sender, receiver) = mpsc::channel();
    client.write_all(&bytes[..1]).expect("writes");
    thread::spawn(move || {
        client.sock.set_nonblocking(true).expect("set");
        let (mut at, mut buffer) = (1, vec![0; 64 * 1024]);
        loop {
            let mut idle = true;
            if at < bytes.len() {
                match client.write(&bytes[at..(at + 16 * 1024).min(bytes.len())]) {
                    Ok(written) => (at, idle) = (at + written, false),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            match client.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    idle = false;
                    if sender.send(buffer[..read].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if idle {
                let _ = client.flush();
                thread::sleep(Duration::from_micros(200));
            }
        }
    });
    ChannelReader { receiver, piece: Vec::new() }
}

/// A reader of data that another thread receives.
struct ChannelReader {
    receiver: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
}

impl Read for ChannelReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            self.piece = self.receiver.recv_timeout(TIMEOUT).unwrap_or_default();
        }
        let count = self.piece.len().min(out.len());
        out[..count].copy_from_slice(&self.piece[..count]);
        self.piece.drain(..count);
        Ok(count)
    }
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

#[test]
fn upgraded_connections_relay_bytes_and_close_notify() {
    let proxy = Proxy::start(application(echo));
    let mut client = proxy.connect();
    // The first bytes of the tunnel are sent with the request.
    client.write_all(&[UPGRADE.as_bytes(), b"first"].concat()).expect("asks");
    assert_eq!(read_response(&mut client), Some((101, vec![])));
    let mut got = [0; 5];
    client.read_exact(&mut got).expect("reads");
    assert_eq!(&got, b"first");
    for round in 0..20_u8 {
        client.write_all(&[round; 3]).expect("writes");
        let mut got = [0; 3];
        client.read_exact(&mut got).expect("reads");
        assert_eq!(got, [round; 3]);
    }
    client.conn.send_close_notify();
    client.flush().expect("ends");
    let mut rest = String::new();
    client.read_to_string(&mut rest).expect("close_notify in both directions");
    assert_eq!(rest, "bye");
}

#[test]
fn upgraded_connections_relay_20_mib() {
    let proxy = Proxy::start(application(echo));
    let mut client = proxy.connect();
    client.write_all(UPGRADE.as_bytes()).expect("asks");
    assert_eq!(read_response(&mut client), Some((101, vec![])));
    let sent = bulk();
    let mut got = vec![0; BULK];
    write_while_reading(client, sent.clone()).read_exact(&mut got).expect("reads");
    assert!(got == sent, "other bytes came back");
}

#[test]
fn tcp_over_tls_is_relayed_client_first_and_server_first() {
    let greeter = application(|mut stream| {
        let _ = stream.write_all(b"220 ready");
        let _ = std::io::copy(&mut stream.try_clone().expect("cloned"), &mut stream);
    });
    let proxy = Proxy::start(greeter);
    let mut silent = proxy.connect();
    let mut speaking = proxy.connect();
    speaking.write_all(b"\x01bytes").expect("writes");
    for client in [&mut silent, &mut speaking] {
        let mut greeting = [0; 9];
        client.read_exact(&mut greeting).expect("reads");
        assert_eq!(&greeting, b"220 ready");
    }
    let mut got = [0; 6];
    speaking.read_exact(&mut got).expect("reads");
    assert_eq!(&got, b"\x01bytes");
}

/// Truncation is never a clean end, in either direction: TCP FIN without close_notify, and an incomplete response.
#[test]
fn truncated_tls_streams_do_not_end_cleanly() {
    let (sender, ends) = mpsc::channel();
    let listener = application(move |mut stream| {
        let mut got = Vec::new();
        let _ = sender.send(stream.read_to_end(&mut got).map(|_| got));
    });
    let proxy = Proxy::start(listener);
    let mut client = proxy.connect();
    client.write_all(b"\x01whole").expect("writes");
    client.conn.send_close_notify();
    client.flush().expect("ends");
    let end = ends.recv_timeout(TIMEOUT).expect("an end");
    assert_eq!(end.expect("a clean one"), b"\x01whole");

    let mut client = proxy.connect();
    client.write_all(b"\x01half").expect("writes");
    client.flush().expect("writes");
    thread::sleep(Duration::from_millis(200));
    client.sock.shutdown(Shutdown::Write).expect("ends");
    let end = ends.recv_timeout(TIMEOUT).expect("an end");
    assert_eq!(end.expect_err("no clean one").kind(), ErrorKind::ConnectionReset);

    let proxy = Proxy::start(application(echo));
    let mut client = proxy.connect();
    write!(client, "GET /cut HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("asks");
    let error = client.read_to_end(&mut Vec::new()).expect_err("cut short");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn close_notify_is_sent_before_closing() {
    let proxy = Proxy::with(application(echo), json!({"idle": 900}));
    for request in ["GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", GET] {
        let mut client = proxy.connect();
        client.write_all(request.as_bytes()).expect("asks");
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("close_notify, after the response or the idle timeout");
        assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    }
    let mut silent = proxy.connect();
    silent.conn.complete_io(&mut silent.sock).expect("a handshake");
    assert_eq!(silent.read(&mut [0; 1]).expect("close_notify"), 0);

    let proxy = Proxy::start(application(echo));
    let mut client = proxy.connect();
    client.write_all(GET.as_bytes()).expect("asks");
    assert_eq!(read_response(&mut client), Some((200, vec![])));
    let asked = Command::new("kill").arg(proxy.process.id().to_string()).status().expect("kill runs");
    assert!(asked.success());
    assert_eq!(client.read(&mut [0; 1]).expect("close_notify when the proxy stops"), 0);
}

#[test]
fn failed_handshakes_are_closed_and_counted() {
    let proxy = Proxy::start(application(echo));
    let before = proxy.failed_handshakes();
    for (at, sent) in [GET.as_bytes(), b"\x16\x03\x01\0\x02\x01\0", b"SSH-2.0-x\r\n", b""].into_iter().enumerate() {
        let mut stream = TcpStream::connect(proxy.address).expect("connects");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        stream.write_all(sent).expect("writes");
        stream.shutdown(Shutdown::Write).expect("ends");
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert!(got.is_empty() || got[0] == 21, "an alert or nothing: {got:?}");
        wait("it is counted", || proxy.failed_handshakes() == before + at as u32 + 1);
    }
    let mut client = proxy.connect_as(&[&TLS13], &["mqtt"]);
    let error = client.write_all(GET.as_bytes()).and_then(|()| client.read(&mut [0; 1]).map(drop));
    assert!(error.expect_err("no such protocol").to_string().contains("NoApplicationProtocol"));
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("tls-handshake")).expect("a line in the access log");
    assert!(line.contains("\"error\"") && line.contains("src.addr"), "{line}");
    assert_eq!(get(&proxy), Some((200, vec![])), "others are served");
}

fn get(proxy: &Proxy) -> Option<(u16, Vec<u8>)> {
    let mut client = proxy.connect();
    client.write_all(GET.as_bytes()).ok()?;
    read_response(&mut client)
}

/// Incomplete handshakes take bounded memory and time out.
#[test]
fn incomplete_handshakes_time_out() {
    const CLIENTS: usize = 300;
    let proxy = Proxy::with(application(echo), json!({"head": 1500}));
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut whole = ClientConnection::new(config(&[&TLS13], &[]), name).expect("a client");
    whole.write_tls(&mut hello).expect("writes");
    // A handshake message of 65,535 bytes without its end, in four records.
    let mut huge = Vec::new();
    for number in 0..4_u8 {
        huge.extend([22, 3, 1, 0x3f, 0xf0]);
        let begin = if number == 0 { vec![1, 0, 0xff, 0xff] } else { vec![] };
        huge.extend([begin.clone(), vec![0; 0x3ff0 - begin.len()]].concat());
    }
    let prefixes = [&[][..], &hello[..1], &hello[..hello.len() / 2], &hello, &huge];
    get(&proxy).expect("it is warm");
    let before = proxy.memory();
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|at| {
            let mut stream = TcpStream::connect(proxy.address).expect("connects");
            stream.set_read_timeout(Some(TIMEOUT)).expect("set");
            let _ = stream.write_all(prefixes[at % prefixes.len()]);
            stream
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(get(&proxy), Some((200, vec![])), "others are served");
    let each = proxy.memory().saturating_sub(before) / CLIENTS as u64;
    assert!(each < 64 * 1024, "{each} bytes for each handshake that is not complete");
    while begun.elapsed() < Duration::from_secs(1) {
        // Further bytes do not extend the timeout.
        for (at, client) in clients.iter_mut().enumerate() {
            if at % prefixes.len() == 2 {
                let _ = client.write_all(&hello[hello.len() / 2..][..1]);
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let _ = client.read_to_end(&mut Vec::new());
        assert!(begun.elapsed() < Duration::from_secs(5), "prefix {} does not time out", at % prefixes.len());
    }
    wait("all are counted", || proxy.failed_handshakes() == CLIENTS as u32);
    assert_eq!(get(&proxy), Some((200, vec![])));
}

#[test]
fn unusable_certificates_fail_the_start() {
    let file = |name: &str| certificates().join(name);
    let (certificate, key) = (file("b.pem"), file("b.key"));
    let garbage = folder().join("garbage.pem");
    std::fs::write(&garbage, "no PEM").expect("written");
    for (desc, fields, named) in [
        ("no key", json!({"certificate": certificate}), "no key"),
        ("no certificate", json!({"key": key}), "no certificate"),
        ("a file that is not there", json!({"certificate": "/nowhere.pem", "key": key}), "/nowhere.pem"),
        ("a key that is not there", json!({"certificate": certificate, "key": "/nowhere.key"}), "/nowhere.key"),
        ("no certificate in it", json!({"certificate": garbage, "key": key}), "garbage.pem"),
        ("no key in it", json!({"certificate": certificate, "key": garbage}), "garbage.pem"),
        ("the key of another", json!({"certificate": certificate, "key": file("ca.key")}), "ca.key"),
    ] {
        let output = proxy(&folder(), &fields).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{desc}: it starts");
        assert!(text.contains("WEFT_LOCAL") && text.contains(named), "{desc}: {text}");
    }
}
