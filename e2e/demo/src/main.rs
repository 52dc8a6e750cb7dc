//! The demo application: both sides of the traffic that a mesh carries, in one binary for images FROM scratch.
//!
//! ```text
//!   client side                          server side
//!   load, request  ---- HTTP/1.1, h2c -->  serve --calls--> serve
//!   tcp-client     ---- bytes ---------->  tcp
//!   idle           (a pod to run the client side in)
//! ```
//!
//! The client side prints one JSON object and never repeats a request, so what a test counts is what happened. A request
//! that fails is a result like any other: the exit status is 0, and the object says what went wrong.

mod client;
mod duration;
mod load;
mod serve;
mod stop;
mod tcp;

use std::io::Write;

use anyhow::bail;
use clap::Parser;
use serde::Serialize;

use crate::stop::Stop;

/// The demo application of Weft: servers that say what reached them, clients that say what came back, whatever it is, and
/// then succeed.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Answer HTTP/1.1 and h2c on one port; every path tells what was asked, of whom.
    Serve(serve::Args),
    /// Echo bytes, after a greeting if there is one.
    Tcp(tcp::ServerArgs),
    /// Send many requests and print what came back, as JSON.
    Load(load::Args),
    /// Send bytes and print what came back, as JSON.
    TcpClient(tcp::ClientArgs),
    /// Send one request and print the response, as JSON.
    Request(client::Args),
    /// Do nothing until told to stop.
    Idle,
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(command));
    // A name that is still being looked up, on a thread of its own, must not delay the end.
    runtime.shutdown_background();
    result
}

async fn run(command: Command) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    let work = async {
        match command {
            Command::Serve(args) => return serve::run(args, stop).await,
            Command::Tcp(args) => {
                tokio::select! { result = tcp::serve(args) => return result, () = stop.signal() => {} }
            }
            Command::Idle => stop.signal().await,
            Command::Load(args) => print(&unless_stopped(&mut stop, load::run(args)).await?)?,
            Command::TcpClient(args) => print(&unless_stopped(&mut stop, tcp::call(args)).await?)?,
            Command::Request(args) => print(&unless_stopped(&mut stop, client::run(args)).await?)?,
        }
        Ok(())
    };
    work.await
}

async fn unless_stopped<T>(stop: &mut Stop, work: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::select! {
        value = work => Ok(value),
        () = stop.signal() => bail!("stopped by a signal"),
    }
}

fn print(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}
