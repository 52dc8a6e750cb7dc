//! The committed definitions are the generated ones.

use std::path::Path;

#[test]
fn committed_definitions_are_current() {
    let crds = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in weft_crds::yaml() {
        // A link to the chart's file, so that `kubectl apply -f crds/` works as well.
        let path = crds.join(name);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, yaml, "{} is not current: run `make gen`", path.display());
    }
}

/// `kubectl get` fits a terminal and says whether an object is ready and why not; `-o wide` has the rest.
#[test]
fn default_columns_say_whether_an_object_is_ready() {
    for (name, yaml) in weft_crds::yaml() {
        let definition: serde_json::Value = serde_saphyr::from_str(&yaml).expect("YAML");
        let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
        let (wide, default): (Vec<_>, Vec<_>) = columns.iter().partition(|column| column["priority"] == 1);
        let names = |columns: &[&serde_json::Value]| -> Vec<String> {
            columns.iter().map(|column| column["name"].as_str().expect("a name").to_owned()).collect()
        };
        assert!(names(&default).ends_with(&["Ready", "Reason", "Age"].map(str::to_owned)), "{name}: {default:?}");
        for column in ["Accepted", "Resolved", "Programmed", "In-Effect", "Generation", "Observed", "Message"] {
            assert!(names(&wide).contains(&column.to_owned()), "{name} has no column {column}");
        }
    }
}
