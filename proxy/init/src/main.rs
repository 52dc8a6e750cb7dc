//! The init container: runs once in a pod, before its other containers.

use std::process::ExitCode;

use clap::Parser;
use ipnet::IpNet;
use weft_config::bootstrap::PortRange;
use weft_init::apply::{self, Outcome};
use weft_init::rules::{Family, InitConfig};

/// Redirects this network namespace's TCP traffic to Weft's proxy. Idempotent.
#[derive(Parser)]
#[command(name = "weft-init", version)]
struct Arguments {
    /// Inbound ports that are not redirected, as in 22,8000-8010.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_inbound_ports: Vec<PortRange>,
    /// Destination ports that are not redirected, as in 22,8000-8010.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_outbound_ports: Vec<PortRange>,
    /// Destination networks that are not redirected, as in 10.0.0.0/8,fd00::/8.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    exclude_outbound_ips: Vec<IpNet>,
    /// Print the iptables-restore scripts without applying them.
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    let Arguments { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips, dry_run } = Arguments::parse();
    let config = InitConfig { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips };
    match if dry_run { print(&config) } else { redirect(&config) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Shown in `kubectl logs` and in the pod's status, so without a backtrace.
            eprintln!("weft-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn redirect(config: &InitConfig) -> anyhow::Result<()> {
    weft_runtime::log::init("info", "json")?;
    for family in [Family::V4, Family::V6] {
        match apply::apply(config, family)? {
            Outcome::Applied { rules } => tracing::info!(%family, rules, "redirection rules applied"),
            Outcome::NotNeeded { error } => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(%family, error, "redirection rules not applied; the pod has no address of this family");
            }
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a dry run prints the scripts")]
fn print(config: &InitConfig) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        match apply::dry_run(config, family) {
            Ok(script) => print!("# {family}\n{script}"),
            Err(error) => println!("# {family}: {:#}", anyhow::Error::from(error)),
        }
    }
    Ok(())
}
