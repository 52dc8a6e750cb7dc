//! The pod's own probes, made in the kubelet's stead.
//!
//! The injector sends the kubelet here and says what was meant in the bootstrap. The proxy asks the application directly,
//! so a probe is answered by the application whatever policies say about strangers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
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
use weft_config::bootstrap::{Probe, ProbeKind, Probes};

/// Bytes of an answer that are read; what the kubelet reads is no more.
const ANSWER_BYTES_MAX: usize = 10 * 1024;

#[derive(Clone)]
struct Prober {
    probes: Arc<Probes>,
    address: IpAddr,
}

/// The paths of the probes.
pub(crate) fn router(probes: Probes, pod_ips: &[IpAddr]) -> Router {
    let address = pod_ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Router::new()
        .route("/probe/{container}/{kind}", get(answer))
        .with_state(Prober { probes: Arc::new(probes), address })
}

async fn answer(State(prober): State<Prober>, Path((container, kind)): Path<(String, String)>) -> (StatusCode, String) {
    let Some(probe) = prober.probes.0.get(&format!("{container}/{kind}")) else {
        return (StatusCode::NOT_FOUND, "the pod has no such probe\n".into());
    };
    let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
    match tokio::time::timeout(timeout, ask(probe, prober.address)).await {
        Ok(Ok(())) => (StatusCode::OK, "well\n".into()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {timeout:?}\n")),
    }
}

/// Asks the application at an address.
pub(crate) async fn ask(probe: &Probe, address: IpAddr) -> anyhow::Result<()> {
    let address = SocketAddr::new(address, probe.port);
    let stream = TcpStream::connect(address).await?;
    match &probe.kind {
        ProbeKind::Tcp => Ok(()),
        ProbeKind::Http { path, https: false, headers } => ask_http(stream, address, path, headers).await,
        ProbeKind::Http { path, https: true, headers } => {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting()?));
            let stream = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await?;
            ask_http(stream, address, path, headers).await
        }
        ProbeKind::Grpc { service } => ask_grpc(stream, address, service).await,
    }
}

async fn ask_http<S>(stream: S, address: SocketAddr, path: &str, headers: &[(String, String)]) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::get(path).body(Full::<Bytes>::default())?;
    let out = request.headers_mut();
    out.insert(header::HOST, HeaderValue::try_from(address.to_string())?);
    out.insert(header::USER_AGENT, HeaderValue::from_static("weft-probe"));
    for (name, value) in headers {
        out.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let status = sender.send_request(request).await?.status();
    anyhow::ensure!(status.is_success() || status.is_redirection(), "the application answered {status}");
    Ok(())
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
fn trusting() -> anyhow::Result<rustls::ClientConfig> {
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
