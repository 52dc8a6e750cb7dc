//! The pod's probes and lifecycle hooks, which the proxy makes for the kubelet.
//!
//! The injector points the kubelet at the proxy and puts the original probe or hook into the bootstrap. The proxy
//! calls the application directly, so that policies do not apply to probes and hooks.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use weft_config::bootstrap::{Hook, Hooks, Probe, ProbeKind, Probes};

/// Bytes of a response that are read, as many as the kubelet reads.
const ANSWER_BYTES_MAX: usize = 10 * 1024;
/// Timeout of a hook. The kubelet itself waits for a preStop hook within the pod's grace period, and for a postStart
/// hook without a bound.
const HOOK_MAX: Duration = Duration::from_secs(3600);
/// User-Agent of the proxy's own health checks.
const USER_AGENT: HeaderValue = HeaderValue::from_static("weft-probe");

struct Handlers {
    probes: Probes,
    hooks: Hooks,
    /// Held until the hook of that key was called, so that the process does not end before.
    awaited: Mutex<HashMap<String, TaskTrackerToken>>,
    address: IpAddr,
}

/// The routes for probes and hooks. `awaited` is the tracker that waits until the preStop hooks were called.
pub(crate) fn router(probes: Probes, hooks: Hooks, awaited: Option<&TaskTracker>, pod_ips: &[IpAddr]) -> Router {
    let address = pod_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let pre_stop = hooks.0.iter().filter(|(_, hook)| hook.pre_stop).map(|(key, _)| key);
    let awaited = awaited.into_iter().flat_map(|tracker| pre_stop.clone().map(|key| (key.clone(), tracker.token())));
    let awaited = Mutex::new(awaited.collect());
    Router::new()
        .route("/probe/{container}/{kind}", get(serve_probe))
        .route("/hook/{secret}/{container}/{kind}", get(serve_hook))
        .with_state(Arc::new(Handlers { probes, hooks, awaited, address }))
}

/// The kubelet's User-Agent, which applications may depend on.
fn user_agent(headers: &HeaderMap) -> HeaderValue {
    headers.get(header::USER_AGENT).cloned().unwrap_or(USER_AGENT)
}

/// Calls a hook of the application. To the kubelet every response is a success, so a failure is reported by closing
/// the connection without a response.
async fn serve_hook(
    State(handlers): State<Arc<Handlers>>,
    Path((secret, container, kind)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let key = format!("{secret}/{container}/{kind}");
    let Some(hook) = handlers.hooks.0.get(&key) else {
        return (StatusCode::NOT_FOUND, "the pod has no such hook\n").into_response();
    };
    let called = tokio::time::timeout(HOOK_MAX, call_hook(hook, handlers.address, &user_agent(&headers))).await;
    handlers.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    match called.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {HOOK_MAX:?}"))) {
        Ok(status) => format!("the application answered {status}\n").into_response(),
        Err(error) => {
            tracing::warn!(container, hook = kind, error = format!("{error:#}"), "the application's hook failed");
            // A body that fails before its first byte closes the connection before the head is sent.
            Response::new(Body::from_stream(futures_util::stream::once(async { Err::<Bytes, _>(error) })))
        }
    }
}

async fn call_hook(hook: &Hook, address: IpAddr, agent: &HeaderValue) -> anyhow::Result<StatusCode> {
    let Hook { port, path, https, headers, pre_stop: _ } = hook;
    let address = SocketAddr::new(address, *port);
    let stream = TcpStream::connect(address).await?;
    if !https {
        return get_http(stream, address, path, headers, agent).await;
    }
    match handshake(stream, address).await {
        Ok(stream) => get_http(stream, address, path, headers, agent).await,
        // Before Kubernetes 1.26 the scheme was ignored, and the kubelet still falls back to HTTP for such hooks.
        Err(error) if is_not_tls(&error) => {
            let secret = |name: &str| name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str());
            let headers: Vec<_> = headers.iter().filter(|(name, _)| !secret(name)).cloned().collect();
            get_http(TcpStream::connect(address).await?, address, path, &headers, agent).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the peer answered a ClientHello with something other than TLS.
fn is_not_tls(error: &std::io::Error) -> bool {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    matches!(source, Some(rustls::Error::InvalidMessage(_)))
}

async fn serve_probe(
    State(handlers): State<Arc<Handlers>>,
    Path((container, kind)): Path<(String, String)>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let Some(probe) = handlers.probes.0.get(&format!("{container}/{kind}")) else {
        return (StatusCode::NOT_FOUND, "the pod has no such probe\n".into());
    };
    let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
    match tokio::time::timeout(timeout, check_as(probe, handlers.address, &user_agent(&headers))).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n".into()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {timeout:?}\n")),
    }
}

async fn check_as(probe: &Probe, address: IpAddr, agent: &HeaderValue) -> anyhow::Result<()> {
    let address = SocketAddr::new(address, probe.port);
    check_on(TcpStream::connect(address).await?, address, &probe.kind, agent).await
}

/// Checks the endpoint at an address, on a connection to it.
pub(crate) async fn check<S>(stream: S, address: SocketAddr, kind: &ProbeKind) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    check_on(stream, address, kind, &USER_AGENT).await
}

async fn check_on<S>(stream: S, address: SocketAddr, kind: &ProbeKind, agent: &HeaderValue) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match kind {
        ProbeKind::Tcp => Ok(()),
        ProbeKind::Http { path, https, headers } => {
            let status = match https {
                false => get_http(stream, address, path, headers, agent).await?,
                true => get_http(handshake(stream, address).await?, address, path, headers, agent).await?,
            };
            anyhow::ensure!(status.is_success() || status.is_redirection(), "the application answered {status}");
            Ok(())
        }
        ProbeKind::Grpc { service } => check_grpc(stream, address, service).await,
    }
}

async fn handshake<S>(stream: S, address: SocketAddr) -> std::io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = insecure_tls_config().map_err(std::io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::IpAddress(address.ip().into()), stream).await
}

async fn get_http<S>(
    stream: S,
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    agent: &HeaderValue,
) -> anyhow::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::get(path).body(Full::<Bytes>::default())?;
    let out = request.headers_mut();
    out.insert(header::HOST, HeaderValue::try_from(address.to_string())?);
    out.insert(header::USER_AGENT, agent.clone());
    out.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let mut own = HeaderMap::new();
    for (name, value) in headers {
        own.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    // Configured headers replace the default ones; several of one name are all kept.
    out.extend(own);
    Ok(sender.send_request(request).await?.status())
}

/// One call of `grpc.health.v1.Health/Check`: the request has the service's name in field 1, the response has the
/// status in field 1, where 1 is SERVING.
async fn check_grpc<S>(stream: S, address: SocketAddr, service: &str) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        message.put_u8(
            u8::try_from(service.len())
                .ok()
                .filter(|length| *length < 128)
                .ok_or_else(|| anyhow::anyhow!("the service name has more than 127 bytes"))?,
        );
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.unsplit(message);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(frame.freeze()))?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "the application answered {}", response.status());
    let collected =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
    let answer = collected.to_bytes();
    anyhow::ensure!(answer.get(5..7) == Some(&[0x08, 0x01]), "the application is not serving");
    Ok(())
}

/// The kubelet does not verify the certificate of an HTTPS probe either: it only checks that the application is
/// alive.
fn insecure_tls_config() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AcceptAnyCertificate(provider.signature_verification_algorithms));
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct AcceptAnyCertificate(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An application that sends these bytes on every connection, and passes on what it received.
    async fn application(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (sent, received) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let read = stream.read(&mut bytes).await.unwrap_or_default();
                let _ = sent.send(String::from_utf8_lossy(&bytes[..read]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, received)
    }

    fn hook(port: u16, https: bool) -> Hook {
        let headers = [("Host", "app.example"), ("x-a", "1"), ("X-A", "2"), ("Authorization", "secret")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Hook { port, path: "/stop?now".into(), https, headers, pre_stop: true }
    }

    /// Sends a GET as the kubelet does, and returns the whole response.
    async fn get_health_port(router: Router, path: &str) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nuser-agent: kube-lifecycle/1.36\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it ends");
        server.abort();
        answer
    }

    fn hooks(hook: Hook) -> Hooks {
        Hooks([("0123/app/preStop".to_owned(), hook)].into())
    }

    #[tokio::test]
    async fn hook_reaches_the_application_and_any_response_is_success() {
        for status in ["200 OK", "500 Internal Server Error", "302 Found"] {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").leak();
            let (port, mut received) = application(answer).await;
            let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
            let answer = get_health_port(router, "/hook/0123/app/preStop").await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(status), "{answer}");
            let received = received.recv().await.expect("it was asked").to_ascii_lowercase();
            assert!(received.starts_with("get /stop?now http/1.1\r\n"), "{received}");
            for line in ["host: app.example\r\n", "x-a: 1\r\n", "x-a: 2\r\n", "user-agent: kube-lifecycle/1.36\r\n"] {
                assert!(received.contains(line), "{line:?}: {received}");
            }
        }
    }

    #[tokio::test]
    async fn failed_hook_closes_the_connection_without_response() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = closed.local_addr().expect("an address").port();
        drop(closed);
        let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
        assert_eq!(get_health_port(router, "/hook/0123/app/preStop").await, "");
    }

    #[tokio::test]
    async fn hook_path_needs_the_secret() {
        let (port, mut received) = application("").await;
        for path in ["/hook/0124/app/preStop", "/hook/app/preStop", "/hook//app/preStop", "/probe/app/preStop"] {
            let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
            let answer = get_health_port(router, path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
        assert!(received.try_recv().is_err(), "the application was never asked");
    }

    #[tokio::test]
    async fn https_hook_falls_back_to_http_without_credentials() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (port, mut received) = application(answer).await;
        let router = router(Probes::default(), hooks(hook(port, true)), None, &[]);
        let answer = get_health_port(router, "/hook/0123/app/preStop").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(received.recv().await.expect("a ClientHello").starts_with('\u{16}'));
        let received = received.recv().await.expect("a request");
        assert!(received.starts_with("GET /stop?now ") && !received.contains("secret"), "{received}");
    }

    #[tokio::test]
    async fn classic_proxy_waits_for_pre_stop_hooks() {
        let (port, _received) = application("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        let tracker = TaskTracker::new();
        tracker.close();
        let router = router(Probes::default(), hooks(hook(port, false)), Some(&tracker), &[]);
        assert!(!tracker.is_empty(), "one is awaited");
        get_health_port(router.clone(), "/hook/0124/app/preStop").await;
        assert!(!tracker.is_empty(), "it was not this one");
        get_health_port(router, "/hook/0123/app/preStop").await;
        assert!(tracker.is_empty());
    }
}
