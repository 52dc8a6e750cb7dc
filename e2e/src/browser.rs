//! A headless browser that looks at a page as a person's would: what is in it once it is laid out, and a picture.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;

const LIMIT: Duration = Duration::from_secs(120);
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
/// It must not speak to anybody.
const QUIET: [&str; 9] = [
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

/// The document as it stands after it was loaded.
pub fn dom(page: &Path) -> Result<String> {
    run(page, &["--dump-dom"])
}

/// A picture of the page, of that size.
pub fn screenshot(page: &Path, png: &Path, width: u32, height: u32) -> Result<()> {
    let (file, size) = (format!("--screenshot={}", png.display()), format!("--window-size={width},{height}"));
    run(page, &[&file, &size])?;
    let bytes = fs::metadata(png).with_context(|| format!("there is no {}", png.display()))?.len();
    ensure!(bytes > 10_000, "{} has only {bytes} bytes: it is empty", png.display());
    Ok(())
}

fn run(page: &Path, arguments: &[&str]) -> Result<String> {
    install()?;
    let profile = std::env::temp_dir().join(format!("weft-browser-{}", std::process::id()));
    // A new and empty profile each time.
    let _ = fs::remove_dir_all(&profile);
    let mut chromium = Command::new("chromium");
    chromium
        .args(QUIET)
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(format!("file://{}", fs::canonicalize(page)?.display()));
    let printed = command::run(&mut chromium, "", LIMIT)?.stdout_of_success("chromium --headless");
    let _ = fs::remove_dir_all(&profile);
    printed
}

/// Installs the Debian package where the command is missing.
fn install() -> Result<()> {
    if command::run(Command::new("sh").args(["-c", "command -v chromium"]), "", LIMIT)?.success {
        return Ok(());
    }
    let mut apt = Command::new("sh");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-c", "apt-get update && apt-get install --yes --no-install-recommends chromium"]);
    command::run(&mut apt, "", INSTALL_LIMIT)?.stdout_of_success("apt-get install chromium").map(drop)
}
