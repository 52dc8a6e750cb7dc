//! Installs Weft with its charts, as a user does. Tests share one installation.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::{self, Cluster, checkout, target};
use crate::command;
use crate::kubectl::Kubectl;

/// Namespace of the control plane.
pub const SYSTEM: &str = "weft-system";
/// Helm's timeout for the control plane to be ready.
const READY_SECONDS: u64 = 180;
/// Time limit of Helm without a cluster.
const OFFLINE_LIMIT: Duration = Duration::from_secs(60);

/// Installs or upgrades Weft from charts/, with the images that e2e/images.sh made, once in this process.
pub fn ensure() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| cluster::helm().and_then(|helm| with(&helm)).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

/// The values file with the images to use.
pub fn values() -> Result<std::path::PathBuf> {
    let values = target().join("images/values.yaml");
    ensure!(values.exists(), "no images: run `make images` (which runs e2e/images.sh)");
    Ok(values)
}

/// Installs or upgrades Weft from charts/ with this Helm.
pub fn with(helm: &Path) -> Result<()> {
    let values = values()?;
    let values = path(&values)?;
    let timeout = format!("{READY_SECONDS}s");
    let common = ["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", &timeout];
    let mut crds = vec!["upgrade", "--install", "weft-crds", "charts/weft-crds"];
    crds.extend(common);
    run(helm, &crds).context("installing the CRDs")?;
    let mut weft = vec!["upgrade", "--install", "weft", "charts/weft", "--values", values];
    weft.extend(common);
    run(helm, &weft).map_err(add_diagnostics).context("installing Weft")?;
    Ok(())
}

/// Installs the CRDs of the Gateway API's standard channel, in the version of its conformance suite, once in this process.
/// CRDs of another version are replaced.
pub fn ensure_gateway_api() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| install_gateway_api().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

/// As [`ensure_gateway_api`], also if this process has installed them before.
pub fn install_gateway_api() -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    let folder = cluster::build("conformance.crds")?;
    // Not a client-side apply: with the annotation that it writes, the CRD of HTTPRoute is close to the limit of 256 KiB.
    kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", path(&folder)?])?;
    kubectl.run(&["wait", "-f", path(&folder)?, "--for=condition=Established", "--timeout=60s"]).map(drop)
}

/// Runs Helm on the cluster and returns its stdout.
pub fn helm(arguments: &[&str]) -> Result<String> {
    run(&cluster::helm()?, arguments)
}

/// Runs this Helm on the cluster and returns its stdout.
pub fn run(helm: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = helm_command(helm, arguments);
    command.env("KUBECONFIG", &Cluster::get()?.kubeconfig);
    let what = command::describe(&command);
    command::run(&mut command, "", Duration::from_secs(READY_SECONDS + 60))?.stdout_of_success(&what)
}

/// Runs Helm without a cluster, as for `lint` and `template`, and returns its stdout.
pub fn helm_offline(arguments: &[&str]) -> Result<String> {
    let mut command = helm_command(&cluster::helm()?, arguments);
    let what = command::describe(&command);
    command::run(&mut command, "", OFFLINE_LIMIT)?.stdout_of_success(&what)
}

/// Runs Helm without a cluster, which must fail; returns its stderr.
pub fn helm_refused(arguments: &[&str]) -> Result<String> {
    let mut command = helm_command(&cluster::helm()?, arguments);
    let what = command::describe(&command);
    let output = command::run(&mut command, "", OFFLINE_LIMIT)?;
    ensure!(!output.success, "`{what}` should fail, but succeeded");
    Ok(output.stderr)
}

fn helm_command(helm: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(helm);
    command.current_dir(checkout()).args(arguments);
    command
}

/// Adds pods, events and logs of the control plane to an error of Helm, whose timeout does not tell what is not ready.
fn add_diagnostics(error: anyhow::Error) -> anyhow::Error {
    let Ok(cluster) = Cluster::get() else { return error };
    let kubectl = Kubectl::within(cluster, SYSTEM);
    let mut diagnostics = String::new();
    for arguments in [
        &["get", "pods", "-o", "wide"][..],
        &["get", "events", "--sort-by=.metadata.creationTimestamp"],
        &["logs", "deployment/weft-operator", "--tail=20"],
        &["logs", "deployment/weft-injector", "--tail=20"],
    ] {
        if let Ok(output) = kubectl.run_with(arguments, "", Duration::from_secs(20)) {
            diagnostics +=
                &format!("$ kubectl -n {SYSTEM} {}\n{}{}", arguments.join(" "), output.stdout, output.stderr);
        }
    }
    error.context(diagnostics)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
