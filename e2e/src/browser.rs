//! A headless browser: the DOM of a page after it was rendered, and screenshots.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;

const LIMIT: Duration = Duration::from_secs(120);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// Headless, without network access.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// The DOM of a page after it was loaded.
pub fn dom(page: &Path) -> Result<String> {
    run(page, &["--dump-dom"])
}

/// Takes a screenshot of the page with a window of that size.
pub fn screenshot(page: &Path, png: &Path, width: u32, height: u32) -> Result<()> {
    let (file, size) = (format!("--screenshot={}", png.display()), format!("--window-size={width},{height}"));
    run(page, &[&file, &size])?;
    let bytes = fs::metadata(png).with_context(|| format!("{} was not written", png.display()))?.len();
    ensure!(bytes > 10_000, "{} has only {bytes} bytes: the page is blank", png.display());
    Ok(())
}

fn run(page: &Path, arguments: &[&str]) -> Result<String> {
    install()?;
    let profile = std::env::temp_dir().join(format!("weft-browser-{}", std::process::id()));
    // A new, empty profile for each run.
    let _ = fs::remove_dir_all(&profile);
    let mut chromium = Command::new("chromium");
    chromium
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(format!("file://{}", fs::canonicalize(page)?.display()));
    let stdout = command::run(&mut chromium, "", LIMIT)?.stdout_of_success("chromium --headless");
    let _ = fs::remove_dir_all(&profile);
    stdout
}

/// Installs the Debian package if the command is missing.
fn install() -> Result<()> {
    if command::run(Command::new("sh").args(["-c", "command -v chromium"]), "", LIMIT)?.success {
        return Ok(());
    }
    let mut apt = Command::new("sh");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-c", "apt-get update && apt-get install --yes --no-install-recommends chromium"]);
    command::run(&mut apt, "", INSTALL_LIMIT)?.stdout_of_success("apt-get install chromium").map(drop)
}
