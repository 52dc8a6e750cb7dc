//! The conformance suite of the Gateway API, unmodified, with the profiles for a mesh. It compares status codes, headers
//! and which pod answered, within five seconds and over some hundred requests, so it runs alone:
//! `cargo test -p weft-e2e --test conformance`.
//!
//! The output and the report are in `target/conformance`. `WEFT_BLESS=1`, as in `make conformance-report`, copies report
//! and results to docs/conformance; without it the test fails if they claim something else.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_e2e::Cluster;
use weft_e2e::cluster::{self, checkout, target};
use weft_e2e::conformance::{NAMESPACES, ROOT, Results};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::{command, install, progress, table};

/// Time limit of the suite. It takes half a minute; each test that fails takes some seconds more.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Time limit for the suite's namespaces to be gone.
const GONE_SECONDS: u64 = 120;

/// The published report. The Gateway API asks for this name: channel, version, mode.
const REPORT: &str = concat!("docs/conformance/standard-v", env!("CARGO_PKG_VERSION"), "-default-report.yaml");
const RESULTS: &str = "docs/conformance/results.md";
const INTRODUCTION: &str = "\
# Results of the conformance tests

Each test of the suite for a mesh, in the run that wrote the [report](README.md). The seconds are those of the test or
of its slowest subtest, with the time in which its objects take effect.
";

/// The namespaces of the suite. They are deleted before the suite runs, in case that a run was interrupted, and at the
/// end.
struct Namespaces(Kubectl);

impl Namespaces {
    fn deleted(cluster: &'static Cluster) -> Result<Self> {
        let namespaces = Self(Kubectl::new(cluster));
        namespaces.delete()?;
        Ok(namespaces)
    }

    fn delete(&self) -> Result<()> {
        let timeout = format!("--timeout={GONE_SECONDS}s");
        let arguments = [&["delete", "namespace", "--ignore-not-found", &timeout], &NAMESPACES[..]].concat();
        let output = self.0.run_with(&arguments, "", Duration::from_secs(GONE_SECONDS + 10))?;
        output.stdout_of_success("kubectl delete namespace").map(drop)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("the namespaces of the conformance suite are left: {error:#}");
        }
    }
}

#[test]
fn weft_passes_each_test_for_a_mesh() -> Result<()> {
    install::ensure()?;
    install::ensure_gateway_api()?;
    let cluster = Cluster::get()?;
    let suite = cluster::build("conformance")?;
    cluster.load_image("echo.tar")?;
    let results = target().join("conformance");
    fs::create_dir_all(&results)?;
    let report = results.join("report.yaml");

    let _namespaces = Namespaces::deleted(cluster)?;
    let mut run = Command::new(suite);
    run.env("KUBECONFIG", &cluster.kubeconfig)
        .args(["-test.v", "-test.run", &format!("^{ROOT}$")])
        .arg("-conformance-options-file")
        .arg(checkout().join("e2e/conformance.yaml"))
        .args(["-version", concat!("v", env!("CARGO_PKG_VERSION")), "-report-output"])
        .arg(&report);
    let output = progress::step("running the conformance suite", || command::run(&mut run, "", LIMIT))?;
    let log = results.join("suite.log");
    fs::write(&log, output.stdout.clone() + &output.stderr)?;

    let found = Results::parse(&output.stdout);
    print!("{}", table::text(&found.rows()));
    let (problems, log) = (found.problems(), log.display());
    ensure!(problems.is_empty(), "{}\nthe output of the suite is in {log}", problems.join("\n"));
    ensure!(output.success, "the suite failed outside of its tests: its output is in {log}");
    let report = fs::read_to_string(&report).context("reading the report")?;
    published(&report, &found)
}

/// Compares the report with the published one, or publishes it and the results with `WEFT_BLESS`.
fn published(report: &str, results: &Results) -> Result<()> {
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(checkout().join(REPORT), report).with_context(|| format!("writing {REPORT}"))?;
        return fs::write(checkout().join(RESULTS), page(results)).with_context(|| format!("writing {RESULTS}"));
    }
    let found = fs::read_to_string(checkout().join(REPORT)).unwrap_or_default();
    ensure!(
        claims(&found) == claims(report),
        "`make conformance-report` writes {REPORT}, which differs from:\n{report}"
    );
    Ok(())
}

/// The lines of a report but its date, in an order of their own: the suite writes the profiles in any order.
fn claims(report: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = report.lines().filter(|line| !line.starts_with("date: ")).collect();
    lines.sort_unstable();
    lines
}

/// The page of the results.
fn page(results: &Results) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut rows = results.rows().into_iter().map(row);
    let header = rows.next().unwrap_or_default();
    format!("{INTRODUCTION}\n{header}|---|---|--:|\n{}", rows.collect::<String>())
}
