//! The demo application: clients and servers in one static binary.
//!
//! ```text
//!   client side                          server side
//!   load, request  ---- HTTP/1.1, h2c -->  serve --calls--> serve
//!   tcp-client     ---- TCP ------------>  tcp
//!   idle           (a pod to run client commands in)
//! ```
//!
//! Client commands print one JSON object and never retry a request, so that their counts are exact. A failed request
//! is a result: the exit status is 0, and the object has the error.

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

/// The demo application of Weft: servers that describe the requests they get, and clients that print results as JSON.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Serve HTTP/1.1 and h2c on one port; every path answers with a description of the request.
    Serve(serve::Args),
    /// Echo bytes over TCP, optionally after a greeting.
    Tcp(tcp::ServerArgs),
    /// Send many requests and print a report as JSON.
    Load(load::Args),
    /// Send bytes over TCP and print the bytes received, as JSON.
    TcpClient(tcp::ClientArgs),
    /// Send one request and print the response, as JSON.
    Request(client::Args),
    /// Do nothing until SIGTERM or SIGINT.
    Idle,
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(command));
    // A pending DNS lookup, which blocks a thread, must not delay the exit.
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
