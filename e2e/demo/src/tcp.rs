//! TCP without HTTP: an echo server that may speak first, as databases do, and a client that reports what it received
//! when.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::millis;
use crate::serve::{accept, listen};

/// Maximum number of bytes per read.
const CHUNK: usize = 16 << 10;

#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    /// Port to listen on.
    #[arg(long)]
    port: u16,
    /// Greeting to send first. Default: none.
    #[arg(long, default_value = "")]
    greeting: String,
}

#[derive(clap::Args)]
pub(crate) struct ClientArgs {
    /// Address of the server, HOST:PORT.
    #[arg(long)]
    address: String,
    /// Text to send.
    #[arg(long, default_value = "")]
    send: String,
    /// Send a TLS ClientHello with this server name instead.
    #[arg(long, conflicts_with = "send", value_name = "SERVER")]
    hello: Option<String>,
    /// Wait for bytes of the server before sending.
    #[arg(long)]
    expect_first: bool,
    /// Read until this text was received. Default: until as many bytes were received as sent.
    #[arg(long)]
    until: Option<String>,
    /// Timeout for the whole exchange.
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse)]
    timeout: Duration,
}

/// Output of `tcp-client`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer {
    /// Bytes received before anything was sent (only with --expect-first).
    first: String,
    first_ms: Option<u64>,
    /// Bytes received afterwards.
    received: String,
    connect_ms: Option<u64>,
    ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) async fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let listener = listen(args.port).await?;
    loop {
        let stream = accept(&listener).await;
        let greeting = args.greeting.clone();
        tokio::spawn(async move {
            // A peer that closes the connection early is no error.
            let _ = echo(stream, &greeting).await;
        });
    }
}

pub(crate) async fn call(args: ClientArgs) -> Answer {
    let start = Instant::now();
    let mut answer = Answer::default();
    let result = tokio::time::timeout(args.timeout, exchange(&args, start, &mut answer)).await;
    answer.error = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("timed out".into()),
    };
    answer.ms = millis(start.elapsed());
    answer
}

async fn echo(mut stream: TcpStream, greeting: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

async fn exchange(args: &ClientArgs, start: Instant, answer: &mut Answer) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(&args.address).await.context("connect")?;
    stream.set_nodelay(true)?;
    answer.connect_ms = Some(millis(start.elapsed()));
    if args.expect_first {
        read(&mut stream, &mut answer.first).await.context("before anything was sent")?;
        answer.first_ms = Some(millis(start.elapsed()));
    }
    let sent = args.hello.as_deref().map_or_else(|| args.send.clone().into_bytes(), client_hello);
    stream.write_all(&sent).await.context("send")?;
    let complete = |received: &str| match &args.until {
        Some(text) => received.contains(text.as_str()),
        None => received.len() >= sent.len(),
    };
    while !complete(&answer.received) {
        read(&mut stream, &mut answer.received).await?;
    }
    Ok(())
}

/// A minimal TLS 1.2 ClientHello with a server name.
fn client_hello(server: &str) -> Vec<u8> {
    // A vector with a length prefix of two bytes.
    let vector = |parts: &[&[u8]]| -> Vec<u8> {
        let bytes = parts.concat();
        [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes(), bytes.as_slice()].concat()
    };
    let names = vector(&[&[0], &vector(&[server.as_bytes()])]);
    let extensions = vector(&[&[0, 0], &vector(&[&names])]);
    let body = [&[3, 3][..], &[0; 32], &[0], &vector(&[&[0xc0, 0x2f]]), &[1, 0], &extensions].concat();
    let message = [&[1, 0][..], &vector(&[&body])].concat();
    [&[22, 3, 1][..], &vector(&[&message])].concat()
}

async fn read(stream: &mut TcpStream, text: &mut String) -> anyhow::Result<()> {
    let mut chunk = vec![0; CHUNK];
    match stream.read(&mut chunk).await.context("receive")? {
        0 => bail!("the server closed the connection"),
        count => text.push_str(&String::from_utf8_lossy(&chunk[..count])),
    }
    Ok(())
}
