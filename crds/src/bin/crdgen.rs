//! Writes the CustomResourceDefinitions as YAML: `crdgen DIRECTORY...` writes one file for each kind into each directory.
//! The committed copies are held against the types by a test.

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
