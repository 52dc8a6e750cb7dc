//! An option of the linker that keeps an idle proxy small: the pages of the program are most of its memory.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The addresses in a position-independent program are adjusted when it starts, by a table that stays in memory:
    // packed it has 8 KB instead of 690.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
