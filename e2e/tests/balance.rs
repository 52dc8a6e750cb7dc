//! Load balancing: policies, outlier detection, health checks, slow start, session affinity, locality and the retry
//! budget.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::mesh::{each_reachable, proxy_metrics, route_in_force};
use weft_e2e::namespace::{Namespace, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

/// Deploys Service `echo` with these servers, and a client.
fn echo(ns: &Namespace, servers: &[App]) -> Result<Client> {
    let yaml: String = servers.iter().map(App::yaml).collect();
    ns.apply(&(Service::new("echo").yaml() + &yaml))?;
    let client = Client::deploy(ns)?;
    let names: Vec<String> = (1..=servers.len()).map(|number| format!("echo-v{number}")).collect();
    ns.wait_ready(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    each_reachable(ns, &client, "echo")?;
    Ok(client)
}

/// Applies a MeshCluster for `echo` and waits until it is programmed.
fn cluster(ns: &Namespace, fields: &str) -> Result<()> {
    let yaml = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshCluster\nmetadata: {{name: echo}}\nspec:\n  targetRef: {{kind: Service, \
         name: echo}}\n{fields}"
    );
    ns.program(&yaml, &["meshcluster/echo"])
}

/// Checks that health checks find one pod of `echo` unhealthy, and that no request goes to it.
fn one_pod_is_excluded(ns: &Namespace, client: &Client) -> Result<()> {
    eventually("the unhealthy pod to be found", SOON, || {
        // Only clusters in use are checked.
        client.get("http://echo:9080/").send()?.expect_status(200)?;
        let unhealthy = proxy_metrics(ns, "client")?.sum("weft_endpoints_unhealthy", &[]);
        ensure!(unhealthy == 1.0, "{unhealthy} pods are unhealthy");
        Ok(())
    })?;
    let before = proxy_metrics(ns, "client")?.sum("weft_retries_total", &[]);
    client.load("http://echo:9080/").requests(200).run()?.expect_none_failed(200)?;
    let retries = proxy_metrics(ns, "client")?.sum("weft_retries_total", &[]) - before;
    ensure!(retries == 0.0, "{retries} requests were retried, so they went to it");
    Ok(())
}

#[test]
fn failing_pod_is_ejected() -> Result<()> {
    in_mesh("balance-outlier", |ns| {
        let failing = App::server("echo", "v2").arguments(&["--fail-every", "1"]);
        let client = echo(ns, &[App::server("echo", "v1").replicas(2), failing])?;
        // Ejected by the default settings.
        eventually("the failing pod to be ejected", SOON, || {
            let report = client.load("http://echo:9080/").requests(100).run()?;
            report.expect_none_failed(100)?;
            // Checks that the proxy knows the pod already.
            let metrics = proxy_metrics(ns, "client")?;
            let ejections = metrics.sum("weft_outlier_ejections_total", &[("detector", "consecutive-5xx")]);
            let ejected = metrics.sum("weft_endpoints_ejected", &[]);
            ensure!(ejections >= 1.0 && ejected >= 1.0, "{:?}", metrics.with_prefix("weft_outlier"));
            Ok(())
        })?;
        // Without outlier detection the pod gets its share of the requests again, all of which fail.
        cluster(ns, "  loadBalancer: {policy: Random}\n  outlierDetection: {enabled: false}\n")?;
        eventually("the failing pod to get its share", SOON, || {
            let report = client.load("http://echo:9080/").requests(300).run()?;
            ensure!((60..=140).contains(&report.status(503)), "a third fails: {}", report.summary());
            Ok(())
        })?;
        // With short ejections the pod is retried repeatedly, and few requests fail each time.
        cluster(
            ns,
            "  loadBalancer: {policy: Random}\n  outlierDetection: {consecutive5xx: 2, baseEjectionTime: 1s}\n",
        )?;
        let ejections = |ns: &Namespace| {
            Ok::<f64, anyhow::Error>(proxy_metrics(ns, "client")?.sum("weft_outlier_ejections_total", &[]))
        };
        let before = ejections(ns)?;
        eventually("most requests to succeed", SOON, || {
            let report = client.load("http://echo:9080/").requests(600).rate(200).run()?;
            ensure!(report.status(503) <= 40, "{} of 600 fail: {}", report.status(503), report.summary());
            Ok(())
        })?;
        let times = ejections(ns)? - before;
        ensure!(times >= 1.0, "the pod should be ejected again, not {times} times");
        Ok(())
    })
}

#[test]
fn each_outlier_detector_ejects_a_failing_pod() -> Result<()> {
    in_mesh("balance-signals", |ns| {
        let odd = |argument: &str, value: &str| App::server("echo", "v2").arguments(&[argument, value]);
        let client = echo(ns, &[App::server("echo", "v1").replicas(2), odd("--fail-every", "1")])?;
        let rules = "- backendRefs: [{name: echo, port: 9080}]\n  timeouts: {backendRequest: 200ms}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let ejected_by = |signal: &str, settings: &str| -> Result<()> {
            let all_off = ["consecutive5xx", "consecutiveGatewayErrors", "consecutiveLocalFailures"];
            let off: String = (all_off.iter().filter(|field| !settings.contains(*field)))
                .map(|field| format!("{field}: 0, "))
                .collect();
            cluster(
                ns,
                &format!(
                    "  loadBalancer: {{policy: Random}}\n  outlierDetection: {{{off}{settings}, interval: 1s, \
                     baseEjectionTime: 1s}}\n"
                ),
            )?;
            let count = || {
                Ok::<f64, anyhow::Error>(
                    proxy_metrics(ns, "client")?.sum("weft_outlier_ejections_total", &[("detector", signal)]),
                )
            };
            let before = count()?;
            eventually(&format!("an ejection by {signal}"), SOON, || {
                client.load("http://echo:9080/").requests(150).rate(100).concurrency(30).run()?;
                let times = count()? - before;
                ensure!(times >= 1.0, "{times} ejections by {signal}");
                Ok(())
            })
        };
        let alone = "successRate: {deviationsPermille: 0}";
        ejected_by("consecutive-gateway-errors", &format!("consecutiveGatewayErrors: 3, {alone}"))?;
        ejected_by("success-rate", "successRate: {minPods: 3, minRequests: 10, deviationsPermille: 1000}")?;
        ns.apply(&odd("--delay", "2s").yaml())?;
        ns.run(&["rollout", "status", "deployment/echo-v2", "--timeout", "60s"])?;
        ejected_by("consecutive-local-failures", &format!("consecutiveLocalFailures: 3, {alone}"))
    })
}

#[test]
fn retry_budget_bounds_retries() -> Result<()> {
    in_mesh("balance-budget", |ns| {
        let client = echo(ns, &[App::server("echo", "v1").arguments(&["--fail-every", "1"])])?;
        let rules = "- backendRefs: [{name: echo, port: 9080}]\n  retry: {attempts: 3, codes: [503], backoff: 1ms}\n";
        route_in_force(ns, &client, "echo", rules)?;
        let counted = |metric: &str| Ok::<f64, anyhow::Error>(proxy_metrics(ns, "client")?.sum(metric, &[]));
        let (retries, refused) = (counted("weft_retries_total")?, counted("weft_retries_refused_total")?);
        let server = |ns: &Namespace| {
            let metrics = proxy_metrics(ns, "echo")?;
            Ok::<f64, anyhow::Error>(metrics.sum("weft_requests_total", &[("direction", "inbound")]))
        };
        let before = server(ns)?;
        let report = client.load("http://echo:9080/").requests(4_000).rate(400).concurrency(16).run()?;
        ensure!(report.status(503) == 4_000, "all fail: {}", report.summary());
        // The kubelet's probes do not pass through the inbound listener, so all of these are the client's requests.
        let reached = server(ns)? - before;
        println!("4000 failing requests reached the backend {reached} times");
        ensure!((4_400.0..=4_800.0).contains(&reached), "4000 requests reached the backend {reached} times");
        let retries = counted("weft_retries_total")? - retries;
        ensure!(retries == reached - 4_000.0, "{retries} retries are counted");
        ensure!(counted("weft_retries_refused_total")? > refused, "retries denied by the budget are counted");
        Ok(())
    })
}

#[test]
fn slow_start_ramps_up_a_new_pod() -> Result<()> {
    in_mesh("balance-slow-start", |ns| {
        echo(ns, &[App::server("echo", "v1")])?;
        // A proxy that starts when v1 exists does not slow-start it; for the first client's proxy v1 may be new.
        ns.apply(&App::client("late").yaml())?;
        ns.wait_ready(&["late"])?;
        let client = Client::of(ns, "late");
        cluster(ns, "  loadBalancer: {policy: RoundRobin, slowStart: {window: 30s, minPercent: 10}}\n")?;
        let load = client.load("http://echo:9080/").rate(100).duration(Duration::from_secs(75)).timeline().start()?;
        ns.apply(&App::server("echo", "v2").yaml())?;
        ns.wait_ready(&["echo-v2"])?;
        let report = load.finish()?;
        report.expect_none_failed(3_000)?;
        let of_v2 = |entry: &&(u64, u16, String, f64)| entry.2 == "v2";
        let joined = report.timeline.iter().filter(of_v2).map(|entry| entry.0).min().context("v2 was never chosen")?;
        // Seconds after the first request to v2.
        let share = |from: u64, to: u64| {
            let within =
                |entry: &&(u64, u16, String, f64)| (joined + from * 1000..joined + to * 1000).contains(&entry.0);
            let all = report.timeline.iter().filter(within).count();
            let joined = report.timeline.iter().filter(within).filter(of_v2).count();
            (joined as f64 / all.max(1) as f64, all)
        };
        let ((first, few), (middle, _), (last, many)) = (share(0, 5), share(12, 18), share(31, 45));
        println!("share of v2: {first:.2} in the first 5 s, {middle:.2} around 15 s, {last:.2} after 30 s");
        ensure!(few >= 300 && many >= 800, "only {few} and {many} requests were sent");
        // The full share is one half: a tenth of that at first, half of it at half of the window.
        ensure!((0.005..=0.15).contains(&first), "{first} in the first 5 s");
        ensure!((0.15..=0.35).contains(&middle), "{middle} around 15 s");
        ensure!((0.45..=0.55).contains(&last), "{last} after 30 s");
        Ok(())
    })
}

#[test]
fn hashing_and_sticky_sessions_pin_a_client_to_a_pod() -> Result<()> {
    in_mesh("balance-affinity", |ns| {
        let client = echo(ns, &[App::server("echo", "v1").replicas(4)])?;
        for policy in ["RingHash", "Maglev"] {
            cluster(ns, &format!("  loadBalancer: {{policy: {policy}, hashOn: {{type: Header, name: x-user}}}}\n"))?;
            eventually("each user to have one pod, and the pods to have users", SOON, || {
                let mut pods = BTreeSet::new();
                for user in 0..16 {
                    let load = client.load("http://echo:9080/").header("x-user", &format!("user-{user}"));
                    let report = load.requests(10).run()?;
                    ensure!(report.by_pod.len() == 1, "{policy}, user {user}: {}", report.summary());
                    pods.extend(report.by_pod.into_keys());
                }
                ensure!(pods.len() >= 3, "{policy}: 16 users are on {pods:?}");
                Ok(())
            })?;
        }
        for (hash_on, one, header) in [
            ("{type: Cookie, name: user}", "/", Some(("cookie", "a=b; user=7"))),
            ("{type: QueryParam, name: user}", "/?user=7", None),
            ("{type: SourceAddress}", "/", None),
        ] {
            cluster(ns, &format!("  loadBalancer: {{policy: Maglev, hashOn: {hash_on}}}\n"))?;
            eventually(&format!("{hash_on} to pin the client to a pod"), SOON, || {
                let load = client.load(&format!("http://echo:9080{one}")).requests(60);
                let report = header.iter().fold(load, |load, (name, value)| load.header(name, value)).run()?;
                ensure!(report.by_pod.len() == 1, "{}", report.summary());
                Ok(())
            })?;
        }
        cluster(ns, "  loadBalancer: {policy: RoundRobin, stickySession: {name: s, ttl: 1h}}\n")?;
        let set = eventually("the proxy to set a cookie", SOON, || {
            let answer = client.get("http://echo:9080/").send()?.expect_status(200)?;
            answer.header("set-cookie").map(str::to_owned).context("no set-cookie header")
        })?;
        ensure!(set.ends_with("; Path=/; Max-Age=3600; HttpOnly"), "{set}");
        let cookie = set.split(';').next().unwrap_or_default();
        let report = client.load("http://echo:9080/").header("cookie", cookie).requests(60).run()?;
        ensure!(report.by_pod.len() == 1, "requests with the cookie go to one pod: {}", report.summary());
        let report = client.load("http://echo:9080/").requests(60).run()?;
        ensure!(report.by_pod.len() == 4, "requests without it go to all pods: {}", report.summary());
        Ok(())
    })
}

#[test]
fn same_zone_pods_are_preferred() -> Result<()> {
    in_mesh("balance-zone", |ns| {
        let client = echo(ns, &[App::server("echo", "v1"), App::server("echo", "v2")])?;
        let label = |pod: &Value, name: &str| pod["metadata"]["labels"][name].as_str().map(str::to_owned);
        let local = label(&ns.get("pod", &ns.pod_of("client")?)?, "topology.kubernetes.io/zone");
        let local = local.context("the pod has no zone label: Kubernetes sets it from 1.35 on")?;
        let mut address = BTreeMap::new();
        for pod in ns.pods_of("echo")? {
            let pod = ns.get("pod", &pod)?;
            address.insert(label(&pod, "version").unwrap_or_default(), pod["status"]["podIP"].to_string());
        }
        // All nodes may be in one zone. A Service without a selector takes the zones from its EndpointSlice.
        let slice = |zones: &[(&str, &str)]| {
            let endpoints: Vec<String> = (zones.iter())
                .map(|(version, zone)| {
                    format!("{{addresses: [{}], conditions: {{ready: true}}, zone: {zone}}}", address[*version])
                })
                .collect();
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: zoned, labels: \
                 {{kubernetes.io/service-name: zoned}}}}\naddressType: IPv4\nports: [{{name: main, port: 9080}}]\nendpoints: \
                 [{}]\n",
                endpoints.join(", ")
            )
        };
        let service = |more: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: zoned}}\nspec:\n  ports: [{{name: main, port: 9080}}]\n{more}"
            )
        };
        let share = |wanted: std::ops::RangeInclusive<f64>| {
            eventually(&format!("{wanted:?} of the requests to be answered by v2"), SOON, || {
                let report = client.load("http://zoned:9080/").requests(100).run()?;
                report.expect_none_failed(100)?;
                ensure!(wanted.contains(&report.share("v2")), "{}", report.summary());
                Ok(())
            })
        };
        ns.apply(&(service("") + &slice(&[("v1", "elsewhere"), ("v2", &local)])))?;
        share(0.1..=0.9)?;
        ns.apply(&service("  trafficDistribution: PreferSameZone\n"))?;
        share(1.0..=1.0)?;
        ns.apply(&slice(&[("v1", "elsewhere")]))?;
        share(0.0..=0.0)
    })
}

#[test]
fn http_health_checks_exclude_unhealthy_pods() -> Result<()> {
    in_mesh("balance-health", |ns| {
        let client = echo(ns, &[App::server("echo", "v1").replicas(2)])?;
        ns.apply(&App::not_listening("echo", "not-listening").yaml())?;
        ns.wait_ready(&["echo-not-listening"])?;
        cluster(
            ns,
            "  loadBalancer: {policy: Random}\n  outlierDetection: {enabled: false}\n  healthCheck: {type: HTTP, path: /healthz, \
             interval: 1s, timeout: 1s, unhealthyThreshold: 2}\n",
        )?;
        one_pod_is_excluded(ns, &client)?;
        // Where no pod is healthy, the panic threshold decides between all pods and none.
        let none_healthy =
            "healthCheck: {type: HTTP, path: /, port: 1, interval: 1s, timeout: 1s, unhealthyThreshold: 1}";
        for (threshold, status) in [(0, 503), (50, 200)] {
            ns.run(&["delete", "deployment/echo-not-listening", "--ignore-not-found"])?;
            cluster(ns, &format!("  loadBalancer: {{panicThreshold: {threshold}}}\n  {none_healthy}\n"))?;
            eventually(&format!("{status} with a threshold of {threshold} %"), SOON, || {
                let answer = client.get("http://echo:9080/").send()?.expect_status(status)?;
                let unhealthy = proxy_metrics(ns, "client")?.sum("weft_endpoints_unhealthy", &[]);
                ensure!(unhealthy == 2.0, "{unhealthy} pods are unhealthy");
                ensure!(status == 200 || answer.reason() == Some("no-endpoints"), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn grpc_health_checks_exclude_unhealthy_pods() -> Result<()> {
    in_mesh("balance-health-grpc", |ns| {
        let not_serving = App::server("echo", "v2").arguments(&["--not-serving"]);
        let client = echo(ns, &[App::server("echo", "v1"), not_serving])?;
        let check = "{type: GRPC, interval: 1s, timeout: 1s, unhealthyThreshold: 2}";
        cluster(ns, &format!("  loadBalancer: {{policy: Random}}\n  healthCheck: {check}\n"))?;
        eventually("the pod that is NOT_SERVING to get no requests", SOON, || {
            let report = client.load("http://echo:9080/").requests(100).run()?;
            report.expect_none_failed(100)?;
            ensure!(report.share("v1") == 1.0, "{}", report.summary());
            // Checks that the proxy knows the pod already.
            let unhealthy = proxy_metrics(ns, "client")?.sum("weft_endpoints_unhealthy", &[]);
            ensure!(unhealthy == 1.0, "{unhealthy} pods are unhealthy");
            Ok(())
        })
    })
}

#[test]
fn tcp_health_checks_exclude_unhealthy_pods_outside_the_mesh() -> Result<()> {
    in_mesh("balance-health-tcp", |ns| {
        // In the mesh the pod's proxy would accept the connection; outside it only the application does.
        let outside = |app: App| app.label("weft.dev/inject", "false");
        let client = echo(ns, &[outside(App::server("echo", "v1"))])?;
        ns.apply(&outside(App::not_listening("echo", "not-listening")).yaml())?;
        ns.wait_ready(&["echo-not-listening"])?;
        let check = "{type: TCP, interval: 1s, timeout: 1s, unhealthyThreshold: 2}";
        cluster(ns, &format!("  outlierDetection: {{enabled: false}}\n  healthCheck: {check}\n"))?;
        one_pod_is_excluded(ns, &client)?;
        Ok(())
    })
}
