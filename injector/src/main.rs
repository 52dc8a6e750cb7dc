//! The injector's process.

use std::process::ExitCode;

use clap::Parser;
use weft_injector::app::{Arguments, run};

fn main() -> ExitCode {
    // Fails only where a provider is installed already; that one is then used.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    let result = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(run(arguments)).map_err(anyhow::Error::from);
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-injector: {error:#}");
            ExitCode::FAILURE
        }
    }
}
