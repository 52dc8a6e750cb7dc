//! The Git repository: a working tree on this machine, and a Git server in the cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, checkout, target};
use crate::command;
use crate::kubectl::Kubectl;
use crate::namespace::READY;

/// Path of the bare repository in the server's pod.
const BARE: &str = "/srv/mesh.git";
const GIT_LIMIT: Duration = Duration::from_secs(60);

/// The working tree of a clone.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    cluster: &'static Cluster,
}

/// An archive of a commit, which the Git server serves.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Hash of the commit.
    pub commit: String,
    /// Where the archive is, for pods.
    pub url: String,
    /// Its SHA-256.
    pub digest: String,
}

impl Repository {
    /// Starts the Git server, and an empty clone in `target/gitops/repository`.
    pub fn create(cluster: &'static Cluster) -> Result<Self> {
        let manifest = checkout().join("e2e/gitops/git-server.yaml");
        let kubectl = Kubectl::within(cluster, "git");
        kubectl.apply(&fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?)?;
        kubectl.rolled_out("deployment/git", READY)?;
        let folder = target().join("gitops/repository");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let repository = Self { folder, cluster };
        repository.git(&["init", "--quiet", "--initial-branch", "main"])?;
        Ok(repository)
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.folder.join(path);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// Replaces text in a file, where it occurs exactly once.
    pub fn edit(&self, path: &str, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.folder.join(path)).with_context(|| path.to_owned())?;
        ensure!(text.matches(from).count() == 1, "{path} should have {from:?} once:\n{text}");
        self.write(path, &text.replace(from, to))
    }

    /// Copies a folder of the checkout, with all that is in it.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        copy(&checkout().join(from), &self.folder.join(to))
    }

    /// Removes a file.
    pub fn remove(&self, path: &str) -> Result<()> {
        fs::remove_file(self.folder.join(path)).with_context(|| path.to_owned())
    }

    /// Commits everything and pushes it; returns the commit's hash.
    pub fn push(&self, message: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", message])?;
        // Git's transport `ext` runs a command and speaks its protocol on the command's stdin and stdout.
        let Cluster { kubectl, kubeconfig, .. } = self.cluster;
        let server = format!(
            "ext::{} --kubeconfig {} --namespace git exec --stdin deployment/git -- git %s {BARE}",
            kubectl.display(),
            kubeconfig.display()
        );
        self.git(&["push", "--quiet", &server, "main"])?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// The archive of a commit. The server makes it with the same program as this machine: it has the same bytes.
    pub fn snapshot(&self, commit: &str) -> Result<Snapshot> {
        let archive = format!("git archive --format=tar.gz {commit} | sha256sum");
        let mut shell = Command::new("sh");
        shell.current_dir(&self.folder).args(["-c", &archive]);
        let printed = command::run(&mut shell, "", GIT_LIMIT)?.stdout_of_success(&archive)?;
        let digest = printed.split(' ').next().unwrap_or_default().to_owned();
        Ok(Snapshot { commit: commit.to_owned(), url: format!("http://git.git.svc/archive/{commit}.tar.gz"), digest })
    }

    /// Runs git in the working tree, independent of the user's configuration.
    fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.current_dir(&self.folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .args(["-c", "user.name=test", "-c", "user.email=test@test.example", "-c", "protocol.ext.allow=always"])
            .args(arguments);
        command::run(&mut git, "", GIT_LIMIT)?.stdout_of_success(&format!("git {}", arguments.join(" ")))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}
