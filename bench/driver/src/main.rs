//! `mb`: load on a proxy, and the backends behind it. One thread each, so that a whole measurement fits on one core beside
//! the proxy's: epoll by hand for HTTP/1.1 and bytes, the `h2` crate for HTTP/2.
//!
//! What measures prints JSON, one object on a line: `{"phase":"measure"}` when the warm-up is over, so that whoever started
//! it can read the proxy's clock, then the result.

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

/// Load on a proxy, and the backends behind it.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An HTTP/1.1 server on all of 127.0.0.0/8.
    Backend(Server),
    /// An HTTP/2 server (prior knowledge) on all of 127.0.0.0/8, which answers unary gRPC too.
    Backend2(Server),
    /// A server that sends bytes to everybody, without end.
    Source(Server),
    /// Requests over HTTP/1.1.
    Load(http1::load::Options),
    /// Requests over HTTP/2 (prior knowledge).
    Load2(http2::load::Options),
    /// Reads what a source sends.
    Drain(bulk::Options),
    /// Opens connections, makes one request on each, and keeps them until standard input ends.
    Hold(hold::Options),
}

/// A server.
#[derive(Args)]
struct Server {
    #[arg(long)]
    port: u16,
    /// Length of a response's body.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

/// Where load goes, and for how long.
#[derive(Args)]
struct Target {
    /// On 127.0.0.1.
    #[arg(long)]
    port: u16,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long is measured.
    #[arg(long, default_value = "4", value_parser = seconds)]
    seconds: Duration,
    /// How long is not measured before.
    #[arg(long, default_value = "1", value_parser = seconds)]
    warm_up: Duration,
}

impl Target {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn main() -> anyhow::Result<()> {
    // Waits end when they should, not up to 50 µs later.
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
