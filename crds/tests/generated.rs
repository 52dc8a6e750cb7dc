//! The committed definitions are the generated ones.

use std::path::Path;

#[test]
fn committed_definitions_are_current() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft-crds/templates");
    for (name, yaml) in weft_crds::yaml() {
        let path = chart.join(name);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, yaml, "{} is not current: run `make gen`", path.display());
    }
}
