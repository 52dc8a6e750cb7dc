//! Checks the source tree against the rules of ARCHITECTURE.md. Needs no cluster.

#[path = "tidy/order.rs"]
mod order;
#[path = "tidy/tokens.rs"]
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weft_e2e::cluster::checkout;

use crate::order::Order;
use crate::tokens::{first_words, sources, tokenize};

/// The crates of the workspace that each crate may depend on. A new dependency is added here and to ARCHITECTURE.md.
const DEPENDENCIES: [(&str, &[&str]); 13] = [
    ("weft-balance", &["weft-config"]),
    ("weft-codec", &[]),
    ("weft-config", &[]),
    ("weft-crds", &[]),
    ("weft-gateway-api", &[]),
    ("weft-identity", &[]),
    ("weft-runtime", &[]),
    ("weft-demo", &[]),
    ("weft-operator", &["weft-config", "weft-crds", "weft-gateway-api", "weft-identity", "weft-runtime"]),
    ("weft-injector", &["weft-config", "weft-crds", "weft-identity", "weft-runtime"]),
    ("weft-proxy", &["weft-balance", "weft-codec", "weft-config", "weft-identity", "weft-runtime"]),
    ("weft-init", &["weft-config", "weft-runtime"]),
    ("weft-e2e", &["weft-config", "weft-crds", "weft-runtime"]),
];

/// The layers of modules inside each crate, the lowest first. A file imports only from its own module and lower layers.
const ORDERS: [Order; 6] = [
    Order {
        src: "injector/src",
        library: "weft_injector",
        layers: &[
            &["annotation", "metrics", "namespace", "patch", "pod", "quantity", "workload"],
            &["annotations", "certificate"],
            &["lookalike", "refusal", "settings"],
            &["decide", "namespaces", "probe", "trust"],
            &["mutate"],
            &["refresh"],
            &["lib"],
            &["warn"],
            &["server"],
            &["app"],
            &["main"],
        ],
        circles: &[],
    },
    Order {
        src: "operator/src",
        library: "weft_operator",
        layers: &[
            &["lease", "lib", "metrics", "signing", "world"],
            &["compile", "watch"],
            &["callers", "render", "status", "webhook"],
            &["apply"],
            &["events"],
            &["identity", "reconcile"],
            &["app"],
            &["main"],
        ],
        circles: &[],
    },
    Order {
        src: "proxy/balance/src",
        library: "weft_balance",
        layers: &[
            &["budget", "ewma", "hash", "outlier", "priority", "rng"],
            &["slow_start"],
            &["candidates", "endpoint"],
            &["pick"],
            &["lib"],
        ],
        circles: &[],
    },
    Order {
        src: "proxy/codec/src",
        library: "weft_codec",
        layers: &[
            &[
                "body",
                "hpack",
                "http1",
                "http2/limits",
                "http2/output",
                "limits",
                "read_buffer",
                "sni",
                "tick",
                "token",
            ],
            &["hpack/huffman", "hpack/table", "http1/framing", "http2/error"],
            &["hpack/encoder_table", "hpack/primitive", "http1/parse", "http2/flow"],
            &["hpack/decode", "hpack/encode", "http1/decode", "http2/frame", "http2/stream"],
            &["detect", "http1/wire", "http2/head"],
            &["http1/encode", "http2/state"],
            &["http2/half", "http2/state/api", "http2/state/frames", "http2/state/task"],
            &["http2/connection"],
            &["http2"],
            &["lib"],
        ],
        circles: &[],
    },
    Order {
        src: "proxy/identity/src",
        library: "weft_identity",
        layers: &[
            &["date", "der", "id", "pem", "provider"],
            &["certificate", "parsed"],
            &["bundle"],
            &["request", "verify"],
            &["authority"],
            &["issue", "sign", "tls"],
            &["signer"],
            &["lib"],
        ],
        circles: &[],
    },
    Order {
        src: "proxy/src",
        library: "weft_proxy",
        layers: &[
            &[
                "callers",
                "changes",
                "clock",
                "cookie",
                "direction",
                "file",
                "http",
                "http/kept",
                "http/pace",
                "lib",
                "memory",
                "orig_dst",
                "path",
                "probe",
                "query",
                "reason",
                "security",
                "telemetry/alive",
                "telemetry/config",
                "telemetry/identity",
                "telemetry/series",
                "upstream",
                "value",
            ],
            &[
                "affinity",
                "http/date",
                "http/head",
                "identity",
                "table/source",
                "telemetry/labels",
                "upstream/error",
                "upstream/shared_cluster",
            ],
            &["http/interim", "matcher", "telemetry", "telemetry/metrics"],
            &["filter", "table/edit", "table/index", "telemetry/handles"],
            &["table/backend"],
            &["table/route"],
            &["decide"],
            &["http/pipe", "multiplexed"],
            &["stream"],
            &["tcp", "tls"],
            &["bootstrap", "sniff"],
            &["http/watch", "policy"],
            &["mode"],
            &["http/from_client", "table"],
            &["http/incoming", "http/request_body", "http/upload", "table/store", "upstream/http1"],
            &["http/drain", "table/updater", "upstream/http2"],
            &["upstream/endpoint"],
            &["upstream/fallback_state"],
            &["upstream/cluster"],
            &["worker"],
            &["downstream", "http/mirror", "telemetry/sweep", "upstream/fallback", "upstream/health"],
            &["judge"],
            &["listener", "telemetry/access", "upstream/connect"],
            &["http/guard", "upstream/pod"],
            &["http/response_body"],
            &["http/respond", "http/upgrade"],
            &["http/attempt", "http/requests", "http/streams", "http/tunnel"],
            &["http/retry", "http/serve"],
            &["http/hedge"],
            &["http/forward"],
            &["inbound", "outbound/action"],
            &["outbound/filters"],
            &["outbound/requests"],
            &["outbound"],
            &["app"],
            &["main"],
        ],
        // A body names where it comes from, and what it comes from gives bodies: one closed sum type.
        circles: &[&["http/incoming", "http/request_body", "http/upload", "upstream/http1"]],
    },
];

/// Modules of pure functions: no client, no runtime, no files, no clock.
const PURE: &[&str] = &[
    "e2e/src/mistakes",
    "operator/src/compile",
    "operator/src/events/budget.rs",
    "operator/src/events/condition.rs",
    "operator/src/events/definition.rs",
    "operator/src/events/pod.rs",
    "operator/src/identity/caller.rs",
    "operator/src/identity/fairness.rs",
    "operator/src/identity/holder.rs",
    "operator/src/identity/lifecycle.rs",
    "operator/src/identity/refusal.rs",
    "operator/src/identity/secret.rs",
    "operator/src/identity/trust.rs",
    "operator/src/reconcile/state.rs",
    "operator/src/render.rs",
    "operator/src/signing.rs",
    "operator/src/status",
    "operator/src/world",
    "injector/src/annotations.rs",
    "injector/src/decide.rs",
    "injector/src/lookalike.rs",
    "injector/src/mutate.rs",
    "injector/src/probe.rs",
    "injector/src/quantity.rs",
    "injector/src/refresh.rs",
    "injector/src/settings.rs",
    "injector/src/warn.rs",
    "proxy/balance/src",
    "proxy/codec/src/detect.rs",
    "proxy/codec/src/hpack",
    "proxy/codec/src/http1/decode.rs",
    "proxy/codec/src/http1/framing.rs",
    "proxy/codec/src/http1/parse.rs",
    "proxy/codec/src/http2/error.rs",
    "proxy/codec/src/http2/flow.rs",
    "proxy/codec/src/http2/frame.rs",
    "proxy/codec/src/http2/head.rs",
    "proxy/codec/src/sni.rs",
    "proxy/identity/src",
    "proxy/init/src/rules.rs",
    "proxy/src/affinity.rs",
    "proxy/src/callers.rs",
    "proxy/src/cookie.rs",
    "proxy/src/decide.rs",
    "proxy/src/direction.rs",
    "proxy/src/filter",
    "proxy/src/matcher.rs",
    "proxy/src/mode.rs",
    "proxy/src/path.rs",
    "proxy/src/policy.rs",
    "proxy/src/query.rs",
    "proxy/src/reason.rs",
    "proxy/src/table/index.rs",
    "proxy/src/value.rs",
];

const IMPURE: [&str; 7] =
    ["tokio::", "kube::Client", "kube::Api", "std::fs", "std::net::TcpStream", "Instant::now", "SystemTime::now"];

#[test]
fn crates_depend_only_on_allowed_crates() {
    let allowed: BTreeMap<&str, &[&str]> = DEPENDENCIES.into_iter().collect();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} has no row in DEPENDENCIES"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let other = dependency["name"].as_str().expect("a name");
            assert!(!other.starts_with("weft-") || may.contains(&other), "{name} must not depend on {other}");
        }
        seen.insert(name.to_owned());
    }
    assert_eq!(seen, allowed.keys().map(|name| (*name).to_owned()).collect(), "every row of DEPENDENCIES is a crate");
}

/// A dependency is one that code outside of tests names; one that only tests name is a dev-dependency.
#[test]
fn every_dependency_is_used() {
    let mut named = BTreeSet::new();
    let mut unused = Vec::new();
    for package in packages() {
        let folder = Path::new(package["manifest_path"].as_str().expect("a path")).parent().expect("a folder");
        let files = read_sources(&folder.join("src"));
        let of_src: BTreeSet<String> =
            sources(&files).values().flat_map(|source| first_words(&source.tokens)).map(str::to_owned).collect();
        let tests = ["tests", "benches", "examples"].map(|tests| folder.join(tests)).into_iter();
        let tests = tests.filter(|tests| tests.exists()).flat_map(|tests| read_sources(&tests).into_values());
        let of_tests: BTreeSet<String> = (files.values().cloned().chain(tests))
            .flat_map(|text| first_words(&tokenize(&text)).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().expect("a name");
            let used = if dependency["kind"] == "dev" { &of_tests } else { &of_src };
            let word = dependency["rename"].as_str().unwrap_or(name).replace('-', "_");
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            if !used.contains(&word) {
                unused.push(format!("{} does not use its {kind} dependency {name}", package["name"]));
            }
            named.insert(dependency["rename"].as_str().unwrap_or(name).to_owned());
        }
    }
    let manifest = fs::read_to_string(checkout().join("Cargo.toml")).expect("readable");
    let table = manifest.split("[workspace.dependencies]\n").nth(1).expect("a table");
    for line in table.lines().take_while(|line| !line.starts_with('[')) {
        let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else { continue };
        if !named.contains(name) {
            unused.push(format!("no crate has the dependency {name} of the root Cargo.toml"));
        }
    }
    assert!(unused.is_empty(), "{}", unused.join("\n"));
}

#[test]
fn modules_import_only_from_lower_layers() {
    for order in ORDERS {
        let violations = order.violations(&read_sources(&checkout().join(order.src)));
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}

#[test]
fn pure_modules_do_no_io() {
    for module in PURE {
        let path = checkout().join(module);
        let files = if path.is_dir() { rust_files(&path) } else { vec![path] };
        assert!(!files.is_empty(), "{module} does not exist");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in IMPURE {
                assert!(!code.contains(word), "{} must be pure and uses {word}", file.display());
            }
        }
    }
}

#[test]
fn every_source_file_is_in_a_module_tree() {
    for crate_dir in [
        "bench/driver",
        "crds",
        "crds/gateway",
        "e2e",
        "e2e/demo",
        "injector",
        "operator",
        "proxy",
        "proxy/balance",
        "proxy/codec",
        "proxy/config",
        "proxy/identity",
        "proxy/init",
        "runtime",
    ] {
        let src = checkout().join(crate_dir).join("src");
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
            assert!(
                is_root || declared.contains(&format!("mod {name};")),
                "{} is not declared by a mod",
                file.display()
            );
        }
    }
}

/// The crates of the workspace, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(checkout())
        .output()
        .expect("cargo runs");
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    serde_json::from_value(metadata["packages"].take()).expect("packages")
}

/// The texts of the Rust files of a folder, by their path in it.
fn read_sources(folder: &Path) -> BTreeMap<String, String> {
    let path = |file: &Path| file.strip_prefix(folder).expect("below it").to_string_lossy().into_owned();
    let text = |file: &Path| fs::read_to_string(file).expect("readable");
    rust_files(folder).iter().map(|file| (path(file), text(file))).collect()
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
