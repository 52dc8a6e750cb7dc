//! The HTTP server: answers every path with a description of the request, with delays and failures on demand, and
//! counts requests.
//!
//! | path | response |
//! |---|---|
//! | `/` | calls the services of `--calls`; the description includes their results |
//! | `/large?bytes=N` | N bytes, or with `&each=1s` one byte a second |
//! | `/healthz` | 200, always |
//! | `/grpc.health.v1.Health/Check` | SERVING, or NOT_SERVING with `--not-serving`, in the gRPC health protocol |
//! | `/_seen`, `/_reset` | request counts since the last reset, by method and first path segment, and by token |
//! | any other | description of the request |
//!
//! `?delay=300ms`, `?status=503` and `?header=NAME:VALUE` apply to one request. A request with `Upgrade: echo` is
//! upgraded to an echo of bytes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Ready;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Interval, interval};

use crate::client::{self, RequestArgs, Target};
use crate::duration;
use crate::stop::Stop;

/// Headers that are forwarded to the services called: trace headers, and those that the shop's routes match.
const FORWARDED_HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-request-token"),
    HeaderName::from_static("x-user"),
];
/// Timeout of a call to another service.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for in-flight requests after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum of distinct keys counted; further keys are counted as `other`.
const MAX_KEYS: usize = 10_000;
/// A chunk of `/large`.
static CHUNK: [u8; 16 << 10] = [b'x'; 16 << 10];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the service, shown in responses.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Version of the service, shown in responses and in the header x-version.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Port to listen on.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// Delay before each response.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    delay: Duration,
    /// Answer every Nth request 503; 0 for none.
    #[arg(long, default_value_t = 0, value_name = "N")]
    fail_every: u64,
    /// Answer gRPC health checks with NOT_SERVING.
    #[arg(long)]
    not_serving: bool,
    /// Comma-separated URLs to call for each request to /.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    calls: Vec<Target>,
    /// Time to keep serving after SIGTERM before draining.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    shutdown_delay: Duration,
}

type Answer = Response<Either<Full<Bytes>, Either<Large, Message>>>;

/// A gRPC message with its trailers.
type Message = WithTrailers<Full<Bytes>, Ready<Option<Result<HeaderMap, Infallible>>>>;

struct Service {
    args: Args,
    pod: String,
    seen: Mutex<Seen>,
}

/// Request counts since the start or the last reset.
#[derive(Default, Serialize)]
struct Seen {
    requests: u64,
    /// By method and first path segment: `POST /orders`.
    by_path: BTreeMap<String, u64>,
    /// By the request header `x-request-token`.
    by_token: BTreeMap<String, u64>,
}

/// A body of a given length.
struct Large {
    remaining: u64,
    /// Between two bytes; without it, there is no pause.
    each: Option<Interval>,
}

/// The options in a query.
#[derive(Debug, Default, PartialEq)]
struct Options {
    delay: Option<Duration>,
    status: Option<StatusCode>,
    bytes: u64,
    each: Option<Duration>,
    header: Option<(HeaderName, HeaderValue)>,
}

pub(crate) async fn run(args: Args, mut stop: Stop) -> anyhow::Result<()> {
    let listener = listen(args.port).await?;
    eprintln!("{} {} listens on port {}", args.name, args.version, args.port);
    let (shutdown_delay, service) = (args.shutdown_delay, Service::new(args));
    let drain = async {
        stop.signal().await;
        tokio::time::sleep(shutdown_delay).await;
    };
    let connections = serve(listener, service, drain).await;
    tokio::select! {
        () = connections.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => eprintln!("exiting with requests in flight after {DRAIN_TIMEOUT:?}"),
        () = stop.signal() => {}
    }
    Ok(())
}

/// Listens on all addresses: IPv6 and IPv4, or IPv4 only without IPv6.
pub(crate) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    };
    listener.with_context(|| format!("cannot listen on port {port}"))
}

/// Accepts the next connection. Retries after an error, such as too many open files.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves until `stop`; returns the connections that are still open.
async fn serve(listener: TcpListener, service: Arc<Service>, stop: impl Future<Output = ()>) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! { stream = accept(&listener) => stream, () = &mut stop => return connections };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let handle = service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.handle(request).await) }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), handle);
        tokio::spawn(connections.watch(connection.into_owned()));
    }
}

/// Echoes the bytes of an upgraded connection.
async fn echo(request: Request<Incoming>) {
    if let Ok(upgraded) = hyper::upgrade::on(request).await {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    let key = if counts.len() < MAX_KEYS || counts.contains_key(key) { key } else { "other" };
    *counts.entry(key.to_owned()).or_default() += 1;
}

// === impl Service ===

impl Service {
    fn new(args: Args) -> Arc<Self> {
        let pod = std::env::var("HOSTNAME").unwrap_or_default();
        Arc::new(Self { args, pod, seen: Mutex::default() })
    }

    async fn handle(&self, request: Request<Incoming>) -> Answer {
        match request.uri().path() {
            "/healthz" => self.answer(StatusCode::OK, &json!("healthy")),
            "/grpc.health.v1.Health/Check" => self.health(),
            "/_seen" => self.answer(StatusCode::OK, &json!(*self.seen())),
            "/_reset" => {
                *self.seen() = Seen::default();
                self.answer(StatusCode::OK, &json!("reset"))
            }
            _ => self.count_and_answer(request).await,
        }
    }

    /// HealthCheckResponse with its one field, the status: 1 is SERVING, 2 is NOT_SERVING.
    fn health(&self) -> Answer {
        let status = if self.args.not_serving { 2 } else { 1 };
        let message = Full::new(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 0x08, status]));
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let message = message.with_trailers(std::future::ready(Some(Ok(trailers))));
        self.respond(StatusCode::OK, "application/grpc", Either::Right(Either::Right(message)))
    }

    async fn count_and_answer(&self, mut request: Request<Incoming>) -> Answer {
        let number = self.seen().count(&request);
        let options = match Options::parse(request.uri().query().unwrap_or_default()) {
            Ok(options) => options,
            Err(message) => return self.answer(StatusCode::BAD_REQUEST, &json!(message)),
        };
        if request.headers().get(UPGRADE).is_some_and(|protocol| protocol == "echo") {
            return self.upgrade(request);
        }
        let body_bytes = match read(request.body_mut()).await {
            Ok(bytes) => bytes,
            Err(error) => return self.answer(StatusCode::BAD_REQUEST, &json!(format!("in the body: {error}"))),
        };
        tokio::time::sleep(options.delay.unwrap_or(self.args.delay)).await;
        let status = options.status.unwrap_or_else(|| match self.args.fail_every {
            every if every > 0 && number.is_multiple_of(every) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        });
        if request.uri().path() == "/large" {
            return self.respond(
                status,
                "application/octet-stream",
                Either::Right(Either::Left(Large {
                    remaining: options.bytes,
                    each: options.each.filter(|each| !each.is_zero()).map(interval),
                })),
            );
        }
        let calls = if request.uri().path() == "/" { self.call(&request).await } else { Vec::new() };
        let uri = request.uri();
        let host = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let description = json!({
            "service": self.args.name,
            "version": self.args.version,
            "pod": self.pod,
            "method": request.method().as_str(),
            "path": uri.path_and_query().map(|path| path.as_str()),
            "protocol": format!("{:?}", request.version()),
            "authority": uri.authority().map(|authority| authority.as_str()).or_else(host),
            "headers": client::map(request.headers()),
            "body_bytes": body_bytes,
            "calls": calls,
        });
        let mut answer = self.answer(status, &description);
        answer.headers_mut().extend(options.header);
        answer
    }

    /// Calls the services of `--calls`, one after another, and returns their results.
    async fn call(&self, request: &Request<Incoming>) -> Vec<Value> {
        let header = |name: HeaderName| request.headers().get(&name).cloned().map(|value| (name, value));
        let headers: Vec<_> = FORWARDED_HEADERS.into_iter().filter_map(header).collect();
        let mut calls = Vec::new();
        for url in &self.args.calls {
            let args = RequestArgs::get(url.clone(), headers.clone(), CALL_TIMEOUT);
            let answer = client::send(&args, Bytes::new(), Instant::now()).await;
            let description: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let mut call = json!({ "url": url.to_string(), "status": answer.status, "ms": answer.ms });
            for key in ["service", "version", "pod", "calls"] {
                if let Some(value) = description.get(key) {
                    call[key] = value.clone();
                }
            }
            if let Some(error) = answer.error {
                call["error"] = error.into();
            }
            calls.push(call);
        }
        calls
    }

    fn upgrade(&self, request: Request<Incoming>) -> Answer {
        tokio::spawn(echo(request));
        let mut answer = self.respond(StatusCode::SWITCHING_PROTOCOLS, "text/plain", Either::Left(Full::default()));
        answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        answer
    }

    fn answer(&self, status: StatusCode, value: &Value) -> Answer {
        self.respond(status, "application/json", Either::Left(Full::from(format!("{value}\n"))))
    }

    fn respond(
        &self,
        status: StatusCode,
        kind: &'static str,
        body: Either<Full<Bytes>, Either<Large, Message>>,
    ) -> Answer {
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        for (name, value) in [("x-version", &self.args.version), ("x-pod", &self.pod)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(name, value);
            }
        }
        answer
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a body to its end and returns its length.
async fn read(body: &mut Incoming) -> hyper::Result<usize> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

// === impl Seen ===

impl Seen {
    /// Counts a request; returns its number, from 1.
    fn count<T>(&mut self, request: &Request<T>) -> u64 {
        self.requests += 1;
        let first = request.uri().path().split('/').nth(1).unwrap_or_default();
        count(&mut self.by_path, &format!("{} /{first}", request.method()));
        if let Some(token) = request.headers().get("x-request-token") {
            count(&mut self.by_token, &String::from_utf8_lossy(token.as_bytes()));
        }
        self.requests
    }
}

// === impl Options ===

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match key {
                "delay" => options.delay = Some(duration::parse(value)?),
                "status" => options.status = Some(final_status(value).ok_or("status is a number from 200 to 599")?),
                "each" => options.each = Some(duration::parse(value)?),
                "bytes" => options.bytes = value.parse().map_err(|_| "bytes is a number")?,
                "header" => options.header = Some(header(value).ok_or("header is NAME:VALUE")?),
                _ => {}
            }
        }
        Ok(options)
    }
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.parse().ok()?, value.parse().ok()?))
}

fn final_status(text: &str) -> Option<StatusCode> {
    StatusCode::from_bytes(text.as_bytes()).ok().filter(|status| (200..600).contains(&status.as_u16()))
}

// === impl Large ===

impl Body for Large {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut size = CHUNK.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if let Some(each) = self.each.as_mut().filter(|_| size > 0) {
            ready!(each.poll_tick(context));
            size = 1;
        }
        self.remaining -= size as u64;
        Poll::Ready((size > 0).then(|| Ok(Frame::data(Bytes::from_static(&CHUNK[..size])))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }

    fn parse<T: clap::Args>(args: &[&str]) -> T {
        Cli::parse_from(["test"].iter().chain(args)).args
    }

    /// Serves on a free port until the test ends; returns the URL.
    async fn start(args: &[&str]) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, Service::new(parse(args)), std::future::pending()));
        url
    }

    async fn get(url: &str, options: &[&str]) -> (u16, Value) {
        let answer = client::run(parse(&[&["--url", url], options].concat())).await;
        assert_eq!(answer.error, None, "{url}");
        (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
    }

    #[tokio::test]
    async fn responses_describe_the_request() {
        let url = start(&["--name", "reviews", "--version", "v2"]).await;
        for (options, protocol) in [(&[] as &[&str], "HTTP/1.1"), (&["--http2"], "HTTP/2.0")] {
            let common = ["--method", "POST", "--body", "hello", "--header", "x-a=1", "--header", "host=shop.example"];
            let (status, description) = get(&format!("{url}/a/b?c=d"), &[&common, options].concat()).await;
            assert_eq!(status, 200, "{protocol}");
            for (key, value) in [
                ("service", json!("reviews")),
                ("version", json!("v2")),
                ("protocol", json!(protocol)),
                ("method", json!("POST")),
                ("path", json!("/a/b?c=d")),
                ("authority", json!("shop.example")),
                ("body_bytes", json!(5)),
            ] {
                assert_eq!(description[key], value, "{protocol} {key}");
            }
            assert_eq!(description["headers"]["x-a"], json!(["1"]), "{protocol}");
        }
    }

    #[tokio::test]
    async fn status_and_delay_follow_flags_and_query() {
        let url = start(&["--fail-every", "3"]).await;
        let mut statuses = Vec::new();
        for path in ["/", "/", "/", "/?status=404", "/?delay=50ms", "/?status=200", "/?status=1", "/?delay=soon"] {
            statuses.push(get(&format!("{url}{path}"), &[]).await.0);
            assert_eq!(get(&format!("{url}/healthz"), &[]).await.0, 200, "/healthz never fails and is not counted");
        }
        assert_eq!(statuses, [200, 200, 503, 404, 200, 200, 400, 400]);
    }

    #[tokio::test]
    async fn seen_counts_requests_by_path_and_token() {
        let url = start(&[]).await;
        for token in ["a", "b", "a"] {
            get(
                &format!("{url}/orders/1?status=503"),
                &["--method", "POST", "--header", &format!("x-request-token={token}")],
            )
            .await;
        }
        let seen = json!({ "requests": 3, "by_path": { "POST /orders": 3 }, "by_token": { "a": 2, "b": 1 } });
        assert_eq!(get(&format!("{url}/_seen"), &[]).await.1, seen);
        get(&format!("{url}/_reset"), &[]).await;
        assert_eq!(get(&format!("{url}/_seen"), &[]).await.1["requests"], 0);
    }

    #[tokio::test]
    async fn root_path_calls_other_services_and_forwards_headers() {
        let ratings = start(&["--name", "ratings"]).await;
        let reviews = start(&["--name", "reviews", "--calls", &ratings]).await;
        let web = start(&["--name", "web", "--calls", &format!("{reviews},http://127.0.0.1:1/")]).await;
        let (_, description) = get(&web, &["--header", "x-request-token=t"]).await;
        assert_eq!(description["calls"][0]["service"], "reviews");
        assert_eq!(description["calls"][0]["calls"][0]["service"], "ratings");
        assert_eq!(description["calls"][1]["status"], 0, "no listener on that port");
        assert_eq!(
            get(&format!("{ratings}/_seen"), &[]).await.1["by_token"]["t"],
            1,
            "the token is forwarded to the last service"
        );
    }

    #[tokio::test]
    async fn large_streams_the_requested_length() {
        let url = start(&[]).await;
        for bytes in [0, 1, CHUNK.len(), 1_000_000] {
            let answer = client::run(parse(&["--url", &format!("{url}/large?bytes={bytes}")])).await;
            assert_eq!((answer.status, answer.body.len()), (200, bytes));
        }
    }

    #[tokio::test]
    async fn large_pauses_before_each_byte() {
        let url = start(&[]).await;
        let began = Instant::now();
        let answer = client::run(parse(&["--url", &format!("{url}/large?bytes=5&each=50ms")])).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "xxxxx"));
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn load_reports_statuses_and_versions() {
        let url = start(&["--fail-every", "2", "--version", "v7"]).await;
        for options in [&[] as &[&str], &["--http2"], &["--connection-per-request"], &["--body-bytes", "100000"]] {
            let load = [&["--url", &url, "--requests", "40", "--method", "POST"], options].concat();
            let report = serde_json::to_value(crate::load::run(parse(&load)).await).unwrap();
            assert_eq!(report["requests"], 40, "{options:?}");
            assert_eq!(report["by_status"], json!({ "200": 20, "503": 20 }), "{options:?}");
            assert_eq!(report["by_version"], json!({ "v7": 40 }), "{options:?}");
        }
    }

    #[tokio::test]
    async fn upgrade_echoes_bytes() {
        let url = start(&[]).await;
        let head = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nthere and back";
        let address = url.trim_start_matches("http://");
        let call = parse(&["--address", address, "--send", head, "--until", "there and back"]);
        let answer = serde_json::to_value(crate::tcp::call(call).await).unwrap();
        assert!(answer["received"].as_str().unwrap().starts_with("HTTP/1.1 101 "), "{answer}");
        assert_eq!(answer.get("error"), None);
    }
}
