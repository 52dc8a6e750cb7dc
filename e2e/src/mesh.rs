//! What several tests deploy, and how they know that a proxy runs what was applied.

use anyhow::{Result, ensure};

use crate::metrics::Metrics;
use crate::namespace::{Namespace, READY, SOON};
use crate::traffic::Client;
use crate::wait::eventually;
use crate::workload;

/// A MeshCluster for the Service `echo` with a subset for each of the versions that [`echo`] deploys.
pub const SUBSETS: &str = "
---
apiVersion: weft.dev/v1alpha1
kind: MeshCluster
metadata: {name: echo}
spec:
  targetRef: {kind: Service, name: echo}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
";

/// Deploys Service `echo` with three versions, a MeshCluster with a subset for each, and a client.
pub fn echo(namespace: &Namespace) -> Result<Client> {
    namespace.apply(&(workload::server("echo", &["v1", "v2", "v3"]) + SUBSETS))?;
    let client = Client::deploy(namespace)?;
    namespace.wait_ready(&["echo-v1", "echo-v2", "echo-v3"])?;
    // A pod that is ready becomes an endpoint a moment later; then its subset is resolved, and then proxies know.
    namespace.await_condition("meshcluster", "echo", "ResolvedRefs", "True")?;
    namespace.await_condition("meshcluster", "echo", "Programmed", "True")?;
    each_reachable(namespace, &client, "echo")?;
    Ok(client)
}

/// Waits until every pod with the label `app` of the Service's name has answered the client. Their Deployments are rolled out; the
/// client's proxy hears of each pod on its own.
pub fn each_reachable(namespace: &Namespace, client: &Client, service: &str) -> Result<()> {
    eventually(&format!("each pod of Service {service} to answer"), READY, || {
        let pods = namespace.pods_of(service)?;
        let report = client.load(&format!("http://{service}:9080/healthz")).requests(30).run()?;
        let silent: Vec<_> = pods.iter().filter(|pod| !report.by_pod.contains_key(*pod)).collect();
        ensure!(!pods.is_empty() && silent.is_empty(), "{silent:?} of {pods:?} do not: {}", report.summary());
        Ok(())
    })
}

/// Waits until the client's proxy knows a pod of the Service.
pub fn reachable(client: &Client, service: &str) -> Result<()> {
    eventually(&format!("Service {service} to be reached"), READY, || {
        let answer = client.get(&format!("http://{service}:9080/healthz")).send()?;
        ensure!(answer.status == 200, "it answers {answer:?}");
        Ok(())
    })
}

/// A MeshRoute of that name for the Service of that name, with these rules in YAML.
pub fn route(name: &str, rules: &str) -> String {
    let mut yaml = format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{name: {name}}}\nspec:\n  \
         parentRefs: [{{kind: Service, name: {name}}}]\n  http:\n"
    );
    for line in rules.lines().filter(|line| !line.trim().is_empty()) {
        yaml += &format!("  {line}\n");
    }
    yaml
}

/// Applies a route and waits until the client's proxy runs it. To see that, the route gets a rule of its own, for the path
/// `/in-force`, that answers with a token of this version.
pub fn route_in_force(namespace: &Namespace, client: &Client, name: &str, rules: &str) -> Result<()> {
    let token = rules.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let token = format!("{token:08x}");
    let mark = format!(
        "- name: in-force\n  matches: [{{path: {{type: Exact, value: /in-force}}}}]\n  filters: [{{type: DirectResponse, \
         directResponse: {{status: 200, body: \"{token}\"}}}}]\n"
    );
    namespace.program(&route(name, &(mark + rules)), &[&format!("meshroute/{name}")])?;
    eventually("the client's proxy to run the route", SOON, || {
        let answer = client.get(&format!("http://{name}:9080/in-force")).send()?;
        ensure!(answer.body == token, "{answer:?}");
        Ok(())
    })
}

/// What the proxy of the only pod with the label `app` counts.
pub fn proxy_metrics(namespace: &Namespace, app: &str) -> Result<Metrics> {
    Ok(Metrics::parse(&namespace.pod_get(&namespace.pod_of(app)?, 15020, "metrics")?))
}
