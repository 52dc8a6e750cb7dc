//! Installs Weft on the cluster under test, for `make install`; tests install it themselves.

fn main() -> anyhow::Result<()> {
    weft_e2e::progress::step("installing Weft", weft_e2e::install::ensure)
}
