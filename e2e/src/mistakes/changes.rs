//! Changes of what other objects name: these say it, though they are as they were.

use super::manifest::{apply, cluster, deny, route, server, service, service_with, to};
use super::{Group, Mistake, Scene, Step};
use crate::namespace::Mesh;

pub(super) fn group() -> Group {
    Group {
        name: "changes",
        title: "Changes of what other objects name",
        mesh: Mesh::Inside,
        scene: Scene { own: server("web"), other: String::new(), deployments: (vec!["web-v1"], Vec::new()) },
        mistakes: mistakes(),
    }
}

fn mistakes() -> Vec<Mistake> {
    let subset = |name: &str| cluster("cart", "cart", &format!("subsets: [{{name: {name}, labels: {{version: v1}}}}]"));
    vec![
        Mistake::new("the Service of a route deleted", Step::Run("delete service parent"))
            .given(service("parent", "web") + &route("parent", "parent", &to("name: parent")))
            .not_ready("meshroute/parent", "TargetNotFound", &["Service {ns}/parent does not exist"])
            .mended(apply(service("parent", "web"))),
        Mistake::new("a backend deleted", Step::Run("delete service backend"))
            .given(
                service("front", "web") + &service("backend", "web") + &route("front", "front", &to("name: backend")),
            )
            .not_ready(
                "meshroute/front",
                "BackendNotFound",
                &["rule default: Service {ns}/backend does not exist", "requests to it are answered 500"],
            )
            .event(
                "service/front",
                "BackendNotFound",
                &["MeshRoute {ns}/front: ResolvedRefs is False: rule default: Service {ns}/backend does not exist"],
            )
            .mended(apply(service("backend", "web"))),
        Mistake::new("the port of a backend changed", apply(service_with("ported", &on_port(8080, 9080))))
            .given(service("ported", "web") + &route("ported", "ported", &to("name: ported")))
            .not_ready(
                "meshroute/ported",
                "BackendNotFound",
                &["rule default: Service {ns}/ported has no TCP port 80", "did you mean 8080?"],
            )
            .mended(apply(service("ported", "web"))),
        Mistake::new("a subset renamed, which a route sends to", apply(subset("canary-2")))
            .given(
                service("cart", "web") + &subset("canary") + &route("cart", "cart", &to("name: cart, subset: canary")),
            )
            .not_ready(
                "meshroute/cart",
                "SubsetNotFound",
                &["the MeshCluster of Service {ns}/cart declares no subset canary", "did you mean canary-2?"],
            )
            .mended(apply(subset("canary"))),
        Mistake::new("the Service of a MeshCluster deleted", Step::Run("delete service governed"))
            .given(service("governed", "web") + &cluster("governed", "governed", "loadBalancer: {policy: RoundRobin}"))
            .not_ready("meshcluster/governed", "TargetNotFound", &["Service governed does not exist"])
            .mended(apply(service("governed", "web"))),
        Mistake::new("the Service of a policy deleted", Step::Run("delete service guarded"))
            .given(service("guarded", "web") + &deny("guarded", "kind: Service, name: guarded", ""))
            .not_ready(
                "meshpolicy/guarded",
                "TargetNotFound",
                &["Service guarded does not exist", "The policy is not applied"],
            )
            .mended(apply(service("guarded", "web"))),
        Mistake::new("the selector of a policy's Service changed", apply(service("selected", "wbe")))
            .given(service("selected", "web") + &deny("selected", "kind: Service, name: selected", ""))
            .limited(
                "meshpolicy/selected",
                "NoPods",
                &["no ready pod has the labels app=wbe that Service selected selects"],
            )
            .mended(apply(service("selected", "web"))),
        Mistake::new("the targetPort of a policy's Service changed", apply(service_with("moved", &on_port(80, 9090))))
            .given(service("moved", "web") + &deny("moved", "kind: Service, name: moved", "ports: [9080]"))
            .not_ready(
                "meshpolicy/moved",
                "PortNotFound",
                &[
                    "rule 0: port 9080 is no targetPort of Service moved (9090)",
                    "target the ServiceAccount or the Namespace",
                ],
            )
            .mended(apply(service("moved", "web"))),
    ]
}

/// A Service's spec with this port and targetPort.
fn on_port(port: u16, target: u16) -> String {
    format!("selector: {{app: web}}, ports: [{{port: {port}, targetPort: {target}}}]")
}
