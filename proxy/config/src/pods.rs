//! Pod addresses: who is at an address that is not a Service's, as in connections to the members of a StatefulSet.
//!
//! A document has the pods whose addresses have a [`Prefix`]. The index lists the prefixes with such pods, so that a
//! proxy reads few documents, and a pod that starts or ends changes a small one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bootstrap::PortRange;

/// An address without its last byte: a /24 of IPv4, or a /120 of IPv6. In JSON as `10.1.2.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpAddr);

/// The text is not a [`Prefix`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a /24 of IPv4 or a /120 of IPv6")]
pub struct PrefixError(String);

/// The pods with an identity whose addresses have one prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pods {
    /// By address.
    pub pods: BTreeMap<IpAddr, PodIdentity>,
}

/// Who a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Ports that its proxy does not carry, because they are excluded from redirection. Sorted, and disjoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<PortRange>,
}

// === impl Prefix ===

impl Prefix {
    /// The prefix of an address. That of an IPv4 address in IPv6 form is that of the IPv4 address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self(Ipv4Addr::new(a, b, c, 0).into())
            }
            IpAddr::V6(address) => {
                let mut octets = address.octets();
                octets[15] = 0;
                Self(Ipv6Addr::from(octets).into())
            }
        }
    }

    /// Its first address.
    pub fn first(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, if self.0.is_ipv4() { 24 } else { 120 })
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.rsplit_once('/').and_then(|(address, _)| address.parse().ok());
        let prefix = address.map(Self::of).filter(|prefix| prefix.to_string() == text);
        prefix.ok_or_else(|| PrefixError(text.to_owned()))
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{pods_name, prefix_of_name};
    use crate::{Envelope, Index, OBJECT_BYTES_MAX, Written};

    #[test]
    fn prefixes_are_addresses_without_their_last_byte() {
        for (address, text, name) in [
            ("10.1.2.3", "10.1.2.0/24", "p.10.1.2.0"),
            ("10.1.2.0", "10.1.2.0/24", "p.10.1.2.0"),
            ("::ffff:10.1.2.3", "10.1.2.0/24", "p.10.1.2.0"),
            ("fd00:10:244::1234", "fd00:10:244::1200/120", "p.fd00-10-244-0-0-0-0-1200"),
            ("fd00::ff", "fd00::/120", "p.fd00-0-0-0-0-0-0-0"),
        ] {
            let prefix = Prefix::of(address.parse().expect("an address"));
            assert_eq!(prefix.to_string(), text, "{address}");
            assert_eq!(text.parse(), Ok(prefix), "{address}");
            assert_eq!(pods_name(prefix), name, "{address}");
            assert_eq!(prefix_of_name(name), Some(prefix), "{address}");
        }
    }

    #[test]
    fn other_texts_are_no_prefixes() {
        for text in [
            "",
            "10.1.2.0",
            "10.1.2.3/24",
            "10.1.2.0/16",
            "10.1.2.0/120",
            "fd00::1/120",
            "FD00::/120",
            "fd00:0::/120",
            "::ffff:10.1.2.0/120",
            "shop/24",
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError(text.to_owned())));
        }
        for name in ["", "p.", "p.10.1.2.3", "p.shop", "p.fd00-0-0-0-0-0-0-1", "p.fd00--0", "x.shop", "10.1.2.0"] {
            assert_eq!(prefix_of_name(name), None, "{name}");
        }
    }

    /// A name of a ConfigMap: at most 253 lower case letters, digits, `-` and `.`, and each part between dots begins and
    /// ends with one of the former.
    #[test]
    fn names_of_documents_are_names_of_kubernetes() {
        for address in ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1", "fd00::"] {
            let name = pods_name(Prefix::of(address.parse().expect("an address")));
            let is_part = |part: &str| {
                let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
                part.bytes().all(|byte| is_alphanumeric(byte) || byte == b'-')
                    && part.bytes().next().is_some_and(is_alphanumeric)
                    && part.bytes().last().is_some_and(is_alphanumeric)
            };
            assert!(name.len() <= 253 && name.split('.').all(is_part), "{name}");
        }
    }

    /// The document of 256 pods, of which `account` says who they are.
    fn full(account: impl Fn(u8) -> PodIdentity) -> Envelope {
        let pods = (0..=255).map(|last| (IpAddr::from([198, 18, 200, last]), account(last))).collect();
        let written =
            Written { namespace: "p.198.18.200.0".into(), generation: 1_800_000_000_000, ..Written::default() };
        Envelope::write(written, &Pods { pods })
    }

    /// The figures of docs/adr/008-pod-addresses.md: `--nocapture` prints them.
    #[test]
    fn full_documents_fit_into_an_object() {
        let names = ["cart", "checkout", "currency", "payment-service", "recommendations", "shipping"];
        let usual = full(|last| {
            let at = usize::from(last);
            let (namespace, service_account) = (format!("team-{}", at % 5), names[at % names.len()].to_owned());
            PodIdentity { namespace, service_account, excluded: Vec::new() }
        });
        let one = serde_json::to_vec(&Pods {
            pods: [(
                "198.18.200.200".parse().expect("an address"),
                PodIdentity {
                    namespace: "team-3".into(),
                    service_account: "payment-service".into(),
                    excluded: Vec::new(),
                },
            )]
            .into(),
        });
        let index = |prefixes: u32| {
            let prefix = |number: u32| Prefix::of(Ipv4Addr::from(0x0a00_0000 + (number << 8)).into());
            Envelope::write(
                Written::default(),
                &Index { prefixes: (0..prefixes).map(prefix).collect(), ..Index::default() },
            )
        };
        println!(
            "a pod: {} bytes of JSON; 256 pods: {} stored; 10,000 prefixes of the index: {} stored",
            one.expect("writes").len() - r#"{"pods":{}}"#.len(),
            usual.stored_bytes(),
            index(10_000).stored_bytes() - index(0).stored_bytes(),
        );
        assert!(usual.stored_bytes() < 8 * 1024, "{}", usual.stored_bytes());
        // The longest names, and as many ranges as the operator accepts, all different.
        let most = full(|last| PodIdentity {
            namespace: format!("{last:063}"),
            service_account: format!("{last:0253}"),
            excluded: (0..100)
                .map(|range| {
                    let first = 1_000 + 600 * range + u32::from(last);
                    format!("{first}-{}", first + 300).parse().expect("a range")
                })
                .collect(),
        });
        assert!(most.stored_bytes() < OBJECT_BYTES_MAX, "{}", most.stored_bytes());
    }

    #[test]
    fn documents_read_back() {
        let text = concat!(
            r#"{"pods":{"10.1.2.3":{"namespace":"shop","serviceAccount":"web"},"#,
            r#""10.1.2.20":{"namespace":"shop","serviceAccount":"db","excluded":["22","8000-8010"]}}}"#
        );
        let document: Pods = serde_json::from_str(text).expect("reads");
        assert_eq!(serde_json::to_string(&document).expect("writes"), text, "sorted by address");
        assert!(serde_json::from_str::<Pods>(&text.replace("8000-8010", "8010-8000")).is_err());
        assert!(serde_json::from_str::<Pods>(&text.replace("excluded", "surprise")).is_err());
        let text = r#"{"namespaces":{},"prefixes":["10.1.2.0/24","fd00::/120"]}"#;
        let index: Index = serde_json::from_str(text).expect("reads");
        assert_eq!(serde_json::to_string(&index).expect("writes"), text);
        assert!(serde_json::from_str::<Index>(&text.replace(".0/24", ".1/24")).is_err());
        assert_eq!(serde_json::to_string(&Index::default()).expect("writes"), r#"{"namespaces":{}}"#);
    }
}
