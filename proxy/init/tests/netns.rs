//! The rules in a real kernel: a pod and a peer, each a network namespace, connected by a veth pair. Needs root, `ip`
//! and iptables (Debian: `apt-get install iproute2 iptables`); fails where they are missing, instead of skipping.
//!
//! ```text
//!   peer (198.51.100.1, fd00:64::1) ──── pod (198.51.100.2, fd00:64::2), where weft-init ran
//! ```
//!
//! Each listener answers with its own port, so that the answer shows where a connection was redirected. Listeners and
//! clients are this test binary, run again inside a namespace with [`ROLE`] set.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const ROLE: &str = "WEFT_INIT_TEST_ROLE";
const PROXY: u32 = 15015;
const APPLICATION: u32 = 1000;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Two namespaces. Drop removes them and kills their processes.
struct Net {
    pod: String,
    peer: String,
    children: Vec<Child>,
}

// === impl Net ===

impl Net {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let net = Self { pod: format!("weft-pod-{id}"), peer: format!("weft-peer-{id}"), children: Vec::new() };
        let (pod, peer) = (&net.pod, &net.peer);
        for command in [
            format!("netns add {pod}"),
            format!("netns add {peer}"),
            format!("-n {pod} link set lo up"),
            format!("-n {peer} link set lo up"),
            format!("-n {pod} link add eth0 type veth peer name eth0 netns {peer}"),
            format!("-n {pod} addr add 198.51.100.2/24 dev eth0"),
            format!("-n {peer} addr add 198.51.100.1/24 dev eth0"),
            format!("-n {pod} addr add fd00:64::2/64 dev eth0 nodad"),
            format!("-n {peer} addr add fd00:64::1/64 dev eth0 nodad"),
            format!("-n {peer} addr add 192.0.2.7/32 dev lo"),
            format!("-n {pod} link set eth0 up"),
            format!("-n {peer} link set eth0 up"),
            format!("-n {pod} route add default via 198.51.100.1"),
            format!("-n {pod} -6 route add default via fd00:64::1"),
        ] {
            ok(Command::new("ip").args(command.split(' ')), "is iproute2 installed, and is this root?");
        }
        net
    }

    /// A command that runs inside a namespace.
    fn inside(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }

    /// This test binary inside a namespace, in a role, as a user.
    fn role(&self, namespace: &str, user: u32, role: &str) -> Command {
        let mut command = self.inside(namespace, "setpriv");
        let user = user.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.arg(std::env::current_exe().expect("a running binary has a path"));
        command.args(["--exact", "role", "--nocapture", "--test-threads=1"]).env(ROLE, role);
        command
    }

    fn listen(&mut self, namespace: &str, ports: &str) {
        let mut command = self.role(namespace, 0, &format!("listen {ports}"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("ip can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        assert!(
            lines.any(|line| line.expect("text").contains("listening")),
            "the listener on {ports} in {namespace} did not start"
        );
        self.children.push(child);
    }

    /// Connects, and returns the port of the listener that answered.
    fn dial(&self, namespace: &str, user: u32, address: &str) -> String {
        let output = ok(&mut self.role(namespace, user, &format!("dial {address}")), "the connection failed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer =
            text.lines().find_map(|line| line.split_once("answered by ")).map(|(_, port)| port.trim().to_owned());
        answer.unwrap_or_else(|| panic!("no answer from {address}: {text}"))
    }

    /// Runs weft-init with the capabilities that it has in a pod.
    fn weft_init(&self, arguments: &[&str]) -> Output {
        let mut command = self.inside(&self.pod, "setpriv");
        command.args(["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,+net_admin,+net_raw"]);
        command.arg(env!("CARGO_BIN_EXE_weft-init"));
        ok(command.args(arguments), "weft-init failed")
    }

    fn saved(&self, program: &str) -> String {
        let output = ok(self.inside(&self.pod, program).args(["-t", "nat"]), "is iptables installed?");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter(|line| line.starts_with("-A") || line.starts_with(":WEFT"))
            .map(|line| format!("{line}\n"))
            .collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}

fn ok(command: &mut Command, hint: &str) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {hint}"));
    let printed = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}; {hint}\n{}", output.status, printed());
    output
}

/// Runs the role of this binary inside a namespace; does nothing in an ordinary test run.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split_once(' ') {
        Some(("listen", ports)) => {
            let listeners: Vec<_> = ports
                .split(',')
                .map(|port| TcpListener::bind(format!("[::]:{port}")).unwrap_or_else(|error| panic!("{port}: {error}")))
                .collect();
            println!("listening");
            let threads: Vec<_> =
                listeners.into_iter().map(|listener| std::thread::spawn(move || answer(&listener))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        Some(("dial", address)) => {
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), TIMEOUT).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut port = String::new();
            stream.read_to_string(&mut port).unwrap();
            println!("answered by {port}");
        }
        _ => panic!("unknown role {role}"),
    }
}

fn answer(listener: &TcpListener) {
    let SocketAddr::V6(address) = listener.local_addr().expect("it is bound") else { panic!("listens on [::]") };
    for stream in listener.incoming() {
        let _ = stream.expect("accepted").write_all(address.port().to_string().as_bytes());
    }
}

#[test]
fn failures_are_fatal_but_for_ipv6_without_an_address() {
    if std::env::var_os(ROLE).is_some() {
        return;
    }
    let net = Net::new();
    let run = |capabilities: &str, path: &str| {
        let mut command = net.inside(&net.pod, "setpriv");
        command.args(["--no-new-privs", "--inh-caps=-all", &format!("--bounding-set={capabilities}")]);
        command.args(["env", &format!("PATH={path}"), env!("CARGO_BIN_EXE_weft-init")]);
        let output = command.output().expect("ip can be run");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    let path = std::env::var("PATH").expect("a test has a PATH");
    let (success, output) = run("-all", &path);
    assert!(
        !success && output.contains("must run as root with the capabilities NET_ADMIN"),
        "no capabilities: {output}"
    );

    // A PATH with the programs for IPv4 only.
    let folder = std::env::temp_dir().join(format!("weft-init-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let found = ok(Command::new("sh").args(["-c", "command -v xtables-nft-multi"]), "is iptables installed?");
    for program in ["iptables-nft-save", "iptables-nft-restore"] {
        let target = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        std::os::unix::fs::symlink(target, folder.join(program)).expect("a link");
    }
    let only_v4 = folder.display().to_string();
    let with_address = run("-all,+net_admin,+net_raw", &only_v4);
    ok(
        Command::new("ip").args(["-n", &net.pod, "-6", "addr", "flush", "dev", "eth0", "scope", "global"]),
        "no address",
    );
    let without = run("-all,+net_admin,+net_raw", &only_v4);
    std::fs::remove_dir_all(&folder).expect("it was just made");
    let (success, output) = with_address;
    assert!(!success && output.contains("cannot run ip6tables-nft-save"), "IPv6 would bypass the proxy: {output}");
    let (success, output) = without;
    assert!(success && output.contains("the pod has no address of this family"), "nothing to redirect: {output}");
}

#[test]
fn only_traffic_without_an_exclusion_is_redirected() {
    if std::env::var_os(ROLE).is_some() {
        return;
    }
    let mut net = Net::new();
    let arguments = [
        "--exclude-inbound-ports=22,9000-9001",
        "--exclude-outbound-ports=25",
        "--exclude-outbound-ips=192.0.2.0/24,fd00:99::/32",
    ];

    let dry = net.weft_init(&[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(net.saved("iptables-nft-save"), "", "a dry run changes nothing");
    let dry = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(dry.contains("# IPv4\n*nat\n") && dry.contains("# IPv6\n*nat\n"), "a dry run prints both scripts: {dry}");

    net.weft_init(&[]);
    let plain = net.saved("iptables-nft-save");
    net.weft_init(&arguments);
    let first = (net.saved("iptables-nft-save"), net.saved("ip6tables-nft-save"));
    net.weft_init(&arguments);
    let second = (net.saved("iptables-nft-save"), net.saved("ip6tables-nft-save"));
    assert_ne!(plain, first.0, "other arguments replace the rules");
    assert_eq!(first, second, "a second run leaves the same rules");

    let (pod, peer) = (net.pod.clone(), net.peer.clone());
    net.listen(&pod, "15001,15006,15020,15021,8080,22,9001");
    net.listen(&peer, "8080,25");
    for (desc, from, user, address, expected) in [
        ("application to a peer", &pod, APPLICATION, "198.51.100.1:8080", "15001"),
        ("application to a peer, IPv6", &pod, APPLICATION, "[fd00:64::1]:8080", "15001"),
        ("root is an application too", &pod, 0, "198.51.100.1:8080", "15001"),
        ("application to an unassigned address", &pod, APPLICATION, "203.0.113.9:80", "15001"),
        ("proxy to a peer", &pod, PROXY, "198.51.100.1:8080", "8080"),
        ("proxy to a peer, IPv6", &pod, PROXY, "[fd00:64::1]:8080", "8080"),
        ("proxy to its own pod, as for the pod's own Service", &pod, PROXY, "198.51.100.2:8080", "8080"),
        ("proxy to its own pod, IPv6", &pod, PROXY, "[fd00:64::2]:8080", "8080"),
        ("application to loopback", &pod, APPLICATION, "127.0.0.1:8080", "8080"),
        ("application to loopback, IPv6", &pod, APPLICATION, "[::1]:8080", "8080"),
        ("application to its own pod", &pod, APPLICATION, "198.51.100.2:8080", "8080"),
        ("application to an excluded port", &pod, APPLICATION, "198.51.100.1:25", "25"),
        ("application to an excluded port, IPv6", &pod, APPLICATION, "[fd00:64::1]:25", "25"),
        ("application to an excluded address", &pod, APPLICATION, "192.0.2.7:8080", "8080"),
        ("peer to the application", &peer, APPLICATION, "198.51.100.2:8080", "15006"),
        ("peer to the application, IPv6", &peer, APPLICATION, "[fd00:64::2]:8080", "15006"),
        ("peer to a port without a listener", &peer, APPLICATION, "198.51.100.2:7777", "15006"),
        ("peer to the outbound port", &peer, APPLICATION, "198.51.100.2:15001", "15006"),
        ("peer to the metrics", &peer, APPLICATION, "198.51.100.2:15020", "15020"),
        ("peer to health", &peer, APPLICATION, "[fd00:64::2]:15021", "15021"),
        ("peer to an excluded port", &peer, APPLICATION, "198.51.100.2:22", "22"),
        ("peer to an excluded range", &peer, APPLICATION, "[fd00:64::2]:9001", "9001"),
        ("peer with the proxy's user", &peer, PROXY, "198.51.100.2:8080", "15006"),
    ] {
        assert_eq!(net.dial(from, user, address), expected, "{desc}");
    }
}
