//! The iptables rules as a script for `iptables-restore --noflush`, and the verification of the rules in the kernel.
//!
//! The script is one transaction on the `nat` table: the kernel applies all of it or nothing. It is idempotent: it
//! declares its own chains, which empties them where they exist, and deletes present jumps to them before it inserts
//! its own. The present rules are an argument, so that the script is a pure function.
//!
//! A pod can call its own Service: the application's connection to the Service's address is redirected, the proxy
//! picks this same pod and connects to the pod's own address, which the kernel routes over loopback. That connection
//! belongs to the proxy's user, so [`OUTPUT`] does not redirect it; and since it has passed `OUTPUT`, the kernel does
//! not evaluate `PREROUTING` for it, so it reaches the application instead of the proxy's inbound port.

use std::fmt;

use ipnet::IpNet;
use weft_config::bootstrap::{HEALTH_PORT, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_UID, PortRange};

/// Weft's chain for outbound connections.
pub const OUTPUT: &str = "WEFT_OUTPUT";
/// Weft's chain for inbound connections.
pub const INBOUND: &str = "WEFT_INBOUND";

/// The jumps: built-in chain, Weft's chain, and the rule's comment.
const JUMPS: [(&str, &str, &str); 2] =
    [("OUTPUT", OUTPUT, "outbound connections"), ("PREROUTING", INBOUND, "inbound connections")];

/// Exclusions from the redirection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitConfig {
    /// Inbound ports that are not redirected.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that are not redirected.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Destination networks that are not redirected.
    pub exclude_outbound_ips: Vec<IpNet>,
}

/// The address family of a set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The first difference between the rules in the kernel and those of the script.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    /// A built-in chain does not jump to Weft's chain exactly once.
    #[error("{from} jumps to {to} {times} times, not once")]
    Jump {
        /// The built-in chain.
        from: &'static str,
        /// Weft's chain.
        to: &'static str,
        /// Number of jumps.
        times: usize,
    },
    /// A rule is missing, unexpected, or at another position.
    #[error("rule {number} of {chain} should be {expected:?} and is {found:?}")]
    Rule {
        /// Weft's chain.
        chain: &'static str,
        /// Number of the rule, from 1.
        number: usize,
        /// Comment and target of the expected rule; empty if the kernel has one too many.
        expected: String,
        /// Comment and target of the rule in the kernel; empty if it is missing.
        found: String,
    },
}

/// The script for one address family. `saved` is the output of `iptables-save -t nat` before.
pub fn rules(config: &InitConfig, family: Family, saved: &str) -> String {
    // Destructured, so that a new field cannot be forgotten here.
    let InitConfig { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips } = config;
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    let mut lines = vec!["*nat".to_owned(), format!(":{OUTPUT} - [0:0]"), format!(":{INBOUND} - [0:0]")];
    lines.extend(saved.lines().filter_map(jump_to_weft).map(|jump| format!("-D {jump}")));
    // At the top, before the rules of other programs.
    lines.extend(JUMPS.map(|(from, to, text)| format!("-I {from} 1 -p tcp {} -j {to}", comment(text))));

    let mut rule = |chain: &str, matches: &str, text: &str, target: &str| {
        let matches = if matches.is_empty() { String::new() } else { format!(" {matches}") };
        lines.push(format!("-A {chain} -p tcp{matches} {} -j {target}", comment(text)));
    };
    let to_proxy = |port: u16| format!("REDIRECT --to-ports {port}");

    // First, so that no rule below can redirect the proxy's own connections to itself.
    rule(OUTPUT, &format!("-m owner --uid-owner {PROXY_UID}"), "made by the proxy", "RETURN");
    rule(OUTPUT, "-o lo", "pod to itself", "RETURN");
    rule(OUTPUT, &format!("-d {loopback}"), "loopback", "RETURN");
    for ports in exclude_outbound_ports {
        rule(OUTPUT, &format!("-m tcp --dport {}", dport(ports)), "excluded outbound port", "RETURN");
    }
    for ips in exclude_outbound_ips.iter().filter(|ips| family.has(ips)) {
        rule(OUTPUT, &format!("-d {}", ips.trunc()), "excluded outbound address", "RETURN");
    }
    rule(OUTPUT, "", "to the proxy, outbound", &to_proxy(OUTBOUND_PORT));

    rule(INBOUND, &format!("-m tcp --dport {METRICS_PORT}"), "metrics of the proxy", "RETURN");
    rule(INBOUND, &format!("-m tcp --dport {HEALTH_PORT}"), "health and probes", "RETURN");
    for ports in exclude_inbound_ports {
        rule(INBOUND, &format!("-m tcp --dport {}", dport(ports)), "excluded inbound port", "RETURN");
    }
    rule(INBOUND, "", "to the proxy, inbound", &to_proxy(INBOUND_PORT));

    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

/// Checks that the output of `iptables-save -t nat` has the rules of `script`: each jump once, and in Weft's chains
/// the same rules in the same order. Rules are compared by comment and target, since versions of iptables print
/// matches differently.
pub fn verify(script: &str, saved: &str) -> Result<(), Mismatch> {
    for (from, to, _) in JUMPS {
        let prefix = format!("{from} ");
        let jumps = saved.lines().filter_map(jump_to_weft);
        let times = jumps.filter(|jump| jump.starts_with(&prefix) && target(jump) == Some(to)).count();
        if times != 1 {
            return Err(Mismatch::Jump { from, to, times });
        }
    }
    for chain in [OUTPUT, INBOUND] {
        let (expected, found) = (comments_and_targets(chain, script), comments_and_targets(chain, saved));
        for index in 0..expected.len().max(found.len()) {
            let (expected, found) = (expected.get(index), found.get(index));
            if expected != found {
                let text = |rule: Option<&String>| rule.cloned().unwrap_or_default();
                let (expected, found) = (text(expected), text(found));
                return Err(Mismatch::Rule { chain, number: index + 1, expected, found });
            }
        }
    }
    Ok(())
}

/// Whether `/proc/net/if_inet6` lists an address that peers can reach: one of global scope, which includes unique local
/// addresses, on an interface other than loopback.
pub fn has_ipv6(if_inet6: &str) -> bool {
    const GLOBAL: &str = "00";
    if_inet6.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(3);
        columns.next() == Some(GLOBAL) && columns.nth(1).is_some_and(|interface| interface != "lo")
    })
}

/// The rule in a line of `iptables-save`, without `-A`, if it is a jump from a built-in chain to one of Weft's.
fn jump_to_weft(line: &str) -> Option<&str> {
    let rule = line.strip_prefix("-A ")?;
    let from = rule.split(' ').next()?;
    let known = JUMPS.iter().any(|(built_in, to, _)| *built_in == from && target(rule) == Some(to));
    known.then_some(rule)
}

/// The target of a rule.
fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once(" -j ").map(|(_, target)| target.trim())
}

/// Comment and target of each rule in a chain.
fn comments_and_targets(chain: &str, rules: &str) -> Vec<String> {
    let prefix = format!("-A {chain} ");
    rules
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix))
        .map(|rule| {
            let comment = rule.split('"').nth(1).unwrap_or("no comment");
            format!("{comment} -> {}", target(rule).unwrap_or("no target"))
        })
        .collect()
}

/// A port range in the syntax of iptables.
fn dport(PortRange { first, last }: &PortRange) -> String {
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

/// A comment match. Letters, spaces and commas only: iptables-save escapes other characters, which [`verify`] would
/// report.
fn comment(text: &str) -> String {
    format!("-m comment --comment \"weft: {text}\"")
}

// === impl Family ===

impl Family {
    fn has(self, ips: &IpNet) -> bool {
        matches!((self, ips), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests;
