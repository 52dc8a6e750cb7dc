//! The pod's own probes and lifecycle hooks, made in the kubelet's stead.
//!
//! The injector sends the kubelet here and says what was meant in the bootstrap. The proxy asks the application directly,
//! so a probe is answered by the application whatever policies say about strangers, and a hook reaches it.

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

/// Bytes of an answer that are read; what the kubelet reads is no more.
const ANSWER_BYTES_MAX: usize = 10 * 1024;
/// How long a hook may take. The kubelet itself waits for a preStop hook as long as the pod may take to end, and for a postStart
/// hook without a bound.
const HOOK_MAX: Duration = Duration::from_secs(3600);
/// What the proxy's own health checks call themselves.
const AGENT: HeaderValue = HeaderValue::from_static("weft-probe");

struct Kubelet {
    probes: Probes,
    hooks: Hooks,
    /// Held until the hook of that key was called, so that the process does not end before.
    awaited: Mutex<HashMap<String, TaskTrackerToken>>,
    address: IpAddr,
}

/// The paths of the probes and hooks. `awaited`: what is to wait until the preStop hooks were called.
pub(crate) fn router(probes: Probes, hooks: Hooks, awaited: Option<&TaskTracker>, pod_ips: &[IpAddr]) -> Router {
    let address = pod_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let pre_stop = hooks.0.iter().filter(|(_, hook)| hook.pre_stop).map(|(key, _)| key);
    let awaited = awaited.into_iter().flat_map(|tracker| pre_stop.clone().map(|key| (key.clone(), tracker.token())));
    let awaited = Mutex::new(awaited.collect());
    Router::new()
        .route("/probe/{container}/{kind}", get(answer))
        .route("/hook/{secret}/{container}/{kind}", get(call))
        .with_state(Arc::new(Kubelet { probes, hooks, awaited, address }))
}

/// The kubelet says with its name which of its versions asks, and applications may go by it.
fn agent(headers: &HeaderMap) -> HeaderValue {
    headers.get(header::USER_AGENT).cloned().unwrap_or(AGENT)
}

/// Calls a hook of the application. To the kubelet every response is success, so that a failure has to go without.
async fn call(
    State(kubelet): State<Arc<Kubelet>>,
    Path((secret, container, kind)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let key = format!("{secret}/{container}/{kind}");
    let Some(hook) = kubelet.hooks.0.get(&key) else {
        return (StatusCode::NOT_FOUND, "the pod has no such hook\n").into_response();
    };
    let called = tokio::time::timeout(HOOK_MAX, call_hook(hook, kubelet.address, &agent(&headers))).await;
    kubelet.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    match called.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {HOOK_MAX:?}"))) {
        Ok(status) => format!("the application answered {status}\n").into_response(),
        Err(error) => {
            tracing::warn!(container, hook = kind, error = format!("{error:#}"), "the application's hook failed");
            // A body that fails before its first byte ends the connection before the head is sent.
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
        // Before Kubernetes 1.26 the scheme did not count, and there are hooks that rely on it.
        Err(error) if speaks_no_tls(&error) => {
            let secret = |name: &str| name.eq_ignore_ascii_case(header::AUTHORIZATION.as_str());
            let headers: Vec<_> = headers.iter().filter(|(name, _)| !secret(name)).cloned().collect();
            get_http(TcpStream::connect(address).await?, address, path, &headers, agent).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the answer to a ClientHello was none of TLS.
fn speaks_no_tls(error: &std::io::Error) -> bool {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    matches!(source, Some(rustls::Error::InvalidMessage(_)))
}

async fn answer(
    State(kubelet): State<Arc<Kubelet>>,
    Path((container, kind)): Path<(String, String)>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let Some(probe) = kubelet.probes.0.get(&format!("{container}/{kind}")) else {
        return (StatusCode::NOT_FOUND, "the pod has no such probe\n".into());
    };
    let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
    match tokio::time::timeout(timeout, ask_as(probe, kubelet.address, &agent(&headers))).await {
        Ok(Ok(())) => (StatusCode::OK, "well\n".into()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {timeout:?}\n")),
    }
}

/// Asks the application at an address.
pub(crate) async fn ask(probe: &Probe, address: IpAddr) -> anyhow::Result<()> {
    ask_as(probe, address, &AGENT).await
}

async fn ask_as(probe: &Probe, address: IpAddr, agent: &HeaderValue) -> anyhow::Result<()> {
    let address = SocketAddr::new(address, probe.port);
    let stream = TcpStream::connect(address).await?;
    match &probe.kind {
        ProbeKind::Tcp => Ok(()),
        ProbeKind::Http { path, https, headers } => {
            let status = match https {
                false => get_http(stream, address, path, headers, agent).await?,
                true => get_http(handshake(stream, address).await?, address, path, headers, agent).await?,
            };
            anyhow::ensure!(status.is_success() || status.is_redirection(), "the application answered {status}");
            Ok(())
        }
        ProbeKind::Grpc { service } => ask_grpc(stream, address, service).await,
    }
}

async fn handshake(stream: TcpStream, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let config = trusting().map_err(std::io::Error::other)?;
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
    // Those of one name replace what was there and stay side by side.
    out.extend(own);
    Ok(sender.send_request(request).await?.status())
}

/// One call of `grpc.health.v1.Health/Check`: a message with the service's name in field 1, answered by one with the
/// status in field 1, where 1 is SERVING.
async fn ask_grpc(stream: TcpStream, address: SocketAddr, service: &str) -> anyhow::Result<()> {
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

/// The kubelet does not check the certificate of an HTTPS probe either: it asks whether the application lives.
fn trusting() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(provider.signature_verification_algorithms));
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
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

    /// An application that answers every connection with these bytes, and tells what it was sent.
    async fn application(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (sent, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let read = stream.read(&mut bytes).await.unwrap_or_default();
                let _ = sent.send(String::from_utf8_lossy(&bytes[..read]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, told)
    }

    fn hook(port: u16, https: bool) -> Hook {
        let headers = [("Host", "app.example"), ("x-a", "1"), ("X-A", "2"), ("Authorization", "secret")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Hook { port, path: "/stop?now".into(), https, headers, pre_stop: true }
    }

    /// Calls the path as a kubelet; all that came back.
    async fn ask_kubelet_port(router: Router, path: &str) -> String {
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
    async fn a_hook_reaches_the_application_and_any_answer_is_success() {
        for status in ["200 OK", "500 Internal Server Error", "302 Found"] {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").leak();
            let (port, mut told) = application(answer).await;
            let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
            let answer = ask_kubelet_port(router, "/hook/0123/app/preStop").await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(status), "{answer}");
            let told = told.recv().await.expect("it was asked").to_ascii_lowercase();
            assert!(told.starts_with("get /stop?now http/1.1\r\n"), "{told}");
            for line in ["host: app.example\r\n", "x-a: 1\r\n", "x-a: 2\r\n", "user-agent: kube-lifecycle/1.36\r\n"] {
                assert!(told.contains(line), "{line:?}: {told}");
            }
        }
    }

    #[tokio::test]
    async fn a_hook_that_fails_has_no_answer() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = closed.local_addr().expect("an address").port();
        drop(closed);
        let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
        assert_eq!(ask_kubelet_port(router, "/hook/0123/app/preStop").await, "");
    }

    #[tokio::test]
    async fn a_hook_has_a_secret() {
        let (port, mut told) = application("").await;
        for path in ["/hook/0124/app/preStop", "/hook/app/preStop", "/hook//app/preStop", "/probe/app/preStop"] {
            let router = router(Probes::default(), hooks(hook(port, false)), None, &[]);
            let answer = ask_kubelet_port(router, path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
        assert!(told.try_recv().is_err(), "the application was never asked");
    }

    #[tokio::test]
    async fn a_hook_with_https_of_an_application_without_is_called_without() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (port, mut told) = application(answer).await;
        let router = router(Probes::default(), hooks(hook(port, true)), None, &[]);
        let answer = ask_kubelet_port(router, "/hook/0123/app/preStop").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(told.recv().await.expect("a ClientHello").starts_with('\u{16}'));
        let told = told.recv().await.expect("a request");
        assert!(told.starts_with("GET /stop?now ") && !told.contains("secret"), "{told}");
    }

    #[tokio::test]
    async fn a_classic_proxy_stays_until_the_last_hook_was_called() {
        let (port, _told) = application("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        let tracker = TaskTracker::new();
        tracker.close();
        let router = router(Probes::default(), hooks(hook(port, false)), Some(&tracker), &[]);
        assert!(!tracker.is_empty(), "one is awaited");
        ask_kubelet_port(router.clone(), "/hook/0124/app/preStop").await;
        assert!(!tracker.is_empty(), "it was not this one");
        ask_kubelet_port(router, "/hook/0123/app/preStop").await;
        assert!(tracker.is_empty());
    }
}
