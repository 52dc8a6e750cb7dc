//! Checks the pages of the project: links, names of make targets and tests, and names that a reference page must have.
//! Needs no cluster. Examples and docs/services.md are checked by `operator/tests/docs.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use weft_e2e::cluster::checkout;

/// Rows shorter than this may occur in several tables: headers, separators.
const ROW_BYTES_MIN: usize = 60;

/// Quotes wrong names and messages on purpose.
const MISTAKES: &str = "docs/mistakes.md";

/// All Markdown files, by their path in the checkout.
fn pages() -> BTreeMap<PathBuf, String> {
    fn collect(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) {
        for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
                collect(&path, pages);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).expect("readable");
                pages.insert(path.strip_prefix(checkout()).expect("below it").to_owned(), text);
            }
        }
    }
    let mut pages = BTreeMap::new();
    collect(checkout(), &mut pages);
    assert!(pages.contains_key(Path::new("README.md")), "{:?}", pages.keys());
    pages
}

/// The lines of a page outside of code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// The targets of the links of a page to files of this project, each with its anchor (empty: none).
fn links(page: &str) -> Vec<(String, String)> {
    let text = prose(page).collect::<Vec<_>>().join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://"));
    local.map(|target| target.split_once('#').unwrap_or((target, ""))).map(|(a, b)| (a.into(), b.into())).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let is_kept = |char: &char| char.is_alphanumeric() || " -_".contains(*char);
    headings
        .map(|heading| heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// The path of a link's target in the checkout, without `..`.
fn resolve(page: &Path, target: &str) -> PathBuf {
    if target.is_empty() {
        return page.to_owned();
    }
    let mut path = page.parent().map(Path::to_owned).unwrap_or_default();
    for part in Path::new(target) {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path
}

#[test]
fn links_lead_to_existing_files_and_headings() {
    let pages = pages();
    for (page, text) in &pages {
        for (target, anchor) in links(text) {
            let path = resolve(page, &target);
            let link = format!("{} links to {target}#{anchor}", page.display());
            assert!(checkout().join(&path).exists(), "{link}, which does not exist");
            let heading = |text: &String| anchors(text).contains(&anchor);
            assert!(anchor.is_empty() || pages.get(&path).is_none_or(heading), "{link}: it has no such heading");
        }
    }
}

#[test]
fn every_page_can_be_reached_from_the_readme() {
    let pages = pages();
    let mut reached = BTreeSet::new();
    let mut next = vec![PathBuf::from("README.md")];
    while let Some(page) = next.pop() {
        if let (Some(text), true) = (pages.get(&page), reached.insert(page.clone())) {
            next.extend(links(text).iter().map(|(target, _)| resolve(&page, target)));
        }
    }
    for page in pages.keys().filter(|page| page.starts_with("docs") && !page.starts_with("docs/adr")) {
        assert!(reached.contains(page), "no page that README.md leads to links to {}", page.display());
    }
}

#[test]
fn named_make_targets_exist() {
    let makefile = fs::read_to_string(checkout().join("Makefile")).expect("a Makefile");
    for (page, text) in pages().into_iter().filter(|(page, _)| page != Path::new(MISTAKES)) {
        for target in text.split("`make ").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()) {
            let exists = makefile.contains(&format!("\n{target}:"));
            assert!(exists, "{} names `make {target}`, which is not a target", page.display());
        }
    }
}

/// A table belongs into one page, to which the others link.
#[test]
fn no_row_of_a_table_is_in_two_pages() {
    let mut rows: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (page, text) in pages() {
        // The results of a benchmark are in the README too, written by the benchmark.
        let of_page = prose(&text).filter(|line| line.starts_with('|') && line.len() >= ROW_BYTES_MIN);
        for row in of_page.filter(|_| !page.starts_with("bench/results")) {
            let other = rows.insert(row.to_owned(), page.clone()).filter(|other| *other != page);
            assert!(other.is_none(), "{} and {other:?} both have the row {row}", page.display());
        }
    }
}

/// Metrics, reasons and annotations that any page names are in their reference.
#[test]
fn named_metrics_reasons_and_annotations_are_in_the_references() {
    let pages = pages();
    let reference = |name: &str| pages.get(Path::new("docs/reference").join(name).as_path()).expect("a page").as_str();
    let (metrics, reasons, annotations) =
        (reference("metrics.md"), reference("reasons.md"), reference("annotations.md"));
    let crates = ["balance", "codec", "config", "crds", "injector", "operator", "proxy", "runtime"];
    let is_metric = |word: &str| {
        let is_prefixed = ["weft_", "http_server_", "http_client_", "process_"].iter().any(|it| word.starts_with(it));
        is_prefixed && !word.ends_with('_') && !word.strip_prefix("weft_").is_some_and(|name| crates.contains(&name))
    };
    let mut checked = 0;
    for (page, text) in pages.iter().filter(|(page, _)| !page.starts_with("bench") && *page != Path::new(MISTAKES)) {
        let page = page.display();
        let words = text.split(|char: char| !(char.is_ascii_alphanumeric() || "_./-".contains(char)));
        for word in words.map(|word| word.trim_end_matches(['.', '/'])) {
            if is_metric(word) {
                let name = ["_bucket", "_count", "_sum"].iter().find_map(|it| word.strip_suffix(it)).unwrap_or(word);
                assert!(
                    metrics.contains(&format!("| `{name}` |")),
                    "{page} names the metric {word}, which there is not"
                );
                checked += 1;
            }
            if let Some(name) = word.strip_prefix("config.weft.dev/").filter(|name| !name.is_empty()) {
                // `config.weft.dev/proxy-*` names several.
                let end = if name.ends_with('-') { "" } else { "`" };
                let known = annotations.contains(&format!("`config.weft.dev/{name}{end}"));
                assert!(known, "{page} names the annotation config.weft.dev/{name}, which there is not");
                checked += 1;
            }
        }
        let is_end = |char: char| !(char.is_ascii_lowercase() || char == '-');
        for mark in ["weft-reason: ", "reason=\"", "\"reason\":\""] {
            for reason in text.split(mark).skip(1).filter_map(|rest| rest.split(is_end).next()) {
                let known = reasons.contains(&format!("| `{reason}` |")) || reason.is_empty() || reason == "hedge";
                assert!(known, "{page} names the reason {reason:?}, which there is not");
                checked += 1;
            }
        }
    }
    assert!(checked > 60, "{checked} names");
}

/// Each bound of docs/bounds.md names an existing test, or the reason why it has none.
#[test]
fn bounds_page_names_existing_tests() {
    let page = fs::read_to_string(checkout().join("docs/bounds.md")).expect("a page");
    let mut tests = 0;
    for name in page.split('`').skip(1).step_by(2).filter(|code| code.contains("::")) {
        let (file, test) = name.split_once("::").expect("a file and a test");
        let path = checkout().join("proxy").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "docs/bounds.md names {name}, which does not exist");
        tests += 1;
    }
    assert!(tests > 50, "{tests} tests");
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.matches('|').count() == 6);
    for row in rows.filter(|row| !row.starts_with("| bound ")) {
        for cell in row.trim_matches('|').split('|').skip(1) {
            let has_reason = cell.contains("none") || cell.contains("no test:");
            assert!(cell.contains("::") || has_reason, "no test and no reason in {cell:?} of {row}");
        }
    }
}

const CHECKS: &str = "docs/security-checks.md";

/// The security checks that a function is a test of: in the first line of its documentation (`ID-01, ID-02: ...`) or at the
/// begin of its name (`id_01_...`).
fn checks_of(name: &str, documentation: &str) -> Vec<String> {
    let is_check = |word: &&str| {
        let number = word.strip_prefix("ID-").or_else(|| word.strip_prefix("CP-")).unwrap_or_default();
        number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (before, _) = documentation.split_once(':').unwrap_or_default();
    let words: Vec<&str> = before.split(", ").collect();
    let documented = if words.iter().all(is_check) { words } else { Vec::new() };
    let named = name.get(..5).map(|prefix| prefix.to_uppercase().replace('_', "-")).unwrap_or_default();
    let mut checks: Vec<String> = documented.into_iter().map(str::to_owned).collect();
    checks.extend(Some(named).filter(|named| is_check(&named.as_str()) && !checks.contains(named)));
    checks
}

/// The tests of each security check, as `path::function`.
fn tests_of_checks() -> BTreeMap<String, BTreeSet<String>> {
    fn collect(folder: &Path, tests: &mut BTreeMap<String, BTreeSet<String>>) {
        for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
                collect(&path, tests);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("readable");
                let file = path.strip_prefix(checkout()).expect("below it").display();
                let mut documentation = None;
                for line in text.lines().map(str::trim) {
                    if let Some(first) = line.strip_prefix("/// ") {
                        documentation.get_or_insert(first);
                        continue;
                    }
                    let function = line.trim_start_matches("async ").strip_prefix("fn ");
                    if let Some(function) = function.and_then(|rest| rest.split(['(', '<']).next()) {
                        for check in checks_of(function, documentation.unwrap_or_default()) {
                            tests.entry(check).or_default().insert(format!("{file}::{function}"));
                        }
                    }
                    if !line.starts_with("#[") {
                        documentation = None;
                    }
                }
            }
        }
    }
    let mut tests = BTreeMap::new();
    collect(checkout(), &mut tests);
    tests
}

/// Every check has a test, and the page names all of them.
#[test]
fn security_checks_name_their_tests() {
    let path = checkout().join(CHECKS);
    let page = fs::read_to_string(&path).expect("a page");
    let mut tests = tests_of_checks();
    let mut rows = 0;
    let written: String = page
        .lines()
        .map(|line| {
            let is_row = line.starts_with("| ID-") || line.starts_with("| CP-");
            let Some((cells, _)) = line.trim_end_matches('|').trim_end().rsplit_once('|').filter(|_| is_row) else {
                return format!("{line}\n");
            };
            rows += 1;
            let check = cells[2..7].to_owned();
            let tests = tests.remove(&check).unwrap_or_default();
            assert!(!tests.is_empty(), "{check} has no test");
            let names = tests.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            format!("{cells}| {names} |\n")
        })
        .collect();
    assert_eq!(rows, 26, "ID-01 to ID-13 and CP-01 to CP-13");
    assert!(tests.is_empty(), "{CHECKS} has no rows for {:?}", tests.keys());
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, &written).expect("written");
    }
    let page = fs::read_to_string(&path).expect("a page");
    let differs = page.lines().zip(written.lines()).find(|(found, expected)| found != expected);
    assert!(page == written, "{CHECKS} does not name the tests that there are: `make golden` writes it\n{differs:?}");
}

/// Users patch Argo CD's ConfigMap with one file; the other has the form of Argo CD's repository.
#[test]
fn argo_cd_config_map_has_the_health_check() {
    let read = |path: &str| fs::read_to_string(checkout().join("crds/argo-cd").join(path)).expect("readable");
    let lines = |text: &str| text.lines().map(str::trim_end).map(str::to_owned).collect::<Vec<_>>();
    let config_map = read("argocd-cm.yaml");
    let (_, rest) = config_map.split_once("&health |\n").expect("a block with an anchor");
    let (block, keys) = rest.split_once("  resource.").expect("further keys");
    let block: String = block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    assert_eq!(lines(&block), lines(&read("resource_customizations/weft.dev/_/health.lua")));
    for kind in ["Mesh", "MeshCluster", "MeshPolicy", "MeshRoute"] {
        assert!(config_map.contains(&format!("resource.customizations.health.weft.dev_{kind}: ")), "{kind}");
    }
    assert_eq!(keys.matches(": *health").count(), 3, "{keys}");
}

/// The expressions of the page are those of the test with Flux.
#[test]
fn flux_health_checks_of_the_page_are_tested() {
    let read = |path: &str| fs::read_to_string(checkout().join(path)).expect("readable");
    let tested = read("e2e/gitops/flux/shop.yaml");
    let (_, expressions) = tested.split_once("  healthCheckExprs:\n").expect("health checks at the end");
    assert!(read("docs/gitops.md").contains(expressions), "{expressions}");
}
