//! Options of the linker that keep an idle proxy small: the pages of the program itself are most of its memory.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The addresses in a position-independent program are adjusted when it starts, by a table that stays in memory:
    // packed it has a tenth of the size.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // One copy of functions with the same code. Rust links with lld on this architecture, and GNU ld does not know it.
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=safe");
    }
}
