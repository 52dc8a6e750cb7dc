//! Routes of the Gateway API with a Service as parent: manifests, and what Weft writes into `status.parents`.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::kubectl::{Condition, Kubectl};
use crate::namespace::{Namespace, READY, SOON};
use crate::traffic::Client;
use crate::wait::eventually;
use crate::{install, mesh, workload};

/// Weft's name in `status.parents`.
pub const CONTROLLER: &str = "weft.dev/mesh-controller";
/// The condition that is True once the route is in the configuration that proxies read.
pub const PROGRAMMED: &str = "weft.dev/Programmed";

/// On the CRD of HTTPRoute if [`add`] has installed it.
const ADDED_LABEL: &str = "weft.dev/added-by=demo";

/// An entry of a route's `status.parents`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// The parentRef that the entry is about.
    pub parent_ref: Value,
    /// Who wrote it.
    pub controller_name: String,
    /// What that controller says.
    pub conditions: Vec<Condition>,
}

/// Installs the CRDs of the Gateway API, unless the cluster has HTTPRoutes.
pub fn add() -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    let crd = "crd/httproutes.gateway.networking.k8s.io";
    if !kubectl.run(&["get", crd, "--ignore-not-found", "-o", "name"])?.is_empty() {
        return Ok(());
    }
    install::install_gateway_api()?;
    kubectl.run(&["label", crd, ADDED_LABEL]).map(drop)
}

/// Removes the CRDs that [`add`] has installed, unless there are objects of them: these would be deleted too.
pub fn remove_added() -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    if kubectl.list("crd", ADDED_LABEL)?.is_empty() {
        return Ok(());
    }
    let crds = kubectl.list("crd", "")?;
    let of_group = crds.iter().filter(|crd| crd["spec"]["group"] == "gateway.networking.k8s.io");
    let names: Vec<&str> = of_group.filter_map(|crd| crd["metadata"]["name"].as_str()).collect();
    if kubectl.run(&["get", &names.join(","), "-A", "-o", "name"])?.is_empty() {
        kubectl.run(&[&["delete", "crd"], names.as_slice()].concat())?;
    }
    Ok(())
}

/// Deploys Services `echo`, `one` and `two` with a pod each, whose versions are `v0`, `v1` and `v2`, and a client.
/// Installs the Gateway API first.
pub fn servers(namespace: &Namespace) -> Result<Client> {
    install::ensure_gateway_api()?;
    let servers = [("echo", "v0"), ("one", "v1"), ("two", "v2")];
    namespace.apply(&servers.map(|(name, version)| workload::server(name, &[version])).concat())?;
    let client = Client::deploy(namespace)?;
    namespace.wait_ready(&["echo-v0", "one-v1", "two-v2"])?;
    for (name, _) in servers {
        mesh::each_reachable(namespace, &client, name)?;
    }
    Ok(client)
}

/// A route of that kind for the Service of the same name, with the fields of its spec beside `parentRefs`, in YAML.
pub fn route(kind: &str, name: &str, fields: &str) -> String {
    let parents = format!("[{{group: \"\", kind: Service, name: {name}}}]");
    route_of(kind, name, &parents, fields)
}

/// As [`route`], for these parents.
pub fn route_of(kind: &str, name: &str, parents: &str, fields: &str) -> String {
    let mut yaml = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: \
         {parents}\n"
    );
    for line in fields.lines().filter(|line| !line.trim().is_empty()) {
        yaml += &format!("  {line}\n");
    }
    yaml
}

/// Applies an HTTPRoute for the Service of the same name, and waits until the client's proxy uses it. To detect that,
/// the route gets an additional rule for the path `/in-force`, which redirects to a host that is named after this version
/// of the route.
pub fn in_force(namespace: &Namespace, client: &Client, name: &str, rules: &str) -> Result<()> {
    let token = rules.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let host = format!("h{token:08x}.example");
    let marker = format!(
        "- matches: [{{path: {{type: Exact, value: /in-force}}}}]\n  filters: [{{type: RequestRedirect, \
         requestRedirect: {{hostname: {host}}}}}]\n"
    );
    namespace.apply(&route("HTTPRoute", name, &format!("rules:\n{marker}{rules}")))?;
    await_condition(namespace, &format!("httproute/{name}"), PROGRAMMED, "True")?;
    eventually("the client's proxy to use the route", SOON, || {
        let answer = client.get(&format!("http://{name}:9080/in-force")).send()?;
        ensure!(answer.header("location").is_some_and(|location| location.contains(&host)), "{answer:?}");
        Ok(())
    })
}

/// All entries of a route's `status.parents`; `route` is `kind/name`.
pub fn parents(kubectl: &Kubectl, route: &str) -> Result<Vec<Parent>> {
    let (kind, name) = route.split_once('/').with_context(|| format!("{route} is not kind/name"))?;
    let object = kubectl.get(kind, name)?;
    let generation = object["metadata"]["generation"].as_i64();
    let parents = object.pointer("/status/parents").cloned().unwrap_or(Value::Array(Vec::new()));
    let parents: Vec<Parent> = serde_json::from_value(parents).with_context(|| format!("status.parents of {route}"))?;
    for condition in parents.iter().filter(|parent| parent.is_own()).flat_map(|parent| &parent.conditions) {
        ensure!(
            condition.observed_generation == generation,
            "{route} is at generation {generation:?}, and its status at another one: {condition:?}"
        );
    }
    Ok(parents)
}

/// A condition of Weft's first entry.
pub fn condition(kubectl: &Kubectl, route: &str, kind: &str) -> Result<Condition> {
    let parents = parents(kubectl, route)?;
    let own = parents.iter().find(|parent| parent.is_own());
    own.with_context(|| format!("{route} has no status of Weft: {parents:?}"))?.condition(kind).cloned()
}

/// Waits until Weft's entries are this many, and each has the condition with that status; returns the first one's.
pub fn await_conditions(kubectl: &Kubectl, route: &str, kind: &str, status: &str, count: usize) -> Result<Condition> {
    eventually(&format!("{kind} {status} of {route}"), READY, || {
        let parents = parents(kubectl, route)?;
        let own: Vec<&Parent> = parents.iter().filter(|parent| parent.is_own()).collect();
        ensure!(own.len() == count && count > 0, "Weft should have {count} entries: {parents:?}");
        for parent in &own {
            let found = parent.condition(kind)?;
            ensure!(found.status == status, "{found:?}");
        }
        own[0].condition(kind).cloned()
    })
}

/// Waits until Weft has one entry, whose condition has that status.
pub fn await_condition(kubectl: &Kubectl, route: &str, kind: &str, status: &str) -> Result<Condition> {
    await_conditions(kubectl, route, kind, status, 1)
}

// === impl Parent ===

impl Parent {
    /// Whether Weft wrote it.
    pub fn is_own(&self) -> bool {
        self.controller_name == CONTROLLER
    }

    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Result<&Condition> {
        let found = self.conditions.iter().find(|condition| condition.kind == kind);
        found.with_context(|| format!("no condition {kind}: {self:?}"))
    }
}
