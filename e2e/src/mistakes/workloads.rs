//! Workloads whose pods get no proxy, or are refused.

use super::manifest::{CONTAINER, apply, deployment, deployment_of, pod, service, template, workload};
use super::{Group, Mistake, Scene};
use crate::namespace::Mesh;

const MEANT: &str = "did you mean the label weft.dev/inject=true?";

pub(super) fn group() -> Group {
    let mut mistakes = labels();
    mistakes.extend(pods());
    Group { name: "workloads", title: "Workloads", mesh: Mesh::Inside, scene: Scene::default(), mistakes }
}

/// Labels and annotations that are not where they belong.
fn labels() -> Vec<Mistake> {
    let labelled = |label: &str| apply(deployment(&format!(", {label}"), "", ""));
    let annotated = |annotation: &str| apply(deployment("", &format!(", {annotation}"), ""));
    let own = |metadata: &str| apply(workload("apps/v1", "Deployment", metadata, &template("", "", "", CONTAINER)));
    vec![
        Mistake::new("pod label `weft.dev/injcet: \"true\"`", labelled("weft.dev/injcet: \"true\""))
            .elsewhere()
            .warned(&["Deployment web: label weft.dev/injcet on the pod is unknown and has no effect", MEANT]),
        Mistake::new("pod label `weft.dev/inject: enabled`", labelled("weft.dev/inject: enabled")).warned(&[
            "Deployment web: its pods will be refused: label weft.dev/inject on the pod is \"enabled\"",
            "use \"true\" to add the proxy",
        ]),
        Mistake::new("pod label `weft.dev/inject: true`, without quotes", labelled("weft.dev/inject: true"))
            .refused(&["cannot unmarshal bool", "metadata.labels of type string"]),
        Mistake::new("the pod label, written as an annotation", annotated("weft.dev/inject: \"true\""))
            .elsewhere()
            .warned(&[
                "Deployment web: annotation weft.dev/inject on the pod has no effect",
                "make it the label weft.dev/inject=true",
            ]),
        Mistake::new("the label on the Deployment instead of its pods", own(", labels: {weft.dev/inject: \"true\"}"))
            .elsewhere()
            .warned(&[
                "Deployment web: label weft.dev/inject on the Deployment itself has no effect on its pods",
                "set it in metadata.labels of the pod template",
            ]),
        Mistake::new(
            "an annotation on the Deployment instead of its pods",
            own(", annotations: {config.weft.dev/workers: \"2\"}"),
        )
        .warned(&[
            "Deployment web: annotation config.weft.dev/workers on the Deployment itself has no effect on its pods",
            "set it in metadata.annotations of the pod template",
        ]),
        Mistake::new(
            "the label on the Service instead of its pods",
            apply(service("web", "web").replace("{name: web}", "{name: web, labels: {weft.dev/inject: \"true\"}}")),
        )
        .warned(&[
            "Service web: label weft.dev/inject on the Service itself has no effect on its pods",
            "set it in metadata.labels of the pod template",
        ]),
        Mistake::new(
            "an annotation on the Service instead of its pods",
            apply(
                service("web", "web")
                    .replace("{name: web}", "{name: web, annotations: {config.weft.dev/opaque-ports: \"6379\"}}"),
            ),
        )
        .warned(&[
            "Service web: annotation config.weft.dev/opaque-ports on the Service itself has no effect on its pods",
            "set it in metadata.annotations of the pod template",
        ]),
        Mistake::new("an annotation, written as a label", labelled("config.weft.dev/workers: \"2\"")).warned(&[
            "Deployment web: label config.weft.dev/workers on the pod has no effect",
            "make it an annotation",
        ]),
        Mistake::new("annotation `weft.dev/workers`", annotated("weft.dev/workers: \"2\"")).warned(&[
            "Deployment web: annotation weft.dev/workers on the pod is unknown and has no effect",
            "did you mean the annotation config.weft.dev/workers?",
        ]),
        Mistake::new("an annotation on a pod outside the mesh", annotated("config.weft.dev/workers: \"2\""))
            .elsewhere()
            .warned(&[
                "Deployment web: annotation config.weft.dev/workers on the pod has no effect",
                "namespace {ns} is not labelled weft.dev/inject=enabled",
            ]),
        Mistake::new("pod label `sidecar.istio.io/inject`, of Istio", labelled("sidecar.istio.io/inject: \"true\""))
            .elsewhere()
            .warned(&["Deployment web: label sidecar.istio.io/inject on the pod is for another mesh", MEANT]),
        Mistake::new("pod annotation `linkerd.io/inject`, of Linkerd", annotated("linkerd.io/inject: enabled"))
            .elsewhere()
            .warned(&["Deployment web: annotation linkerd.io/inject on the pod is for another mesh", MEANT]),
        Mistake::new(
            "pod annotation `consul.hashicorp.com/connect-inject`, of Consul",
            annotated("consul.hashicorp.com/connect-inject: \"true\""),
        )
        .elsewhere()
        .warned(&[
            "Deployment web: annotation consul.hashicorp.com/connect-inject on the pod is for another mesh",
            MEANT,
        ]),
    ]
}

/// Pods that cannot have a proxy.
fn pods() -> Vec<Mistake> {
    let of_kind = |api_version: &str, kind: &str, spec: &str| {
        apply(workload(api_version, kind, "", &template("", "", spec, CONTAINER)))
    };
    let host = ", hostNetwork: true";
    let host_network = "no proxy will be added: the pod uses the node's network";
    let without = "do without it, or label the pod weft.dev/inject=false";
    let ended = ", restartPolicy: Never";
    vec![
        Mistake::new("`hostNetwork` in a Deployment", apply(deployment("", "", host)))
            .warned(&["Deployment web:", host_network, without]),
        Mistake::new("`hostNetwork` in a StatefulSet", of_kind("apps/v1", "StatefulSet", host))
            .warned(&["StatefulSet web:", host_network, without]),
        Mistake::new("`hostNetwork` in a DaemonSet", of_kind("apps/v1", "DaemonSet", host))
            .warned(&["DaemonSet web:", host_network, without]),
        Mistake::new(
            "`hostNetwork` in a CronJob",
            of_kind("batch/v1", "CronJob", &format!("{host}{ended}")),
        )
        .warned(&["CronJob web:", host_network, without]),
        Mistake::new(
            "a Job with a proxy that is an ordinary container",
            apply(workload(
                "batch/v1",
                "Job",
                "",
                &template("", ", config.weft.dev/native-sidecar: \"false\"", ended, CONTAINER),
            )),
        )
        .warned(&["Job web: the pod will not complete", "use a native sidecar", "weft.dev/inject=false"]),
        Mistake::new("pods for Windows", apply(deployment("", "", ", os: {name: windows}"))).warned(&[
            "Deployment web: no proxy will be added: the pod is not for Linux",
            "label it weft.dev/inject=false",
        ]),
        Mistake::new("a container that listens on a port of the proxy", apply(deployment_of("ports: [{containerPort: 15001}]")))
            .warned(&[
                "Deployment web: its pods will be refused: container \"app\" has containerPort 15001, on which Weft's proxy \
                 listens",
                "use another port",
            ]),
        Mistake::new("a container with the proxy's user", apply(deployment_of("securityContext: {runAsUser: 15015}")))
            .warned(&[
                "Deployment web: its pods will be refused: container \"app\" has runAsUser 15015, which is reserved for \
                 Weft's proxy",
                "use another number, or label the pod weft.dev/inject=false",
            ]),
        Mistake::new(
            "a container with a name of Weft",
            apply(workload(
                "apps/v1",
                "Deployment",
                "",
                &template("", "", "", &CONTAINER.replace("name: app", "name: weft-init")),
            )),
        )
        .warned(&[
            "Deployment web: its pods will be refused: the pod has a container called \"weft-init\"",
            "rename it",
        ]),
        Mistake::new(
            "a container with the name of the proxy",
            apply(workload(
                "apps/v1",
                "Deployment",
                "",
                &template("", "", "", &CONTAINER.replace("name: app", "name: weft-proxy")),
            )),
        )
        .warned(&[
            "Deployment web: no proxy will be added: the pod has a container called weft-proxy",
            "rename it",
        ]),
        Mistake::new(
            "a volume with a name of Weft",
            apply(deployment("", "", ", volumes: [{name: weft-cache, emptyDir: {}}]")),
        )
        .warned(&["Deployment web: its pods will be refused: the pod has a volume called \"weft-cache\"", "rename it"]),
        Mistake::new(
            "a probe of a port that the container does not name",
            apply(deployment_of("readinessProbe: {httpGet: {path: /, port: web}}")),
        )
        .warned(&[
            "Deployment web: its pods will be refused: the readiness probe of container \"app\" uses port \"web\"",
            "name the port under the container's ports, or use a number",
        ]),
        Mistake::new("a pod with a wrong annotation", apply(pod("", ", config.weft.dev/workers: many", ""))).refused(&[
            "annotation config.weft.dev/workers on the pod is \"many\"",
            "use a number of threads from 1 to 64",
        ]),
        Mistake::new("a pod with `hostNetwork`", apply(pod("", "", host))).warned(&[
            "no proxy was added: the pod uses the node's network",
            without,
        ]),
        Mistake::new("a pod with a misspelled label", apply(pod(", weft.dev/inject-proxy: \"true\"", "", "")))
            .elsewhere()
            .warned(&["label weft.dev/inject-proxy on the pod is unknown and has no effect", MEANT]),
    ]
}
