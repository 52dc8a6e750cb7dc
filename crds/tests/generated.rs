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
