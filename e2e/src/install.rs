//! Installs Weft with its charts, as a user does. Tests share one installation.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::{self, Cluster, checkout, target};
use crate::command;
use crate::kubectl::Kubectl;
use crate::wait::eventually;

/// Namespace of the control plane.
pub const SYSTEM: &str = "weft-system";
/// Timeout for the control plane to be ready.
const READY: Duration = Duration::from_secs(180);
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
    upgrade(helm, "weft-crds", &[]).context("installing the CRDs")?;
    let values = values()?;
    upgrade(helm, "weft", &["--values", path(&values)?]).map_err(add_diagnostics).context("installing Weft")
}

/// Runs `work` while these values of the chart, as in `operator.replicas=3`, are in force, and then the default ones
/// again, also after a failure. Other tests must not run meanwhile.
pub fn with_settings<T>(settings: &[&str], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (helm, values) = (cluster::helm()?, values()?);
    let mut arguments = vec!["--values", path(&values)?];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let changed = upgrade(&helm, "weft", &arguments).map_err(add_diagnostics);
    let result = changed.with_context(|| format!("installing Weft with {settings:?}")).and_then(|()| work());
    with(&helm)?;
    result
}

/// Runs `work` while a component of the control plane is scaled to zero, and then restores it, also after a failure.
/// Other tests must not run meanwhile.
pub fn without<T>(component: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (system, deployment) = (Kubectl::within(Cluster::get()?, SYSTEM), format!("deployment/weft-{component}"));
    system.run(&["scale", &deployment, "--replicas=0"])?;
    let gone = eventually(&format!("the {component} to be gone"), READY, || {
        let pods = system.list("pods", &format!("app.kubernetes.io/component={component}"))?;
        ensure!(pods.is_empty(), "{} are left", pods.len());
        Ok(())
    });
    let result = gone.and_then(|()| work());
    system.run(&["scale", &deployment, "--replicas=1"])?;
    system.rolled_out(&deployment, READY)?;
    result
}

fn upgrade(helm: &Path, chart: &str, arguments: &[&str]) -> Result<()> {
    let (folder, timeout) = (format!("charts/{chart}"), format!("{}s", READY.as_secs()));
    let common = ["upgrade", "--install", chart, &folder, "--namespace", SYSTEM, "--create-namespace"];
    run(helm, &[&common[..], &["--wait", "--timeout", &timeout], arguments].concat()).map(drop)
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
    command::run(&mut command, "", READY + Duration::from_secs(60))?.stdout_of_success(&what)
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
