//! The document of a prefix, compiled: who is at addresses that are not a Service's.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;

use hashbrown::HashMap;
use weft_config::bootstrap::PortRange;
use weft_config::{self as wire, Prefix};
use weft_identity::Account;

use crate::clock::uptime_seconds;
use crate::value::CompileError;

/// The pods with an identity whose addresses have one prefix.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    pods: HashMap<IpAddr, Pod>,
    /// When it was last used, as [`uptime_seconds`].
    pub(crate) last_used: AtomicU64,
}

#[derive(Debug)]
struct Pod {
    account: Account,
    /// Ports that its proxy does not carry.
    excluded: Box<[PortRange]>,
}

/// Who is at an address that is not a Service's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// No pod with an identity.
    Stranger,
    /// A pod that proves to be this.
    Pod(Account),
    /// A pod with an identity, whose proxy does not carry the port.
    Excluded,
    /// There are pods with an identity at addresses with this prefix, and the document that says at which is not in use.
    Unknown(Prefix),
}

impl Pods {
    /// Compiles the document of a prefix.
    pub(crate) fn compile(prefix: Prefix, document: wire::Pods) -> Result<Self, CompileError> {
        let mut pods = HashMap::with_capacity(document.pods.len());
        for (address, wire::PodIdentity { namespace, service_account, excluded }) in document.pods {
            if Prefix::of(address) != prefix {
                return Err(CompileError::Address { address, prefix });
            }
            let account = Account::new(&namespace, &service_account).map_err(CompileError::Account)?;
            pods.insert(address, Pod { account, excluded: excluded.into() });
        }
        Ok(Self { pods, last_used: AtomicU64::new(uptime_seconds()) })
    }

    /// Who is at an address with this prefix.
    pub(super) fn at(&self, address: SocketAddr) -> Occupant {
        match self.pods.get(&address.ip()) {
            None => Occupant::Stranger,
            Some(pod) if pod.excluded.iter().any(|range| range.contains(address.port())) => Occupant::Excluded,
            Some(pod) => Occupant::Pod(pod.account.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(pods: serde_json::Value) -> Result<Pods, CompileError> {
        let document = serde_json::from_value(serde_json::json!({"pods": pods})).expect("a document");
        Pods::compile("198.18.3.0/24".parse().expect("a prefix"), document)
    }

    #[test]
    fn pods_are_found_by_address_unless_their_proxy_does_not_carry_the_port() {
        let pods = compile(serde_json::json!({
            "198.18.3.7": {"namespace": "shop", "serviceAccount": "db", "excluded": ["22", "8000-8010"]},
        }))
        .expect("compiles");
        let db = Occupant::Pod(Account::new("shop", "db").expect("an account"));
        for (address, expected) in [
            ("198.18.3.7:5432", db.clone()),
            ("198.18.3.7:22", Occupant::Excluded),
            ("198.18.3.7:8010", Occupant::Excluded),
            ("198.18.3.7:8011", db),
            ("198.18.3.8:5432", Occupant::Stranger),
        ] {
            assert_eq!(pods.at(address.parse().expect("an address")), expected, "{address}");
        }
    }

    #[test]
    fn documents_with_other_addresses_or_names_are_refused() {
        for (pods, expected) in [
            (
                serde_json::json!({"198.18.4.7": {"namespace": "shop", "serviceAccount": "db"}}),
                "198.18.4.7 is not in 198.18.3.0/24",
            ),
            (
                serde_json::json!({"198.18.3.7": {"namespace": "shop/x", "serviceAccount": "db"}}),
                "not the name of a namespace",
            ),
            (
                serde_json::json!({"198.18.3.7": {"namespace": "shop", "serviceAccount": ""}}),
                "not the name of a service account",
            ),
        ] {
            let error = compile(pods).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
