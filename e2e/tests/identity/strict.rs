//! Namespaces in mode Strict: what Kubernetes does with pods works on, and nothing else gets in without an identity.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use weft_e2e::mesh::requests;
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::{Answer, Client, Report};
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, IMAGE, PORT, PROGRAM, Service};

use super::{client, forwarded, identified, make_strict, policy, received, server};

/// A container of the demo application, with further fields; its own port if it serves.
fn container(name: &str, arguments: &str, fields: &str) -> String {
    format!("{{name: {name}, image: \"{IMAGE}\", imagePullPolicy: IfNotPresent, args: [{arguments}]{fields}}}")
}

/// Arguments of a server on a port.
fn serve(name: &str, port: u16) -> String {
    format!("serve, --name, {name}, --port, \"{port}\"")
}

/// Address of the only pod of an app.
fn address(ns: &Namespace, app: &str) -> Result<String> {
    let pod = ns.get("pod", &ns.pod_of(app)?)?;
    pod["status"]["podIP"].as_str().map(str::to_owned).context("the pod has an address")
}

/// ID-13: no plaintext gets in, neither through the Service nor at the pod's address.
#[test]
fn strict_refuses_plaintext_and_admits_identified_callers() -> Result<()> {
    let outside = Namespace::create("strict-outside", Mesh::Outside)?;
    let stranger = Client::deploy(&outside)?;
    in_mesh("strict", |ns| {
        make_strict(ns)?;
        let tcp =
            Service::new("db").port(7000, 7000).app_protocol("tcp").yaml() + &App::tcp("db", 7000, "hello ").yaml();
        ns.apply(&(server("echo") + &tcp))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1", "db"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        client.load("http://echo:9080/").requests(200).run()?.expect_none_failed(200)?;
        client.tcp_reached("db:7000", &["--expect-first", "--send", "ping"])?;

        for host in [format!("echo.{}", ns.name), address(ns, "echo")?] {
            let answer = stranger.get(&format!("http://{host}:9080/")).send()?.expect_status(403)?;
            ensure!(answer.reason() == Some("plaintext-refused"), "{host}: {answer:?}");
        }
        for host in [format!("db.{}", ns.name), address(ns, "db")?] {
            let answer = stranger.tcp(&format!("{host}:7000"), &["--expect-first"])?;
            ensure!(answer.error.is_some() && answer.first.is_empty(), "{host}: {answer:?}");
        }
        // The TLS of an application proves nothing to the proxy.
        let hello = stranger.tcp(&format!("db.{}:7000", ns.name), &["--hello", "db.example", "--timeout", "5s"])?;
        ensure!(hello.error.is_some() && hello.received.is_empty(), "{hello:?}");
        eventually("the proxy to count the refused requests", SOON, || {
            let refused = requests(ns, "echo", &[("direction", "inbound"), ("reason", "plaintext-refused")])?;
            ensure!(refused >= 2.0, "{refused}");
            Ok(())
        })
    })
}

/// ID-13: a pod that is ready is told to Strict clients too, but one without a proxy has no identity.
#[test]
fn strict_clients_send_nothing_to_services_in_plaintext() -> Result<()> {
    in_mesh("strict-client", |ns| {
        let bare = Service::new("bare").yaml() + &App::server("bare", "v1").label("weft.dev/inject", "false").yaml();
        ns.apply(&(server("echo") + &bare))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1", "bare-v1"])?;
        let to_bare = client.get("http://bare:9080/");
        eventually("the pod without a proxy to answer", SOON, || to_bare.send()?.expect_status(200).map(drop))?;
        make_strict(ns)?;
        let refused = |answer: Answer| {
            ensure!(answer.reason() == Some("plaintext-refused"), "{answer:?}");
            Ok(())
        };
        eventually("the client's proxy to refuse", SOON, || refused(to_bare.send()?))?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        let report = client.load("http://bare:9080/").requests(50).run()?;
        ensure!(report.ok == 0, "{}", report.summary());
        // A policy for the Service says that it takes plaintext.
        ns.program(&policy("bare", "{kind: Service, name: bare}", "mtls: {mode: Permissive}"), &["meshpolicy/bare"])?;
        eventually("the pod without a proxy to answer again", SOON, || to_bare.send()?.expect_status(200).map(drop))
    })
}

#[test]
fn strict_pods_pass_every_kind_of_probe() -> Result<()> {
    in_mesh("strict-probes", |ns| {
        make_strict(ns)?;
        let probes = [
            ("http", "httpGet: {path: /healthz, port: 9081}".to_owned()),
            ("tcp", "tcpSocket: {port: 9082}".to_owned()),
            ("grpc", "grpc: {port: 9083}".to_owned()),
            ("exec", format!("exec: {{command: [{PROGRAM}, --version]}}")),
        ];
        let mut yaml =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: probed, labels: {app: probed}}\nspec:\n  containers:\n"
                .to_owned();
        for ((name, probe), port) in probes.iter().zip(9081..) {
            let kinds = ["startupProbe", "readinessProbe", "livenessProbe"]
                .map(|kind| format!(", {kind}: {{{probe}, periodSeconds: 1, failureThreshold: 3}}"));
            let _ = writeln!(yaml, "  - {}", container(name, &serve(name, port), &kinds.concat()));
        }
        ns.apply(&yaml)?;
        ns.wait("pod/probed", "condition=Ready", READY)?;
        // As long as a liveness probe takes to restart a container, and longer.
        let client = client(ns, "web")?;
        ns.apply(&(server("echo")))?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        client
            .load("http://echo:9080/")
            .rate(50)
            .duration(std::time::Duration::from_secs(5))
            .run()?
            .expect_none_failed(100)?;
        let pod = ns.get("pod", "probed")?;
        let statuses = pod["status"]["containerStatuses"].as_array().context("containers have a status")?;
        for status in statuses {
            ensure!(status["ready"] == true && status["restartCount"] == 0, "{status}");
        }
        Ok(())
    })
}

/// Container `caller` has the hooks, which call container `callee`. That listens before `caller` starts and until after it
/// ends, because its own preStop hook lasts for the whole grace period.
#[test]
fn strict_pods_run_lifecycle_hooks() -> Result<()> {
    in_mesh("strict-hooks", |ns| {
        make_strict(ns)?;
        let client = client(ns, "web")?;
        let idle = format!(", lifecycle: {{preStop: {{exec: {{command: [{PROGRAM}, idle]}}}}}}");
        let hooks = format!(
            ", lifecycle: {{postStart: {{httpGet: {{path: /started, port: {PORT}}}}}, preStop: {{httpGet: {{path: /stopped, port: \
             {PORT}}}}}}}"
        );
        ns.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: hooked, labels: {{app: hooked}}}}\nspec:\n  terminationGracePeriodSeconds: \
             20\n  containers:\n  - {}\n  - {}\n",
            container("callee", &serve("hooked", PORT), &idle),
            container("caller", "idle", &hooks),
        ))?;
        ns.wait("pod/hooked", "condition=Ready", READY)?;
        let seen = format!("http://{}:{PORT}/_seen", address(ns, "hooked")?);
        let await_request = |path: &str| {
            eventually(&format!("the application to get {path}"), SOON, || {
                let seen = client.get(&seen).send()?.expect_status(200)?.json()?;
                ensure!(seen["by_path"][path].as_u64() >= Some(1), "it got {seen}");
                Ok(())
            })
        };
        await_request("GET /started")?;
        ns.delete("pod", "hooked")?;
        await_request("GET /stopped")
    })
}

#[test]
fn strict_jobs_with_init_containers_reach_services_and_finish() -> Result<()> {
    in_mesh("strict-job", |ns| {
        make_strict(ns)?;
        ns.apply(&server("echo"))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        let url = "\"http://echo:9080/\"";
        ns.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: batch}}\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: \
             batch}}\nspec:\n  backoffLimit: 0\n  template:\n    metadata: {{labels: {{app: batch}}}}\n    spec:\n      \
             restartPolicy: Never\n      serviceAccountName: batch\n      initContainers:\n      - {}\n      containers:\n      - {}\n",
            container("before", &format!("request, --url, {url}"), ""),
            container("work", &format!("load, --url, {url}, --requests, \"100\""), ""),
        ))?;
        ns.wait("job/batch", "condition=Complete", READY)?;
        let logs = |container: &str| ns.run(&["logs", "job/batch", "-c", container]);
        let before: Answer =
            serde_json::from_str(&logs("before")?).context("reading what the init container printed")?;
        let before = before.expect_status(200)?;
        ensure!(received(&before)? == [forwarded(ns, "echo", "batch")], "{before:?}");
        Report::parse(&logs("work")?)?.expect_none_failed(100)
    })
}

#[test]
fn strict_members_of_a_stateful_set_call_each_other_by_name() -> Result<()> {
    in_mesh("strict-members", |ns| {
        make_strict(ns)?;
        let probe = format!(", readinessProbe: {{httpGet: {{path: /healthz, port: {PORT}}}, periodSeconds: 1}}");
        ns.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: member}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: \
             member}}\nspec:\n  clusterIP: None\n  selector: {{app: member}}\n  ports: [{{name: http, port: {PORT}}}]\n---\napiVersion: \
             apps/v1\nkind: StatefulSet\nmetadata: {{name: member}}\nspec:\n  serviceName: member\n  replicas: 3\n  \
             podManagementPolicy: Parallel\n  selector: {{matchLabels: {{app: member}}}}\n  template:\n    metadata: {{labels: {{app: \
             member}}}}\n    spec:\n      serviceAccountName: member\n      containers:\n      - {}\n",
            container("member", &serve("member", PORT), &probe),
        ))?;
        ns.rolled_out("statefulset/member", READY)?;
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let member = Client::within(ns, &format!("member-{from}"), "member");
            identified(ns, &member, &format!("http://member-{to}.member:{PORT}/"), "member", "member")?;
            let load = member.load(&format!("http://member-{to}.member:{PORT}/")).requests(100).run()?;
            load.expect_none_failed(100)?;
            ensure!(load.by_pod.keys().eq([&format!("member-{to}")]), "{:?}", load.by_pod);
        }
        let plaintext = requests(ns, "member", &[("direction", "inbound"), ("security", "plaintext")])?;
        ensure!(plaintext == 0.0, "{plaintext} requests between members were plaintext");
        Ok(())
    })
}

#[test]
fn declared_plaintext_ports_admit_only_their_ip_blocks() -> Result<()> {
    let outside = Namespace::create("strict-scrapers", Mesh::Outside)?;
    let scraper = Client::deploy(&outside)?;
    outside.apply(&App::client("other").yaml())?;
    outside.wait_ready(&["other"])?;
    let other = Client::of(&outside, "other");
    in_mesh("strict-ports", |ns| {
        make_strict(ns)?;
        ns.apply(&(server("scraped") + &server("echo")))?;
        ns.wait_ready(&["scraped-v1", "echo-v1"])?;
        let declared = format!(
            "mtls: {{mode: Strict, ports: [{{port: {PORT}, mode: Permissive, ipBlocks: [{}/32]}}]}}",
            address(&outside, "client")?
        );
        ns.program(&policy("scraped", "{kind: Service, name: scraped}", &declared), &["meshpolicy/scraped"])?;
        let url = |service: &str| format!("http://{service}.{}:{PORT}/", ns.name);
        eventually("the declared port to take plaintext", SOON, || {
            scraper.get(&url("scraped")).send()?.expect_status(200).map(drop)
        })?;
        for (client, service) in [(&other, "scraped"), (&scraper, "echo")] {
            let answer = client.get(&url(service)).send()?.expect_status(403)?;
            ensure!(answer.reason() == Some("plaintext-refused"), "{service}: {answer:?}");
        }
        let ready = ns.await_condition("meshpolicy", "scraped", "Ready", "True")?;
        ensure!(ready.reason == "PlaintextDeclared", "{ready:?}");
        ensure!(ready.message.contains("1 port accepts plaintext by declaration"), "{ready:?}");
        Ok(())
    })
}

#[test]
fn policies_say_who_would_be_refused_in_strict() -> Result<()> {
    let outside = Namespace::create("strict-callers", Mesh::Outside)?;
    outside.apply(&App::client("legacy").yaml())?;
    outside.wait_ready(&["legacy"])?;
    in_mesh("strict-ready", |ns| {
        ns.program(&policy("mode", "{kind: Namespace}", "mtls: {mode: Permissive}"), &["meshpolicy/mode"])?;
        ns.apply(&server("echo"))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        let await_ready = |status: &str| {
            eventually(&format!("StrictReady={status}"), READY, || {
                let found = ns.condition("meshpolicy", "mode", "StrictReady")?;
                ensure!(found.status == status, "{found:?}");
                Ok(found)
            })
        };
        await_ready("True")?;
        let legacy = Client::of(&outside, "legacy");
        legacy.get(&format!("http://echo.{}:9080/", ns.name)).send()?.expect_status(200)?;
        let found = await_ready("False")?;
        ensure!(found.reason == "PlaintextCallers", "{found:?}");
        ensure!(found.message.contains(&format!("{}/legacy", outside.name)), "the message names the caller: {found:?}");
        Ok(())
    })
}
