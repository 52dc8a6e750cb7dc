//! Matches of HTTPRoutes, and which of them decides.

use anyhow::{Result, ensure};
use weft_e2e::gateway_api::{in_force, servers};
use weft_e2e::namespace::in_mesh;
use weft_e2e::traffic::Request;

#[test]
fn each_match_type_matches_and_the_most_specific_decides() -> Result<()> {
    in_mesh("gateway-match", |ns| {
        let client = servers(ns)?;
        // The answer of a rule has its name. A request that meets several conditions tests their precedence.
        let rules = [
            ("exact", "path: {type: Exact, value: /exact}"),
            ("prefix", "path: {type: PathPrefix, value: /prefix}"),
            ("longer", "path: {type: PathPrefix, value: /prefix/longer}"),
            ("regex", "path: {type: RegularExpression, value: \"/item/[0-9]+\"}"),
            ("method", "path: {value: /method}, method: DELETE"),
            ("h-exact", "path: {value: /h}, headers: [{name: X-User, value: beta}]"),
            ("h-two", "path: {value: /h}, headers: [{name: x-user, value: beta}, {name: x-team, value: a}]"),
            ("h-regex", "path: {value: /h}, headers: [{type: RegularExpression, name: x-agent, value: \"bot-.*\"}]"),
            ("host", "path: {value: /h}, headers: [{name: host, value: shop.example}]"),
            ("q-exact", "path: {value: /q}, queryParams: [{name: v, value: \"a b\"}]"),
            ("q-regex", "path: {value: /q}, queryParams: [{type: RegularExpression, name: num, value: \"[0-9]+\"}]"),
            (
                "all",
                "path: {value: /q}, method: GET, headers: [{name: a, value: b}], queryParams: [{name: v, value: x}]",
            ),
        ];
        let rule = |(name, matches): (&str, &str)| {
            let header = format!("{{set: [{{name: x-rule, value: {name}}}]}}");
            // Of several matches one is enough.
            let either = format!("[{{{matches}}}, {{path: {{type: Exact, value: /either/{name}}}}}]");
            format!(
                "- name: {name}\n  matches: {either}\n  filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: \
                 {header}}}]\n  backendRefs: [{{name: one, port: 9080}}]\n"
            )
        };
        in_force(ns, &client, "echo", &rules.map(rule).concat())?;
        let get = |path: &str| client.get(&format!("http://echo:9080{path}"));
        let beta = |path: &str| get(path).header("x-user", "beta");
        let mut cases: Vec<(&str, Request, Option<&str>)> = vec![
            ("the exact path", get("/exact?a=b"), Some("exact")),
            ("not below an exact path", get("/exact/more"), None),
            ("paths are case-sensitive", get("/Exact"), None),
            ("the prefix", get("/prefix"), Some("prefix")),
            ("below the prefix", get("/prefix/a/b"), Some("prefix")),
            ("whole segments only", get("/prefixed"), None),
            ("the longer prefix wins", get("/prefix/longer/x"), Some("longer")),
            ("the expression", get("/item/42"), Some("regex")),
            ("the expression is anchored to the whole path", get("/item/42/x"), None),
            ("the method", get("/method").method("DELETE"), Some("method")),
            ("another method", get("/method"), None),
            ("the header's value, its name in any case", beta("/h"), Some("h-exact")),
            ("values are case-sensitive", get("/h").header("x-user", "Beta"), None),
            ("more headers win", beta("/h").header("x-team", "a"), Some("h-two")),
            ("the header's expression", get("/h").header("x-agent", "bot-7"), Some("h-regex")),
            ("the expression is anchored to the whole value", get("/h").header("x-agent", "a bot-7"), None),
            ("the host", get("/h").header("host", "shop.example"), Some("host")),
            ("no such header", get("/h"), None),
            ("the parameter's value, decoded", get("/q?v=a%20b"), Some("q-exact")),
            ("another value", get("/q?v=ab"), None),
            ("the parameter's expression", get("/q?num=12"), Some("q-regex")),
            ("not the expression", get("/q?num=12x"), None),
            ("all conditions", get("/q?v=x").header("a", "b"), Some("all")),
            ("a method wins over a parameter", get("/q?v=x&num=1").header("a", "b"), Some("all")),
            ("all but one", get("/q?v=x"), None),
        ];
        cases.extend(rules.iter().map(|(name, _)| ("the second match", get(&format!("/either/{name}")), Some(*name))));
        for (desc, request, rule) in cases {
            let answer = request.send()?;
            ensure!(answer.header("x-rule") == rule, "{desc}: rule {rule:?} should match: {answer:?}");
            if rule.is_none() {
                ensure!(answer.status == 404 && answer.reason() == Some("no-route"), "{desc}: {answer:?}");
            }
        }
        Ok(())
    })
}
