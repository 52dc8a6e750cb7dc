//! Idle connections that have each made one request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::{ClientConfig, ClientConnection};

use crate::http1::first_message;
use crate::{Target, tls};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench.local\r\n\r\n";

/// Options of `hold`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    tls: tls::Options,
}

/// An open connection.
struct Held {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

/// Opens the connections, prints their number, and keeps them open until standard input ends.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let tls = tls::client(&options.tls)?;
    let mut held = Vec::new();
    for number in 0..options.target.connections {
        held.push(Held::new(&options.target, tls.as_ref()).with_context(|| format!("connection {number}"))?);
    }
    println!(r#"{{"held":{}}}"#, held.len());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

// === impl Held ===

impl Held {
    /// Connects, and waits for the response to one request.
    fn new(target: &Target, config: Option<&Arc<ClientConfig>>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target.address())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut held = Self { stream, tls: config.map(tls::connection).transpose()? };
        match &mut held.tls {
            None => held.stream.write_all(REQUEST)?,
            Some(tls) => {
                tls.writer().write_all(REQUEST)?;
                tls::flush(tls, &mut held.stream)?;
            }
        }
        let mut received = Vec::new();
        while first_message(&received).is_none() {
            let mut buffer = [0; 4096];
            let read = match &mut held.tls {
                None => held.stream.read(&mut buffer)?,
                Some(tls) => tls::read(tls, &mut held.stream, &mut buffer)?,
            };
            anyhow::ensure!(read > 0, "closed before the response");
            received.extend_from_slice(&buffer[..read]);
        }
        Ok(held)
    }
}
