//! Bulk transfer over TCP: a server that sends without end, and clients that read.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::poll::{Flags, Poll};
use crate::socket;
use crate::{Server, Target};

/// Bytes of one read or write.
const BUFFER: usize = 256 * 1024;

/// Options of `drain`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
}

/// Sends bytes on every connection, forever.
pub(crate) fn source(server: &Server) -> anyhow::Result<()> {
    const LISTENER: usize = 0;
    let listener = socket::listen(server.port)?;
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER, Flags::IN)?;
    let mut streams: HashMap<usize, TcpStream> = HashMap::new();
    let bytes = vec![7; BUFFER];
    let mut ready = Vec::new();
    loop {
        ready.extend(poll.wait(None)?);
        for (token, _) in ready.drain(..) {
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let token = stream.as_raw_fd() as usize;
                    poll.add(&stream, token, Flags::OUT)?;
                    streams.insert(token, stream);
                }
            } else if let Some(stream) = streams.get_mut(&token)
                && stream.write(&bytes).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
            {
                streams.remove(&token);
            }
        }
    }
}

/// Reads from a source as fast as possible, and prints the throughput.
pub(crate) fn drain(options: &Options) -> anyhow::Result<()> {
    let target = &options.target;
    let mut poll = Poll::new()?;
    let mut streams = Vec::new();
    for token in 0..target.connections {
        let stream = socket::connect(target.address(), false)?;
        poll.add(&stream, token, Flags::IN)?;
        streams.push(stream);
    }
    let mut buffer = vec![0; BUFFER];
    read_for(target.warm_up, &mut poll, &mut streams, &mut buffer)?;
    println!(r#"{{"phase":"measure"}}"#);
    let begun = Instant::now();
    let bytes = read_for(target.seconds, &mut poll, &mut streams, &mut buffer)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!(r#"{{"bytes":{bytes},"seconds":{seconds:.4},"gbit_s":{:.4}}}"#, bytes as f64 * 8e-9 / seconds);
    Ok(())
}

/// Reads for this long, and returns the number of bytes.
fn read_for(time: Duration, poll: &mut Poll, streams: &mut [TcpStream], buffer: &mut [u8]) -> anyhow::Result<u64> {
    let end = Instant::now() + time;
    let mut bytes = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(bytes);
        }
        for (token, _) in poll.wait(Some(left))? {
            bytes += streams[token].read(buffer).unwrap_or(0) as u64;
        }
    }
}
