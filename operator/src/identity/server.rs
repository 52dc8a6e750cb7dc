//! The server of the authority: HTTPS, one request a connection.
//!
//! `POST /v1/certificates` with `Authorization: Bearer TOKEN` and a certificate signing request in DER. 200 has an
//! [`Answer`] as JSON, every other status `{"error": "..."}`. Everything that a peer can make it hold is bounded: see
//! the constants. A loopback address has no privilege.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_config::bootstrap::IDENTITY_PATH;
use weft_identity::request::{self, Answer, REQUEST_BYTES_MAX};
use weft_identity::{SpiffeId, UnixTime, pem, tls};

use super::caller::Caller;
use super::fairness::{Rates, Shares};
use super::refusal::{RETRY_AFTER_SECONDS, Refusal};
use super::reviews::Reviews;
use super::secret::Issuing;
use super::serving::Serving;
use crate::metrics::{Metrics, ReasonLabel};

/// Connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 2048;
/// Connections at a time from one address: a pod needs one, but a network may show several pods as one address. Further
/// ones are closed.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;
/// Timeout of a handshake, and of a request's head.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Timeout of a whole connection.
const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// Maximum size of a request's head in bytes: a token has about 1,200.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Reviews of tokens at a time; further requests wait, until the timeout of their connection.
const REVIEWS_MAX: usize = 64;
/// Requests of one service account between review and answer at a time; further ones are refused.
const PER_ACCOUNT_MAX: usize = 64;
/// Signatures at a time: one core.
const SIGNATURES_MAX: usize = 1;
/// Delay after a failed accept, such as when there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the server needs.
pub struct Authority {
    /// The issuer in use.
    pub issuing: watch::Receiver<Option<Arc<Issuing>>>,
    /// Who has a token.
    pub reviews: Reviews,
    /// Lifetime of the certificates.
    pub lifetime: Duration,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Bounds of what is done at a time.
    pub limits: Limits,
}

/// What is done now, for whom.
pub struct Limits {
    reviews: Semaphore,
    signatures: Arc<Semaphore>,
    rates: Mutex<Rates<SpiffeId>>,
    accounts: Mutex<Shares<SpiffeId>>,
}

/// A share that is given back when this is dropped.
struct Inside<'a, K: Eq + std::hash::Hash + Clone> {
    shares: &'a Mutex<Shares<K>>,
    key: K,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    serving: Arc<Serving>,
    authority: Authority,
    stop: CancellationToken,
) -> Result<(), rustls::Error> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::authority_server(serving)?));
    let authority = Arc::new(authority);
    let router = Router::new().route(IDENTITY_PATH, post(certificate)).with_state(authority.clone());
    let (connections, tasks) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    let addresses = Arc::new(Mutex::new(Shares::new(CONNECTIONS_PER_ADDRESS_MAX)));
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the certificate authority");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            authority.refuse("connections");
            continue;
        };
        let (acceptor, router, addresses, authority) =
            (acceptor.clone(), router.clone(), addresses.clone(), authority.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            let _permit = permit;
            let Some(_inside) = Inside::enter(&addresses, peer.ip().to_canonical()) else {
                authority.refuse("connections");
                return;
            };
            let served = timeout(CONNECTION_MAX, connection(stream, peer, acceptor, router, stop)).await;
            if let Ok(Err(error)) | Err(error) = served.map_err(|_| "it took too long".into()) {
                tracing::debug!(src.addr = %peer, error, "connection to the certificate authority failed");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Serves one request.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = serving.as_mut() => served?,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await?;
        }
    }
    Ok(())
}

async fn certificate(
    State(authority): State<Arc<Authority>>,
    Extension(peer): Extension<SocketAddr>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    match authority.certify(&head.headers, body).await {
        Ok(answer) => {
            authority.metrics.certificates_issued.inc();
            ([(header::CACHE_CONTROL, "no-store")], axum::Json(answer)).into_response()
        }
        Err(refusal) => {
            let reason = refusal.reason();
            tracing::info!(src.addr = %peer, reason, error = %refusal, "no certificate issued");
            authority.refuse(reason);
            answer(&refusal)
        }
    }
}

fn answer(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, axum::Json(json!({ "error": refusal.to_string() }))).into_response();
    if refusal.is_temporary() {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    }
    response
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::NoToken) };
    let value = value.to_str().map_err(|_| Refusal::NoToken)?;
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::NoToken)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(Refusal::NoToken) }
}

// === impl Authority ===

impl Authority {
    /// The whole of a request: the public key is checked first, because that costs nobody else anything.
    async fn certify(&self, headers: &HeaderMap, body: Body) -> Result<Answer, Refusal> {
        let token = bearer(headers)?;
        let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await;
        let body = body.map_err(|_| Refusal::Request(request::Error::TooLarge))?;
        let key = request::read(&body).map_err(Refusal::Request)?;
        let Caller { id, pod } = {
            let _permit = self.limits.reviews.acquire().await.map_err(|_| Refusal::Busy)?;
            self.reviews.caller(token).await?
        };
        let _inside = Inside::enter(&self.limits.accounts, id.clone()).ok_or(Refusal::TooMany)?;
        if !self.limits.rates.lock().expect("no panic while it is held").take(id.clone(), Instant::now()) {
            return Err(Refusal::TooMany);
        }
        let permit = self.limits.signatures.clone().acquire_owned().await.map_err(|_| Refusal::Busy)?;
        let issuing = self.issuing.borrow().clone();
        let issuing = issuing.ok_or_else(|| Refusal::NoIssuer("none was read yet".to_owned()))?;
        let lifetime = self.lifetime;
        // Not on the threads of the runtime: an RSA key takes milliseconds.
        let signed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let issued = issuing.issuer.issue(&key, &id, UnixTime::now(), lifetime);
            issued.map(|issued| (id, issued, issuing.bundle.clone()))
        });
        let (id, issued, bundle) =
            signed.await.map_err(|_| Refusal::Busy)?.map_err(|error| Refusal::NoIssuer(error.to_string()))?;
        tracing::debug!(%id, pod, "certificate issued");
        Ok(Answer { chain: pem::certificates(&issued.chain), bundle })
    }

    fn refuse(&self, reason: &'static str) {
        self.metrics.certificates_refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            reviews: Semaphore::new(REVIEWS_MAX),
            signatures: Arc::new(Semaphore::new(SIGNATURES_MAX)),
            rates: Mutex::default(),
            accounts: Mutex::new(Shares::new(PER_ACCOUNT_MAX)),
        }
    }
}

// === impl Inside ===

impl<'a, K: Eq + std::hash::Hash + Clone> Inside<'a, K> {
    fn enter(shares: &'a Mutex<Shares<K>>, key: K) -> Option<Self> {
        let admitted = shares.lock().expect("no panic while it is held").enter(&key);
        admitted.then_some(Self { shares, key })
    }
}

impl<K: Eq + std::hash::Hash + Clone> Drop for Inside<'_, K> {
    fn drop(&mut self) {
        self.shares.lock().expect("no panic while it is held").leave(&self.key);
    }
}
