//! The `weft-operator` binary: parses arguments, sets up logging and signals, runs the operator.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use weft_crds::names;
use weft_operator::app::{self, Settings};
use weft_runtime::{log, signal};

/// Watches MeshRoutes, MeshClusters, MeshPolicies, Services and pods, and writes the configuration that proxies read.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Namespace of the leader election Lease and of the webhook's certificate.
    #[arg(long, env = "WEFT_SYSTEM_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    system_namespace: String,
    /// Name of this process in the Lease; in a pod, the pod's name.
    #[arg(long, env = "POD_NAME", default_value = "weft-operator")]
    pod_name: String,
    /// Listen address of /livez, /readyz and /metrics.
    #[arg(long, env = "WEFT_ADMIN_ADDRESS", default_value = "[::]:15020")]
    admin_address: SocketAddr,
    /// Namespaces that are never injected, separated by commas: there are no Events about their pods.
    #[arg(long, env = "WEFT_EXCLUDED_NAMESPACES", value_delimiter = ',')]
    excluded_namespaces: Vec<String>,
    /// Log filter, in the syntax of tracing's EnvFilter. Example: info,weft_operator=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    log: String,
    /// Log format: json or text.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "json")]
    log_format: String,
}

fn main() -> anyhow::Result<()> {
    // Before any TLS connection of this process is made: they all use this provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Arguments { system_namespace, pod_name, admin_address, excluded_namespaces, log, log_format } =
        Arguments::parse();
    log::init(&log, &log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = signal::drain().context("cannot install signal handlers")?;
        let excluded_namespaces = excluded_namespaces.into_iter().collect();
        let settings = Settings { system_namespace, name: pod_name, admin: admin_address, excluded_namespaces };
        app::run(settings, stop).await?;
        Ok(())
    })
}
