//! Connections between two pods of a labelled namespace, without further configuration.

use std::fs;

use anyhow::{Context, Result, ensure};
use weft_e2e::Cluster;
use weft_e2e::mesh::{requests, sum};
use weft_e2e::namespace::{Mesh, Namespace, READY, SOON, in_mesh};
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload::{App, Service};

use super::{client, forwarded, identified, received, server};

const MTLS: (&str, &str) = ("security", "mtls");

#[test]
fn labelled_namespace_is_encrypted_and_identified() -> Result<()> {
    in_mesh("identity", |ns| {
        ns.apply(&server("echo"))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;

        let count = || {
            let service = format!("{}/echo:9080", ns.name);
            let outbound = [("direction", "outbound"), ("service", service.as_str())];
            Ok::<_, anyhow::Error>([
                requests(ns, "web", &[outbound[0], outbound[1], MTLS])?,
                requests(ns, "web", &outbound)?,
                requests(ns, "echo", &[("direction", "inbound"), MTLS])?,
                requests(ns, "echo", &[("direction", "inbound")])?,
            ])
        };
        let before = count()?;
        client.load("http://echo:9080/").requests(100).run()?.expect_none_failed(100)?;
        client.load("http://echo:9080/").with(&["--http2"]).requests(100).run()?.expect_none_failed(100)?;
        eventually("both proxies to count 200 encrypted requests, and no others", SOON, || {
            let after = count()?;
            let more: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            ensure!(more == [200.0; 4], "outbound encrypted and all, inbound encrypted and all: {more:?}");
            Ok(())
        })
    })
}

#[test]
fn applications_read_who_calls_and_no_forged_copy() -> Result<()> {
    in_mesh("identity-header", |ns| {
        ns.apply(&server("echo"))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        let forged = "By=spiffe://cluster.local/ns/a/sa/b;URI=spiffe://cluster.local/ns/a/sa/admin";
        for name in ["x-forwarded-client-cert", "X-Forwarded-Client-Cert", "x_forwarded_client_cert"] {
            for request in [client.get("http://echo:9080/"), client.get("http://echo:9080/").http2()] {
                let answer = request.header(name, forged).send()?.expect_status(200)?;
                ensure!(received(&answer)? == [forwarded(ns, "echo", "web")], "{name}: {answer:?}");
                ensure!(!answer.body.contains("sa/admin"), "{name}: {answer:?}");
            }
        }
        Ok(())
    })
}

/// ID-13: a client outside of the mesh sends the same request, which shows that the capture would see it.
#[test]
fn bytes_between_two_pods_cannot_be_read() -> Result<()> {
    let embedded = Cluster::get()?.embedded()?;
    let outside = Namespace::create("identity-outside", Mesh::Outside)?;
    let stranger = Client::deploy(&outside)?;
    in_mesh("identity-wire", |ns| {
        ns.apply(&server("echo"))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1"])?;
        identified(ns, &client, "http://echo:9080/", "echo", "web")?;
        let node = ns.get("pod", &ns.pod_of("echo")?)?["spec"]["nodeName"].clone();
        let node = node.as_str().context("the pod has a node")?;
        let file = ns.directory()?.join("echo.pcap");
        let _capture = embedded.capture(node, "tcp port 9080", &file)?;
        let captured = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(&file)?).into_owned());
        client.get("http://echo:9080/in-the-mesh").header("x-secret", "sent-by-web").send()?.expect_status(200)?;
        let url = format!("http://echo.{}:9080/outside-of-it", ns.name);
        stranger.get(&url).header("x-secret", "sent-by-stranger").send()?.expect_status(200)?;
        eventually("the request from outside of the mesh to be captured", SOON, || {
            let bytes = captured()?;
            ensure!(bytes.contains("/outside-of-it") && bytes.contains("sent-by-stranger"), "{} bytes", bytes.len());
            Ok(())
        })?;
        let bytes = captured()?;
        for secret in ["/in-the-mesh", "sent-by-web"] {
            ensure!(!bytes.contains(secret), "{secret} was sent in plaintext: see {}", file.display());
        }
        Ok(())
    })
}

/// Nobody is refused: the mode is Permissive.
#[test]
fn pods_without_a_proxy_are_reached_and_served_in_plaintext() -> Result<()> {
    let outside = Namespace::create("identity-plain", Mesh::Outside)?;
    let stranger = Client::deploy(&outside)?;
    in_mesh("identity-mixed", |ns| {
        let bare = Service::new("bare").yaml() + &App::server("bare", "v1").label("weft.dev/inject", "false").yaml();
        ns.apply(&(server("echo") + &bare))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["echo-v1", "bare-v1"])?;
        for (client, url) in [(&client, "http://bare:9080/"), (&stranger, &format!("http://echo.{}:9080/", ns.name))] {
            eventually(&format!("a response from {url}"), READY, || {
                let answer = client.get(url).send()?.expect_status(200)?;
                ensure!(received(&answer)?.is_empty(), "nobody proved an identity: {answer:?}");
                Ok(())
            })?;
        }
        eventually("the proxies to say why the connections were plaintext", SOON, || {
            let plaintext = |app, why| requests(ns, app, &[("security", "plaintext"), ("plaintext", why)]);
            let (to_bare, from_stranger) = (plaintext("web", "outside-mesh")?, plaintext("echo", "permissive")?);
            ensure!(to_bare >= 1.0 && from_stranger >= 1.0, "{to_bare} and {from_stranger} requests");
            Ok(())
        })
    })
}

#[test]
fn streams_of_bytes_are_encrypted_whichever_side_speaks_first() -> Result<()> {
    in_mesh("identity-tcp", |ns| {
        let tcp = |name: &str| Service::new(name).port(7000, 7000).app_protocol("tcp").yaml();
        let yaml = tcp("talker") + &App::tcp("talker", 7000, "220 ready\r\n").service_account("talker").yaml();
        ns.apply(&(yaml + &tcp("listener") + &App::tcp("listener", 7000, "").service_account("listener").yaml()))?;
        let client = client(ns, "web")?;
        ns.wait_ready(&["talker", "listener"])?;
        let connections =
            |app, direction| sum(ns, app, "weft_tcp_connections_total", &[("direction", direction), MTLS]);
        for (server, expect_first) in [("talker", true), ("listener", false)] {
            let address = format!("{server}:7000");
            eventually(&format!("an encrypted connection to {address}"), SOON, || {
                let first: &[&str] = if expect_first { &["--expect-first"] } else { &[] };
                let answer = client.tcp(&address, &[first, &["--send", "EHLO a\n"]].concat())?;
                ensure!(answer.error.is_none() && answer.received.contains("EHLO a\n"), "{answer:?}");
                ensure!(answer.first == if expect_first { "220 ready\r\n" } else { "" }, "{answer:?}");
                let counts = [connections("web", "outbound")?, connections(server, "inbound")?];
                ensure!(counts.iter().all(|count| *count >= 1.0), "outbound and inbound: {counts:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
