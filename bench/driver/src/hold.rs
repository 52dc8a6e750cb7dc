//! Idle connections that have each made one request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;

use crate::Target;
use crate::http1::first_message;

/// Options of `hold`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
}

/// Opens the connections, prints their number, and keeps them open until standard input ends.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut held = Vec::new();
    for number in 0..options.target.connections {
        held.push(used_once(&options.target).with_context(|| format!("connection {number}"))?);
    }
    println!(r#"{{"held":{}}}"#, held.len());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn used_once(target: &Target) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(target.address())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench.local\r\n\r\n")?;
    let mut received = Vec::new();
    while first_message(&received).is_none() {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "closed before the response");
        received.extend_from_slice(&buffer[..read]);
    }
    Ok(stream)
}
