//! Workloads that several tests deploy, and waiting until a proxy uses an applied route.

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
    // A ready pod becomes an endpoint a moment later; then its subset is resolved (or before, while there is no endpoint at
    // all), and then proxies learn of it.
    namespace.await_condition("meshcluster", "echo", "ResolvedRefs", "True")?;
    namespace.await_condition("meshcluster", "echo", "Programmed", "True")?;
    each_reachable(namespace, &client, "echo")?;
    Ok(client)
}

/// Waits until all pods with the label `app` of the Service's name have answered the client. After their rollout the
/// client's proxy learns of each pod separately.
pub fn each_reachable(namespace: &Namespace, client: &Client, service: &str) -> Result<()> {
    eventually(&format!("each pod of Service {service} to answer"), READY, || {
        let pods = namespace.pods_of(service)?;
        let report = client.load(&format!("http://{service}:9080/healthz")).requests(30).run()?;
        let missing: Vec<_> = pods.iter().filter(|pod| !report.by_pod.contains_key(*pod)).collect();
        ensure!(!pods.is_empty() && missing.is_empty(), "{missing:?} of {pods:?} did not answer: {}", report.summary());
        Ok(())
    })
}

/// Waits until the client's proxy reaches a pod of the Service.
pub fn reachable(client: &Client, service: &str) -> Result<()> {
    eventually(&format!("a response from Service {service}"), READY, || {
        let answer = client.get(&format!("http://{service}:9080/healthz")).send()?;
        ensure!(answer.status == 200, "the response is {answer:?}");
        Ok(())
    })
}

/// A MeshRoute for the Service of the same name, with these rules in YAML.
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

/// Applies a route and waits until the client's proxy uses it. To detect that, the route gets an additional rule for
/// the path `/in-force`, which answers with a token of this version of the route.
pub fn route_in_force(namespace: &Namespace, client: &Client, name: &str, rules: &str) -> Result<()> {
    let token = rules.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let token = format!("{token:08x}");
    let marker = format!(
        "- name: in-force\n  matches: [{{path: {{type: Exact, value: /in-force}}}}]\n  filters: [{{type: DirectResponse, \
         directResponse: {{status: 200, body: \"{token}\"}}}}]\n"
    );
    namespace.program(&route(name, &(marker + rules)), &[&format!("meshroute/{name}")])?;
    eventually("the client's proxy to use the route", SOON, || {
        let answer = client.get(&format!("http://{name}:9080/in-force")).send()?;
        ensure!(answer.body == token, "{answer:?}");
        Ok(())
    })
}

/// The metrics of the proxy of the only pod with the label `app`.
pub fn proxy_metrics(namespace: &Namespace, app: &str) -> Result<Metrics> {
    Ok(Metrics::parse(&namespace.pod_get(&namespace.pod_of(app)?, 15020, "metrics")?))
}

/// The number of requests with these labels in the metrics of the proxies of an app's pods.
pub fn requests(namespace: &Namespace, app: &str, labels: &[(&str, &str)]) -> Result<f64> {
    sum(namespace, app, "weft_requests_total", labels)
}

/// The sum of a metric over the proxies of an app's pods.
pub fn sum(namespace: &Namespace, app: &str, metric: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let pages = namespace.pods_of(app)?.into_iter().map(|pod| namespace.pod_get(&pod, 15020, "metrics"));
    pages.map(|page| Ok(Metrics::parse(&page?).sum(metric, labels))).sum()
}
