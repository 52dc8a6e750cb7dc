//! Labels and annotations of namespaces.

use super::manifest::deployment;
use super::{Group, Mistake, Scene, Step};
use crate::namespace::Mesh;

const UNKNOWN: &str = "on the namespace is unknown and has no effect";
const MEANT: &str = "did you mean the label weft.dev/inject=enabled?";

pub(super) fn group() -> Group {
    Group {
        name: "namespaces",
        title: "Labels and annotations of a namespace",
        mesh: Mesh::Outside,
        scene: Scene::default(),
        mistakes: mistakes(),
    }
}

fn mistakes() -> Vec<Mistake> {
    vec![
        labelled("`weft.dev/inject=true`", "label namespace {ns} weft.dev/inject=true")
            .warned(&["label weft.dev/inject is \"true\", which is unknown", "use \"enabled\" or \"disabled\""]),
        labelled("`weft.dev/inject=Enabled`", "label namespace {ns} weft.dev/inject=Enabled")
            .warned(&["label weft.dev/inject is \"Enabled\", which is unknown", "use \"enabled\" or \"disabled\""]),
        labelled("`weft.dev/injection=enabled`", "label namespace {ns} weft.dev/injection=enabled").warned(&[
            "label weft.dev/injection",
            UNKNOWN,
            MEANT,
        ]),
        labelled("`weft.io/inject=enabled`", "label namespace {ns} weft.io/inject=enabled").warned(&[
            "label weft.io/inject",
            UNKNOWN,
            MEANT,
        ]),
        labelled("`weft-injection=enabled`", "label namespace {ns} weft-injection=enabled").warned(&[
            "label weft-injection",
            UNKNOWN,
            MEANT,
        ]),
        labelled("`istio-injection=enabled`, of Istio", "label namespace {ns} istio-injection=enabled")
            .warned(&["label istio-injection on the namespace is for another mesh", MEANT]),
        labelled("`istio.io/rev=default`, of Istio", "label namespace {ns} istio.io/rev=default")
            .warned(&["label istio.io/rev on the namespace is for another mesh", MEANT]),
        labelled(
            "`kuma.io/sidecar-injection=enabled`, of Kuma",
            "label namespace {ns} kuma.io/sidecar-injection=enabled",
        )
        .warned(&["label kuma.io/sidecar-injection on the namespace is for another mesh", MEANT]),
        labelled(
            "annotation `linkerd.io/inject=enabled`, of Linkerd",
            "annotate namespace {ns} linkerd.io/inject=enabled",
        )
        .warned(&["annotation linkerd.io/inject on the namespace is for another mesh", MEANT]),
        labelled(
            "annotation `openservicemesh.io/sidecar-injection=enabled`, of OSM",
            "annotate namespace {ns} openservicemesh.io/sidecar-injection=enabled",
        )
        .warned(&["annotation openservicemesh.io/sidecar-injection on the namespace is for another mesh", MEANT]),
        labelled("the label, written as an annotation", "annotate namespace {ns} weft.dev/inject=enabled").warned(&[
            "annotation weft.dev/inject on the namespace has no effect",
            "make it the label weft.dev/inject=enabled",
        ]),
        labelled("labelled while pods run, which are not restarted", "label namespace {ns} weft.dev/inject=enabled")
            .warned(&[
                "pods that run already have no proxy until they are restarted",
                "kubectl -n {ns} rollout restart deployment,statefulset,daemonset",
            ]),
        labelled("the label removed while pods run", "label namespace {ns} weft.dev/inject-").elsewhere().warned(&[
            "new pods get no proxy; those that run keep it until they are restarted",
            "kubectl -n {ns} rollout restart deployment,statefulset,daemonset",
        ]),
        labelled("a namespace of the cluster labelled", "label namespace kube-system weft.dev/inject=enabled").warned(
            &[
                "label weft.dev/inject has no effect: the namespace belongs to the cluster or to Weft",
                "use a namespace of your own",
            ],
        ),
        labelled(
            "Pod Security that forbids the init container",
            "label namespace {ns} pod-security.kubernetes.io/enforce=baseline",
        )
        .elsewhere()
        .warned(&[
            "its pods will be refused: namespace {ns} enforces Pod Security \"baseline\"",
            "label it pod-security.kubernetes.io/enforce=privileged",
        ]),
        labelled("annotation with a wrong value", "annotate namespace {ns} config.weft.dev/workers=many")
            .elsewhere()
            .warned(&[
                "its pods will be refused: annotation config.weft.dev/workers on the namespace is \"many\"",
                "use a number of threads from 1 to 64",
            ]),
        labelled("annotation with a typo", "annotate namespace {ns} config.weft.dev/proxy-cpu-limits=2")
            .elsewhere()
            .warned(&[
                "annotation config.weft.dev/proxy-cpu-limits",
                UNKNOWN,
                "did you mean config.weft.dev/proxy-cpu-limit?",
            ]),
        labelled("annotation, written as a label", "label namespace {ns} config.weft.dev/workers=2")
            .warned(&["label config.weft.dev/workers on the namespace has no effect", "make it an annotation"]),
        // The last one: the label stays.
        Mistake::new("a Deployment in a namespace with `weft.dev/inject=true`", Step::Apply(deployment("", "", "")))
            .given_run("label namespace {ns} weft.dev/inject=true")
            .warned(&[
                "Deployment web: no proxy will be added: label weft.dev/inject on namespace {ns} is \"true\"",
                "use \"enabled\"",
            ]),
    ]
}

fn labelled(name: &str, arguments: &'static str) -> Mistake {
    Mistake::new(name, Step::Run(arguments))
}
