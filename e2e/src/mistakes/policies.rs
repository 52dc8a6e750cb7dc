//! Pods without a proxy, and policies, routes and clusters that they do not apply.

use super::manifest::{
    CONTAINER, apply, cluster, deny, route, server, service, service_with, template, to, weft, workload,
};
use super::{Group, Mistake, Scene, Step};
use crate::namespace::Mesh;
use crate::workload::App;

const ENABLE: &str = "label namespace {ns} with weft.dev/inject=enabled, then restart it (kubectl rollout restart)";
const RESTART: &str = "restart it (kubectl rollout restart), new pods get one";

pub(super) fn group() -> Group {
    let mut mistakes = enforced();
    mistakes.extend(modes());
    mistakes.extend(outside());
    mistakes.extend(not_restarted());
    Group {
        name: "policies",
        title: "Pods without a proxy, and what they do not apply",
        mesh: Mesh::Inside,
        scene: Scene {
            own: own(),
            other: server("web"),
            deployments: (vec!["web-v1", "out-v1", "bare-v1"], vec!["web-v1"]),
        },
        mistakes,
    }
}

/// Pods with a proxy, one that opts out, and one whose port bypasses its proxy.
fn own() -> String {
    let out = App::server("out", "v1").label("weft.dev/inject", "false").yaml();
    let bare = App::server("bare", "v1").annotation("config.weft.dev/exclude-inbound-ports", "9080").yaml();
    server("web") + &out + &bare
}

/// Policies about mutual TLS.
fn modes() -> Vec<Mistake> {
    let policy = |name: &str, mtls: &str| {
        apply(weft("MeshPolicy", name, &format!("targetRef: {{kind: Service, name: {name}}}, mtls: {{{mtls}}}")))
    };
    vec![
        Mistake::new(
            "Strict, and a port for plaintext of anybody",
            policy("anybody", "mode: Strict, ports: [{port: 9080, mode: Permissive}]"),
        )
        .given(service("anybody", "web"))
        .limited(
            "meshpolicy/anybody",
            "PartiallyInvalid",
            &[
                "accepted, except: mtls: port 9080 takes no plaintext: it is Strict otherwise, by MeshPolicy anybody",
                "the entry must say who may use plaintext: add ipBlocks",
            ],
        ),
        Mistake::new(
            "an address instead of a block of addresses",
            policy("block", "ports: [{port: 9080, mode: Permissive, ipBlocks: [10.0.0.7]}]"),
        )
        .given(service("block", "web"))
        .limited(
            "meshpolicy/block",
            "PartiallyInvalid",
            &["mtls: port 9080: ipBlocks: \"10.0.0.7\" is no block of addresses", "as in 198.18.0.0/15, 10.0.0.7/32"],
        ),
        Mistake::new("a mode for a port that no pod has", policy("metrics", "ports: [{port: 9090, mode: Strict}]"))
            .given(service("metrics", "web"))
            .not_ready(
                "meshpolicy/metrics",
                "PortNotFound",
                &["InEffect is False: mtls: no pod listens on 9090: policies name ports of pods", "did you mean 9080?"],
            ),
        Mistake::new(
            "two policies for the same pods that disagree",
            apply(weft("MeshPolicy", "lax", "targetRef: {kind: Service, name: both}, mtls: {mode: Permissive}")),
        )
        .given(
            service("both", "web")
                + &weft("MeshPolicy", "strict", "targetRef: {kind: Service, name: both}, mtls: {mode: Strict}"),
        )
        .limited(
            "meshpolicy/lax",
            "Conflicted",
            &["accepted, except: mtls:", "MeshPolicy strict is Strict for the same pods, and wins"],
        ),
    ]
}

/// Pods that run, and policies for them.
fn enforced() -> Vec<Mistake> {
    let of_service =
        |name: &str, conditions: &str| apply(deny(name, &format!("kind: Service, name: {name}"), conditions));
    let host = workload("apps/v1", "Deployment", "", &template("", "", ", hostNetwork: true", CONTAINER));
    let host = host.replace("web", "host");
    vec![
        Mistake::new("`hostNetwork` in a Deployment", apply(host)).event(
            "deployment/host",
            "HostNetwork",
            &["pods with hostNetwork get no proxy", "label the pods weft.dev/inject=false if that is intended"],
        ),
        Mistake::new(
            "the label of a pod that runs changed",
            Step::Run("label pods --selector app=web weft.dev/inject=false --overwrite"),
        )
        .warned(&["label weft.dev/inject of a pod that runs has no effect", "set it in the pod template"]),
        Mistake::new(
            "an annotation of a pod that runs changed",
            Step::Run("annotate pods --selector app=web config.weft.dev/workers=2 --overwrite"),
        )
        .warned(&["annotation config.weft.dev/workers of a pod that runs has no effect", "set it in the pod template"]),
        Mistake::new("a Deny for the Service's port instead of its targetPort", of_service("port", "ports: [80]"))
            .given(service("port", "web"))
            .not_ready(
                "meshpolicy/port",
                "PortNotFound",
                &["InEffect is False: rule 0: no pod listens on 80: policies name ports of pods", "did you mean 9080?"],
            )
            .event(
                "service/port",
                "PortNotFound",
                &["MeshPolicy {ns}/port: InEffect is False: rule 0: no pod listens on 80", "did you mean 9080?"],
            ),
        Mistake::new("a Deny for a port that no pod has", of_service("nobody", "ports: [9080, 7777]"))
            .given(service("nobody", "web"))
            .not_ready(
                "meshpolicy/nobody",
                "PortNotFound",
                &["rule 0: no pod listens on 7777: policies name ports of pods", "did you mean 9080?"],
            ),
        Mistake::new("a Deny for a Service whose targetPort no pod names", of_service("named", ""))
            .given(service_with("named", "selector: {app: web}, ports: [{port: 80, targetPort: mian}]"))
            .not_ready(
                "meshpolicy/named",
                "PortNotFound",
                &[
                    "no pod that it selects has a container port with the name mian, the targetPort of Service named",
                    "did you mean main?",
                ],
            ),
        Mistake::new("a Deny for a Service that selects no pod", of_service("empty", ""))
            .given(service("empty", "wbe"))
            .limited(
                "meshpolicy/empty",
                "NoPods",
                &[
                    "no ready pod has the labels app=wbe that Service empty selects",
                    "the policy applies to such pods with a proxy as soon as they start",
                ],
            ),
        Mistake::new("a Deny for pods that opt out", of_service("out", "")).given(service("out", "out")).not_ready(
            "meshpolicy/out",
            "NoProxy",
            &[
                "the only pod that it selects has no proxy",
                "the pod label weft.dev/inject=false keeps it out, remove the label",
            ],
        ),
        Mistake::new("a Deny for a port that pods exclude from their proxy", of_service("bare", ""))
            .given(service("bare", "bare"))
            .not_ready(
                "meshpolicy/bare",
                "PortExcluded",
                &[
                    "connections to port 9080 do not go through the proxy of",
                    "remove the port from the annotation config.weft.dev/exclude-inbound-ports",
                ],
            ),
        Mistake::new("a Deny for pods with `hostNetwork`", of_service("host", ""))
            .given(service("host", "host"))
            .not_ready(
                "meshpolicy/host",
                "NoProxy",
                &["the only pod that it selects has no proxy", "pods with hostNetwork get none, do without it"],
            ),
    ]
}

/// A namespace outside the mesh, with pods.
fn outside() -> Vec<Mistake> {
    vec![
        Mistake::new("a Deny for a Service outside the mesh", apply(deny("outside", "kind: Service, name: web", "")))
            .elsewhere()
            .given(service("web", "web"))
            .not_ready("meshpolicy/outside", "NoProxy", &["the only pod that it selects has no proxy", ENABLE]),
        Mistake::new("a Deny for a namespace outside the mesh", apply(deny("whole", "kind: Namespace", "")))
            .elsewhere()
            .not_ready("meshpolicy/whole", "NoProxy", &["the only pod that it selects has no proxy", ENABLE]),
        Mistake::new("a route in a namespace outside the mesh", apply(route("outside", "sold", &to("name: sold"))))
            .elsewhere()
            .given(service("sold", "web"))
            .limited(
                "meshroute/outside",
                "NoProxy",
                &["it applies only to clients in other namespaces: the only pod in namespace {ns} has no proxy", ENABLE],
            ),
        Mistake::new(
            "a route to another namespace's Service, in a namespace outside the mesh",
            apply(weft(
                "MeshRoute",
                "consumer",
                "parentRefs: [{name: port, namespace: {other}}], http: [{backendRefs: [{name: port, namespace: {other}, \
                 port: 80}]}]",
            )),
        )
        .elsewhere()
        .not_ready(
            "meshroute/consumer",
            "NoProxy",
            &["no client applies it, and it is for clients in its own namespace only", ENABLE],
        ),
        Mistake::new(
            "a MeshCluster in a namespace outside the mesh",
            apply(cluster("outside", "lent", "loadBalancer: {policy: RoundRobin}")),
        )
        .elsewhere()
        .given(service("lent", "web"))
        .limited(
            "meshcluster/outside",
            "NoProxy",
            &["it applies only to clients in other namespaces: the only pod in namespace {ns} has no proxy", ENABLE],
        ),
    ]
}

/// The same namespace, labelled without a restart of its pods.
fn not_restarted() -> Vec<Mistake> {
    vec![
        Mistake::new(
            "a Deployment that is not restarted after the namespace is labelled",
            Step::Run("label namespace {ns} weft.dev/inject=enabled"),
        )
        .elsewhere()
        .warned(&[
            "pods that run already have no proxy until they are restarted",
            "kubectl -n {ns} rollout restart deployment,statefulset,daemonset",
        ])
        .event(
            "deployment/web-v1",
            "NoProxy",
            &["runs without a proxy", "restart it: kubectl -n {ns} rollout restart deployment/web-v1"],
        ),
        Mistake::new("a Deny for pods that were not restarted", apply(deny("late", "kind: Service, name: late", "")))
            .elsewhere()
            .given(service("late", "web"))
            .not_ready("meshpolicy/late", "NoProxy", &["the only pod that it selects has no proxy", RESTART]),
        Mistake::new("a route for clients that were not restarted", apply(route("late", "late", &to("name: late"))))
            .elsewhere()
            .limited("meshroute/late", "NoProxy", &["the only pod in namespace {ns} has no proxy", RESTART]),
    ]
}
