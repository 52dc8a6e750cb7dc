//! The interoperability tests of gRPC, with grpc-go's client and server
//! (<https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md>), through a client's and a server's proxy,
//! with mutual TLS between them.

use std::time::Instant;

use anyhow::{Result, ensure};
use weft_e2e::mesh::requests;
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::wait::eventually;
use weft_e2e::{Cluster, install, table};

/// The test cases that need neither TLS, credentials nor a resolver of their own.
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];
/// Test cases that may not be counted: the first two may end their call before it has left the client, the last calls
/// another service than `grpc.testing.TestService`.
const UNCOUNTED: [&str; 3] = ["timeout_on_sleeping_server", "cancel_after_begin", "unimplemented_service"];
/// Test cases that repeat a call of 266 KiB with a response of 307 KiB, on one connection or on a new one for each call:
/// name, number of calls, arguments.
const SOAKS: [(&str, f64, &[&str]); 2] = [
    ("rpc_soak", 2000.0, &["--soak_iterations=2000", "--soak_num_threads=4"]),
    ("channel_soak", 500.0, &["--soak_iterations=500"]),
];
/// Limits for a busy machine, in place of 10 s and 1 s.
const SOAK_LIMITS: [&str; 2] =
    ["--soak_overall_timeout_seconds=100", "--soak_per_iteration_max_acceptable_latency_ms=10000"];

/// A rule for the service of all test cases but `unimplemented_service`.
const ROUTE: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: server}
spec:
  parentRefs: [{group: '', kind: Service, name: server, port: 10000}]
  rules:
  - matches: [{method: {service: grpc.testing.TestService}}]
    backendRefs: [{name: server, port: 10000}]
";

/// A Deployment of the server. The client's pod runs a server too, which nothing calls: a pod needs a program that does
/// not end.
fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  selector: \
         {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      containers:\n      \
         - name: {name}\n        image: localhost/weft/interop:cluster\n        imagePullPolicy: IfNotPresent\n        ports: \
         [{{containerPort: 10000}}]\n        readinessProbe: {{tcpSocket: {{port: 10000}}, periodSeconds: 1}}\n"
    )
}

/// Deploys two servers behind a Service, and a client.
fn deploy(ns: &Namespace) -> Result<()> {
    Cluster::get()?.load_image("interop.tar")?;
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: server}\nspec:\n  selector: {app: server}\n  ports: [{name: \
                   grpc, port: 10000}]\n";
    ns.apply(&(deployment("server", 2) + service + &deployment("client", 1)))?;
    ns.wait_ready(&["server", "client"])
}

/// Runs all test cases in the client's pod. Each must succeed. Returns a table of their durations.
fn run_all(ns: &Namespace) -> Result<String> {
    let cases = CASES.map(|case| (case, Vec::new()));
    let soaks = SOAKS.map(|(case, _, arguments)| (case, [arguments, &SOAK_LIMITS].concat()));
    let mut rows = vec![["case", "seconds"].map(str::to_owned).to_vec()];
    for (case, arguments) in cases.iter().chain(&soaks) {
        let began = Instant::now();
        run(ns, case, arguments)?;
        rows.push(vec![(*case).to_owned(), format!("{:.1}", began.elapsed().as_secs_f64())]);
    }
    Ok(table::text(&rows))
}

fn run(ns: &Namespace, case: &str, arguments: &[&str]) -> Result<()> {
    let test_case = format!("--test_case={case}");
    let command = ["exec", "deployment/client", "-c", "client", "--", "/client", "--server_host=server", &test_case];
    let output = ns.run_with(&[&command, arguments].concat(), "", READY)?;
    output.stdout_of_success(&format!("/client {test_case}")).map(drop)
}

/// Waits until the proxies of an app's pods have counted the calls of all test cases.
fn await_counted(ns: &Namespace, app: &str, labels: &[(&str, &str)]) -> Result<()> {
    let soaks: f64 = SOAKS.iter().map(|(_, calls, _)| calls).sum();
    let calls = soaks + (CASES.len() - UNCOUNTED.len()) as f64;
    eventually(&format!("{calls} requests with {labels:?} through the proxy of {app}"), SOON, || {
        let found = requests(ns, app, labels)?;
        ensure!(found >= calls, "there are {found}");
        Ok(())
    })
}

#[test]
fn grpc_interop_cases_pass_without_a_route() -> Result<()> {
    in_mesh("interop", |ns| {
        deploy(ns)?;
        print!("{}", run_all(ns)?);
        let service = format!("{}/server:10000", ns.name);
        await_counted(ns, "client", &[("direction", "outbound"), ("service", &service), ("security", "mtls")])?;
        await_counted(ns, "server", &[("direction", "inbound"), ("security", "mtls")])
    })
}

/// The route has no rule for the service of the test case `unimplemented_service`: the proxy responds UNIMPLEMENTED.
#[test]
fn grpc_interop_cases_pass_through_a_grpc_route() -> Result<()> {
    install::ensure_gateway_api()?;
    in_mesh("interop-route", |ns| {
        deploy(ns)?;
        ns.apply(ROUTE)?;
        let source = format!("GRPCRoute/{}/server/0", ns.name);
        let routed = [("direction", "outbound"), ("source", source.as_str())];
        eventually("the client's proxy to use the route", SOON, || {
            run(ns, "empty_unary", &[])?;
            ensure!(requests(ns, "client", &routed)? > 0.0, "no request has the source {source}");
            Ok(())
        })?;
        print!("{}", run_all(ns)?);
        await_counted(ns, "client", &routed)?;
        let refused = requests(ns, "client", &[("reason", "no-route"), ("rpc_status_code", "UNIMPLEMENTED")])?;
        ensure!(refused == 1.0, "the proxy responded to {refused} requests");
        Ok(())
    })
}
