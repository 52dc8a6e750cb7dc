//! Runs once in a pod, before everything else in it.

use std::process::ExitCode;

use clap::Parser;
use ipnet::IpNet;
use weft_config::bootstrap::PortRange;
use weft_init::apply::{self, Outcome};
use weft_init::rules::{Family, InitConfig};

/// Sends this network namespace's TCP traffic to Weft's proxy. Safe to run twice.
#[derive(Parser)]
#[command(name = "weft-init", version)]
struct Arguments {
    /// Ports of the pod that are left to the application, as in 22,8000-8010.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_inbound_ports: Vec<PortRange>,
    /// Ports to which the application connects directly, as in 22,8000-8010.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_outbound_ports: Vec<PortRange>,
    /// Addresses to which the application connects directly, as in 10.0.0.0/8,fd00::/8.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    exclude_outbound_ips: Vec<IpNet>,
    /// Print the scripts that would be run, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    let Arguments { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips, dry_run } = Arguments::parse();
    let config = InitConfig { exclude_inbound_ports, exclude_outbound_ports, exclude_outbound_ips };
    match if dry_run { print(&config) } else { redirect(&config) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `kubectl logs` and the pod's status show it to a person, so no backtrace.
            eprintln!("weft-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn redirect(config: &InitConfig) -> anyhow::Result<()> {
    weft_runtime::log::init("info", "json")?;
    for family in [Family::V4, Family::V6] {
        match apply::apply(config, family)? {
            Outcome::InForce { rules } => tracing::info!(%family, rules, "redirection is in force"),
            Outcome::NotNeeded { why } => {
                let why = format!("{:#}", anyhow::Error::from(why));
                tracing::warn!(%family, why, "no redirection, and no address of this family to redirect");
            }
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "printing the scripts is what a dry run is for")]
fn print(config: &InitConfig) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        match apply::dry_run(config, family) {
            Ok(script) => print!("# {family}\n{script}"),
            Err(error) => println!("# {family}: {:#}", anyhow::Error::from(error)),
        }
    }
    Ok(())
}
