//! The mode of mutual TLS of this pod's ports: which plaintext is accepted. Pure: policies and an address in, answer out.
//!
//! Of the policies that target the pod, the entry of a port comes before a mode, and a policy for a Service or
//! ServiceAccount before one for the namespace. Of equal ones that disagree, Strict wins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::{IpNet, Ipv4Net};
use weft_config::{self as wire, MtlsMode};

use crate::bootstrap::Pod;
use crate::policy::target_ports_of;
use crate::security::Why;
use crate::value::CompileError;

/// IPv6 addresses that stand for IPv4 addresses are below a prefix of this length.
const MAPPED_BITS: u8 = 96;

/// The modes of this pod's ports.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Modes {
    /// Of ports that no policy names.
    otherwise: Plaintext,
    ports: HashMap<u16, Plaintext>,
}

/// Which plaintext a port accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Plaintext {
    /// All.
    #[default]
    Accepted,
    /// That of clients with these addresses.
    From(Box<[IpNet]>),
    /// None.
    Refused,
}

/// A policy that targets the pod.
struct Targeting {
    /// None: all.
    ports: Option<Vec<u16>>,
    is_for_namespace: bool,
    mode: Option<MtlsMode>,
    entries: Vec<wire::MtlsPort>,
}

// === impl Modes ===

impl Modes {
    /// Resolves the modes of the pod while it has these labels.
    pub(crate) fn compile(
        pod: &Pod,
        labels: &BTreeMap<String, String>,
        namespace: MtlsMode,
        policies: Vec<wire::MtlsPolicy>,
    ) -> Result<Self, CompileError> {
        let targeting = |wire::MtlsPolicy { name: _, target, mode, ports: entries }| {
            let ports = target_ports_of(pod, labels, &target)?;
            Some(Targeting { ports, is_for_namespace: target == wire::Target::Namespace, mode, entries })
        };
        let policies: Vec<Targeting> = policies.into_iter().filter_map(targeting).collect();
        let targets = policies.iter().flat_map(|policy| policy.ports.iter().flatten());
        let entries = policies.iter().flat_map(|policy| policy.entries.iter().map(|entry| &entry.port));
        let named: BTreeSet<u16> = targets.chain(entries).copied().collect();
        let of_port = |port: u16| Ok((port, plaintext(&policies, Some(port), namespace)?));
        Ok(Self {
            otherwise: plaintext(&policies, None, namespace)?,
            ports: named.into_iter().map(of_port).collect::<Result<_, _>>()?,
        })
    }

    /// Why a port accepts plaintext of a client. None: it does not.
    pub(crate) fn accepts_plaintext(&self, port: u16, client: IpAddr) -> Option<Why> {
        match self.ports.get(&port).unwrap_or(&self.otherwise) {
            Plaintext::Accepted => Some(Why::Permissive),
            Plaintext::From(blocks) => blocks.iter().any(|block| block.contains(&client)).then_some(Why::Declared),
            Plaintext::Refused => None,
        }
    }
}

/// Which plaintext a port accepts. `port`: None for any that no policy names.
fn plaintext(policies: &[Targeting], port: Option<u16>, namespace: MtlsMode) -> Result<Plaintext, CompileError> {
    let mode = [false, true].into_iter().find_map(|is_for_namespace| {
        let modes = policies.iter().filter(|policy| policy.is_for(port, is_for_namespace));
        let modes: Vec<MtlsMode> = modes.filter_map(|policy| policy.mode).collect();
        modes.contains(&MtlsMode::Strict).then_some(MtlsMode::Strict).or(modes.first().copied())
    });
    let mode = mode.unwrap_or(namespace);
    for is_for_namespace in [false, true] {
        let policies = policies.iter().filter(|policy| policy.is_for(port, is_for_namespace));
        let entries: Vec<&wire::MtlsPort> =
            policies.flat_map(|policy| &policy.entries).filter(|entry| Some(entry.port) == port).collect();
        if entries.iter().any(|entry| entry.mode == MtlsMode::Strict) {
            return Ok(Plaintext::Refused);
        }
        let blocks = entries.iter().flat_map(|entry| &entry.ip_blocks);
        let blocks: Vec<IpNet> = blocks.map(|block| parse_block(block)).collect::<Result<_, _>>()?;
        if !blocks.is_empty() {
            return Ok(Plaintext::From(blocks.into()));
        }
        // An exception to Strict has to say for whom it is.
        if !entries.is_empty() && mode == MtlsMode::Permissive {
            return Ok(Plaintext::Accepted);
        }
    }
    Ok(match mode {
        MtlsMode::Permissive => Plaintext::Accepted,
        MtlsMode::Strict => Plaintext::Refused,
    })
}

/// A block of addresses. Addresses of clients are IPv4 where they can be, so a block of such IPv6 addresses is too.
fn parse_block(text: &str) -> Result<IpNet, CompileError> {
    let block: IpNet = text.parse().map_err(|_| CompileError::IpBlock(text.to_owned()))?;
    let mapped = match block {
        IpNet::V6(block) if block.prefix_len() >= MAPPED_BITS => block.addr().to_ipv4_mapped(),
        _ => None,
    };
    let of = |address| Ipv4Net::new(address, block.prefix_len() - MAPPED_BITS).ok();
    Ok(mapped.and_then(of).map_or(block, IpNet::V4))
}

// === impl Targeting ===

impl Targeting {
    /// Whether the policy has this rank, and applies to the port.
    fn is_for(&self, port: Option<u16>, is_for_namespace: bool) -> bool {
        self.is_for_namespace == is_for_namespace
            && self.ports.as_ref().is_none_or(|ports| port.is_some_and(|port| ports.contains(&port)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The modes of a pod of shop with the label app=web, the ServiceAccount web and the port name `http` for 8080.
    fn modes(namespace: MtlsMode, policies: serde_json::Value) -> Modes {
        let pod = Pod {
            namespace: "shop".into(),
            service_account: "web".into(),
            port_names: [("http".to_owned(), 8080)].into(),
            ..Pod::default()
        };
        let labels = [("app".to_owned(), "web".to_owned())].into();
        Modes::compile(&pod, &labels, namespace, serde_json::from_value(policies).expect("policies")).expect("compiles")
    }

    fn policy(target: serde_json::Value, mode: Option<&str>, ports: serde_json::Value) -> serde_json::Value {
        let mut policy = json!({"name": "p", "target": target, "ports": ports});
        if let Some(mode) = mode {
            policy["mode"] = mode.into();
        }
        policy
    }

    #[test]
    fn entry_of_a_port_comes_before_a_mode_and_a_workload_before_its_namespace() {
        let service = || json!({"service": {"selector": {"app": "web"}, "ports": ["http", 9090]}});
        let other = || json!({"service": {"selector": {"app": "db"}, "ports": ["http"]}});
        let (namespace, account) = (|| json!("namespace"), || json!({"serviceAccount": "web"}));
        let entry = |port: u16, mode: &str| json!([{"port": port, "mode": mode}]);
        let (strict, permissive) = (Some("strict"), Some("permissive"));
        use MtlsMode::{Permissive, Strict};
        // Whether 8080 and 7070 accept plaintext.
        for (desc, mode, policies, expected) in [
            ("Mesh only", Permissive, json!([]), [true, true]),
            ("Mesh only, Strict", Strict, json!([]), [false, false]),
            ("a Service's ports", Permissive, json!([policy(service(), strict, json!([]))]), [false, true]),
            ("another Service", Permissive, json!([policy(other(), strict, json!([]))]), [true, true]),
            ("a ServiceAccount", Permissive, json!([policy(account(), strict, json!([]))]), [false, false]),
            ("a workload relaxes", Strict, json!([policy(account(), permissive, json!([]))]), [true, true]),
            (
                "workload before namespace",
                Strict,
                json!([policy(namespace(), strict, json!([])), policy(service(), permissive, json!([]))]),
                [true, false],
            ),
            (
                "equal ones: Strict wins",
                Permissive,
                json!([policy(account(), permissive, json!([])), policy(service(), strict, json!([]))]),
                [false, true],
            ),
            (
                "entry before mode",
                Permissive,
                json!([policy(account(), strict, entry(7070, "strict"))]),
                [false, false],
            ),
            (
                "entry of the namespace before the mode of a workload",
                Permissive,
                json!([policy(namespace(), None, entry(7070, "strict")), policy(account(), permissive, json!([]))]),
                [true, false],
            ),
            (
                "entry of a workload before that of the namespace",
                Permissive,
                json!([
                    policy(namespace(), None, entry(7070, "strict")),
                    policy(account(), None, entry(7070, "permissive"))
                ]),
                [true, true],
            ),
            (
                "equal entries: Strict wins",
                Permissive,
                json!([
                    policy(account(), None, entry(7070, "strict")),
                    policy(account(), None, entry(7070, "permissive"))
                ]),
                [true, false],
            ),
            (
                "an entry of a Service is about its ports only",
                Permissive,
                json!([policy(service(), None, entry(7070, "strict"))]),
                [true, true],
            ),
            (
                "an exception to Strict without blocks has no effect",
                Permissive,
                json!([policy(account(), strict, entry(7070, "permissive"))]),
                [false, false],
            ),
        ] {
            let modes = modes(mode, policies);
            let accepts = |port| modes.accepts_plaintext(port, [198, 18, 0, 1].into()).is_some();
            assert_eq!([8080, 7070].map(accepts), expected, "{desc}");
        }
    }

    #[test]
    fn declared_ports_accept_plaintext_from_their_blocks_only() {
        let blocks = ["198.18.4.0/22", "2001:db8::/32", "::ffff:198.19.0.0/112", "10.0.0.7/32"];
        let entry = json!([{"port": 9090, "mode": "permissive", "ipBlocks": blocks}]);
        for mode in ["strict", "permissive"] {
            let policy = policy(json!("namespace"), Some(mode), entry.clone());
            let namespace = serde_json::from_value(json!(mode)).expect("a mode");
            let modes = modes(namespace, json!([policy]));
            for (client, expected) in [
                ("198.18.4.1", Some(Why::Declared)),
                ("198.18.7.255", Some(Why::Declared)),
                ("198.18.8.0", None),
                ("198.19.0.9", Some(Why::Declared)),
                ("198.20.0.0", None),
                ("2001:db8:1::1", Some(Why::Declared)),
                ("2001:db9::1", None),
                ("10.0.0.7", Some(Why::Declared)),
                ("10.0.0.8", None),
            ] {
                let client = client.parse().expect("an address");
                assert_eq!(modes.accepts_plaintext(9090, client), expected, "{mode}: {client}");
            }
        }
    }

    #[test]
    fn block_that_is_none_is_an_error() {
        for text in ["", "198.18.0.0", "198.18.0.0/33", "localhost/8", "2001:db8::/129", "198.18.0.0/-1"] {
            assert!(matches!(parse_block(text), Err(CompileError::IpBlock(_))), "{text:?}");
        }
    }
}
