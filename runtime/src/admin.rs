//! The admin HTTP server. It runs on its own runtime or at least its own socket. It can change only the log level.
//!
//! | path | response |
//! |---|---|
//! | `GET /livez` | 200 while the process can respond |
//! | `GET /readyz` | 200 or 503, with a line for each part |
//! | `GET /metrics` | OpenMetrics text |
//! | `PUT /log-level` | sets the log filter to the request body (only if [`Admin::log`] is set) |

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::connections::Bounded;
use crate::log::Filter;
use crate::readiness::Readiness;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State that the server exposes.
#[derive(Clone, Default)]
pub struct Admin {
    /// Returned by `/readyz`.
    pub readiness: Readiness,
    /// Returned by `/metrics`.
    pub registry: Arc<Registry>,
    /// Changed by `/log-level`. Set it only for a server on loopback.
    pub log: Option<Filter>,
}

/// The router with the paths above.
pub fn router(admin: Admin) -> Router {
    let mut router = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    if admin.log.is_some() {
        router = router.route("/log-level", put(log_level));
    }
    router.with_state(admin)
}

/// Serves a router until `stop`, then completes open requests. Connections are [`Bounded`].
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(Bounded::new(listener), router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let status = if admin.readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, admin.readiness.detail())
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut page = String::new();
    match text::encode(&mut page, &admin.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn log_level(State(admin): State<Admin>, filter: String) -> (StatusCode, String) {
    match admin.log.as_ref().map(|log| log.set(filter.trim())) {
        Some(Ok(())) => (StatusCode::OK, format!("the log filter is {}\n", filter.trim())),
        Some(Err(error)) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
        None => (StatusCode::NOT_FOUND, String::new()),
    }
}
