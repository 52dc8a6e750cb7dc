//! Progress output on stderr: a step that takes longer than a second is shown while it runs, and then with its
//! duration.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Shorter steps are not shown. Also the interval of updates on a terminal.
const TICK: Duration = Duration::from_secs(1);
/// Interval of progress lines where stderr is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(15);

/// Runs a step. After a second its name is printed on stderr, and at its end its duration.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let (ended, end) = mpsc::channel::<()>();
    let name = what.to_owned();
    let ticker = thread::spawn(move || tick(&name, began, &end));
    let result = work();
    drop(ended);
    // The ticker ends because the channel is closed.
    let _ = ticker.join();
    if began.elapsed() >= TICK {
        let verdict = if result.is_ok() { "" } else { "failed after " };
        say(&format!("{}  {what}: {verdict}{:.1} s", line_start(), began.elapsed().as_secs_f64()));
    }
    result.with_context(|| what.to_owned())
}

/// Prints a line on stderr.
pub fn say(line: &str) {
    // A closed stderr must not stop the work.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn tick(what: &str, began: Instant, end: &mpsc::Receiver<()>) {
    let (mut last_line, terminal) = (None::<Duration>, std::io::stderr().is_terminal());
    while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let elapsed = began.elapsed();
        if terminal {
            let _ = write!(std::io::stderr(), "{}  {what} ... {} s", line_start(), elapsed.as_secs());
        } else if last_line.is_none_or(|last_line| elapsed - last_line >= LOG_INTERVAL) {
            say(&format!("  {what} ... {} s", elapsed.as_secs()));
            last_line = Some(elapsed);
        }
    }
}

fn line_start() -> &'static str {
    if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" }
}
