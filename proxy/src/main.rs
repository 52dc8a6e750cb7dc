//! The proxy process: reads its environment, then calls [`weft_proxy::app::run`].

use std::process::ExitCode;

use weft_proxy::app;
use weft_proxy::bootstrap::Bootstrap;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Bootstrap::from_env().map_err(anyhow::Error::from).and_then(app::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
