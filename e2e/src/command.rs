//! Running programs: bounded in time, and with an error that says what was run and what it said.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How much of a program's output stands in an error.
const SAID_BYTES_MAX: usize = 4 * 1024;

/// A program that ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// It exited with 0.
    pub success: bool,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// When the last of its stdout came.
    pub ended: Instant,
}

/// Runs a program with `stdin` as its input, and ends it when it takes longer than `limit`.
pub fn run(command: &mut Command, stdin: &str, limit: Duration) -> Result<Output> {
    start(command, stdin)?.finish(limit)
}

/// Starts a program that runs beside the caller.
pub fn start(command: &mut Command, stdin: &str) -> Result<Running> {
    let what = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{what}`"))?;
    let mut input = child.stdin.take().context("stdin is a pipe")?;
    let stdin = stdin.to_owned();
    // In threads, because a program that waits for its output to be taken does not take its input.
    thread::spawn(move || input.write_all(stdin.as_bytes()));
    let stdout = collect(child.stdout.take().context("stdout is a pipe")?);
    let stderr = collect(child.stderr.take().context("stderr is a pipe")?);
    Ok(Running { what, child, stdout: Some(stdout), stderr: Some(stderr) })
}

/// A program that runs. It is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// What a pipe gave, and when it ended.
type Collected = thread::JoinHandle<(String, Instant)>;

// === impl Output ===

impl Output {
    /// What the program wrote to stdout, if it succeeded.
    pub fn stdout_of_success(self, what: &str) -> Result<String> {
        if self.success {
            Ok(self.stdout)
        } else {
            bail!("`{what}` failed:\n{}{}", shorten(&self.stdout), shorten(&self.stderr))
        }
    }
}

// === impl Running ===

impl Running {
    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for it to end by itself.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(2);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                let (stdout, stderr, _) = self.said();
                bail!(
                    "`{}` did not end within {limit:?}; it had said:\n{}{}",
                    self.what,
                    shorten(&stdout),
                    shorten(&stderr)
                );
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let (stdout, stderr, ended) = self.said();
        Ok(Output { success: status.success(), stdout, stderr, ended })
    }

    fn said(&mut self) -> (String, String, Instant) {
        let take = |thread: &mut Option<Collected>| {
            thread.take().and_then(|thread| thread.join().ok()).unwrap_or_else(|| (String::new(), Instant::now()))
        };
        let ((stdout, ended), (stderr, _)) = (take(&mut self.stdout), take(&mut self.stderr));
        (stdout, stderr, ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may have ended in between, which is as well.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The command line, for messages.
pub fn describe(command: &Command) -> String {
    let name = |word: &OsStr| word.to_string_lossy().into_owned();
    let program = command.get_program();
    let program = std::path::Path::new(program).file_name().unwrap_or(program);
    let mut words = vec![name(program)];
    words.extend(command.get_args().map(name).map(|word| if word.contains(' ') { format!("{word:?}") } else { word }));
    words.join(" ")
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the output, like one that is closed.
        let _ = pipe.read_to_end(&mut bytes);
        (String::from_utf8_lossy(&bytes).into_owned(), Instant::now())
    })
}

fn shorten(text: &str) -> &str {
    let mut from = text.len().saturating_sub(SAID_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn gives_back_what_was_said() {
        let output = run(&mut Command::new("cat"), "hello\n", LIMIT).expect("cat runs");
        assert!(output.success);
        assert_eq!(output.stdout, "hello\n");
    }

    #[test]
    fn names_the_program_that_failed_and_what_it_said() {
        let output = run(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]), "", LIMIT).expect("sh runs");
        let error = output.stdout_of_success("sh -c ...").expect_err("it failed");
        assert_eq!(error.to_string(), "`sh -c ...` failed:\nno luck\n");
    }

    #[test]
    fn ends_what_takes_too_long() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; exec sleep 60"]);
        let began = Instant::now();
        let error = run(&mut command, "", Duration::from_millis(200)).expect_err("it takes a minute");
        assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
        assert!(error.to_string().contains("begun"), "{error}");
    }
}
