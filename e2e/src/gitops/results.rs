//! What a run has proved, and how long each step took.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::target;
use crate::progress::say;

/// The steps of a run.
#[derive(Debug, Default)]
pub struct Results {
    steps: Vec<(String, Duration)>,
}

impl Results {
    /// Runs a step, prints its time, and fails if it takes longer than `limit`.
    pub fn step<T>(&mut self, what: &str, limit: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = work().with_context(|| what.to_owned())?;
        let took = began.elapsed();
        say(&format!("ok  {:6.1} s  {what}", took.as_secs_f64()));
        ensure!(took <= limit, "{what}: it took {took:.1?}, more than {limit:?}");
        self.steps.push((what.to_owned(), took));
        Ok(result)
    }

    /// Writes the table of docs/gitops.md to `target/gitops/results.md`.
    pub fn save(&self) -> Result<()> {
        let mut table = "| step | seconds |\n|---|--:|\n".to_owned();
        for (what, took) in &self.steps {
            let _ = writeln!(table, "| {what} | {:.1} |", took.as_secs_f64());
        }
        let path = target().join("gitops/results.md");
        fs::write(&path, table).with_context(|| format!("writing {}", path.display()))
    }
}
