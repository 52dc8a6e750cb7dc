//! `weft-operator`: reads what it is told, and runs.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use weft_crds::names;
use weft_operator::app::{self, Settings};
use weft_runtime::{log, signal};

/// Compiles MeshRoutes, MeshClusters and MeshPolicies and the state of the cluster into what proxies read.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Namespace of the lease and of the webhook's certificate.
    #[arg(long, env = "WEFT_SYSTEM_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// Name of this process in the lease: the pod's.
    #[arg(long, env = "POD_NAME", default_value = "weft-operator")]
    pod_name: String,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "WEFT_ADMIN_ADDRESS", default_value = "[::]:15020")]
    admin_address: SocketAddr,
    /// Which log lines are written, as tracing's EnvFilter reads it.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    log: String,
    /// How log lines are written: json or text.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "json")]
    log_format: String,
}

fn main() -> anyhow::Result<()> {
    // First of all: every TLS connection of this process uses it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Arguments { system_namespace, pod_name, admin_address, log, log_format } = Arguments::parse();
    log::init(&log, &log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = signal::drain().context("signals cannot be taken")?;
        app::run(Settings { system_namespace, name: pod_name, admin: admin_address }, stop).await?;
        Ok(())
    })
}
