//! Tests of `bench/proxy`, the script that starts the proxy for benchmarks, with the real proxy process.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Limit from the start of the script until the proxy listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// First byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 22;

/// A proxy process, which the script has exec'ed. Dropping it ends the process.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(role: &str, upstream: u16) -> Self {
        Self::with(role, upstream, Path::new("certs"))
    }

    fn with(role: &str, upstream: u16, certificates: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let process = script()
            .args([role, &address.port().to_string(), &upstream.to_string()])
            .arg(certificates)
            .stdout(Stdio::null())
            .spawn()
            .expect("the script starts");
        let begun = Instant::now();
        let mut proxy = Self { process, address };
        while TcpStream::connect(address).is_err() {
            let ended = proxy.process.try_wait().expect("asked");
            assert!(ended.is_none() && begun.elapsed() < START_TIMEOUT, "{role} does not listen: {ended:?}");
            thread::sleep(Duration::from_millis(10));
        }
        proxy
    }

    /// Sends a GET, and returns the status.
    fn get(&self, path: &str) -> u16 {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: bench.local\r\nconnection: close\r\n\r\n").expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("is answered");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("{path}: {answer:?}"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn script() -> Command {
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/proxy"));
    script.env("WEFT_PROXY", env!("CARGO_BIN_EXE_weft-proxy")).stdin(Stdio::null());
    script
}

/// Starts a backend that answers 200 to every request.
fn backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut received = Vec::new();
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    received.extend_from_slice(&buffer[..read]);
                    if received.ends_with(b"\r\n\r\n") {
                        received.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                    }
                }
            });
        }
    });
    port
}

#[test]
fn requests_are_forwarded_once_the_port_is_open() {
    let proxy = Proxy::start("h1", backend());
    for path in ["/", "/private", "/a?b=c"] {
        assert_eq!(proxy.get(path), 200, "{path}");
    }
}

#[test]
fn policy_role_denies_private_paths_once_the_port_is_open() {
    let proxy = Proxy::start("policy", backend());
    for (path, status) in
        [("/private", 403), ("/private/a", 403), ("/x/../private/", 403), ("/", 200), ("/privately", 200)]
    {
        assert_eq!(proxy.get(path), status, "{path}");
    }
}

#[test]
fn several_proxies_run_at_once() {
    let upstream = backend();
    let proxies = [Proxy::start("h1", upstream), Proxy::start("h1", upstream)];
    for proxy in &proxies {
        assert_eq!(proxy.get("/"), 200);
    }
}

#[test]
fn unusable_arguments_are_reported() {
    for (role, named) in [("unknown", "unknown"), ("tlsterm", "certs/b.pem"), ("client", "certs/a.pem")] {
        let output = script().args([role, "1", "2", "certs"]).output().expect("the script runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(named), "{role}: {text}");
    }
}

#[test]
fn tls_is_terminated() {
    let folder = certificates("terminated");
    let proxy = Proxy::with("tlsterm", backend(), &folder);
    let answer = get_over_tls(&proxy, &folder, None).expect("a response and close_notify");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn client_role_speaks_mutual_tls_with_the_server_role_and_nobody_else() {
    let folder = certificates("mutual");
    let server = Proxy::with("server", backend(), &folder);
    let client = Proxy::with("client", server.address.port(), &folder);
    assert_eq!(client.get("/"), 200);
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let stranger = listener.local_addr().expect("an address").port();
    let first_byte = thread::spawn(move || {
        let mut byte = [0];
        listener.accept().and_then(|(mut stream, _)| stream.read_exact(&mut byte)).expect("a connection");
        byte[0]
    });
    assert_eq!(Proxy::with("client", stranger, &folder).get("/"), 503);
    assert_eq!(first_byte.join().expect("no panic"), TLS_HANDSHAKE, "a stranger is sent no request");
}

#[test]
fn server_role_takes_any_client_with_a_certificate_and_none_without() {
    let folder = certificates("server");
    let server = Proxy::with("server", backend(), &folder);
    let answer = get_over_tls(&server, &folder, Some("a")).expect("a response and close_notify");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let error = get_over_tls(&server, &folder, None).expect_err("refused").to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
}

/// A new folder with the certificates of the benchmark.
fn certificates(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}-{}", std::process::id()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/certs.sh");
    assert!(Command::new(script).arg(&folder).stderr(Stdio::null()).status().expect("runs").success());
    folder
}

/// Sends a GET over TLS, with one of the certificates, and returns what comes back.
fn get_over_tls(proxy: &Proxy, folder: &Path, certificate: Option<&str>) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).expect("a certificate")).expect("a CA");
    let builder = ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let file = |kind| folder.join(format!("{name}.{kind}"));
            let chain = vec![CertificateDer::from_pem_file(file("pem")).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    let session = ClientConnection::new(config.into(), ServerName::try_from("localhost").expect("a name"));
    let stream = TcpStream::connect(proxy.address).expect("connects");
    let mut stream = StreamOwned::new(session.expect("a client"), stream);
    write!(stream, "GET / HTTP/1.1\r\nhost: bench.local\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
