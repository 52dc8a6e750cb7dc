//! The inbound document of this pod's namespace, compiled for this pod.

use std::sync::Arc;

use hashbrown::HashMap;
use weft_config as wire;

use super::route::Routes;
use crate::bootstrap::Pod;
use crate::mode::Modes;
use crate::policy::Policies;
use crate::value::CompileError;

/// The inbound document of this pod's namespace, compiled.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    pub(crate) policies: Policies,
    /// By namespace, service and port.
    pub(crate) routes: HashMap<(Arc<str>, Arc<str>, u16), Arc<Routes>>,
    pub(crate) modes: Modes,
    /// Mode of mutual TLS for connections to Services of the mesh.
    pub(crate) outbound: wire::MtlsMode,
    pub(crate) dependencies: Vec<Arc<str>>,
    /// The zone of this pod's node, if the document has it.
    pub(crate) zone: Option<String>,
}

impl Inbound {
    /// Compiles an inbound document, with the policies that target this pod.
    pub(crate) fn compile(pod: &Pod, inbound: wire::Inbound) -> Result<Self, CompileError> {
        let wire::Inbound { policies, routes, mtls, dependencies, zones, relabelled } = inbound;
        let mut by_port = HashMap::new();
        for wire::ConsumerRoutes { service, port, table } in routes {
            let key = (service.namespace.as_str().into(), service.name.as_str().into(), port);
            by_port.insert(key, Arc::new(Routes::compile(table)?));
        }
        let labels = relabelled.get(&pod.uid).unwrap_or(&pod.labels);
        Ok(Self {
            policies: Policies::compile(pod, labels, policies)?,
            routes: by_port,
            modes: Modes::compile(pod, labels, mtls.inbound, mtls.policies)?,
            outbound: mtls.outbound,
            dependencies: dependencies.iter().map(|name| name.as_str().into()).collect(),
            zone: zones.into_iter().find(|(_, nodes)| nodes.contains(&pod.node)).map(|(zone, _)| zone),
        })
    }

    /// Whether every inbound call gets the same verdict from both, because policies and modes are the same.
    pub(crate) fn judges_as(&self, other: &Self) -> bool {
        self.modes == other.modes && self.policies.is_same(&other.policies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Call, Verdict};

    #[test]
    fn zone_is_taken_from_the_inbound_document() {
        let zone = |node: &str| {
            let inbound = serde_json::json!({"zones": {"a": ["node-1"], "b": ["node-2", "node-3"]}});
            let pod = Pod { node: node.to_owned(), ..Pod::default() };
            Inbound::compile(&pod, serde_json::from_value(inbound).expect("a document")).expect("compiles").zone
        };
        assert_eq!((zone("node-1").as_deref(), zone("node-3").as_deref()), (Some("a"), Some("b")));
        assert_eq!((zone("node-4"), zone("")), (None, None), "unknown");
    }

    #[test]
    fn policies_follow_relabelling() {
        let document = |relabelled: serde_json::Value| {
            serde_json::from_value(serde_json::json!({
                "policies": [{
                    "name": "guard",
                    "target": {"service": {"selector": {"role": "private"}, "ports": [8080]}},
                    "rules": [{"action": "deny"}],
                }],
                "relabelled": relabelled,
            }))
            .expect("a document")
        };
        let denied = |role: Option<&str>, relabelled: serde_json::Value| {
            let labels = role.map(|role| ("role".to_owned(), role.to_owned())).into_iter().collect();
            let pod = Pod { uid: "u-1".into(), labels, ..Pod::default() };
            let inbound = Inbound::compile(&pod, document(relabelled)).expect("compiles");
            let call = Call { port: 8080, caller: None };
            matches!(inbound.policies.check_tcp(call), Verdict::Denied(_))
        };
        for (desc, role, relabelled, expected) in [
            ("never changed", None, serde_json::json!({}), false),
            ("created with it", Some("private"), serde_json::json!({}), true),
            ("added", None, serde_json::json!({"u-1": {"role": "private"}}), true),
            ("changed to it", Some("public"), serde_json::json!({"u-1": {"role": "private"}}), true),
            ("changed to another", Some("private"), serde_json::json!({"u-1": {"role": "public"}}), false),
            ("removed", Some("private"), serde_json::json!({"u-1": {}}), false),
            ("added to another pod", None, serde_json::json!({"u-2": {"role": "private"}}), false),
            ("removed from another pod", Some("private"), serde_json::json!({"u-2": {}}), true),
        ] {
            assert_eq!(denied(role, relabelled), expected, "{desc}");
        }
    }
}
