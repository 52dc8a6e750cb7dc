//! The upstream of a Service port, compiled: its settings, and its endpoints in the order of preference.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use weft_balance::{Members, SlowStart, outlier};
use weft_config as wire;
use weft_identity::Account;

use crate::affinity::{HashOn, Sticky};
use crate::bootstrap::Pod;
use crate::value::CompileError;

/// Connect timeout of a Service without a setting. Source: Linkerd's outbound default.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// The upstream of a Service port.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `namespace/service:port`; unique.
    pub(crate) name: Arc<str>,
    pub(crate) http2: bool,
    pub(crate) balancing: weft_balance::Settings,
    pub(crate) hash_on: Option<HashOn>,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) connect_timeout: Duration,
    pub(crate) limits: wire::Limits,
    pub(crate) outliers: outlier::Settings,
    /// Boxed: rare.
    pub(crate) health_check: Option<Box<wire::HealthCheck>>,
    pub(crate) retry_budget: wire::RetryBudget,
    /// Client IP affinity: how long a client's address stays with the endpoint that it was sent to last.
    pub(crate) client_ip: Option<Duration>,
    /// The Service's own address, for which the kernel (kube-proxy) picks the endpoint.
    pub(crate) address: Option<SocketAddr>,
    /// Mode of mutual TLS that policies set for the port. None: that of this pod holds.
    pub(crate) mtls: Option<wire::MtlsMode>,
    /// Ready endpoints first, then terminating ones, then those whose node is unreachable.
    pub(crate) endpoints: Box<[SocketAddr]>,
    /// There are endpoints on other nodes, but only those on this node may be used.
    pub(crate) has_endpoints_elsewhere: bool,
    /// `endpoints` by subset and priority.
    pub(crate) members: Members,
    /// Which endpoints are pods with a proxy.
    pub(crate) with_proxy: Box<[bool]>,
    /// Which endpoints are pods that exclude the port from their proxy.
    pub(crate) excluding: Box<[bool]>,
    /// Whom the endpoints prove to be; `None` for those without an identity. Empty: none has one.
    pub(crate) accounts: Box<[Option<Account>]>,
    /// Which endpoint is this pod itself. Connections to it do not leave the pod, and reach the application and not its
    /// proxy (weft-init).
    pub(super) own: Option<usize>,
}

impl Cluster {
    pub(super) fn compile(
        namespace: &str,
        service: &str,
        port: u16,
        protocol: wire::Protocol,
        settings: &wire::ClusterSettings,
        pod: &Pod,
        mut endpoints: Vec<wire::Endpoint>,
    ) -> Result<Self, CompileError> {
        let wire::ClusterSettings {
            balancer,
            hash_on,
            sticky,
            slow_start,
            prefer_same_zone,
            prefer_same_node,
            local_only,
            client_ip_seconds,
            connect_timeout_ms,
            limits,
            outliers,
            health_check,
            panic_percent,
            retry_budget,
            subsets,
        } = settings;
        let node = Some(pod.node.as_str()).filter(|node| !node.is_empty());
        let zone = pod.zone.as_deref();
        let all = endpoints.len();
        if *local_only {
            endpoints.retain(|endpoint| {
                let own = endpoint.locality.as_ref().and_then(|at| at.node.as_deref());
                own.is_some() && own == node
            });
        }
        let has_endpoints_elsewhere = endpoints.len() < all;
        // A terminating endpoint is better than none, as in kube-proxy. So is an unreachable one: after an outage of
        // the API server, all nodes look unreachable for a while.
        let rank = |endpoint: &wire::Endpoint| (endpoint.lost, endpoint.terminating);
        endpoints.sort_by_key(rank);
        let mut subsets: HashMap<String, Vec<usize>> = subsets.iter().map(|name| (name.clone(), Vec::new())).collect();
        for (at, endpoint) in endpoints.iter().enumerate() {
            for subset in &endpoint.subsets {
                subsets.entry_ref(subset.as_str()).or_default().push(at);
            }
        }
        for members in subsets.values_mut() {
            let best = members.first().map(|at| rank(&endpoints[*at]));
            members.truncate(members.partition_point(|at| Some(rank(&endpoints[*at])) == best));
        }
        let best = endpoints.first().map(rank);
        let priority = |endpoint: &wire::Endpoint| {
            let is_preferred = |own: Option<&str>, one: &Option<String>, several: &[String]| {
                own.is_some_and(|own| one.as_deref() == Some(own) || several.iter().any(|name| name == own))
            };
            match &endpoint.locality {
                Some(at) if *prefer_same_node && is_preferred(node, &at.node, &at.for_nodes) => 0,
                Some(at) if *prefer_same_zone && is_preferred(zone, &at.zone, &at.for_zones) => 1,
                _ => 2,
            }
        };
        let has_priorities = *prefer_same_node && node.is_some() || *prefer_same_zone && zone.is_some();
        let hash_on = match hash_on {
            None => None,
            Some(on) => Some(HashOn::compile(on).ok_or_else(|| CompileError::Header(format!("{on:?}")))?),
        };
        let accounts = accounts(namespace, &endpoints)?;
        Ok(Self {
            name: format!("{namespace}/{service}:{port}").into(),
            http2: protocol == wire::Protocol::Http2,
            balancing: weft_balance::Settings {
                balancer: *balancer,
                slow_start: slow_start.as_ref().map(SlowStart::compile),
                panic_percent: *panic_percent,
                has_sessions: sticky.is_some() || client_ip_seconds.is_some(),
            },
            hash_on,
            sticky: sticky.as_ref().map(Sticky::compile),
            connect_timeout: connect_timeout_ms.map_or(CONNECT_TIMEOUT_DEFAULT, Duration::from_millis),
            limits: *limits,
            outliers: outlier::Settings::compile(outliers),
            health_check: health_check.clone().map(Box::new),
            retry_budget: *retry_budget,
            client_ip: client_ip_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            // Set by the caller, which knows the Service and its port.
            address: None,
            mtls: None,
            has_endpoints_elsewhere,
            members: Members {
                usable: endpoints.partition_point(|endpoint| Some(rank(endpoint)) == best),
                subsets,
                priorities: if has_priorities { endpoints.iter().map(priority).collect() } else { Box::default() },
            },
            accounts,
            own: endpoints.iter().position(|endpoint| pod.ips.contains(&endpoint.address.ip())),
            with_proxy: endpoints.iter().map(|endpoint| endpoint.has_proxy).collect(),
            excluding: endpoints.iter().map(|endpoint| endpoint.excluded).collect(),
            endpoints: endpoints.into_iter().map(|endpoint| endpoint.address).collect(),
        })
    }
}

impl Cluster {
    /// Whether an endpoint is this pod itself, by its place in `endpoints`.
    pub(crate) fn is_own(&self, at: usize) -> bool {
        self.own == Some(at)
    }

    /// Whom an endpoint proves to be, by its place in `endpoints`.
    pub(crate) fn account(&self, at: usize) -> Option<&Account> {
        self.accounts.get(at)?.as_ref()
    }

    /// Whom all endpoints prove to be; the inner `None`: none has an identity. The outer one: they differ.
    pub(crate) fn common_account(&self) -> Option<Option<&Account>> {
        let Some(first) = self.accounts.first() else { return Some(None) };
        self.accounts.iter().all(|account| account == first).then_some(first.as_ref())
    }
}

/// Whom the endpoints prove to be. Most of them are the same account, which they share.
fn accounts(namespace: &str, endpoints: &[wire::Endpoint]) -> Result<Box<[Option<Account>]>, CompileError> {
    if endpoints.iter().all(|endpoint| endpoint.service_account.is_none()) {
        return Ok(Box::default());
    }
    let mut known: HashMap<&str, Account> = HashMap::new();
    let mut accounts = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        accounts.push(match endpoint.service_account.as_deref() {
            None => None,
            Some(name) => {
                if !known.contains_key(name) {
                    let account = Account::new(namespace, name).map_err(CompileError::Account)?;
                    known.insert(name, account);
                }
                known.get(name).cloned()
            }
        });
    }
    Ok(accounts.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::namespace::Namespace;

    #[test]
    fn lost_endpoints_are_used_only_without_others() {
        let cluster = |endpoints: serde_json::Value| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": {"subsets": ["a", "b"]}, "ports": [{"port": 80, "endpoints": endpoints}]
            }]});
            Namespace::compile(&Pod::default(), "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
        };
        let addresses = ["198.18.128.2:80", "198.18.128.3:80", "198.18.128.4:80"];
        let [one, two, three] = addresses;
        let mixed = cluster(serde_json::json!([
            {"address": one, "subsets": ["a"], "lost": true},
            {"address": two, "subsets": ["b"], "lost": true},
            {"address": three, "subsets": ["b"]},
        ]));
        assert_eq!(*mixed.endpoints, [three, one, two].map(|text| text.parse().expect("an address")));
        assert_eq!(mixed.members.usable, 1, "the reachable one");
        assert_eq!(
            (&*mixed.members.subsets["a"], &*mixed.members.subsets["b"]),
            (&[1][..], &[0][..]),
            "a has only a lost member"
        );
        let all =
            cluster(serde_json::json!(addresses.map(|address| serde_json::json!({"address": address, "lost": true}))));
        assert_eq!(all.members.usable, 3);
    }

    #[test]
    fn accounts_stay_with_their_endpoints_and_are_common_only_if_all_are_equal() {
        let cluster = |accounts: &[Option<&str>]| {
            let endpoint = |(at, account): (usize, &Option<&str>)| {
                // Lost ones are sorted to the end.
                let mut endpoint = serde_json::json!({"address": format!("198.18.128.{}:80", at + 2), "lost": at == 0});
                if let Some(account) = account {
                    endpoint["serviceAccount"] = (*account).into();
                }
                endpoint
            };
            let endpoints: Vec<_> = accounts.iter().enumerate().map(endpoint).collect();
            let export =
                serde_json::json!({"services": [{"name": "s", "ports": [{"port": 80, "endpoints": endpoints}]}]});
            let export = serde_json::from_value(export).expect("a document");
            Namespace::compile(&Pod::default(), "n", export).map(|namespace| namespace.only_cluster())
        };
        let account = |name: &str| Account::new("n", name).expect("an account");
        let found = cluster(&[Some("a"), Some("b"), None]).expect("compiles");
        let accounts: Vec<_> = (0..3).map(|at| found.account(at).cloned()).collect();
        assert_eq!(accounts, [Some(account("b")), None, Some(account("a"))]);
        for (accounts, expected) in [
            (&[][..], Some(None)),
            (&[None, None], Some(None)),
            (&[Some("a"), Some("a")], Some(Some(account("a")))),
            (&[Some("a"), Some("b")], None),
            (&[Some("a"), None], None),
            (&[None, Some("a")], None),
        ] {
            let cluster = cluster(accounts).expect("compiles");
            assert_eq!(cluster.common_account().map(|account| account.cloned()), expected, "{accounts:?}");
        }
        let error = cluster(&[Some("A/b")]).expect_err("not a name").to_string();
        assert!(error.contains("A/b"), "{error}");
    }

    #[test]
    fn terminating_endpoints_rank_between_ready_and_lost_ones() {
        let cluster = |endpoints: serde_json::Value, settings: serde_json::Value| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": settings, "ports": [{"port": 80, "endpoints": endpoints}]
            }]});
            let pod = Pod { node: "node-1".into(), ..Pod::default() };
            Namespace::compile(&pod, "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
        };
        let [one, two, three] = ["198.18.128.2:80", "198.18.128.3:80", "198.18.128.4:80"];
        let endpoints = || {
            serde_json::json!([
                {"address": one, "subsets": ["a"], "lost": true, "node": "node-1"},
                {"address": two, "subsets": ["a", "b"], "terminating": true, "node": "node-1"},
                {"address": three, "subsets": ["b"], "node": "node-2"},
            ])
        };
        let addresses = |expected: &[&str]| -> Vec<SocketAddr> {
            expected.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let mixed = cluster(endpoints(), serde_json::json!({"subsets": ["a", "b"]}));
        assert_eq!(*mixed.endpoints, addresses(&[three, two, one]));
        assert_eq!(mixed.members.usable, 1);
        assert_eq!((&*mixed.members.subsets["a"], &*mixed.members.subsets["b"]), (&[1][..], &[0][..]));
        assert!(
            !mixed.has_endpoints_elsewhere && mixed.members.has_any(Some("a")) && !mixed.members.has_any(Some("c"))
        );
        let local = cluster(endpoints(), serde_json::json!({"subsets": ["a", "b"], "localOnly": true}));
        assert_eq!(*local.endpoints, addresses(&[two, one]));
        assert_eq!((local.members.usable, local.has_endpoints_elsewhere), (1, true));
        assert_eq!((&*local.members.subsets["a"], &*local.members.subsets["b"]), (&[0][..], &[0][..]));
    }

    #[test]
    fn endpoints_in_the_same_zone_come_first() {
        let priorities = |zone: Option<&str>, prefer: bool| {
            let export = serde_json::json!({"services": [{
                "name": "s", "settings": {"preferSameZone": prefer}, "ports": [{"port": 80, "endpoints": [
                    {"address": "198.18.128.2:80", "zone": "a"}, {"address": "198.18.128.3:80", "zone": "b"}
                ]}]
            }]});
            let pod = Pod { zone: zone.map(str::to_owned), ..Pod::default() };
            Namespace::compile(&pod, "n", serde_json::from_value(export).expect("a document"))
                .expect("compiles")
                .only_cluster()
                .members
                .priorities
                .clone()
        };
        assert_eq!(*priorities(Some("b"), true), [2, 1]);
        assert!(priorities(Some("b"), false).is_empty(), "not configured");
        assert!(priorities(None, true).is_empty(), "own zone unknown");
    }
}
