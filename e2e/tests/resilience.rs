//! Timeouts, retries, hedging, limits, overload, and backends that come and go under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::mesh::{each_reachable, proxy_metrics, route_in_force};
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, PROGRAM, Service};

/// Deploys Service `echo` with one version, and a client.
fn echo(ns: &Namespace, server: App) -> Result<Client> {
    ns.apply(&(Service::new("echo").yaml() + &server.yaml()))?;
    let client = Client::deploy(ns)?;
    ns.wait_ready(&["echo-v1"])?;
    each_reachable(ns, &client, "echo")?;
    Ok(client)
}

/// The requests that the only pod of `echo` has counted, read inside the pod so that no proxy is in between.
fn seen(ns: &Namespace) -> Result<Value> {
    let pod = ns.pod_of("echo")?;
    let url = "http://127.0.0.1:9080/_seen";
    let printed = ns.run(&["exec", &pod, "-c", "echo", "--", PROGRAM, "request", "--url", url])?;
    let answer: Value = serde_json::from_str(&printed)?;
    Ok(serde_json::from_str(answer["body"].as_str().unwrap_or_default())?)
}

#[test]
fn request_and_attempt_timeouts_answer_504() -> Result<()> {
    in_mesh("resilience-timeout", |ns| {
        let client = echo(ns, App::server("echo", "v1"))?;
        let rules = "- name: whole\n  matches: [{path: {value: /whole}}]\n  backendRefs: [{name: echo, port: 9080}]\n  timeouts: {request: \
                     1s}\n- name: attempt\n  matches: [{path: {value: /attempt}}]\n  backendRefs: [{name: echo, port: 9080}]\n  timeouts: \
                     {request: 5s, backendRequest: 500ms}\n";
        route_in_force(ns, &client, "echo", rules)?;
        for (path, reason, ms) in [("/whole", "request-timeout", 1000), ("/attempt", "attempt-timeout", 500)] {
            let mut took = Vec::new();
            for _ in 0..5 {
                let answer = client.get(&format!("http://echo:9080{path}?delay=3s")).send()?.expect_status(504)?;
                ensure!(answer.reason() == Some(reason), "{path}: {answer:?}");
                ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo{path}", ns.name)), "{path}: {answer:?}");
                took.push(answer.ms);
            }
            // No answer is early. On a busy machine some are late, but not all.
            let (earliest, latest) = (took.iter().min(), took.iter().max());
            ensure!(
                earliest >= Some(&ms) && earliest < Some(&(ms + 500)) && latest < Some(&2900),
                "{path}: 504 should come after {ms} ms, and came after {took:?}"
            );
            client.get(&format!("http://echo:9080{path}?delay=50ms")).send()?.expect_status(200)?;
        }
        Ok(())
    })
}

#[test]
fn retries_hide_failures_and_are_counted() -> Result<()> {
    in_mesh("resilience-retry", |ns| {
        let client = echo(ns, App::server("echo", "v1").arguments(&["--fail-every", "3"]))?;
        let rules = "- backendRefs: [{name: echo, port: 9080}]\n  retry: {attempts: 2, codes: [503], backoff: 1ms}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let before = (proxy_metrics(ns, "client")?.sum("weft_retries_total", &[]), seen(ns)?["requests"].as_u64());
        // One at a time, so that a retry never meets another failure; and half as many retries per second as the budget
        // always allows.
        let report = client.load("http://echo:9080/").requests(120).concurrency(1).rate(10).run()?;
        report.expect_none_failed(120)?;
        let metrics = proxy_metrics(ns, "client")?;
        let retried = metrics.sum("weft_retries_total", &[]) - before.0;
        let reached = seen(ns)?["requests"].as_u64().zip(before.1).map_or(0, |(now, before)| now - before);
        ensure!(
            reached > 160 && retried == (reached - 120) as f64,
            "120 requests reached the backend {reached} times, and {retried} retries are counted: {:?}",
            metrics.with_prefix("weft_retries")
        );
        Ok(())
    })
}

#[test]
fn without_a_retry_policy_failures_reach_the_client() -> Result<()> {
    in_mesh("resilience-no-retry", |ns| {
        let client = echo(ns, App::server("echo", "v1").arguments(&["--fail-every", "3"]))?;
        let report = client.load("http://echo:9080/").requests(90).concurrency(1).run()?;
        ensure!(
            report.status(503) == 30 && report.status(200) == 60,
            "every third request fails: {}",
            report.summary()
        );
        ensure!(report.by_reason.is_empty(), "the server's own 503 is passed on unchanged: {}", report.summary());
        Ok(())
    })
}

#[test]
fn post_is_retried_only_if_configured() -> Result<()> {
    in_mesh("resilience-post", |ns| {
        let client = echo(ns, App::server("echo", "v1"))?;
        let retry = "retry: {attempts: 3, codes: [503], backoff: 1ms";
        let rules = format!(
            "- name: asked-for\n  matches: [{{path: {{value: /asked-for}}}}]\n  backendRefs: [{{name: echo, port: 9080}}]\n  {retry}, methods: \
             [GET, POST]}}\n- name: default\n  backendRefs: [{{name: echo, port: 9080}}]\n  {retry}}}\n"
        );
        route_in_force(ns, &client, "echo", &rules)?;
        for (method, path, times) in
            [("POST", "/once", 1), ("PATCH", "/once", 1), ("PUT", "/put", 4), ("POST", "/asked-for", 4)]
        {
            let token = format!("{method}{}", path.replace('/', "-"));
            let answer = client
                .get(&format!("http://echo:9080{path}?status=503"))
                .method(method)
                .header("x-request-token", &token)
                .body("an order")
                .send()?;
            ensure!(answer.status == 503, "{method} {path}: {answer:?}");
            let reached = &seen(ns)?["by_token"][&token];
            ensure!(*reached == times, "{method} {path} should reach the backend {times} times, not {reached}");
        }
        // Not retried when the application itself sends `weft-unprocessed`, the header by which its proxy reports
        // that the application has not seen the request.
        let forged = client
            .get("http://echo:9080/once?status=503&header=weft-unprocessed:true")
            .method("POST")
            .header("x-request-token", "forged")
            .body("an order");
        let answer = forged.send()?;
        ensure!(answer.status == 503 && !answer.headers.contains_key("weft-unprocessed"), "{answer:?}");
        let reached = &seen(ns)?["by_token"]["forged"];
        ensure!(*reached == 1, "a POST with a forged weft-unprocessed reached the backend {reached} times");
        // Not retried after a timeout: the request may have had its effect.
        let rules = "- backendRefs: [{name: echo, port: 9080}]\n  timeouts: {backendRequest: 300ms}\n  retry: {attempts: 3, backoff: 1ms}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let slow =
            client.get("http://echo:9080/slow?delay=2s").method("POST").header("x-request-token", "slow").body("x");
        slow.send()?.expect_status(504)?;
        let reached = &seen(ns)?["by_token"]["slow"];
        ensure!(*reached == 1, "a POST that timed out reached the backend {reached} times");
        Ok(())
    })
}

#[test]
fn overloaded_proxy_refuses_requests_and_survives() -> Result<()> {
    in_mesh("resilience-overload", |ns| {
        let limit = "config.weft.dev/proxy-memory-limit";
        let server = App::server("echo", "v1").annotation("config.weft.dev/proxy-memory-request", "32Mi");
        let client = echo(ns, server.annotation(limit, "64Mi"))?;
        // The proxy buffers each body for a retry until the response comes: 6 MB more each second, for 20 s.
        let load =
            client.load("http://echo:9080/?delay=20s").method("POST").requests(2_000).rate(100).concurrency(1_500);
        let load = load.with(&["--body-bytes", "60000", "--timeout", "60s"]).limit(Duration::from_secs(150)).start()?;
        let mut percent: f64 = 0.0;
        eventually("the proxy to refuse", READY, || {
            let metrics = proxy_metrics(ns, "echo")?;
            percent = percent.max(metrics.sum("weft_memory_utilization_ratio", &[]) * 100.0);
            ensure!(percent >= 95.0, "{percent} % of the memory limit is in use");
            Ok(())
        })?;
        let report = load.finish()?;
        let refused = report.by_reason.get("overload").copied().unwrap_or_default();
        println!("{refused} of {} requests were refused at {percent} % of the memory limit", report.requests);
        ensure!(refused > 0 && report.status(503) >= refused, "{}", report.summary());
        ensure!(report.status(200) >= 300, "requests within the limit are answered: {}", report.summary());
        ensure!(report.errors.is_empty(), "every request gets a response: {}", report.summary());
        eventually("a request to be answered again", SOON, || {
            client.get("http://echo:9080/").send()?.expect_status(200)?;
            Ok(())
        })?;
        let pod = ns.get("pod", &ns.pod_of("echo")?)?;
        for statuses in ["initContainerStatuses", "containerStatuses"] {
            for status in pod["status"][statuses].as_array().into_iter().flatten() {
                ensure!(status["restartCount"] == 0, "{} was restarted: {}", status["name"], status["lastState"]);
            }
        }
        Ok(())
    })
}

#[test]
fn requests_beyond_limits_overflow_or_queue() -> Result<()> {
    in_mesh("resilience-limit", |ns| {
        let client = echo(ns, App::server("echo", "v1"))?;
        let limits = |limits: &str| {
            let yaml = format!(
                "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {{name: echo}}\nspec:\n  targetRef: {{kind: Service, \
                 name: echo}}\n  limits: {limits}\n"
            );
            ns.program(&yaml, &["meshcluster/echo"])
        };
        let load = client.load("http://echo:9080/?delay=500ms").requests(12).concurrency(6);
        for limit in ["{maxRequests: 2}", "{maxConnections: 2, maxPending: 0}"] {
            limits(limit)?;
            eventually("the limit to be in force", SOON, || {
                let report = load.run()?;
                ensure!(report.by_reason.contains_key("overflow"), "{limit}: {}", report.summary());
                ensure!(report.status(200) >= 2, "requests within the limit succeed: {}", report.summary());
                Ok(())
            })?;
        }
        limits("{maxConnections: 2, maxPending: 10}")?;
        eventually("requests beyond the limit to queue", SOON, || {
            let report = load.run()?;
            report.expect_none_failed(12)?;
            ensure!(report.seconds >= 2.5, "12 requests of 0.5 s, two at once, take {} s", report.seconds);
            Ok(())
        })
    })
}

#[test]
fn backend_rollout_fails_no_request() -> Result<()> {
    in_mesh("resilience-rollout", |ns| {
        let client = echo(ns, App::server("echo", "v1").replicas(3))?;
        let mut load =
            client.load("http://echo:9080/").requests(20_000).rate(700).concurrency(16).limit(READY * 2).start()?;
        let mut rollouts = 0;
        while load.is_running()? && rollouts < 2 {
            ns.run(&["rollout", "restart", "deployment/echo-v1"])?;
            ns.wait_ready(&["echo-v1"])?;
            rollouts += 1;
        }
        let report = load.finish()?;
        println!(
            "rollout of a backend: {} failed of {}, {rollouts} rollouts, {}",
            report.failed,
            report.requests,
            report.summary()
        );
        ensure!(
            rollouts > 0 && report.by_pod.len() > 3,
            "pods should be replaced during the load: {}",
            report.summary()
        );
        report.expect_none_failed(20_000)
    })
}

#[test]
fn scaling_sends_no_request_to_removed_pods() -> Result<()> {
    in_mesh("resilience-scale", |ns| {
        let client = echo(ns, App::server("echo", "v1").replicas(3))?;
        let load = client.load("http://echo:9080/").rate(200).duration(Duration::from_secs(40)).start()?;
        for replicas in [10, 3] {
            ns.run(&["scale", "deployment/echo-v1", &format!("--replicas={replicas}")])?;
            ns.wait_ready(&["echo-v1"])?;
            let pods = eventually(&format!("{replicas} pods"), READY, || {
                let pods = ns.pods_of("echo")?;
                ensure!(pods.len() == replicas, "{pods:?}");
                Ok(pods)
            })?;
            // Convergence: all present pods answer, and no other.
            eventually("all present pods and no other to answer", SOON, || {
                let report = client.load("http://echo:9080/").requests(300).run()?;
                report.expect_none_failed(300)?;
                let answered: Vec<&String> = report.by_pod.keys().collect();
                let removed: Vec<&&String> = answered.iter().filter(|pod| !pods.contains(pod)).collect();
                ensure!(removed.is_empty(), "removed pods answer: {removed:?}");
                ensure!(answered.len() == replicas, "only {answered:?} of {pods:?} answer");
                Ok(())
            })?;
        }
        let report = load.finish()?;
        println!("scale 3 to 10 to 3: {} failed of {}", report.failed, report.requests);
        report.expect_none_failed(1_000)
    })
}

#[test]
fn pods_of_an_unreachable_node_are_used_as_a_last_resort() -> Result<()> {
    in_mesh("resilience-lost", |ns| {
        let client = echo(ns, App::server("echo", "v1"))?;
        // A pod on a node that does not exist, with the address of a pod that answers.
        ns.apply(
            &(Service::new("lost").yaml()
                + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: lost, labels: {app: lost}}\nspec:\n  nodeName: silent\n  \
                   containers: [{name: lost, image: none}]\n"),
        )?;
        let echo = ns.get("pod", &ns.pod_of("echo")?)?;
        let address = &echo["status"]["podIP"];
        // Kubernetes creates no EndpointSlice for a pod on a node that does not exist.
        let uid = &ns.get("pod", "lost")?["metadata"]["uid"];
        ns.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: lost, labels: \
             {{kubernetes.io/service-name: lost}}}}\naddressType: IPv4\nports: [{{name: main, port: 9080}}]\nendpoints: \
             [{{addresses: [{address}], conditions: {{ready: false}}, targetRef: {{kind: Pod, name: lost, uid: {uid}}}}}]\n"
        ))?;
        let status = |ready: &str| {
            let conditions = format!("[{ready}, {{\"type\": \"ContainersReady\", \"status\": \"True\"}}]");
            let status = format!("{{\"phase\": \"Running\", \"podIP\": {address}, \"podIPs\": [{{\"ip\": {address}}}]");
            let patch = format!("{{\"status\": {status}, \"conditions\": {conditions}}}}}");
            ns.run(&["patch", "pod", "lost", "--subresource=status", "--type=merge", "-p", &patch])
        };
        let answered = |wanted: u16| {
            eventually(&format!("{wanted} from Service lost"), SOON, || {
                client.get("http://lost:9080/").send()?.expect_status(wanted)
            })
        };
        status(r#"{"type": "Ready", "status": "False"}"#)?;
        answered(200)?;
        // With a closed readiness gate the pod itself is not ready.
        status(r#"{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}"#)?;
        ensure!(answered(503)?.reason() == Some("no-endpoints"), "the reason should be no-endpoints");
        Ok(())
    })
}

#[test]
fn refused_connections_are_retried_on_another_pod() -> Result<()> {
    in_mesh("resilience-refused", |ns| {
        let client = echo(ns, App::server("echo", "v1").replicas(2))?;
        ns.apply(&App::not_listening("echo", "not-listening").yaml())?;
        ns.wait_ready(&["echo-not-listening"])?;
        // A request that no backend has seen is retried on another pod, also without a retry policy. Before the first
        // retry the proxy may not know the refusing pod yet.
        let (mut failed, before) = (Vec::new(), proxy_metrics(ns, "client")?.sum("weft_retries_total", &[]));
        eventually("a retry on another pod", SOON, || {
            let report = client.load("http://echo:9080/").requests(200).run()?;
            failed.extend(report.expect_none_failed(200).err());
            let metrics = proxy_metrics(ns, "client")?;
            ensure!(metrics.sum("weft_retries_total", &[]) > before, "{:?}", metrics.with_prefix("weft_retries"));
            Ok(())
        })?;
        failed.pop().map_or(Ok(()), Err)
    })
}

#[test]
fn connect_timeout_answers_503() -> Result<()> {
    in_mesh("resilience-connect", |ns| {
        let client = echo(ns, App::server("echo", "v1"))?;
        // An unassigned address of the pod network: a connection attempt gets no reply until the node's ARP requests
        // time out and the node answers "no route to host".
        let own = ns.get("pod", &ns.pod_of("client")?)?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        let (network, _) = own.rsplit_once('.').context("the pod has an address of IPv4")?;
        ns.apply(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: silent}}\nspec:\n  ports: [{{name: http, port: 9080}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: silent, labels: \
             {{kubernetes.io/service-name: silent}}}}\naddressType: IPv4\nports: [{{name: http, port: 9080}}]\nendpoints: \
             [{{addresses: [{network}.253], conditions: {{ready: true}}}}]\n"
        ))?;
        for timeout in [100, 200] {
            ns.program(
                &format!(
                    "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {{name: silent}}\nspec:\n  targetRef: {{kind: \
                     Service, name: silent}}\n  connect: {{timeout: {timeout}ms}}\n  outlierDetection: {{enabled: false}}\n"
                ),
                &["meshcluster/silent"],
            )?;
            eventually(&format!("connect attempts to time out after {timeout} ms"), SOON, || {
                let answer = client.get("http://silent:9080/").send()?.expect_status(503)?;
                let timed_out = answer.body.contains(&format!("no connection within {timeout}ms"));
                ensure!(answer.reason() == Some("connect-failed") && timed_out && answer.ms >= timeout, "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn hedging_avoids_a_slow_pod() -> Result<()> {
    in_mesh("resilience-hedge", |ns| {
        let client = echo(ns, App::server("echo", "v1").arguments(&["--delay", "2s"]))?;
        ns.apply(&App::server("echo", "v2").yaml())?;
        ns.wait_ready(&["echo-v2"])?;
        // Other policies would soon avoid the slow pod.
        ns.program(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {name: echo}\nspec:\n  targetRef: {kind: Service, name: \
             echo}\n  loadBalancer: {policy: Random}\n",
            &["meshcluster/echo"],
        )?;
        let rules = "- name: hedged\n  matches: [{path: {value: /hedged}}]\n  backendRefs: [{name: echo, port: 9080}]\n  hedge: {after: \
                     300ms}\n- backendRefs: [{name: echo, port: 9080}]\n";
        route_in_force(ns, &client, "echo", rules)?;
        eventually("both pods to answer", SOON, || {
            let report = client.load("http://echo:9080/").requests(30).concurrency(10).run()?;
            ensure!(report.share("v1") > 0.2 && report.share("v2") > 0.2, "{}", report.summary());
            Ok(())
        })?;
        let report = client.load("http://echo:9080/hedged").requests(80).rate(15).concurrency(8).run()?;
        report.expect_none_failed(80)?;
        ensure!(report.share("v2") > 0.95, "the fast pod answers: {}", report.summary());
        ensure!(report.latency_ms.get("p90").is_some_and(|&ms| ms < 1_800.0), "{}", report.summary());
        let metrics = proxy_metrics(ns, "client")?;
        let hedged = metrics.sum("weft_retries_total", &[("reason", "hedge")]);
        ensure!(
            (15.0..=65.0).contains(&hedged),
            "about half of the requests are hedged: {:?}",
            metrics.with_prefix("weft_retries")
        );
        let ejected: f64 = metrics.with_prefix("weft_outlier_ejections").iter().map(|sample| sample.value).sum();
        ensure!(ejected == 0.0, "a cancelled hedge is no failure: {:?}", metrics.with_prefix("weft_outlier"));
        // A POST is never hedged.
        let report = client.load("http://echo:9080/hedged").method("POST").requests(20).concurrency(10).run()?;
        ensure!(report.share("v1") > 0.1, "{}", report.summary());
        Ok(())
    })
}
