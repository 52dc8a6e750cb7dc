//! Writes the CustomResourceDefinitions as YAML: `crdgen DIRECTORY` writes one file per kind. A test compares the
//! committed ones with the types.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: crdgen DIRECTORY");
        return ExitCode::FAILURE;
    };
    for (name, yaml) in weft_crds::yaml() {
        let path = directory.join(name);
        if let Err(error) = std::fs::write(&path, yaml) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
