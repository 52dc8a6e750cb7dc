//! HTTP/2 load, or unary gRPC calls: closed loop with a number of streams, or open loop at a rate.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use super::{CONNECTION_WINDOW, GRPC_MESSAGE, STREAM_WINDOW, STREAMS, runtime};
use crate::Target;
use crate::latency::Latency;

/// Interval at which due requests are sent, the resolution of tokio's timer.
const TICK: Duration = Duration::from_millis(1);

/// Options of `load2`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Concurrent streams on each connection, without --rate.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Requests per second (open loop). Default: closed loop.
    #[arg(long)]
    rate: Option<f64>,
    /// Make unary gRPC calls.
    #[arg(long)]
    grpc: bool,
}

/// Results of the requests, shared by the tasks that send them.
struct Counts {
    answered: Cell<u64>,
    /// Answered with a status other than 200, or a gRPC status other than 0.
    refused: Cell<u64>,
    /// Failed without a response.
    broken: Cell<u64>,
    latency: RefCell<Latency>,
}

/// Sends requests for the configured time, and prints the result.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    LocalSet::new().block_on(&runtime()?, measure(options))
}

async fn measure(options: Options) -> anyhow::Result<()> {
    let counts = Rc::new(Counts::new());
    let mut senders = Vec::new();
    for _ in 0..options.target.connections {
        senders.push(connect(&options.target).await?);
    }
    match options.rate {
        Some(rate) => drop(spawn_local(at_rate(rate, senders, options.grpc, counts.clone()))),
        None => {
            for sender in senders {
                for _ in 0..options.streams {
                    spawn_local(one_after_another(sender.clone(), options.grpc, counts.clone()));
                }
            }
        }
    }
    tokio::time::sleep(options.target.warm_up).await;
    println!(r#"{{"phase":"measure"}}"#);
    counts.reset();
    let begun = Instant::now();
    tokio::time::sleep(options.target.seconds).await;
    let seconds = begun.elapsed().as_secs_f64();
    let (answered, refused, broken) = (counts.answered.get(), counts.refused.get(), counts.broken.get());
    let rps = answered as f64 / seconds;
    let latency = counts.latency.borrow();
    println!(
        r#"{{"requests":{answered},"seconds":{seconds:.4},"rps":{rps:.1},"refused":{refused},"broken":{broken},{latency}}}"#
    );
    Ok(())
}

async fn connect(target: &Target) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target.address()).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS as usize)
        .handshake(stream)
        .await?;
    spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

/// One stream of a closed loop, until its connection fails.
async fn one_after_another(sender: SendRequest<Bytes>, grpc: bool, counts: Rc<Counts>) {
    while request(sender.clone(), grpc, &counts).await.is_ok() {}
}

/// An open loop. Requests are sent up to a tick late, and their latency runs from when they are sent.
async fn at_rate(rate: f64, senders: Vec<SendRequest<Bytes>>, grpc: bool, counts: Rc<Counts>) {
    let interval = Duration::from_secs_f64(1.0 / rate);
    let mut due = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    for sender in senders.iter().cycle() {
        while due > Instant::now() {
            ticks.tick().await;
        }
        due += interval;
        let (sender, counts) = (sender.clone(), counts.clone());
        spawn_local(async move { drop(request(sender, grpc, &counts).await) });
    }
}

/// Sends one request and counts its result.
async fn request(sender: SendRequest<Bytes>, grpc: bool, counts: &Counts) -> Result<(), h2::Error> {
    let begun = Instant::now();
    match exchange(sender, grpc).await {
        Ok(good) => {
            counts.answered.update(|count| count + 1);
            counts.refused.update(|count| count + u64::from(!good));
            counts.latency.borrow_mut().add(begun.elapsed());
            Ok(())
        }
        Err(error) => {
            counts.broken.update(|count| count + 1);
            Err(error)
        }
    }
}

/// Sends one request. Returns whether the response was the expected one.
async fn exchange(mut sender: SendRequest<Bytes>, grpc: bool) -> Result<bool, h2::Error> {
    let (response, mut stream) = sender.send_request(if grpc { grpc_head() } else { plain_head() }, !grpc)?;
    if grpc {
        stream.send_data(Bytes::from_static(&GRPC_MESSAGE), true)?;
    }
    let response = response.await?;
    let good = response.status() == StatusCode::OK;
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    if !grpc {
        return Ok(good);
    }
    let trailers = body.trailers().await?;
    Ok(good && trailers.is_some_and(|trailers| trailers.get("grpc-status").is_some_and(|status| status == "0")))
}

fn plain_head() -> Request<()> {
    head(Method::GET, "http://bench.local/", &[])
}

fn grpc_head() -> Request<()> {
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    head(Method::POST, "http://bench.local/bench.Service/Unary", &headers)
}

fn head(method: Method, uri: &'static str, headers: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request =
        Request::builder().method(method).uri(uri).header("user-agent", "mb").header("x-tenant", "a1b2c3d4");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("its parts are constants")
}

// === impl Counts ===

impl Counts {
    fn new() -> Self {
        let (answered, refused, broken) = Default::default();
        Self { answered, refused, broken, latency: RefCell::new(Latency::new()) }
    }

    fn reset(&self) {
        self.answered.set(0);
        self.refused.set(0);
        self.broken.set(0);
        self.latency.replace(Latency::new());
    }
}
