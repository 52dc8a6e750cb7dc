//! Puts the rules into the kernel and reads them back.
//!
//! Flow, for each family: save, make the script, restore it in one transaction, save again and hold it against the
//! script. A failure for IPv4 is final. A failure for IPv6 is final where the pod has an IPv6 address, because its
//! traffic would go around the proxy; where it has none there is nothing to redirect, and a kernel without IPv6 NAT is
//! no reason to keep the pod from starting.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::rules::{Family, InitConfig, NotInForce, has_ipv6, rules, verify};

/// Addresses of the network namespace, one a line.
const IF_INET6: &str = "/proc/net/if_inet6";
/// Where the legacy commands keep their lock. The default is on the container's root, which is read-only; `/dev` is
/// writable in every container, and nobody else changes the rules of this network namespace.
const XTABLES_LOCK: &str = "/dev/weft-xtables.lock";

/// Which of the two interfaces of the kernel is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// ip_tables, for kernels without nf_tables.
    Legacy,
}

/// What became of a family.
#[derive(Debug)]
pub enum Outcome {
    /// The rules are in force.
    InForce {
        /// How many of them.
        rules: usize,
    },
    /// There are no rules, and nothing for them to redirect.
    NotNeeded {
        /// Why there are none.
        why: Error,
    },
}

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command could not be started.
    #[error("cannot run {command}, which the image of weft-init must contain")]
    Start {
        /// Which.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("{command} failed ({status}): {stderr}; {}", remedy(.stderr))]
    Failed {
        /// Which.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// The commands succeeded, but the kernel has something else.
    #[error(
        "the {family} rules are not in force; something else changes the nat table of this pod, look for another mesh \
         or a CNI plugin that does"
    )]
    NotInForce {
        /// For which family.
        family: Family,
        /// What differs.
        source: NotInForce,
    },
}

/// Puts the rules of one family in force.
pub fn apply(config: &InitConfig, family: Family) -> Result<Outcome, Error> {
    let result = backend(family).and_then(|backend| in_force(config, family, backend));
    match result {
        Err(error @ (Error::Start { .. } | Error::Failed { .. })) if family == Family::V6 && !pod_has_ipv6() => {
            Ok(Outcome::NotNeeded { why: error })
        }
        result => result,
    }
}

/// The script of one family, with nothing changed.
pub fn dry_run(config: &InitConfig, family: Family) -> Result<String, Error> {
    Ok(rules(config, family, &save(family, backend(family)?)?))
}

fn in_force(config: &InitConfig, family: Family, backend: Backend) -> Result<Outcome, Error> {
    let script = rules(config, family, &save(family, backend)?);
    run(&command(family, backend, "restore"), &["--noflush"], &script)?;
    verify(&script, &save(family, backend)?).map_err(|source| Error::NotInForce { family, source })?;
    Ok(Outcome::InForce {
        rules: script.lines().filter(|line| line.starts_with("-A") || line.starts_with("-I")).count(),
    })
}

/// nf_tables where the kernel has it. The error is that of nf_tables where neither works, as the likelier one.
fn backend(family: Family) -> Result<Backend, Error> {
    let error = match save(family, Backend::Nft) {
        Ok(_) => return Ok(Backend::Nft),
        Err(error) => error,
    };
    if save(family, Backend::Legacy).is_ok() {
        tracing::warn!(%family, %error, "nf_tables does not work, using legacy iptables");
        return Ok(Backend::Legacy);
    }
    Err(error)
}

fn save(family: Family, backend: Backend) -> Result<String, Error> {
    run(&command(family, backend, "save"), &["-t", "nat"], "")
}

fn command(family: Family, backend: Backend, action: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let backend = match backend {
        Backend::Nft => "nft",
        Backend::Legacy => "legacy",
    };
    format!("{program}-{backend}-{action}")
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let command = std::iter::once(program).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ");
    let start = |source| Error::Start { command: command.clone(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("XTABLES_LOCKFILE", XTABLES_LOCK)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    // Dropped at the end of the statement, which closes the pipe. A command that ends without reading says why on its
    // standard error, so a broken pipe here is not the news.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command, status: output.status.to_string(), stderr })
}

fn pod_has_ipv6() -> bool {
    // Without the file the kernel has no IPv6 at all.
    std::fs::read_to_string(IF_INET6).is_ok_and(|addresses| has_ipv6(&addresses))
}

/// What a person can do about a failed command.
fn remedy(stderr: &str) -> &'static str {
    if stderr.contains("Permission denied")
        || stderr.contains("Operation not permitted")
        || stderr.contains("you must be root")
    {
        "weft-init must run as root with the capabilities NET_ADMIN and NET_RAW; look for a policy that takes them away"
    } else {
        "the node's kernel needs nf_tables or ip_tables with nat, redirect, owner and comment; load them on the node"
    }
}
