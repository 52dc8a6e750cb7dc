//! Timeouts and retries of HTTPRoutes.

use anyhow::{Result, ensure};
use weft_e2e::gateway_api::{in_force, servers};
use weft_e2e::namespace::in_mesh;

/// A rule for a path prefix that sends to Service `one`, with other fields.
fn rule(prefix: &str, fields: &str) -> String {
    format!("- matches: [{{path: {{value: {prefix}}}}}]\n  backendRefs: [{{name: one, port: 9080}}]\n  {fields}\n")
}

#[test]
fn timeouts_end_requests_and_attempts() -> Result<()> {
    in_mesh("gateway-timeout", |ns| {
        let client = servers(ns)?;
        let rules = rule("/request", "timeouts: {request: 500ms}")
            + &rule("/attempt", "timeouts: {request: 10s, backendRequest: 500ms}")
            + &rule("/none", "timeouts: {request: 0s, backendRequest: 0s}");
        in_force(ns, &client, "echo", &rules)?;
        for (path, status, reason, least, most) in [
            ("/request?delay=5s", 504, Some("request-timeout"), 500, 4_500),
            ("/attempt?delay=5s", 504, Some("attempt-timeout"), 500, 4_500),
            ("/request", 200, None, 0, 4_500),
            ("/none?delay=2s", 200, None, 2_000, 9_000),
        ] {
            let answer = client.get(&format!("http://echo:9080{path}")).send()?.expect_status(status)?;
            ensure!(answer.reason() == reason && (least..most).contains(&answer.ms), "{path}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn retries_are_as_many_as_attempts_says() -> Result<()> {
    in_mesh("gateway-retry", |ns| {
        let client = servers(ns)?;
        // The path, its retry, the status that the pod answers, and how many requests the pod gets.
        let cases = [
            ("/without", "name: without", 503, 1),
            ("/zero", "retry: {attempts: 0, codes: [503]}", 503, 1),
            ("/default", "retry: {codes: [503]}", 503, 2),
            ("/three", "retry: {attempts: 3, codes: [500, 503], backoff: 1ms}", 503, 4),
            ("/listed", "retry: {attempts: 3, codes: [500, 503], backoff: 1ms}", 500, 4),
            ("/other", "retry: {attempts: 3, codes: [500, 503], backoff: 1ms}", 502, 1),
            ("/no-codes", "retry: {attempts: 3}", 503, 1),
            ("/post", "retry: {attempts: 1, codes: [503]}", 503, 2),
        ];
        in_force(ns, &client, "echo", &cases.map(|(path, retry, ..)| rule(path, retry)).concat())?;
        for (path, retry, status, requests) in cases {
            let request = client.get(&format!("http://echo:9080{path}?status={status}"));
            let request = request.method(if path == "/post" { "POST" } else { "GET" });
            let answer = request.header("x-request-token", path).send()?.expect_status(status)?;
            ensure!(answer.version() == Some("v1"), "the last response is used: {answer:?}");
            let seen = client.get("http://one:9080/_seen").send()?.expect_status(200)?.json()?;
            ensure!(seen["by_token"][path] == requests, "{{{retry}}} should send {requests} requests: {seen}");
        }
        Ok(())
    })
}
