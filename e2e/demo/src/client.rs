//! The HTTP client: one request at a time per connection, no retries. DNS is resolved anew for every connection.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::net::TcpStream;

/// Maximum of a response's body; a longer one is an error, so that a wrong URL does not exhaust the memory.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Maximum of redirects that `--follow true` follows.
const MAX_REDIRECTS: usize = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    request: RequestArgs,
    /// Body of the request.
    #[arg(long, default_value = "")]
    body: String,
    /// Whether to follow redirects.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    follow: bool,
}

/// A request without its body.
#[derive(Clone, clap::Args)]
pub(crate) struct RequestArgs {
    /// URL, http://HOST[:PORT][/PATH].
    #[arg(long)]
    pub(crate) url: Target,
    /// Method.
    #[arg(long, default_value = "GET")]
    pub(crate) method: Method,
    /// Header to send, NAME=VALUE; `host` replaces the URL's host. May be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Use HTTP/2 without TLS, with prior knowledge.
    #[arg(long)]
    pub(crate) http2: bool,
    /// Timeout of a request, including the connect and the whole response.
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse)]
    pub(crate) timeout: Duration,
}

/// An http URL with a host.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    uri: Uri,
}

/// An open connection.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Output of `request`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer {
    /// 0 without a response, with the reason in `error`.
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: String,
    pub(crate) ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Sends one request, and follows redirects if asked to.
pub(crate) async fn run(args: Args) -> Answer {
    let Args { mut request, body, follow } = args;
    let body = Bytes::from(body);
    let start = Instant::now();
    for _ in 0..=MAX_REDIRECTS {
        let answer = send(&request, body.clone(), start).await;
        let location = answer.headers.get(LOCATION.as_str()).and_then(|values| values.first());
        match location {
            Some(location) if follow && (300..400).contains(&answer.status) => match request.url.join(location) {
                Ok(url) => request.url = url,
                Err(error) => return Answer { error: Some(format!("{error:#}")), ..answer },
            },
            _ => return answer,
        }
    }
    Answer { error: Some(format!("more than {MAX_REDIRECTS} redirects")), ..Answer::default() }
}

/// Sends one request on a new connection.
pub(crate) async fn send(args: &RequestArgs, body: Bytes, start: Instant) -> Answer {
    let exchange = async {
        let mut connection = Connection::open(&args.url, args.http2).await?;
        let response = connection.send(args.request(body)).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        anyhow::Ok(Answer { status: head.status.as_u16(), headers: map(&head.headers), body, ..Answer::default() })
    };
    let answer = match tokio::time::timeout(args.timeout, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
        Err(_) => Answer { error: Some("timed out".into()), ..Answer::default() },
    };
    Answer { ms: millis(start.elapsed()), ..answer }
}

/// Headers as a map from name to values.
pub(crate) fn map(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut map = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in headers {
        map.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    map
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn parse_header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once('=').context("a header is NAME=VALUE")?;
    Ok((name.parse()?, value.parse()?))
}

// === impl RequestArgs ===

impl RequestArgs {
    /// A GET over HTTP/1.1.
    pub(crate) fn get(url: Target, headers: Vec<(HeaderName, HeaderValue)>, timeout: Duration) -> Self {
        Self { url, method: Method::GET, headers, http2: false, timeout }
    }

    pub(crate) fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        let host = headers.remove(HOST).unwrap_or_else(|| self.url.host_header());
        let path = self.url.uri.path_and_query().map_or("/", |path| path.as_str());
        if self.http2 {
            let uri = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(path).build();
            *request.uri_mut() = uri.unwrap_or_else(|_| self.url.uri.clone());
        } else {
            request.headers_mut().insert(HOST, host);
            *request.uri_mut() = path.parse().expect("it was part of a URI");
        }
        request
    }
}

// === impl Target ===

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let uri: Uri = text.parse().with_context(|| format!("{text:?} is not a URL"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(host)) if !host.is_empty() => Ok(Self { uri }),
            _ => bail!("{text:?} is not like http://HOST[:PORT][/PATH]"),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.uri.fmt(f)
    }
}

impl Target {
    fn host_header(&self) -> HeaderValue {
        let authority = self.uri.authority().expect("checked in from_str").as_str();
        HeaderValue::from_str(authority).expect("an authority is visible ASCII")
    }

    /// Resolves a `Location` header: an absolute URL, or a path on the same host.
    fn join(&self, location: &str) -> anyhow::Result<Self> {
        if location.starts_with('/') {
            format!("http://{}{location}", self.uri.authority().expect("checked in from_str")).parse()
        } else {
            location.parse()
        }
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let host = self.uri.host().expect("checked in from_str").trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.uri.port_u16().unwrap_or(80))).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn open(target: &Target, http2: bool) -> anyhow::Result<Self> {
        let io = TokioIo::new(target.connect().await?);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.context("HTTP/2 handshake")?;
            tokio::spawn(connection);
            Ok(Self::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.context("HTTP/1.1 handshake")?;
            tokio::spawn(connection);
            Ok(Self::Http1(sender))
        }
    }

    /// Whether the server has kept the connection open. After `false` a new connection sends no request twice.
    pub(crate) async fn is_open(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => sender.send_request(request).await?,
            Self::Http2(sender) => sender.send_request(request).await?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str, http2: bool, headers: &[&str]) -> RequestArgs {
        let headers = headers.iter().map(|text| parse_header(text).expect(text)).collect();
        RequestArgs { http2, ..RequestArgs::get(url.parse().expect(url), headers, Duration::from_secs(1)) }
    }

    #[test]
    fn only_http_urls_with_a_host_parse() {
        for url in ["http://web", "http://web:9080/a?b=c", "http://[::1]:80/"] {
            url.parse::<Target>().expect(url);
        }
        for url in ["", "web", "/path", "https://web/", "http://", "web:9080"] {
            url.parse::<Target>().expect_err(url);
        }
    }

    #[test]
    fn host_header_and_uri_depend_on_the_http_version() {
        for (http2, headers, uri, host) in [
            (false, &[] as &[&str], "/a?b=c", Some("web:9080")),
            (false, &["host=shop.example"], "/a?b=c", Some("shop.example")),
            (true, &[], "http://web:9080/a?b=c", None),
            (true, &["host=shop.example"], "http://shop.example/a?b=c", None),
        ] {
            let request = args("http://web:9080/a?b=c", http2, headers).request(Bytes::new());
            assert_eq!(request.uri().to_string(), uri, "{http2} {headers:?}");
            assert_eq!(request.headers().get(HOST).map(|value| value.to_str().unwrap()), host, "{http2} {headers:?}");
        }
    }

    #[test]
    fn locations_are_absolute_urls_or_paths() {
        let from: Target = "http://web:9080/a".parse().unwrap();
        assert_eq!(from.join("/b?c").unwrap().to_string(), "http://web:9080/b?c");
        assert_eq!(from.join("http://other/").unwrap().to_string(), "http://other/");
        from.join("elsewhere").expect_err("relative to the path");
    }
}
