//! The rules, as a script for `iptables-restore --noflush`, and the check that they are in force.
//!
//! The script is one transaction on the `nat` table: the kernel takes all of it or nothing. It is idempotent because it
//! declares its own chains, which empties them where they exist, and removes the jumps that it finds before it inserts
//! them. What it finds is an argument, so the script stays a pure function.
//!
//! A pod that calls its own Service works: the application's connection to the Service's address is redirected, the
//! proxy picks this very pod and dials the pod's own address, which the kernel routes over loopback. That connection
//! belongs to the proxy's user, so [`OUTPUT`] leaves it alone; and since it has been through `OUTPUT` the kernel does
//! not consult `PREROUTING` for it again, so it reaches the application and not the proxy's inbound port.

use std::fmt;

use ipnet::IpNet;
use weft_config::bootstrap::{HEALTH_PORT, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_UID, PortRange};

/// Our chain for what leaves the pod.
pub const OUTPUT: &str = "WEFT_OUTPUT";
/// Our chain for what enters the pod.
pub const INBOUND: &str = "WEFT_INBOUND";

/// Each built-in chain, and ours to which it jumps.
const JUMPS: [(&str, &str, &str); 2] =
    [("OUTPUT", OUTPUT, "what leaves the pod"), ("PREROUTING", INBOUND, "what enters the pod")];

/// What is left out of the redirection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitConfig {
    /// Connections to these ports of the pod go to the application.
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Connections of the application to these ports go straight out.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Connections of the application to these addresses go straight out.
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

/// How what is in force differs from what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotInForce {
    /// A built-in chain does not jump to ours exactly once.
    #[error("{from} jumps to {to} {times} times, not once")]
    Jump {
        /// The built-in chain.
        from: &'static str,
        /// Our chain.
        to: &'static str,
        /// How often.
        times: usize,
    },
    /// A rule is missing, in another place, or one too many.
    #[error("rule {at} of {chain} should be {wanted:?} and is {found:?}")]
    Rule {
        /// Our chain.
        chain: &'static str,
        /// Which of its rules, from 1.
        at: usize,
        /// Reason and target of the rule that was asked for; empty for none.
        wanted: String,
        /// Reason and target of the rule that is there; empty for none.
        found: String,
    },
}

/// The script for one family. `saved` is what `iptables-save -t nat` prints before.
pub fn rules(config: &InitConfig, family: Family, saved: &str) -> String {
    // Destructured, so that a new field cannot be forgotten here.
    let InitConfig { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips } = config;
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    let mut lines = vec!["*nat".to_owned(), format!(":{OUTPUT} - [0:0]"), format!(":{INBOUND} - [0:0]")];
    lines.extend(saved.lines().filter_map(found_jump).map(|jump| format!("-D {jump}")));
    // At the top: a rule of somebody else must not get the connection first.
    lines.extend(JUMPS.map(|(from, to, reason)| format!("-I {from} 1 -p tcp {} -j {to}", comment(reason))));

    let mut rule = |chain: &str, matches: &str, reason: &str, target: &str| {
        let matches = if matches.is_empty() { String::new() } else { format!(" {matches}") };
        lines.push(format!("-A {chain} -p tcp{matches} {} -j {target}", comment(reason)));
    };
    let to_proxy = |port: u16| format!("REDIRECT --to-ports {port}");

    // First, so that nothing below can send the proxy's own connections back to it.
    rule(OUTPUT, &format!("-m owner --uid-owner {PROXY_UID}"), "made by the proxy", "RETURN");
    rule(OUTPUT, "-o lo", "the pod talks to itself", "RETURN");
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

/// Whether what `iptables-save -t nat` prints has the rules of `script` in force: each jump once, and in our chains the
/// same rules in the same order. Rules are told by reason and target, since versions of iptables spell matches differently.
pub fn verify(script: &str, saved: &str) -> Result<(), NotInForce> {
    for (from, to, _) in JUMPS {
        let prefix = format!("{from} ");
        let jumps = saved.lines().filter_map(found_jump);
        let times = jumps.filter(|jump| jump.starts_with(&prefix) && target(jump) == Some(to)).count();
        if times != 1 {
            return Err(NotInForce::Jump { from, to, times });
        }
    }
    for chain in [OUTPUT, INBOUND] {
        let (wanted, found) = (identities(chain, script), identities(chain, saved));
        for at in 0..wanted.len().max(found.len()) {
            let (wanted, found) = (wanted.get(at), found.get(at));
            if wanted != found {
                let text = |rule: Option<&String>| rule.cloned().unwrap_or_default();
                return Err(NotInForce::Rule { chain, at: at + 1, wanted: text(wanted), found: text(found) });
            }
        }
    }
    Ok(())
}

/// Whether `/proc/net/if_inet6` lists an address that a peer could reach: one of global scope (which unique local
/// addresses have too) on an interface other than loopback.
pub fn has_ipv6(if_inet6: &str) -> bool {
    const GLOBAL: &str = "00";
    if_inet6.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(3);
        columns.next() == Some(GLOBAL) && columns.nth(1).is_some_and(|interface| interface != "lo")
    })
}

/// The rule in a line of `iptables-save`, without `-A`, where it is a jump from a built-in chain to one of ours.
fn found_jump(line: &str) -> Option<&str> {
    let rule = line.strip_prefix("-A ")?;
    let from = rule.split(' ').next()?;
    let known = JUMPS.iter().any(|(built_in, to, _)| *built_in == from && target(rule) == Some(to));
    known.then_some(rule)
}

/// Where a rule sends what it matches.
fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once(" -j ").map(|(_, target)| target.trim())
}

/// Reason and target of each rule in a chain.
fn identities(chain: &str, rules: &str) -> Vec<String> {
    let prefix = format!("-A {chain} ");
    rules
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix))
        .map(|rule| {
            let reason = rule.split('"').nth(1).unwrap_or("no reason");
            format!("{reason} -> {}", target(rule).unwrap_or("nowhere"))
        })
        .collect()
}

/// As iptables writes ports.
fn dport(PortRange { first, last }: &PortRange) -> String {
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

/// Letters, spaces and commas only: iptables-save puts a backslash before others, and [`verify`] compares.
fn comment(reason: &str) -> String {
    format!("-m comment --comment \"weft: {reason}\"")
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
