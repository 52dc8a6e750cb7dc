//! Applies the rules to the kernel and verifies them.
//!
//! Flow, for each address family: save the present rules, make the script, restore it in one transaction, save again
//! and compare with the script. A failure for IPv4 fails the pod. A failure for IPv6 fails it only where the pod has
//! an IPv6 address, whose traffic would bypass the proxy; without one there is nothing to redirect, and a kernel
//! without IPv6 NAT does not keep the pod from starting.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::rules::{Family, InitConfig, Mismatch, has_ipv6, rules, verify};

/// IPv6 addresses of the network namespace, one per line.
const IF_INET6: &str = "/proc/net/if_inet6";
/// Lock file of the legacy commands. Their default is on the container's root, which is read-only; `/dev` is writable
/// in every container. The lock protects nothing here: no other process changes the rules of this network namespace.
const XTABLES_LOCK: &str = "/dev/weft-xtables.lock";

/// The kernel interface of the iptables commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// ip_tables, for kernels without nf_tables.
    Legacy,
}

/// The result for one address family.
#[derive(Debug)]
pub enum Outcome {
    /// The rules are applied and verified.
    Applied {
        /// Number of rules.
        rules: usize,
    },
    /// The rules could not be applied, but the pod has no address of this family.
    NotNeeded {
        /// The failure.
        error: Error,
    },
}

/// Why the rules could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command could not be started.
    #[error("cannot run {command}, which the image of weft-init must contain")]
    Start {
        /// The command.
        command: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("{command} failed ({status}): {stderr}; {}", remedy(.stderr))]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: String,
        /// Its standard error.
        stderr: String,
    },
    /// The commands succeeded, but the kernel has different rules.
    #[error(
        "the {family} rules were applied but are not in the kernel; another program changes the nat table of this pod, \
         look for another mesh or a CNI plugin that does"
    )]
    Mismatch {
        /// The address family.
        family: Family,
        /// The first difference.
        source: Mismatch,
    },
}

/// Applies the rules of one address family.
pub fn apply(config: &InitConfig, family: Family) -> Result<Outcome, Error> {
    let result = backend(family).and_then(|backend| restore_and_verify(config, family, backend));
    match result {
        Err(error @ (Error::Start { .. } | Error::Failed { .. })) if family == Family::V6 && !pod_has_ipv6() => {
            Ok(Outcome::NotNeeded { error })
        }
        result => result,
    }
}

/// The script of one address family, without applying it.
pub fn dry_run(config: &InitConfig, family: Family) -> Result<String, Error> {
    Ok(rules(config, family, &save(family, backend(family)?)?))
}

fn restore_and_verify(config: &InitConfig, family: Family, backend: Backend) -> Result<Outcome, Error> {
    let script = rules(config, family, &save(family, backend)?);
    run(&command(family, backend, "restore"), &["--noflush"], &script)?;
    verify(&script, &save(family, backend)?).map_err(|source| Error::Mismatch { family, source })?;
    Ok(Outcome::Applied {
        rules: script.lines().filter(|line| line.starts_with("-A") || line.starts_with("-I")).count(),
    })
}

/// Selects nf_tables, or legacy where nf_tables does not work. Where neither works, fails with the error of nf_tables.
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
    // Dropped at the end of the statement, which closes the pipe. A broken pipe is ignored: a command that exits
    // without reading its input reports the reason on its standard error.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command, status: output.status.to_string(), stderr })
}

fn pod_has_ipv6() -> bool {
    // The file does not exist where the kernel has no IPv6.
    std::fs::read_to_string(IF_INET6).is_ok_and(|addresses| has_ipv6(&addresses))
}

/// The remedy for a failed command.
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
