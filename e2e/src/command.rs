//! Runs programs with a time limit; errors contain the command line and its output.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Maximum number of bytes of a program's output in an error.
const QUOTED_OUTPUT_MAX: usize = 4 * 1024;

/// The result of a program.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
    /// When its stdout was closed.
    pub ended: Instant,
}

/// Runs a program with `stdin` as its input, and kills it after `limit`.
pub fn run(command: &mut Command, stdin: &str, limit: Duration) -> Result<Output> {
    start(command, stdin)?.finish(limit)
}

/// Starts a program in the background.
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
    // In threads, because a program that blocks on its output does not read its input.
    thread::spawn(move || input.write_all(stdin.as_bytes()));
    let stdout = collect(child.stdout.take().context("stdout is a pipe")?);
    let stderr = collect(child.stderr.take().context("stderr is a pipe")?);
    Ok(Running { what, child, stdout: Some(stdout), stderr: Some(stderr) })
}

/// A running program. Drop kills it.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// Reads the whole content of a pipe, and the time when it was closed.
type Collected = thread::JoinHandle<(String, Instant)>;

// === impl Output ===

impl Output {
    /// Returns stdout if the program succeeded, and an error with its output otherwise.
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
    /// Whether it is still running.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for it to exit; kills it after `limit`.
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
                let (stdout, stderr, _) = self.output();
                bail!(
                    "`{}` did not exit within {limit:?}; its output:\n{}{}",
                    self.what,
                    shorten(&stdout),
                    shorten(&stderr)
                );
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let (stdout, stderr, ended) = self.output();
        Ok(Output { success: status.success(), stdout, stderr, ended })
    }

    fn output(&mut self) -> (String, String, Instant) {
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
            // Fails if it has exited in the meantime, which is fine.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Formats the command line for messages.
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
        // A broken pipe ends the output like a closed one.
        let _ = pipe.read_to_end(&mut bytes);
        (String::from_utf8_lossy(&bytes).into_owned(), Instant::now())
    })
}

fn shorten(text: &str) -> &str {
    let mut from = text.len().saturating_sub(QUOTED_OUTPUT_MAX);
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
    fn run_returns_the_output() {
        let output = run(&mut Command::new("cat"), "hello\n", LIMIT).expect("cat runs");
        assert!(output.success);
        assert_eq!(output.stdout, "hello\n");
    }

    #[test]
    fn errors_contain_command_and_output() {
        let output = run(Command::new("sh").args(["-c", "echo no such host >&2; exit 3"]), "", LIMIT).expect("sh runs");
        let error = output.stdout_of_success("sh -c ...").expect_err("it failed");
        assert_eq!(error.to_string(), "`sh -c ...` failed:\nno such host\n");
    }

    #[test]
    fn run_kills_the_program_at_the_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; exec sleep 60"]);
        let began = Instant::now();
        let error = run(&mut command, "", Duration::from_millis(200)).expect_err("it takes a minute");
        assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
        assert!(error.to_string().contains("begun"), "{error}");
    }
}
