//! An application that writes down every request, and takes nothing that is not strictly HTTP/1.1 with one framing.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::client::find;
use super::place::{APP, POD, wait};

/// A request as it arrived, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names as they came.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
}

/// What is said to a request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
    /// Said as soon as the head is there, before the body.
    pub(crate) early: bool,
    pub(crate) delay: Duration,
}

/// What becomes of the connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
    Reset,
    /// Nothing more is said, and nothing closed.
    Hang,
    /// What comes is sent back.
    Echo,
}

#[derive(Default)]
struct Record {
    seen: Vec<Seen>,
    /// What came and was no request.
    violations: Vec<String>,
    /// Shared, because some are long and all threads answer with them.
    replies: HashMap<String, Arc<Reply>>,
}

/// The application.
#[derive(Clone, Default)]
pub(crate) struct App {
    record: Arc<Mutex<Record>>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.header_bytes(name).map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    pub(crate) fn header_bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.clone())
    }

    /// `GET /a`, `POST /a hello`.
    pub(crate) fn summary(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        format!("{} {} {body}", self.method, self.target).trim_end().to_owned()
    }
}

impl Reply {
    pub(crate) fn new(bytes: impl AsRef<[u8]>, then: Then) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), then, early: false, delay: Duration::ZERO }
    }
}

impl App {
    /// Starts at the pod's address.
    pub(crate) fn start() -> Self {
        let app = Self::default();
        let listener = TcpListener::bind((std::net::Ipv4Addr::from(POD), APP)).expect("the port is free");
        let server = app.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        app
    }

    /// Says something else than 200 to requests for a target.
    pub(crate) fn reply(&self, target: &str, reply: Reply) {
        self.lock().replies.insert(target.to_owned(), Arc::new(reply));
    }

    /// What was seen since the last time.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.lock().seen)
    }

    /// What was seen since the last time, up to the request for a target, which is waited for.
    pub(crate) fn take_up_to(&self, target: &str) -> Vec<Seen> {
        wait(target, || self.lock().seen.iter().any(|seen| seen.target == target));
        let mut seen = self.take();
        seen.retain(|seen| seen.target != target);
        seen
    }

    /// What came and was no request, since the last time.
    pub(crate) fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) {
        stream.set_nodelay(true).expect("an option");
        let mut connection = Connection { stream, buffer: Vec::new() };
        loop {
            match self.one(&mut connection) {
                Ok(true) => {}
                Ok(false) => return,
                Err(violation) => {
                    // That a request was cut short is what happens to refused ones.
                    if violation != CUT {
                        self.lock().violations.push(violation);
                    }
                    return;
                }
            }
        }
    }

    /// Serves one request. Whether another may follow.
    fn one(&self, connection: &mut Connection) -> Result<bool, String> {
        let Some(mut seen) = connection.head()? else { return Ok(false) };
        let reply = self.lock().replies.get(&seen.target).cloned().unwrap_or_else(|| {
            let body = format!("{} {}", seen.method, seen.target);
            let shown = if seen.method == "HEAD" { "" } else { body.as_str() };
            Arc::new(Reply::new(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-app: 1\r\n\r\n{shown}", body.len()),
                Then::Keep,
            ))
        });
        if reply.early {
            let _ = connection.stream.write_all(&reply.bytes);
        }
        if !(reply.early && reply.then != Then::Keep) {
            connection.body(&mut seen)?;
            self.lock().seen.push(seen);
        }
        if !reply.early {
            thread::sleep(reply.delay);
            let _ = connection.stream.write_all(&reply.bytes);
        }
        match reply.then {
            Then::Keep => return Ok(true),
            Then::Close => {}
            Then::Reset => {
                // Long enough for what was said to be read.
                thread::sleep(Duration::from_millis(20));
                let _ = socket2::SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
            }
            Then::Hang => thread::sleep(Duration::from_secs(3600)),
            Then::Echo => {
                let mut bytes = std::mem::take(&mut connection.buffer);
                loop {
                    if connection.stream.write_all(&bytes).is_err() {
                        break;
                    }
                    let mut space = [0; 1024];
                    match connection.stream.read(&mut space) {
                        Ok(count @ 1..) => bytes = space[..count].to_vec(),
                        _ => break,
                    }
                }
            }
        }
        Ok(false)
    }
}

const CUT: &str = "cut";

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn more(&mut self) -> bool {
        let mut space = [0; 64 * 1024];
        match self.stream.read(&mut space) {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&space[..count]);
                true
            }
            _ => false,
        }
    }

    fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).take(at).collect();
                return if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                    Err(format!("a control character in the line {:?}", String::from_utf8_lossy(&line)))
                } else {
                    Ok(line)
                };
            }
            if !self.more() {
                return Err(CUT.to_owned());
            }
        }
    }

    fn exactly(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < count {
            if !self.more() {
                return Err(CUT.to_owned());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn head(&mut self) -> Result<Option<Seen>, String> {
        if self.buffer.is_empty() && !self.more() {
            return Ok(None);
        }
        let line = self.line()?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let bad = |what: &str| format!("{what}: {text:?}");
        let parts: Vec<&str> = text.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else { return Err(bad("no request line")) };
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(bad("no method"));
        }
        if !target.starts_with('/') && target != "*" || target.contains('#') {
            return Err(bad("no target"));
        }
        let mut seen = Seen { method: method.to_owned(), target: target.to_owned(), ..Seen::default() };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = field(&line)?;
            seen.headers.push((name, value));
        }
        let count =
            |name: &str| seen.headers.iter().filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name)).count();
        if count("host") != 1 {
            return Err(format!("{} Host headers", count("host")));
        }
        if count("content-length") + count("transfer-encoding") > 1 {
            return Err(format!("several framings: {:?}", seen.headers));
        }
        for name in ["keep-alive", "proxy-connection", "te", "http2-settings"] {
            if count(name) > 0 {
                return Err(format!("{name} was passed on"));
            }
        }
        let upgrade = count("upgrade") > 0;
        if count("connection") > 0 && !(upgrade && seen.header("connection").as_deref() == Some("upgrade")) {
            return Err("Connection was passed on".to_owned());
        }
        Ok(Some(seen))
    }

    fn body(&mut self, seen: &mut Seen) -> Result<(), String> {
        if let Some(encoding) = seen.header("transfer-encoding") {
            if encoding != "chunked" {
                return Err(format!("transfer encoding {encoding:?}"));
            }
            loop {
                let line = String::from_utf8_lossy(&self.line()?).into_owned();
                if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(format!("no chunk size: {line:?}"));
                }
                let size = usize::from_str_radix(&line, 16).map_err(|error| format!("{line:?}: {error}"))?;
                if size == 0 {
                    break;
                }
                seen.body.extend(self.exactly(size)?);
                if self.exactly(2)? != b"\r\n" {
                    return Err("no line end after a chunk".to_owned());
                }
            }
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    return Ok(());
                }
                seen.trailers.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        if let Some(length) = seen.header("content-length") {
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits).ok_or_else(|| format!("content length {length:?}"))?;
            seen.body = self.exactly(length)?;
        }
        Ok(())
    }
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let bad = || format!("no header: {:?}", String::from_utf8_lossy(line));
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(bad)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let fine = !name.is_empty() && name.iter().copied().all(is_token);
    if !fine || value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
        return Err(bad());
    }
    Ok((String::from_utf8_lossy(name).into_owned(), value.to_vec()))
}

pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
