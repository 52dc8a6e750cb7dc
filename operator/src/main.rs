//! The `weft-operator` binary: parses arguments, sets up logging and signals, runs the operator.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use weft_config::bootstrap::IDENTITY_PORT;
use weft_crds::names;
use weft_operator::app::{self, Settings};
use weft_runtime::{log, signal};

/// Watches MeshRoutes, MeshClusters, MeshPolicies, the Mesh, Services and pods, and writes the configuration that proxies read.
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
    /// Listen address of the certificate authority.
    #[arg(long, env = "WEFT_IDENTITY_ADDRESS", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, IDENTITY_PORT)))]
    identity_address: SocketAddr,
    /// Directory with the issuer: tls.crt, tls.key and ca.crt, reread when they change. Default: Secret weft-issuer.
    #[arg(long, env = "WEFT_ISSUER_DIR")]
    issuer_dir: Option<PathBuf>,
    /// Lifetime of the certificates of workloads, in seconds: from a minute to 30 days.
    #[arg(long, env = "WEFT_CERTIFICATE_SECONDS", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(60..=30 * 24 * 60 * 60))]
    certificate_seconds: u64,
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
    let Arguments {
        system_namespace,
        pod_name,
        admin_address,
        excluded_namespaces,
        identity_address,
        issuer_dir,
        certificate_seconds,
        log,
        log_format,
    } = Arguments::parse();
    log::init(&log, &log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = signal::drain().context("cannot install signal handlers")?;
        let excluded_namespaces = excluded_namespaces.into_iter().collect();
        let settings = Settings {
            system_namespace,
            name: pod_name,
            admin: admin_address,
            excluded_namespaces,
            identity: identity_address,
            issuer_directory: issuer_dir,
            certificate_lifetime: Duration::from_secs(certificate_seconds),
        };
        app::run(settings, stop).await?;
        Ok(())
    })
}
