//! PostgreSQL, MariaDB and Redis in a Strict namespace. The first two have TLS of their own, inside mutual TLS: a client of
//! PostgreSQL sends a request in plaintext, and a ClientHello after the answer; MariaDB speaks first.

use anyhow::{Result, ensure};
use weft_e2e::Cluster;
use weft_e2e::mesh::sum;
use weft_e2e::namespace::{Namespace, READY, SOON, in_mesh};
use weft_e2e::wait::eventually;
use weft_e2e::workload::Service;

use super::make_strict;

/// A Deployment of the image with this command; a pod without a port waits for commands of the test.
fn database(name: &str, port: Option<u16>, command: &str) -> String {
    let port = port.map_or_else(String::new, |port| {
        format!(
            ", ports: [{{containerPort: {port}}}], readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}"
        )
    });
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\napiVersion: apps/v1\nkind: \
         Deployment\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: \
         {{labels: {{app: {name}}}}}\n    spec:\n      serviceAccountName: {name}\n      containers:\n      - {{name: {name}, image: \
         \"localhost/weft/databases:cluster\", imagePullPolicy: IfNotPresent, command: [{command}]{port}}}\n"
    )
}

/// Servers with their Services, which say no more than their ports, and a client.
fn deploy(ns: &Namespace) -> Result<()> {
    Cluster::get()?.load_image("databases.tar")?;
    let mut yaml = database("shop", None, "/usr/bin/sleep, infinity");
    for (name, port, command) in [
        ("postgres", 5432, "/postgres/postgres, -D, /data/postgres"),
        ("mariadb", 3306, "/usr/sbin/mariadbd, --defaults-file=/data/mariadb.cnf"),
        ("redis", 6379, "/usr/bin/redis-server, --protected-mode, \"no\", --save, \"\""),
    ] {
        yaml += &(Service::new(name).port(port, port).yaml() + &database(name, Some(port), command));
    }
    ns.apply(&yaml)?;
    ns.wait_ready(&["shop", "postgres", "mariadb", "redis"])
}

#[test]
fn databases_with_their_own_tls_work_in_strict() -> Result<()> {
    in_mesh("databases", |ns| {
        make_strict(ns)?;
        deploy(ns)?;
        let run = |words: &[&str]| {
            let exec = ["exec", "deployment/shop", "-c", "shop", "--"];
            let output = ns.run_with(&[&exec, words].concat(), "", READY)?;
            Ok::<_, anyhow::Error>(output.stdout_of_success(&words.join(" "))?.trim().to_owned())
        };
        let psql = |mode: &str, query: &str| {
            let uri = format!("postgresql://shop:shop@postgres:5432/postgres?sslmode={mode}&connect_timeout=10");
            run(&["/postgres/psql", &uri, "-Atc", query])
        };
        let mariadb = |tls: &str, query: &str| {
            let options = ["--host=mariadb", "--user=shop", "--password=shop", "--connect-timeout=10", "--batch"];
            let words =
                [&["/usr/bin/mariadb"], &options[..], &["--skip-column-names", tls, "shop", "--execute", query]];
            run(&words.concat())
        };
        let redis = |words: &[&str]| run(&[&["/usr/bin/redis-cli", "-h", "redis"], words].concat());

        let own_tls = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        eventually("PostgreSQL to answer over its own TLS", SOON, || {
            let found = psql("require", own_tls)?;
            ensure!(found == "t", "ssl is {found}");
            Ok(())
        })?;
        psql("require", "create table orders (id serial primary key, item text)")?;
        psql("require", "insert into orders (item) select 'item ' || n from generate_series(1, 20000) n")?;
        let rows = psql("require", "select item from orders order by id")?;
        ensure!(rows.lines().count() == 20_000 && rows.ends_with("item 20000"), "{} bytes of rows", rows.len());
        let refused = psql("disable", "select 1").expect_err("the server demands its own TLS").to_string();
        ensure!(refused.contains("no encryption"), "it is the server that refuses: {refused}");

        eventually("MariaDB to answer over its own TLS", SOON, || {
            let found = mariadb("--ssl", "show status like 'Ssl_version'")?;
            ensure!(found.contains("TLSv1.3"), "{found}");
            Ok(())
        })?;
        mariadb("--ssl", "create table orders (id int primary key auto_increment, item text)")?;
        mariadb("--ssl", "insert into orders (item) select concat('item ', seq) from seq_1_to_20000")?;
        let count = mariadb("--ssl", "select count(*), max(length(item)) from orders")?;
        ensure!(count == "20000\t10", "{count}");
        let refused = mariadb("--skip-ssl", "select 1").expect_err("the user must use TLS").to_string();
        ensure!(refused.contains("Access denied"), "it is the server that refuses: {refused}");

        eventually("Redis to answer", SOON, || {
            let pong = redis(&["ping"])?;
            ensure!(pong == "PONG", "{pong}");
            Ok(())
        })?;
        redis(&["set", "cart", "3 items"])?;
        let cart = redis(&["get", "cart"])?;
        ensure!(cart == "3 items", "{cart}");

        for server in ["postgres", "mariadb", "redis"] {
            let encrypted = [("direction", "inbound"), ("security", "mtls")];
            let found = sum(ns, server, "weft_tcp_connections_total", &encrypted)?;
            ensure!(found >= 1.0, "{server}: {found} encrypted connections");
        }
        Ok(())
    })
}
