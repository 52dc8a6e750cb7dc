//! The shape of the tree, held against what ARCHITECTURE.md says of it. Needs no cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weft_e2e::cluster::checkout;

/// Which of our crates a crate may use. Whoever adds an arrow adds it here and to ARCHITECTURE.md.
const ARROWS: [(&str, &[&str]); 9] = [
    ("weft-config", &[]),
    ("weft-crds", &[]),
    ("weft-runtime", &[]),
    ("weft-demo", &[]),
    ("weft-operator", &["weft-config", "weft-crds", "weft-runtime"]),
    ("weft-injector", &["weft-config", "weft-crds", "weft-runtime"]),
    ("weft-proxy", &["weft-config", "weft-runtime"]),
    ("weft-init", &["weft-config", "weft-runtime"]),
    ("weft-e2e", &["weft-config", "weft-crds", "weft-runtime"]),
];

/// Modules that decide, and touch nothing: no client, no runtime, no files, no clock of their own.
const PURE: [&str; 17] = [
    "operator/src/compile",
    "operator/src/status.rs",
    "injector/src/decide.rs",
    "injector/src/mutate.rs",
    "injector/src/settings.rs",
    "proxy/init/src/rules.rs",
    "proxy/src/balance",
    "proxy/src/decide.rs",
    "proxy/src/detect.rs",
    "proxy/src/filter/cors.rs",
    "proxy/src/filter/fault.rs",
    "proxy/src/filter/rate_limit.rs",
    "proxy/src/hpack",
    "proxy/src/path.rs",
    "proxy/src/policy.rs",
    "proxy/src/sni.rs",
    "proxy/src/table/index.rs",
];

const IMPURE: [&str; 7] =
    ["tokio::", "kube::Client", "kube::Api", "std::fs", "std::net::TcpStream", "Instant::now", "SystemTime::now"];

#[test]
fn crates_use_what_they_may() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(checkout())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut seen = BTreeSet::new();
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} has no row in ARROWS"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let other = dependency["name"].as_str().expect("a name");
            assert!(!other.starts_with("weft-") || may.contains(&other), "{name} must not use {other}");
        }
        seen.insert(name);
    }
    assert_eq!(seen, allowed.keys().copied().collect(), "every row of ARROWS is a crate");
}

#[test]
fn pure_modules_are_pure() {
    for module in PURE {
        let path = checkout().join(module);
        let files = if path.is_dir() { rust_files(&path) } else { vec![path] };
        assert!(!files.is_empty(), "{module} is not there");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in IMPURE {
                assert!(!code.contains(word), "{} is to be pure and says {word}", file.display());
            }
        }
    }
}

#[test]
fn every_file_is_part_of_a_crate() {
    for source in [
        "bench/driver",
        "crds",
        "e2e",
        "e2e/demo",
        "injector",
        "operator",
        "proxy",
        "proxy/config",
        "proxy/init",
        "runtime",
    ] {
        let src = checkout().join(source).join("src");
        let files = rust_files(&src);
        let declared: String = files.iter().map(|file| fs::read_to_string(file).expect("readable")).collect();
        for file in files {
            let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            let name = if stem == "mod" {
                file.parent().and_then(Path::file_name).and_then(|name| name.to_str())
            } else {
                Some(stem)
            };
            let name = name.expect("a name");
            let is_root =
                ["lib", "main"].contains(&name) || file.parent().is_some_and(|folder| folder.ends_with("bin"));
            assert!(is_root || declared.contains(&format!("mod {name};")), "{} is in no module", file.display());
        }
    }
}

#[test]
fn the_readme_names_targets_and_files_that_are_there() {
    let makefile = fs::read_to_string(checkout().join("Makefile")).expect("a Makefile");
    for page in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(checkout().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        for target in text.split("`make ").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()) {
            assert!(
                makefile.contains(&format!("\n{target}:")),
                "{page} says `make {target}`, and there is no such target"
            );
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = !link.starts_with("http") && !link.starts_with('#');
            assert!(!local || checkout().join(link).exists(), "{page} links to {link}, which is not there");
        }
    }
}

/// Each bound on what comes over HTTP names the test that holds it, or says why it has none.
#[test]
fn bounds_have_tests_that_are_there() {
    let page = fs::read_to_string(checkout().join("docs/bounds.md")).expect("a page");
    let mut tests = 0;
    for name in page.split('`').skip(1).step_by(2).filter(|code| code.contains("::")) {
        let (file, test) = name.split_once("::").expect("a file and a test");
        let path = checkout().join("proxy").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "docs/bounds.md names {name}, which is not there");
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

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(rust_files(&path)),
            path if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
    files
}
