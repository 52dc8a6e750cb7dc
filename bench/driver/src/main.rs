//! `mb`: load generator and backends for proxy benchmarks. Each is one thread, so that both fit on one core beside the
//! proxy's: plain epoll for HTTP/1.1 and TCP, the `h2` crate for HTTP/2.
//!
//! The load commands print one JSON object per line: `{"phase":"measure"}` at the end of the warm-up, so that the
//! caller can read the proxy's CPU time, then the result.

mod bulk;
mod hold;
mod http1;
mod http2;
mod latency;
mod poll;
mod socket;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Load generator and backends for proxy benchmarks.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An HTTP/1.1 server on all of 127.0.0.0/8.
    Backend(Server),
    /// An HTTP/2 server (prior knowledge) on all of 127.0.0.0/8, which also answers unary gRPC.
    Backend2(Server),
    /// A TCP server that sends bytes on every connection, without end.
    Source(Server),
    /// Sends HTTP/1.1 requests.
    Load(http1::load::Options),
    /// Sends HTTP/2 requests (prior knowledge).
    Load2(http2::load::Options),
    /// Reads from a source.
    Drain(bulk::Options),
    /// Opens connections, sends one request on each, and keeps them open until standard input ends.
    Hold(hold::Options),
}

/// Options of a server.
#[derive(Args)]
struct Server {
    #[arg(long)]
    port: u16,
    /// Length of the response body.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

/// Target and duration of the load.
#[derive(Args)]
struct Target {
    /// Port on 127.0.0.1.
    #[arg(long)]
    port: u16,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Seconds of the measurement.
    #[arg(long, default_value = "4", value_parser = seconds)]
    seconds: Duration,
    /// Seconds of load before the measurement.
    #[arg(long, default_value = "1", value_parser = seconds)]
    warm_up: Duration,
}

impl Target {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn main() -> anyhow::Result<()> {
    // The default timer slack of Linux would end waits up to 50 µs late.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    match Command::parse().what {
        What::Backend(server) => http1::backend::run(&server),
        What::Backend2(server) => http2::backend::run(&server),
        What::Source(server) => bulk::source(&server),
        What::Load(options) => http1::load::run(&options),
        What::Load2(options) => http2::load::run(options),
        What::Drain(options) => bulk::drain(&options),
        What::Hold(options) => hold::run(&options),
    }
}
