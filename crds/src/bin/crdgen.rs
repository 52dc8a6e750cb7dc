//! Writes the CustomResourceDefinitions as YAML: `crdgen DIRECTORY...` writes one file per kind into each directory.
//! A test compares the committed copies with the types.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    for directory in std::env::args_os().skip(1).map(PathBuf::from) {
        for (name, yaml) in weft_crds::yaml() {
            let path = directory.join(name);
            if let Err(error) = std::fs::write(&path, yaml) {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
