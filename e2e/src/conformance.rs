//! The conformance suite of the Gateway API: which of its tests must pass, and what a run of it printed.

use std::collections::BTreeMap;

/// The tests of the suite for a mesh, in its order. A run must pass all of them.
pub const TESTS: [&str; 23] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteRequestHeaderModifier",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];

/// The namespaces that the suite creates and deletes.
pub const NAMESPACES: [&str; 2] = ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"];

/// Name of the suite's Go test, of which its tests are subtests.
pub const ROOT: &str = "TestConformance";

/// What the suite printed about a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// Its duration, or that of its slowest subtest: Go does not count the time in which subtests run in parallel.
    pub seconds: f64,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not run, because it needs a feature that was not asked for.
    Skipped,
}

/// The tests of a run, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results(pub BTreeMap<String, Outcome>);

// === impl Results ===

impl Results {
    /// Reads the output of the suite with `-test.v`. Subtests of its tests are not listed.
    pub fn parse(output: &str) -> Self {
        let (tests, subtests): (Vec<_>, Vec<_>) =
            output.lines().filter_map(outcome).partition(|(name, _)| !name.contains('/'));
        let mut tests: BTreeMap<String, Outcome> =
            tests.into_iter().map(|(name, outcome)| (name.to_owned(), outcome)).collect();
        for (name, subtest) in subtests {
            if let Some(test) = name.split('/').next().and_then(|test| tests.get_mut(test)) {
                test.seconds = test.seconds.max(subtest.seconds);
            }
        }
        Self(tests)
    }

    /// What is wrong with the run, one line for each test: a test of [`TESTS`] did not pass, or another one ran.
    pub fn problems(&self) -> Vec<String> {
        let of_list = TESTS.iter().filter_map(|&test| match self.0.get(test).map(|outcome| outcome.verdict) {
            Some(Verdict::Passed) => None,
            Some(Verdict::Failed) => Some(format!("{test} failed")),
            Some(Verdict::Skipped) => Some(format!("{test} was skipped")),
            None => Some(format!("{test} did not run")),
        });
        let ran = self.0.iter().filter(|(_, outcome)| outcome.verdict != Verdict::Skipped);
        let unlisted = ran.filter(|(test, _)| !TESTS.contains(&test.as_str()));
        of_list.chain(unlisted.map(|(test, _)| format!("{test} ran and is not in the list of tests"))).collect()
    }

    /// Rows of the tests of [`TESTS`], below a header: name, result, seconds.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let row = |test: &&str| match self.0.get(*test) {
            Some(Outcome { verdict, seconds }) => {
                vec![(*test).to_owned(), verdict.to_string(), format!("{seconds:.2}")]
            }
            None => [*test, "did not run", ""].map(str::to_owned).to_vec(),
        };
        let header = ["test", "result", "seconds"].map(str::to_owned).to_vec();
        std::iter::once(header).chain(TESTS.iter().map(row)).collect()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

/// Reads `    --- PASS: TestConformance/MeshBasic (0.12s)`, of a test or a subtest.
fn outcome(line: &str) -> Option<(&str, Outcome)> {
    let (verdict, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    let verdict = match verdict {
        "PASS" => Verdict::Passed,
        "FAIL" => Verdict::Failed,
        "SKIP" => Verdict::Skipped,
        _ => return None,
    };
    let (name, seconds) = rest.strip_prefix(ROOT)?.strip_prefix('/')?.split_once(" (")?;
    let seconds = seconds.strip_suffix("s)")?.parse().ok()?;
    Some((name, Outcome { verdict, seconds }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run in which each test of the list passed.
    fn passed() -> String {
        TESTS.iter().map(|test| format!("    --- PASS: TestConformance/{test} (0.52s)\n")).collect()
    }

    fn problems(output: &str) -> Vec<String> {
        Results::parse(output).problems()
    }

    #[test]
    fn results_are_those_of_the_tests_with_the_time_of_their_subtests() {
        let output = "=== RUN   TestConformance/MeshBasic\n    apply.go:277: --- PASS: not a result\n--- FAIL: TestConformance \
                      (31.00s)\n    --- PASS: TestConformance/MeshBasic (0.12s)\n        --- PASS: \
                      TestConformance/MeshBasic/a_request (0.10s)\n    --- SKIP: TestConformance/TCPRoute (0.00s)\n    --- FAIL: \
                      TestConformance/MeshPorts (0.20s)\n        --- FAIL: TestConformance/MeshPorts/0 (5.10s)\n";
        let expected = [
            ("MeshBasic", Verdict::Passed, 0.12),
            ("TCPRoute", Verdict::Skipped, 0.0),
            ("MeshPorts", Verdict::Failed, 5.1),
        ];
        let expected = expected.map(|(test, verdict, seconds)| (test.to_owned(), Outcome { verdict, seconds }));
        assert_eq!(Results::parse(output), Results(expected.into()));
    }

    #[test]
    fn a_run_is_good_only_if_each_test_of_the_list_passed_and_no_other_ran() {
        let good = passed() + "    --- SKIP: TestConformance/GatewayTLS (0.00s)\n";
        assert_eq!(problems(&good), [""; 0]);
        assert_eq!(problems("").len(), TESTS.len());
        let changed = |from: &str, to: &str| problems(&passed().replace(from, to));
        assert_eq!(
            changed("PASS: TestConformance/MeshPorts", "SKIP: TestConformance/MeshPorts"),
            ["MeshPorts was skipped"]
        );
        assert_eq!(changed("PASS: TestConformance/MeshPorts", "FAIL: TestConformance/MeshPorts"), ["MeshPorts failed"]);
        assert_eq!(
            changed("TestConformance/MeshPorts", "TestConformance/MeshGates"),
            ["MeshPorts did not run", "MeshGates ran and is not in the list of tests"]
        );
    }

    #[test]
    fn rows_have_each_test_of_the_list() {
        let rows = Results::parse("    --- PASS: TestConformance/MeshBasic (0.12s)\n").rows();
        assert_eq!(rows.len(), 1 + TESTS.len());
        assert_eq!(rows[1], ["MeshBasic", "passed", "0.12"]);
        assert_eq!(rows[2], ["MeshConsumerRoute", "did not run", ""]);
    }
}
