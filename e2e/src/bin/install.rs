//! Installs Weft on the cluster under test, for people and scripts; tests do it by themselves.

fn main() -> anyhow::Result<()> {
    weft_e2e::progress::step("installing Weft", weft_e2e::install::ensure)
}
