//! Starts programs of other projects, as servers and as clients that read commands.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Limit for one command. The clients' own timeout is shorter.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// A process. Dropping it ends the process.
pub(crate) struct Process(Child);

/// A client process that reads one command per line, and answers each with a line of JSON.
pub(crate) struct CommandClient {
    program: Vec<String>,
    running: Option<Running>,
}

struct Running {
    stdin: ChildStdin,
    lines: Receiver<String>,
    _process: Process,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder of the programs' source code.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// The path of a source file there.
pub(crate) fn source(name: &str) -> String {
    folder().join(name).display().to_string()
}

/// The path of a part that `setup.sh` builds. Builds it if needed, which needs a network.
pub(crate) fn built(part: &str) -> String {
    let output = Command::new(folder().join("setup.sh")).arg(part).output().expect("the script can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}

/// Fails where a program is missing.
pub(crate) fn need(program: &str) {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    assert!(found.is_ok_and(|status| status.success()), "{program} is missing: run e2e/packages.sh, which installs it");
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

fn spawn(command: &mut Command) -> Child {
    let name = command.get_program().display().to_string();
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}: run e2e/packages.sh, which installs it"))
}

/// Starts a server, which ends with the test even if that is killed.
pub(crate) fn server(words: &[String]) -> Process {
    let words: Vec<String> =
        ["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned).into_iter().chain(words.to_vec()).collect();
    Process(spawn(command(&words).stdin(Stdio::null()).stdout(Stdio::null())))
}

/// Runs a program to its end. Returns whether it succeeded, and its output.
pub(crate) fn run(words: &[String]) -> (bool, String) {
    let child = spawn(command(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

impl CommandClient {
    pub(crate) fn new(program: Vec<String>) -> Self {
        Self { program, running: None }
    }

    /// Sends a command and returns its result. A process that does not answer in time is ended, and replaced for the
    /// next command.
    pub(crate) fn send(&mut self, words: &str) -> Value {
        let running = self.running.get_or_insert_with(|| Running::start(&self.program));
        let sent = writeln!(running.stdin, "{words}");
        let answer = running.lines.recv_timeout(COMMAND_TIMEOUT);
        match (sent, answer) {
            (Ok(()), Ok(line)) => serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")),
            (sent, answer) => {
                self.running = None;
                json!({"error": format!("the client hangs or has ended: {sent:?}, {answer:?}")})
            }
        }
    }

    /// Ends the process and so its connections.
    pub(crate) fn end(&mut self) {
        self.running = None;
    }
}

impl Running {
    fn start(program: &[String]) -> Self {
        let mut child = spawn(command(program).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { stdin, lines, _process: Process(child) }
    }
}
