//! HTTP/1.1 load.
//!
//! Closed loop: each connection sends its next request when the previous one is answered. Open loop: requests are due
//! at a constant rate, and their latency runs from when they were due, so that stalls of the proxy count (no
//! coordinated omission).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection};

use super::{Message, first_message};
use crate::latency::Latency;
use crate::poll::{Flags, Poll};
use crate::{Target, socket, tls};

/// Time to open the connections of an open loop before the first request is due.
const HEAD_START: Duration = Duration::from_millis(200);

/// Options of `load`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Requests per second (open loop). Default: closed loop.
    #[arg(long)]
    rate: Option<f64>,
    /// Open a new connection for each request, and include it in the latency.
    #[arg(long)]
    close: bool,
    /// Send POST requests with a body of this length.
    #[arg(long)]
    post: Option<usize>,
    #[arg(long, default_value = "/")]
    path: String,
    #[command(flatten)]
    tls: tls::Options,
}

struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    close: bool,
    tls: Option<Arc<ClientConfig>>,
    poll: Poll,
    connections: Vec<Connection>,
    /// Only in an open loop.
    pace: Option<Pace>,
    counts: Counts,
}

struct Pace {
    interval: Duration,
    next: Instant,
    /// Due times of requests that wait for a free connection.
    waiting: VecDeque<Instant>,
    free: VecDeque<usize>,
}

struct Counts {
    answered: u64,
    /// Answered with a status other than 200.
    refused: u64,
    /// Failed without a response.
    broken: u64,
    latency: Latency,
}

struct Connection {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    state: State,
    /// Start of the current request, or of the connection before its first request.
    begun: Instant,
    /// Bytes of the request that are not written yet. With TLS, rustls buffers them.
    unsent: usize,
    received: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Idle,
    Busy,
}

/// Sends requests for the configured time, and prints the result.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut load = Load::new(options)?;
    let measure_from = Instant::now() + options.target.warm_up;
    let end = measure_from + options.target.seconds;
    load.run_until(measure_from)?;
    println!(r#"{{"phase":"measure"}}"#);
    let begun = Instant::now();
    load.counts = Counts::new();
    load.run_until(end)?;
    let seconds = begun.elapsed().as_secs_f64();
    let Counts { answered, refused, broken, latency } = &load.counts;
    let rps = *answered as f64 / seconds;
    println!(
        r#"{{"requests":{answered},"seconds":{seconds:.4},"rps":{rps:.1},"refused":{refused},"broken":{broken},{latency}}}"#
    );
    Ok(())
}

// === impl Load ===

impl Load {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let mut load = Self {
            address: options.target.address(),
            request: request(options),
            close: options.close,
            tls: tls::client(&options.tls)?,
            poll: Poll::new()?,
            connections: Vec::new(),
            pace: options.rate.map(Pace::new),
            counts: Counts::new(),
        };
        for token in 0..options.target.connections {
            let connection = load.connect(token)?;
            load.connections.push(connection);
        }
        Ok(load)
    }

    fn connect(&self, token: usize) -> anyhow::Result<Connection> {
        let stream = socket::connect(self.address, self.close)?;
        self.poll.add(&stream, token, Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET)?;
        Ok(Connection {
            stream,
            tls: self.tls.as_ref().map(tls::connection).transpose()?,
            state: State::Connecting,
            begun: Instant::now(),
            unsent: 0,
            received: Vec::new(),
        })
    }

    fn run_until(&mut self, end: Instant) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            let mut until = end;
            if let Some(pace) = &mut self.pace {
                pace.advance(now);
                until = until.min(pace.next);
                while let Some((token, due)) = pace.start() {
                    // A send error shows when the response is read.
                    let _ = self.connections[token].send(&self.request, due);
                }
            }
            let at_most = until.saturating_duration_since(Instant::now());
            ready.extend(self.poll.wait(Some(at_most))?);
            for (token, flags) in ready.drain(..) {
                self.on_event(token, flags, &mut buffer)?;
            }
        }
    }

    fn on_event(&mut self, token: usize, flags: Flags, buffer: &mut [u8]) -> anyhow::Result<()> {
        let connection = &mut self.connections[token];
        match connection.advance(flags, &self.request, buffer) {
            Ok(Step::Nothing) => {}
            Ok(Step::Connected) => self.next_request(token),
            Ok(Step::Answered(message)) => {
                self.counts.answered += 1;
                self.counts.refused += u64::from(!message.ok);
                self.counts.latency.add(connection.begun.elapsed());
                connection.state = State::Idle;
                if self.close || message.close {
                    self.connections[token] = self.connect(token)?;
                } else {
                    self.next_request(token);
                }
            }
            Err(_) => {
                // Closing an idle connection fails no request.
                self.counts.broken += u64::from(connection.state != State::Idle);
                if let Some(pace) = &mut self.pace {
                    pace.free.retain(|free| *free != token);
                }
                self.connections[token] = self.connect(token)?;
            }
        }
        Ok(())
    }

    fn next_request(&mut self, token: usize) {
        if let Some(pace) = &mut self.pace {
            pace.free.push_back(token);
            return;
        }
        let connection = &mut self.connections[token];
        let begun = if self.close { connection.begun } else { Instant::now() };
        let _ = connection.send(&self.request, begun);
    }
}

// === impl Pace ===

impl Pace {
    fn new(rate: f64) -> Self {
        Self {
            interval: Duration::from_secs_f64(1.0 / rate),
            next: Instant::now() + HEAD_START,
            waiting: VecDeque::new(),
            free: VecDeque::new(),
        }
    }

    /// Queues the requests that are due by now.
    fn advance(&mut self, now: Instant) {
        while self.next <= now {
            self.waiting.push_back(self.next);
            self.next += self.interval;
        }
    }

    /// The next request, if one is due and a connection is free: the connection, and the due time.
    fn start(&mut self) -> Option<(usize, Instant)> {
        if self.waiting.is_empty() || self.free.is_empty() {
            return None;
        }
        Some((self.free.pop_front()?, self.waiting.pop_front()?))
    }
}

// === impl Counts ===

impl Counts {
    fn new() -> Self {
        Self { answered: 0, refused: 0, broken: 0, latency: Latency::new() }
    }
}

// === impl Connection ===

/// The result of an event on a connection.
enum Step {
    Nothing,
    Connected,
    Answered(Message),
}

impl Connection {
    fn send(&mut self, request: &[u8], begun: Instant) -> io::Result<()> {
        self.state = State::Busy;
        self.begun = begun;
        self.received.clear();
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(request)?,
            None => self.unsent = request.len(),
        }
        self.flush(request)
    }

    /// Makes progress without blocking. After an error the connection is unusable.
    fn advance(&mut self, flags: Flags, request: &[u8], buffer: &mut [u8]) -> io::Result<Step> {
        if self.state == State::Connecting {
            if flags.contains(Flags::ERR) {
                return Err(ErrorKind::ConnectionRefused.into());
            }
            if !flags.contains(Flags::OUT) {
                return Ok(Step::Nothing);
            }
            self.state = State::Idle;
            self.flush(request)?;
            return Ok(Step::Connected);
        }
        self.flush(request)?;
        loop {
            match self.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Nothing),
                Err(error) => return Err(error),
            }
            if let Some(message) = first_message(&self.received) {
                return Ok(Step::Answered(message));
            }
        }
    }

    fn flush(&mut self, request: &[u8]) -> io::Result<()> {
        let flushed = match &mut self.tls {
            Some(tls) => tls::flush(tls, &mut self.stream),
            None => self.flush_plain(request),
        };
        flushed.or_else(|error| if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(error) })
    }

    fn flush_plain(&mut self, request: &[u8]) -> io::Result<()> {
        while self.unsent > 0 {
            self.unsent -= self.stream.write(&request[request.len() - self.unsent..])?;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(buffer),
            Some(tls) => tls::read(tls, &mut self.stream, buffer),
        }
    }
}

fn request(options: &Options) -> Vec<u8> {
    let method = if options.post.is_some() { "POST" } else { "GET" };
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nhost: bench.local\r\nuser-agent: mb\r\naccept: */*\r\nx-tenant: a1b2c3d4\r\n",
        options.path
    );
    if options.close {
        head += "connection: close\r\n";
    }
    if let Some(length) = options.post {
        head += &format!("content-length: {length}\r\n");
    }
    head += "\r\n";
    let mut request = head.into_bytes();
    request.resize(request.len() + options.post.unwrap_or(0), b'y');
    request
}
