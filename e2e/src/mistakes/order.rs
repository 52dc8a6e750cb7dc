//! Objects that are applied before what they need: each says what is missing, and becomes ready when it is there.

use super::manifest::{apply, cluster, deny, route, server, service, to};
use super::{Group, Mistake, Scene, Step};
use crate::namespace::Mesh;

const CANARY: &str = "subsets: [{name: canary, labels: {version: v1}}]";

pub(super) fn group() -> Group {
    Group {
        name: "order",
        title: "Objects applied before what they need",
        mesh: Mesh::Inside,
        scene: Scene {
            own: server("web"),
            other: service("stock", "stock"),
            deployments: (vec!["web-v1"], Vec::new()),
        },
        mistakes: mistakes(),
    }
}

fn mistakes() -> Vec<Mistake> {
    vec![
        Mistake::new("a route before its Service", apply(route("cart", "cart", &to("name: cart"))))
            .not_ready("meshroute/cart", "TargetNotFound", &["Service {ns}/cart does not exist"])
            .mended(apply(service("cart", "web"))),
        Mistake::new("a route before its backend", apply(route("basket", "basket", &to("name: checkout"))))
            .given(service("basket", "web"))
            .not_ready(
                "meshroute/basket",
                "BackendNotFound",
                &["rule default: Service {ns}/checkout does not exist", "requests to it are answered 500"],
            )
            .mended(apply(service("checkout", "web"))),
        Mistake::new("a route before the subset", apply(route("ratings", "ratings", &to("name: ratings, subset: canary"))))
            .given(service("ratings", "web"))
            .not_ready(
                "meshroute/ratings",
                "SubsetNotFound",
                &["subset canary: Service {ns}/ratings has no accepted MeshCluster, which would declare it"],
            )
            .mended(apply(cluster("ratings", "ratings", CANARY))),
        Mistake::new(
            "a route before the ReferenceGrant",
            apply(route("abroad", "abroad", "http: [{backendRefs: [{name: stock, namespace: {other}, port: 80}]}]")),
        )
        .given(service("abroad", "web"))
        .not_ready(
            "meshroute/abroad",
            "RefNotPermitted",
            &[
                "rule default: Service {other}/stock is in another namespace",
                "no ReferenceGrant there allows MeshRoutes of namespace {ns} to refer to it (create one",
            ],
        )
        .mended(Step::ApplyElsewhere(
            "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: shop}\nspec: {from: [{group: weft.dev, kind: MeshRoute, namespace: {ns}}], to: [{group: \"\", kind: \
             Service}]}\n"
                .to_owned(),
        )),
        Mistake::new(
            "a MeshCluster before its Service",
            apply(cluster("prices", "prices", "loadBalancer: {policy: RoundRobin}")),
        )
        .not_ready("meshcluster/prices", "TargetNotFound", &["Service prices does not exist"])
        .mended(apply(service("prices", "web"))),
        Mistake::new("subsets before their pods", apply(cluster("soon", "soon", CANARY)))
            .given(service("soon", "soon"))
            .limited(
                "meshcluster/soon",
                "NoEndpoints",
                &["Service soon has no ready pod", "requests to its subsets are answered 503"],
            )
            .mended(apply(server("soon"))),
        Mistake::new("a policy before its Service", apply(deny("reviews", "kind: Service, name: reviews", "")))
            .not_ready(
                "meshpolicy/reviews",
                "TargetNotFound",
                &["Service reviews does not exist", "The policy is not applied"],
            )
            .mended(apply(service("reviews", "web"))),
        Mistake::new("a policy before its ServiceAccount", apply(deny("robot", "kind: ServiceAccount, name: robot", "")))
            .not_ready(
                "meshpolicy/robot",
                "TargetNotFound",
                &["ServiceAccount robot does not exist", "The policy is not applied"],
            )
            .mended(apply("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot}\n")),
        Mistake::new(
            "a rule before the ServiceAccount of its caller",
            apply(deny("caller", "kind: Namespace", "from: [{serviceAccounts: [machine]}]")),
        )
        .not_ready(
            "meshpolicy/caller",
            "CallerNotFound",
            &["rule 0: from: ServiceAccount {ns}/machine does not exist"],
        )
        .mended(apply("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: machine}\n")),
        Mistake::new("a policy before its pods", apply(deny("later", "kind: Service, name: later", "")))
            .given(service("later", "later"))
            .limited(
                "meshpolicy/later",
                "NoPods",
                &[
                    "no ready pod has the labels app=later that Service later selects",
                    "the policy applies to such pods with a proxy as soon as they start",
                ],
            )
            .mended(apply(server("later"))),
        Mistake::new("a policy before the namespace is in the mesh", apply(deny("all", "kind: Namespace", "")))
            .elsewhere()
            .limited(
                "meshpolicy/all",
                "NoPods",
                &[
                    "the namespace has no ready pod",
                    "label namespace {ns} with weft.dev/inject=enabled, so that they get one",
                ],
            )
            .mended(Step::Run("label namespace {ns} weft.dev/inject=enabled"))
            .mended(apply(server("first"))),
    ]
}
