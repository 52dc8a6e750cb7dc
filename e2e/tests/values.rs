//! The reference of Helm values, generated from the charts' `values.yaml` (defaults and comments) and
//! `values.schema.json` (types). Needs no cluster. `WEFT_BLESS=1 cargo test -p weft-e2e --test values` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_e2e::cluster::checkout;

const PAGE: &str = "docs/reference/values.md";
const CHARTS: [&str; 2] = ["weft", "weft-crds"];

const INTRODUCTION: &str = "\
# Helm values

An unknown value is refused, and so is one of the wrong type. The column *HA* is what `charts/weft/values-ha.yaml` sets
for production.
";

/// A value that has no values below it.
#[derive(Debug)]
struct Leaf {
    /// Its keys, from the root.
    path: Vec<String>,
    default: String,
    /// Its comment, in one line; empty without one.
    comment: String,
}

/// The leaves of a `values.yaml`. It reads what these files use of YAML: nested keys, and values on one line.
fn leaves(yaml: &str) -> Result<Vec<Leaf>> {
    let mut leaves = Vec::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in yaml.lines() {
        let text = line.trim_start();
        if text.is_empty() {
            comment.clear();
        } else if let Some(words) = text.strip_prefix('#') {
            comment.push(words.trim().trim_start_matches("-- "));
        } else if text == "{}" {
            ensure!(leaves.is_empty() && parents.is_empty(), "{{}} among values");
        } else {
            let (key, value) = text.split_once(':').with_context(|| format!("no key in {line:?}"))?;
            let indent = line.len() - text.len();
            parents.retain(|(of_parent, _)| *of_parent < indent);
            parents.push((indent, key.to_owned()));
            if !value.is_empty() {
                let path = parents.iter().map(|(_, key)| key.clone()).collect();
                leaves.push(Leaf { path, default: value.trim().to_owned(), comment: comment.join(" ") });
            }
            comment.clear();
        }
    }
    Ok(leaves)
}

/// A schema, or the one that it refers to.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Result<&'a Value> {
    let Some(reference) = schema["$ref"].as_str() else { return Ok(schema) };
    let pointer = reference.strip_prefix('#').context("a reference to another file")?;
    root.pointer(pointer).with_context(|| format!("{reference} does not exist"))
}

/// The schema of a value.
fn schema_of<'a>(root: &'a Value, path: &[String]) -> Result<&'a Value> {
    path.iter().try_fold(root, |schema, key| {
        let property =
            schema["properties"].get(key).with_context(|| format!("the schema has no {}", path.join(".")))?;
        resolve(root, property)
    })
}

/// The type of a value, with its bounds.
fn type_of(schema: &Value) -> Result<String> {
    if let Some(values) = schema["enum"].as_array() {
        return Ok(values
            .iter()
            .map(|value| format!("`{}`", value.as_str().unwrap_or("?")))
            .collect::<Vec<_>>()
            .join(", "));
    }
    let mut text = match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => anyhow::bail!("a schema without a type: {schema}"),
    };
    if let (Some(low), Some(high)) = (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
        write!(text, ", {low} to {high}")?;
    }
    Ok(text)
}

/// The paths of all values that a schema allows, down to the leaves of `values.yaml`.
fn allowed(root: &Value, schema: &Value, path: &[String], leaves: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let name = path.join(".");
    let Some(properties) = schema["properties"].as_object().filter(|_| !leaves.contains(&name)) else {
        return Ok(BTreeSet::from([name]));
    };
    let mut paths = BTreeSet::new();
    for (key, property) in properties {
        // Helm's own.
        if path.is_empty() && key == "global" {
            continue;
        }
        let path = [path, std::slice::from_ref(key)].concat();
        paths.extend(allowed(root, resolve(root, property)?, &path, leaves)?);
    }
    Ok(paths)
}

fn read(chart: &str, file: &str) -> Result<String> {
    let path = checkout().join("charts").join(chart).join(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn schema(chart: &str) -> Result<Value> {
    Ok(serde_json::from_str(&read(chart, "values.schema.json")?)?)
}

fn page() -> Result<String> {
    let mut page = INTRODUCTION.to_owned();
    let ha: BTreeMap<String, String> =
        leaves(&read("weft", "values-ha.yaml")?)?.into_iter().map(|leaf| (leaf.path.join("."), leaf.default)).collect();
    for chart in CHARTS {
        let (root, leaves) = (schema(chart)?, leaves(&read(chart, "values.yaml")?)?);
        write!(page, "\n## Chart {chart}\n\n")?;
        if leaves.is_empty() {
            page += "This chart has no values.\n";
            continue;
        }
        page += "| value | type | default | HA | meaning |\n|---|---|---|---|---|\n";
        for Leaf { path, default, comment } in leaves {
            let (name, kind) = (path.join("."), type_of(schema_of(&root, &path)?)?);
            let ha = ha.get(&name).map(|value| format!("`{value}`")).unwrap_or_default();
            let row = format!("| `{name}` | {kind} | `{default}` | {ha} | {} |", comment.replace('|', "\\|"));
            writeln!(page, "{}", row.replace("|  |", "| |"))?;
        }
    }
    Ok(page)
}

#[test]
fn every_value_has_a_comment_and_a_schema() -> Result<()> {
    for chart in CHARTS {
        let (root, leaves) = (schema(chart)?, leaves(&read(chart, "values.yaml")?)?);
        for leaf in &leaves {
            ensure!(!leaf.comment.is_empty(), "charts/{chart}/values.yaml: {} has no comment", leaf.path.join("."));
        }
        let names: BTreeSet<String> = leaves.iter().map(|leaf| leaf.path.join(".")).collect();
        let allowed = if names.is_empty() { BTreeSet::new() } else { allowed(&root, &root, &[], &names)? };
        ensure!(names == allowed, "charts/{chart}: values {names:?}, but the schema has {allowed:?}");
    }
    Ok(())
}

#[test]
fn reference_page_is_generated_from_the_charts() -> Result<()> {
    let (path, page) = (checkout().join(PAGE), page()?);
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, &page)?;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    ensure!(found == page, "{PAGE} is not what the charts say; WEFT_BLESS=1 writes it");
    Ok(())
}
