//! Telling a person what goes on: a step that takes longer than a second says so while it runs, and how long it took.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A step that takes no longer is not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// Where a line cannot be rewritten, this much passes between two.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// Runs a step. Its name is said on stderr once it has taken a second, and then how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let (ended, end) = mpsc::channel::<()>();
    let name = what.to_owned();
    let ticker = thread::spawn(move || tick(&name, began, &end));
    let result = work();
    drop(ended);
    // It ends by itself, now that the channel is closed.
    let _ = ticker.join();
    if began.elapsed() >= WORTH_A_LINE {
        let verdict = if result.is_ok() { "" } else { "failed after " };
        say(&format!("{}  {what}: {verdict}{:.1} s", line_start(), began.elapsed().as_secs_f64()));
    }
    result.with_context(|| what.to_owned())
}

/// Says a line on stderr.
pub fn say(line: &str) {
    // Nobody may be reading, and the work goes on.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn tick(what: &str, began: Instant, end: &mpsc::Receiver<()>) {
    let (mut said, terminal) = (None::<Duration>, std::io::stderr().is_terminal());
    while end.recv_timeout(WORTH_A_LINE) == Err(RecvTimeoutError::Timeout) {
        let elapsed = began.elapsed();
        if terminal {
            let _ = write!(std::io::stderr(), "{}  {what} ... {} s", line_start(), elapsed.as_secs());
        } else if said.is_none_or(|said| elapsed - said >= BETWEEN_LINES) {
            say(&format!("  {what} ... {} s", elapsed.as_secs()));
            said = Some(elapsed);
        }
    }
}

fn line_start() -> &'static str {
    if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" }
}
