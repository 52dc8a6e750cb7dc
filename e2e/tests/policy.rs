//! Authorization by MeshPolicy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_e2e::mesh::proxy_metrics;
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::{Client, Request};
use weft_e2e::wait::{eventually, eventually_every};
use weft_e2e::workload::{App, IMAGE, PORT, PROGRAM, Service};

/// Deploys Service `echo` under a service account of its own, and a client.
fn echo(ns: &Namespace) -> Result<Client> {
    ns.apply(&(Service::new("echo").yaml() + &App::server("echo", "v1").service_account("echo").yaml()))?;
    let client = Client::deploy(ns)?;
    ns.wait_ready(&["echo-v1"])?;
    Ok(client)
}

/// Applies a MeshPolicy and waits until the server's proxy enforces it: `refused` is a request that it denies.
fn policy_in_force(ns: &Namespace, target: &str, rules: &str, refused: &Request) -> Result<()> {
    let yaml = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: guard}}\nspec:\n  targetRef: {target}\n  authorization:\n    rules:\n{rules}"
    );
    ns.program(&yaml, &["meshpolicy/guard"])?;
    eventually("the policy to be in force", SOON, || refused.send()?.expect_status(403).map(drop))
}

const SERVICE: &str = "{kind: Service, name: echo}";

#[test]
fn deny_rules_deny_only_matching_requests() -> Result<()> {
    in_mesh("policy-deny", |ns| {
        let client = echo(ns)?;
        let get = |path: &str| client.get(&format!("http://echo:9080{path}"));
        let rules = "    - {action: Deny, methods: [POST, DELETE], paths: [{type: PathPrefix, value: /admin}]}\n    - {action: Deny, paths: [{type: \
                     Exact, value: /secret}]}\n    - {action: Deny, paths: [{type: RegularExpression, value: \"/u/[0-9]+\"}]}\n    - {action: Deny, \
                     headers: [{name: x-evil, value: \"1\"}]}\n";
        policy_in_force(ns, SERVICE, rules, &get("/secret"))?;
        let cases: [(&str, Request, u16); 13] = [
            ("method and path", get("/admin").method("POST"), 403),
            ("method and below the path", get("/admin/x").method("DELETE"), 403),
            ("another method", get("/admin"), 200),
            ("another path", get("/admins").method("POST"), 200),
            ("exact", get("/secret"), 403),
            ("exact with a query", get("/secret?x=1"), 403),
            ("below exact", get("/secret/x"), 200),
            ("evasion by dot segments", get("/a/../secret"), 403),
            ("evasion by double slashes", get("//secret"), 403),
            ("evasion by percent-encoding", get("/%73ecret"), 403),
            ("expression", get("/u/7"), 403),
            ("not the expression", get("/u/x"), 200),
            ("header", get("/").header("X-Evil", "1"), 403),
        ];
        for (desc, request, status) in cases {
            let answer = request.send()?;
            ensure!(answer.status == status, "{desc}: the status should be {status}: {answer:?}");
            if status == 403 {
                ensure!(answer.reason() == Some("policy-denied"), "{desc}: {answer:?}");
                let source = format!("MeshPolicy/{}/guard/", ns.name);
                ensure!(answer.source().is_some_and(|found| found.starts_with(&source)), "{desc}: {answer:?}");
            }
        }
        for (desc, path, status) in [
            ("evasion by an encoded slash", "/x%2f..%2fsecret", 403),
            ("evasion by path parameters", "/.;a/secret;b", 403),
            ("an encoded slash that changes no decision", "/projects/a%2Fb", 200),
        ] {
            get(path).send()?.expect_status(status).map_err(|error| error.context(desc))?;
        }
        Ok(())
    })
}

#[test]
fn allow_rules_deny_all_other_requests() -> Result<()> {
    in_mesh("policy-allow", |ns| {
        let client = echo(ns)?;
        let get = |path: &str| client.get(&format!("http://echo:9080{path}"));
        let rules = "    - {action: Allow, methods: [GET], paths: [{type: PathPrefix, value: /public}]}\n    - {action: Allow, headers: [{name: \
                     x-key, value: good}]}\n    - {action: Deny, paths: [{type: PathPrefix, value: /public/not}]}\n";
        policy_in_force(ns, SERVICE, rules, &get("/other"))?;
        for (desc, request, status) in [
            ("allowed by method and path", get("/public/a"), 200),
            ("the method is not allowed", get("/public/a").method("POST"), 403),
            ("no rule allows it", get("/other"), 403),
            ("allowed by header", get("/other").header("x-key", "good"), 200),
            ("another value", get("/other").header("x-key", "bad"), 403),
            ("a deny rule overrides allow rules", get("/public/not").header("x-key", "good"), 403),
        ] {
            request.send()?.expect_status(status).map_err(|error| error.context(desc))?;
        }
        ns.delete("meshpolicy", "guard")?;
        eventually("everything to be allowed again", SOON, || get("/other").send()?.expect_status(200).map(drop))
    })
}

#[test]
fn probes_bypass_policy() -> Result<()> {
    in_mesh("policy-probes", |ns| {
        let client = echo(ns)?;
        let everything = "    - {action: Deny}\n";
        policy_in_force(ns, "{kind: Namespace}", everything, &client.get("http://echo:9080/healthz"))?;
        // A pod that starts now has to pass its readiness probe under the policy.
        ns.run(&["rollout", "restart", "deployment/echo-v1"])?;
        ns.rolled_out("deployment/echo-v1", READY)?;
        // The client's proxy may learn of the new pod a moment later; neither pod may admit requests to its probe's
        // path.
        let mut passed = 0;
        eventually("the new pod to deny requests", SOON, || {
            let report = client.load("http://echo:9080/healthz").requests(50).run()?;
            passed += report.status(200);
            ensure!(report.status(403) == 50, "{}", report.summary());
            Ok(())
        })?;
        ensure!(passed == 0, "{passed} requests to the probe's path bypassed the policy");
        let pod = ns.pod_of("echo")?;
        let restarts = ns.get("pod", &pod)?["status"]["containerStatuses"][0]["restartCount"].clone();
        ensure!(restarts == 0, "the pod was restarted {restarts} times");
        Ok(())
    })
}

#[test]
fn policies_target_ports_service_accounts_and_namespaces() -> Result<()> {
    in_mesh("policy-target", |ns| {
        let client = echo(ns)?;
        let other = Service::new("other").yaml() + &App::server("other", "v1").yaml();
        ns.apply(&other)?;
        ns.wait_ready(&["other-v1"])?;
        let echo = client.get("http://echo:9080/");
        let other = client.get("http://other:9080/");
        for (target, ports, other_status) in [
            ("{kind: ServiceAccount, name: echo}", "", 200),
            (SERVICE, ", ports: [9080]", 200),
            ("{kind: Namespace}", ", ports: [9080]", 403),
        ] {
            policy_in_force(ns, target, &format!("    - {{action: Deny{ports}}}\n"), &echo)?;
            eventually(&format!("{target}: {other_status} from the other Service"), SOON, || {
                other.send()?.expect_status(other_status).map(drop)
            })?;
        }
        // A rule for a port without a listener matches no request.
        policy_in_force(
            ns,
            "{kind: Namespace}",
            "    - {action: Deny, ports: [1]}\n    - {action: Deny, paths: [{value: /marker}]}\n",
            &client.get("http://echo:9080/marker"),
        )?;
        echo.send()?.expect_status(200)?;
        Ok(())
    })
}

#[test]
fn lifecycle_hooks_bypass_policy() -> Result<()> {
    in_mesh("policy-hooks", |ns| {
        let client = Client::deploy(ns)?;
        let policy = "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: guard}\nspec:\n  targetRef: {kind: \
                      Namespace}\n  authorization: {rules: [{action: Allow, paths: [{value: /api}, {value: /_seen}]}]}\n";
        ns.program(policy, &["meshpolicy/guard"])?;
        // Container `caller` has the hooks, which call container `callee`. `callee` listens before `caller` starts
        // and until after `caller` ends, because its own preStop hook lasts for the whole grace period.
        let container = |name: &str, arguments: &str, port: &str, hooks: &str| {
            format!(
                "  - name: {name}\n    image: {IMAGE}\n    imagePullPolicy: IfNotPresent\n    args: [{arguments}]\n    ports: [{{name: {port}, \
                 containerPort: {PORT}}}]\n    lifecycle: {{{hooks}}}\n"
            )
        };
        let serve = format!("serve, --name, hooked, --version, v1, --port, \"{PORT}\"");
        let hooks = format!(
            "postStart: {{httpGet: {{path: /started, port: hooks}}}}, preStop: {{httpGet: {{path: \"/stopped?x=1\", port: {PORT}}}}}"
        );
        ns.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: hooked, labels: {{app: hooked}}}}\nspec:\n  terminationGracePeriodSeconds: \
             20\n  containers:\n{}{}",
            container("callee", &serve, "main", &format!("preStop: {{exec: {{command: [{PROGRAM}, idle]}}}}")),
            container("caller", "idle", "hooks", &hooks)
        ))?;
        ns.wait("pod/hooked", "condition=Ready", READY)?;
        let address =
            ns.get("pod", "hooked")?["status"]["podIP"].as_str().context("the pod has an address")?.to_owned();
        let get = |port: u16, path: &str| client.get(&format!("http://{address}:{port}{path}"));
        let await_request = |path: &str| {
            eventually(&format!("the application to get {path}"), SOON, || {
                let seen = get(PORT, "/_seen").send()?.expect_status(200)?.json()?;
                ensure!(seen["by_path"][path].as_u64() >= Some(1), "it got {seen}");
                Ok(())
            })
        };
        await_request("GET /started")?;
        eventually("the policy to be in force", SOON, || get(PORT, "/stopped").send()?.expect_status(403).map(drop))?;
        for path in ["/hook/caller/preStop", "/hook/0/caller/preStop", "/probe/caller/preStop"] {
            get(15021, path).send()?.expect_status(404).context("hook paths without the secret are not served")?;
        }
        let seen = get(PORT, "/_seen").send()?.expect_status(200)?.json()?;
        ensure!(seen["by_path"]["GET /stopped"].is_null(), "preStop was called too early: {seen}");
        ns.delete("pod", "hooked")?;
        await_request("GET /stopped")
    })
}

#[test]
fn policy_that_pods_do_not_enforce_is_not_ready() -> Result<()> {
    in_mesh("policy-no-proxy", |ns| {
        let client = echo(ns)?;
        let refused = client.get("http://echo:9080/");
        policy_in_force(ns, SERVICE, "    - {action: Deny}\n", &refused)?;
        ns.await_condition("meshpolicy", "guard", "Ready", "True")?;

        ns.apply(&App::server("echo", "v2").label("weft.dev/inject", "false").yaml())?;
        ns.wait_ready(&["echo-v2"])?;
        let ready = ns.await_condition("meshpolicy", "guard", "Ready", "False")?;
        ensure!(ready.reason == "NoProxy" && ready.message.contains("1 of 2 pods"), "{ready:?}");
        ensure!(ready.message.contains(&format!("{}/echo-v2-", ns.name)), "the message names the pod: {ready:?}");
        ns.delete("deployment", "echo-v2")?;
        ns.await_condition("meshpolicy", "guard", "Ready", "True")?;

        // A port that the pods do not have.
        ns.apply(&format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: guard}}\nspec:\n  targetRef: {SERVICE}\n  \
             authorization: {{rules: [{{action: Deny, ports: [1234]}}]}}\n"
        ))?;
        let ready = ns.await_condition("meshpolicy", "guard", "Ready", "False")?;
        ensure!(ready.reason == "PortNotFound" && ready.message.contains("did you mean"), "{ready:?}");
        Ok(())
    })
}

/// Limit for a change of a pod's labels to take effect. Normally within a second; the rest is for a busy machine.
const RELABELLED: Duration = Duration::from_secs(5);

/// CP-05: a label that is edited after admission counts as it is at the API server.
#[test]
fn policies_follow_label_changes_of_running_pods() -> Result<()> {
    in_mesh("policy-labels", |ns| {
        let client = echo(ns)?;
        // A Service whose selector matches no pod yet.
        let private = Service::new("private").yaml().replace("app: private", "role: private");
        let policy = "---\napiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: guard}\nspec:\n  targetRef: {kind: Service, \
                      name: private}\n  authorization: {rules: [{action: Deny, paths: [{value: /no}]}]}\n";
        ns.program(&(private + policy), &["meshpolicy/guard"])?;
        let pod = ns.pod_of("echo")?;
        let label = |label: &str| ns.run(&["label", "pod", &pod, "--overwrite", label]);
        let address = ns.get("pod", &pod)?["status"]["podIP"].as_str().context("the pod has an address")?.to_owned();
        let guarded = client.get(&format!("http://{address}:{PORT}/no"));
        guarded.send()?.expect_status(200).context("the pod has no such label")?;
        for (change, status) in [("role=private", 403), ("role=public", 200), ("role=private", 403), ("role-", 200)] {
            label(change)?;
            eventually_every(Duration::ZERO, &format!("{status} after {change}"), RELABELLED, || {
                guarded.send()?.expect_status(status)
            })?;
        }

        // The same for requests through the Service, which routes to the pod as soon as the pod has the label.
        let load =
            client.load("http://private:9080/no").rate(50).duration(Duration::from_secs(8)).timeline().start()?;
        label("role=private")?;
        let report = load.finish()?;
        let at = |status: u16| report.timeline.iter().filter(move |answer| answer.1 == status).map(|answer| answer.0);
        ensure!(at(403).count() > 0, "no request through the Service reached the pod: {}", report.summary());
        if let (Some(first), Some(last)) = (at(200).min(), at(200).max()) {
            println!("the policy was not enforced for {} ms", last - first);
            let most = RELABELLED.as_millis() as u64;
            ensure!(last - first < most, "{} ms without the policy: {}", last - first, report.summary());
        }
        label("role-")?;
        let request = client.get("http://private:9080/no");
        eventually("the Service to have no pod", SOON, || request.send()?.expect_status(503).map(drop))?;

        // A pod that is created with the label enforces the policy from its first request.
        ns.apply(&App::server("late", "v1").label("role", "private").yaml())?;
        let mut passed = 0;
        eventually("requests to reach the new pod", READY, || {
            let report = client.load("http://private:9080/no").requests(40).rate(40).run()?;
            passed += report.status(200);
            ensure!(report.status(403) > 0, "{}", report.summary());
            Ok(())
        })?;
        ensure!(passed == 0, "{passed} requests passed a pod that was created with the label");
        Ok(())
    })
}

#[test]
fn http_allow_rules_deny_opaque_tcp() -> Result<()> {
    in_mesh("policy-tcp", |ns| {
        ns.apply(&(App::tcp("db", 3306, "hello").yaml() + &Service::new("db").port(3306, 3306).yaml()))?;
        let client = Client::deploy(ns)?;
        ns.wait_ready(&["db"])?;
        let ping = ["--expect-first", "--send", "ping", "--timeout", "5s"];
        let answer = client.tcp_reached("db:3306", &ping)?;
        ensure!(answer.received == "ping", "before the policy it answers: {answer:?}");
        let policy = "apiVersion: weft.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: guard}\nspec:\n  targetRef: {kind: Service, name: \
                      db}\n  authorization: {rules: [{action: Allow, paths: [{value: /}]}]}\n";
        ns.program(policy, &["meshpolicy/guard"])?;
        eventually("the connection to be refused", SOON, || {
            let answer = client.tcp("db:3306", &ping)?;
            ensure!(answer.error.is_some() && answer.received.is_empty(), "{answer:?}");
            Ok(())
        })
    })
}

#[test]
fn denials_are_counted_and_logged_on_both_sides() -> Result<()> {
    in_mesh("policy-telemetry", |ns| {
        let client = echo(ns)?;
        let rules = "    - {action: Deny, paths: [{type: Exact, value: /secret}]}\n";
        let request = client.get("http://echo:9080/secret").header("x-request-id", "denied-7");
        policy_in_force(ns, SERVICE, rules, &request)?;
        let service = format!("{}/echo:9080", ns.name);
        for (app, metric, error) in [
            ("echo", "http_server_request_duration_seconds_count", "policy-denied"),
            ("client", "http_client_request_duration_seconds_count", "403"),
        ] {
            let labels = [("service", service.as_str()), ("error_type", error), ("http_response_status_code", "403")];
            eventually(&format!("the proxy of {app} to count the denial"), SOON, || {
                let metrics = proxy_metrics(ns, app)?;
                ensure!(metrics.sum(metric, &labels) >= 1.0, "{:?}", metrics.with_prefix(metric));
                Ok(())
            })?;
        }
        let reason = "\"upstream_reason\":\"policy-denied\"";
        eventually("the client's proxy to log the reason of the server's", SOON, || {
            let log = ns.run(&["logs", &ns.pod_of("client")?, "--container", "weft-proxy", "--tail=50"])?;
            let line = log.lines().find(|line| line.contains(reason) && line.contains("\"request_id\":\"denied-7\""));
            ensure!(line.is_some(), "{log}");
            Ok(())
        })
    })
}
