//! Bytes as an attacker sends them to a port: random ones, damaged ClientHellos and damaged requests, over TCP and inside of
//! TLS. CP-08.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// MiB that are sent to each port, unless `WEFT_HOSTILE_MIB` says otherwise.
const MIB: usize = 10;
/// Connections at a time: as many as one address may have to the authority.
const AT_A_TIME: usize = 8;
/// Maximum size of what is sent over one connection.
const BYTES_MAX: usize = 64 * 1024;
/// How long a connection may last. The servers end those whose peer has ended its half.
const CONNECTION_MAX: Duration = Duration::from_secs(20);
/// Maximum growth of the process, clients included.
const GROWTH_MAX_KIB: u64 = 64 * 1024;

/// A port, and a request that it answers.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) request: Vec<u8>,
    /// The client's side of TLS, if the port has it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// SplitMix64.
struct Random(u64);

/// Sends hostile bytes to a port; the process must not grow, and no connection may stay open.
pub(crate) async fn attack(port: &Port) {
    let mib = std::env::var("WEFT_HOSTILE_MIB").ok().map_or(MIB, |mib| mib.parse().expect("a number of MiB"));
    let before = resident_kib();
    let attackers: Vec<_> =
        (0..AT_A_TIME).map(|seed| tokio::spawn(attacker(port.clone(), seed as u64, (mib << 20) / AT_A_TIME))).collect();
    let mut connections = 0;
    for attacker in attackers {
        connections += attacker.await.expect("no panic");
    }
    let growth = resident_kib().saturating_sub(before);
    // With --nocapture.
    eprintln!("{}: {connections} connections with {mib} MiB, {growth} KiB more memory", port.name);
    assert!(growth < GROWTH_MAX_KIB, "{}: {growth} KiB more memory", port.name);
}

/// Sends so many bytes; the number of its connections.
async fn attacker(port: Port, seed: u64, bytes: usize) -> usize {
    let mut random = Random(seed);
    let (mut sent, mut connections) = (0, 0);
    while sent < bytes {
        let message = match random.below(4) {
            0 => random.bytes(),
            1 => random.damaged(&client_hello()),
            _ => random.damaged(&port.request),
        };
        let within = port.tls.clone().filter(|_| random.below(2) == 0);
        sent += message.len();
        connections += 1;
        let connection = async {
            // An error is an answer too: the port may close the connection at once.
            let Ok(stream) = TcpStream::connect(port.address).await else { return };
            match within {
                None => exchange(stream, &message).await,
                Some(tls) => {
                    let name = ServerName::try_from("weft-injector.weft-system.svc").expect("a name");
                    if let Ok(stream) = TlsConnector::from(tls).connect(name, stream).await {
                        exchange(stream, &message).await;
                    }
                }
            }
        };
        let ended = timeout(CONNECTION_MAX, connection).await;
        assert!(ended.is_ok(), "{}: a connection stays open after {message:?}", port.name);
    }
    connections
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, message: &[u8]) {
    let _ = stream.write_all(message).await;
    let _ = stream.shutdown().await;
    let _ = tokio::io::copy(&mut stream.take(1 << 20), &mut tokio::io::sink()).await;
}

/// A ClientHello of rustls.
fn client_hello() -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from("weft-injector.weft-system.svc").expect("a name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).expect("a vector");
    bytes
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("less than end")
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(BYTES_MAX);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A message with changed bytes, cut or with further bytes after it.
    fn damaged(&mut self, message: &[u8]) -> Vec<u8> {
        let mut damaged = message.to_vec();
        for _ in 0..self.below(6) {
            let at = self.below(damaged.len());
            damaged[at] = self.next() as u8;
        }
        match self.below(3) {
            0 => damaged.truncate(self.below(message.len())),
            1 => damaged.extend(self.bytes()),
            _ => {}
        }
        damaged
    }
}
