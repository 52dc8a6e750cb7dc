//! The cluster under test, and the programs that drive it.
//!
//! With `KUBECONFIG` in the environment it is that cluster, otherwise the one that `make cluster-up` starts.
//! Operations that only the latter supports (stop the API server, kill a process in a pod) are methods of
//! [`Embedded`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::command::{self, Running};
use crate::progress;
use crate::wait::eventually;

/// Time limit of scripts.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);
/// Time limit of the first build of a program.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The cluster under test.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Path of the kubeconfig.
    pub kubeconfig: PathBuf,
    /// The kubectl binary.
    pub kubectl: PathBuf,
    embedded: Option<Embedded>,
}

/// A cluster that the scripts of e2e/cluster started on this machine.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Its name.
    pub name: String,
}

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Directory of the results of tests and of the demo.
pub fn target() -> PathBuf {
    checkout().join("target")
}

// === impl Cluster ===

impl Cluster {
    /// The cluster under test. Without one, fails with the remedy.
    pub fn get() -> Result<&'static Self> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        CLUSTER
            .get_or_init(|| Self::find().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    /// The cluster as [`Embedded`]; fails for a cluster given by `KUBECONFIG`.
    pub fn embedded(&self) -> Result<&Embedded> {
        self.embedded.as_ref().context(
            "this test stops processes of the cluster, which only the cluster of `make cluster-up` allows: run it \
             without KUBECONFIG",
        )
    }

    /// Builds an image of e2e/cluster/build.sh (`echo.tar`) and loads it into each node. A cluster given by `KUBECONFIG`
    /// must have the image already, or be able to pull it.
    pub fn load_image(&self, part: &str) -> Result<()> {
        let Some(Embedded { name }) = &self.embedded else { return Ok(()) };
        let archive = build(part)?;
        let archive = archive.to_str().with_context(|| format!("{} is not UTF-8", archive.display()))?;
        progress::step(&format!("loading {part}"), || script("load-image.sh", &["--name", name, archive]).map(drop))
    }

    /// Shell command that makes a plain `kubectl` use this cluster.
    pub fn export_command(&self) -> String {
        let kubeconfig = format!("export KUBECONFIG={}", self.kubeconfig.display());
        match self.kubectl.parent() {
            Some(folder) if on_path("kubectl").is_none() => format!("{kubeconfig} PATH=$PATH:{}", folder.display()),
            _ => kubeconfig,
        }
    }

    fn find() -> Result<Self> {
        let cluster = match std::env::var("KUBECONFIG") {
            Ok(path) if !path.is_empty() => Self {
                kubeconfig: PathBuf::from(path),
                kubectl: on_path("kubectl").map_or_else(|| build("kubectl"), Ok)?,
                embedded: None,
            },
            _ => {
                let name = std::env::var("WEFT_CLUSTER").unwrap_or_else(|_| "weft".to_owned());
                let kubeconfig = script("kubeconfig.sh", &["--name", &name])
                    .context("no cluster: run `make cluster-up`, or set KUBECONFIG")?;
                Self {
                    kubeconfig: PathBuf::from(kubeconfig),
                    kubectl: build("kubectl")?,
                    embedded: Some(Embedded { name }),
                }
            }
        };
        let mut readyz = Command::new(&cluster.kubectl);
        readyz.env("KUBECONFIG", &cluster.kubeconfig).args(["get", "--raw", "/readyz", "--request-timeout=10s"]);
        command::run(&mut readyz, "", Duration::from_secs(20))?
            .stdout_of_success("kubectl get --raw /readyz")
            .with_context(|| {
                format!("the cluster of {} does not answer: run `make cluster-up`", cluster.kubeconfig.display())
            })?;
        Ok(cluster)
    }
}

// === impl Embedded ===

impl Embedded {
    /// Stops the API server. Dropping the returned value starts it again.
    pub fn stop_api_server(&self) -> Result<StoppedApiServer<'_>> {
        let stopped = StoppedApiServer(self);
        script("apiserver.sh", &["--name", &self.name, "stop"])?;
        Ok(stopped)
    }

    /// Writes the packets that a node's interfaces see to a file, as pcap, until the returned value is dropped. Returns once
    /// it captures. The filter is that of tcpdump.
    pub fn capture(&self, node: &str, filter: &str, file: &Path) -> Result<Running> {
        let _ = fs::remove_file(file);
        let mut tcpdump = Command::new("nsenter");
        tcpdump
            .arg(format!("--net=/run/netns/{node}"))
            .args(["--", "tcpdump", "-Z", "root", "-i", "any", "-s", "0", "-U", "-w"]);
        let running = command::start(tcpdump.arg(file).arg(filter), "")?;
        // tcpdump writes the header of the file when it has opened the interfaces.
        eventually("tcpdump to capture", SCRIPT_LIMIT, || {
            ensure!(fs::metadata(file)?.len() > 0, "{} is empty", file.display());
            Ok(())
        })?;
        Ok(running)
    }

    /// Kills the processes of a pod's container with SIGKILL, as the OOM killer does, without the API server. The
    /// kubelet then restarts the container. The pod is identified by its UID.
    pub fn kill_container(&self, pod_uid: &str, container: &str) -> Result<()> {
        let pids: Vec<u32> = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter(|pid| runs_in(*pid, pod_uid, container))
            .collect();
        ensure!(!pids.is_empty(), "no process of container {container} of pod {pod_uid} runs on this machine");
        for pid in pids {
            let mut kill = Command::new("kill");
            kill.args(["-KILL", &pid.to_string()]);
            command::run(&mut kill, "", Duration::from_secs(5))?.stdout_of_success("kill")?;
        }
        Ok(())
    }
}

/// Whether a process runs in the container. The kubelet mounts a termination log into each container, from a
/// directory named after pod and container, so the mount table of the process tells.
fn runs_in(pid: u32, pod_uid: &str, container: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let folder = format!("/pods/{pod_uid}/containers/{container}/");
    mounts.lines().any(|line| line.contains(&folder) && line.contains(" /dev/termination-log "))
}

/// A stopped API server; drop starts it again.
#[derive(Debug)]
pub struct StoppedApiServer<'a>(&'a Embedded);

impl StoppedApiServer<'_> {
    /// Starts it again, and returns the error if that fails.
    pub fn start(self) -> Result<()> {
        self.restart()
    }

    fn restart(&self) -> Result<()> {
        script("apiserver.sh", &["--name", &self.0.name, "start"]).map(drop)
    }
}

impl Drop for StoppedApiServer<'_> {
    fn drop(&mut self) {
        // Also after `start`: the script does nothing for a running server, and a panic must not leave the server
        // stopped.
        if let Err(error) = self.restart() {
            eprintln!("cannot restart the API server: {error:#}");
        }
    }
}

/// Runs a script of e2e/cluster and returns its stdout.
fn script(name: &str, arguments: &[&str]) -> Result<String> {
    script_within(SCRIPT_LIMIT, name, arguments)
}

fn script_within(limit: Duration, name: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(checkout().join("e2e/cluster").join(name));
    command.args(arguments);
    let what = command::describe(&command);
    Ok(command::run(&mut command, "", limit)?.stdout_of_success(&what)?.trim().to_owned())
}

/// The helm binary: the one on the `PATH` for a cluster given by `KUBECONFIG`, otherwise the one of the tests. Needs no
/// cluster.
pub fn helm() -> Result<PathBuf> {
    let is_given = std::env::var("KUBECONFIG").is_ok_and(|path| !path.is_empty());
    on_path("helm").filter(|_| is_given).map_or_else(|| build("helm"), Ok)
}

/// Path of a program, an archive or a folder that e2e/cluster/build.sh builds unless it is cached.
pub fn build(part: &str) -> Result<PathBuf> {
    let build = || script_within(BUILD_LIMIT, "build.sh", &["--print", part]).map(PathBuf::from);
    progress::step(&format!("building {part}, unless it is cached"), build)
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}
