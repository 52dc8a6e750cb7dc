//! Short manifests of the objects in the table.

use crate::workload::{App, PORT};

use super::Step;

/// The container of workloads that are only reviewed.
pub(super) const CONTAINER: &str = "name: app, image: \"localhost/weft-demo:dev\", args: [idle]";

/// `kubectl apply` of a manifest.
pub(super) fn apply(manifest: impl Into<String>) -> Step {
    Step::Apply(manifest.into())
}

/// A MeshRoute for a Service, with the fields of its spec beside `parentRefs`.
pub(super) fn route(name: &str, parent: &str, rules: &str) -> String {
    weft("MeshRoute", name, &format!("parentRefs: [{{name: {parent}}}], {rules}"))
}

/// The rules of a route that sends everything to a backend.
pub(super) fn to(backend: &str) -> String {
    format!("http: [{{backendRefs: [{{{backend}, port: 80}}]}}]")
}

/// A MeshCluster for a Service, with the fields of its spec beside `targetRef`.
pub(super) fn cluster(name: &str, service: &str, fields: &str) -> String {
    weft("MeshCluster", name, &format!("targetRef: {{name: {service}}}, {fields}"))
}

/// A MeshPolicy with one Deny rule, which has these conditions.
pub(super) fn deny(name: &str, target: &str, conditions: &str) -> String {
    let rule = format!("action: Deny{}{conditions}", if conditions.is_empty() { "" } else { ", " });
    weft("MeshPolicy", name, &format!("targetRef: {{{target}}}, authorization: {{rules: [{{{rule}}}]}}"))
}

/// A custom resource of Weft, with the fields of its spec.
pub(super) fn weft(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// A route of the Gateway API, with its parentRefs and the other fields of its spec.
pub(super) fn gateway_route(kind: &str, name: &str, parents: &str, fields: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{parentRefs: \
         [{parents}], {fields}}}\n"
    )
}

/// A Service with port 80, whose targetPort is the one of [`server`], for the pods with the label `app`.
pub(super) fn service(name: &str, app: &str) -> String {
    service_with(name, &format!("selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {PORT}}}]"))
}

/// A Service with these fields of its spec.
pub(super) fn service_with(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// A Deployment `<name>-v1` of the demo application, with the labels `app: <name>` and `version: v1`. Its port has the
/// name `main`.
pub(super) fn server(name: &str) -> String {
    App::server(name, "v1").yaml()
}

/// A Deployment `web`, for review by the injector only: the metadata of its pods beside the label `app`, and fields of
/// their spec beside the containers.
pub(super) fn deployment(labels: &str, annotations: &str, spec: &str) -> String {
    workload("apps/v1", "Deployment", "", &template(labels, annotations, spec, CONTAINER))
}

/// As [`deployment`], with fields of its container.
pub(super) fn deployment_of(container: &str) -> String {
    workload("apps/v1", "Deployment", "", &template("", "", "", &format!("{CONTAINER}, {container}")))
}

/// A workload `web` of another kind, with more of its own metadata, and its pods' template.
pub(super) fn workload(api_version: &str, kind: &str, metadata: &str, template: &str) -> String {
    let selector = "selector: {matchLabels: {app: web}}";
    let spec = match kind {
        "Job" => format!("template: {template}"),
        "CronJob" => format!("schedule: \"0 4 * * *\", jobTemplate: {{spec: {{template: {template}}}}}"),
        "StatefulSet" => format!("serviceName: web, {selector}, template: {template}"),
        _ => format!("{selector}, template: {template}"),
    };
    format!("---\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: web{metadata}}}\nspec: {{{spec}}}\n")
}

/// A pod template; the arguments begin with a comma if they are not empty.
pub(super) fn template(labels: &str, annotations: &str, spec: &str, container: &str) -> String {
    format!(
        "{{metadata: {{labels: {{app: web{labels}}}, annotations: {{test.example/e2e: \"true\"{annotations}}}}}, spec: \
         {{containers: [{{{container}}}]{spec}}}}}"
    )
}

/// A pod `web`.
pub(super) fn pod(labels: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: web{labels}}}, annotations: \
         {{test.example/e2e: \"true\"{annotations}}}}}\nspec: {{containers: [{{{CONTAINER}}}]{spec}}}\n"
    )
}
