//! One request to the certificate authority: HTTPS, a token and a certificate signing request in, a chain out. The
//! authority must prove its own identity before the token is sent.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_identity::request::Answer;
use weft_identity::{SpiffeId, tls, verify};

/// Timeout of a connection with its handshake.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Timeout of a whole request.
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// Maximum size of an answer in bytes: chains and bundles have a few thousand.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Where the authority is, and how this pod proves itself to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: u16,
    path: String,
    token: PathBuf,
}

/// Why a URL is not that of an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a URL like https://HOST:PORT/PATH")]
pub struct UrlError;

/// Why there is no answer. None of the texts has the token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the token {}: {source}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("the token {} is not a token", .0.display())]
    NotAToken(PathBuf),
    #[error("cannot reach {host}:{port}: {source}")]
    Unreachable { host: String, port: u16, source: io::Error },
    #[error("{host}:{port} does not prove to be the authority: {source}")]
    Untrusted { host: String, port: u16, source: Box<verify::Error> },
    #[error("the connection to the authority failed: {0}")]
    Connection(String),
    #[error("the authority did not answer in time")]
    Timeout,
    #[error("the authority refuses with {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("the answer of the authority cannot be read: {0}")]
    Answer(String),
}

/// The body of a refusal.
#[derive(Deserialize)]
struct RefusalBody {
    error: String,
}

// === impl Authority ===

impl Authority {
    /// An authority at a URL; `token` is the file with the token.
    pub fn new(url: &str, token: PathBuf) -> Result<Self, UrlError> {
        let url: Uri = url.parse().map_err(|_| UrlError)?;
        let (Some("https"), Some(host)) = (url.scheme_str(), url.host().filter(|host| !host.is_empty())) else {
            return Err(UrlError);
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port_u16().unwrap_or(443), path: url.path().to_owned(), token })
    }

    /// Requests a certificate from whoever proves to be `authority`.
    pub(crate) async fn request(
        &self,
        trust: tls::Trust,
        authority: &SpiffeId,
        request: &[u8],
    ) -> Result<Answer, Error> {
        let whole = self.exchange(trust, authority, request);
        timeout(REQUEST_MAX, whole).await.map_err(|_| Error::Timeout)?
    }

    async fn exchange(&self, trust: tls::Trust, authority: &SpiffeId, request: &[u8]) -> Result<Answer, Error> {
        let connect = timeout(CONNECT_MAX, self.connect(trust, authority));
        let stream = connect.await.map_err(|_| Error::Timeout)??;
        let failed = |error: hyper::Error| Error::Connection(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Read only now: the kubelet replaces it, and it is sent only to the authority.
        let request = Request::post(&self.path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, self.bearer()?)
            .header(header::CONTENT_TYPE, "application/pkcs10")
            .body(Full::new(Bytes::copy_from_slice(request)))
            .map_err(|error| Error::Connection(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Error::Answer(error.to_string()))?.to_bytes();
            read(head.status, &body)
        };
        let answer = answer.await;
        connection.abort();
        answer
    }

    async fn connect(
        &self,
        trust: tls::Trust,
        authority: &SpiffeId,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let (host, port) = (self.host.clone(), self.port);
        let config = tls::client(trust, authority.clone(), None, &[b"http/1.1"]);
        let config = config.map_err(|error| Error::Connection(error.to_string()))?;
        let name = ServerName::try_from(host.clone()).map_err(|error| Error::Connection(error.to_string()))?;
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|source| Error::Unreachable { host: host.clone(), port, source })?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner.and_then(verify::Error::of_handshake) {
                Some(source) => Error::Untrusted { host, port, source: Box::new(source.clone()) },
                None => Error::Connection(error.to_string()),
            }
        })
    }

    fn bearer(&self) -> Result<HeaderValue, Error> {
        let token =
            std::fs::read_to_string(&self.token).map_err(|source| Error::Token { path: self.token.clone(), source })?;
        let token = token.trim();
        let value = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
        let mut value = value.ok_or_else(|| Error::NotAToken(self.token.clone()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn read(status: StatusCode, body: &[u8]) -> Result<Answer, Error> {
    if status != StatusCode::OK {
        let message =
            serde_json::from_slice(body).map_or_else(|_| "no reason".to_owned(), |RefusalBody { error }| error);
        return Err(Error::Refused { status, message });
    }
    serde_json::from_slice(body).map_err(|error| Error::Answer(error.to_string()))
}

// === impl Error ===

impl Error {
    /// The label of the metric.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Token { .. } | Self::NotAToken(_) => "token",
            Self::Unreachable { .. } | Self::Connection(_) | Self::Timeout => "unreachable",
            Self::Untrusted { .. } => "untrusted",
            Self::Refused { status, .. } if status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS => {
                "unavailable"
            }
            Self::Refused { .. } => "refused",
            Self::Answer(_) => "answer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_need_https_and_a_host() {
        let parse = |url: &str| Authority::new(url, PathBuf::new()).map(|it| (it.host, it.port, it.path));
        let full = "https://weft-identity.weft-system.svc:15012/v1/certificates";
        assert_eq!(parse(full), Ok(("weft-identity.weft-system.svc".into(), 15012, "/v1/certificates".into())));
        assert_eq!(parse("https://[::1]/v1"), Ok(("::1".into(), 443, "/v1".into())));
        for wrong in ["", "http://host/v1", "host", "https://", "https:///v1", "spiffe://host/v1", "https://a b/"] {
            assert_eq!(parse(wrong), Err(UrlError), "{wrong:?}");
        }
    }

    #[test]
    fn token_is_in_no_output() {
        let file = std::env::temp_dir().join(format!("weft-token-{}", std::process::id()));
        let authority = Authority::new("https://host/v1", file.clone()).expect("a URL");
        for (content, is_token) in [("the-secret\n", true), ("the-secret\u{0}", false), (" \n", false)] {
            std::fs::write(&file, content).expect("written");
            let text = match authority.bearer() {
                Ok(value) => format!("{value:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!text.contains("secret"), "{text}");
            assert_eq!(authority.bearer().is_ok(), is_token, "{content:?}");
        }
        std::fs::remove_file(&file).expect("removed");
        let error = authority.bearer().expect_err("no file");
        assert_eq!((error.outcome(), error.to_string().contains("weft-token")), ("token", true), "{error}");
    }
}
