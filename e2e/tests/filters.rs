//! What the filters of a rule do: faults, mirrors, CORS, rate limits.

use anyhow::{Result, ensure};
use weft_e2e::mesh::{self, route_in_force};
use weft_e2e::namespace::in_mesh;

const TO_V1: &str = "  backendRefs: [{name: echo, port: 9080, subset: v1}]\n";

#[test]
fn faults_make_requests_wait_and_fail() -> Result<()> {
    in_mesh("filters-fault", |ns| {
        let client = mesh::echo(ns)?;
        let fault = |name: &str, fault: &str| {
            format!(
                "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  filters: [{{type: Fault, fault: {{{fault}}}}}]\n{TO_V1}"
            )
        };
        let rules = fault("slow", "delay: {duration: 1s}")
            + &fault("fail", "abort: {status: 503}")
            + &fault("some", "abort: {status: 418, percent: 30}")
            + &fault("late", "delay: {duration: 1m}")
            + "  timeouts: {request: 500ms}\n";
        route_in_force(ns, &client, "echo", &rules)?;

        let answer = client.get("http://echo:9080/slow").send()?.expect_status(200)?;
        ensure!(answer.ms >= 1000 && answer.reason().is_none(), "the backend answers after the wait: {answer:?}");
        let answer = client.get("http://echo:9080/fail").send()?.expect_status(503)?;
        ensure!(answer.reason() == Some("fault"), "{answer:?}");
        ensure!(answer.source() == Some(&format!("MeshRoute/{}/echo/fail", ns.name)), "{answer:?}");
        let answer = client.get("http://echo:9080/late").send()?.expect_status(504)?;
        ensure!(answer.reason() == Some("request-timeout") && answer.ms < 10_000, "{answer:?}");
        let report = client.load("http://echo:9080/some").requests(500).run()?;
        let failed = report.status(418);
        ensure!((125..=175).contains(&failed), "30 % of 500 fail within 5 points: {}", report.summary());
        ensure!(
            report.status(200) == 500 - failed && report.by_reason.get("fault") == Some(&failed),
            "{}",
            report.summary()
        );
        Ok(())
    })
}
