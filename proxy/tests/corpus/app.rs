//! An HTTP/1.1 application that records every request and accepts only strict HTTP/1.1 with exactly one framing.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::client::find;
use super::place::{APP, POD, wait};

/// A complete request, as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in the letter case in which they arrived.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
}

/// A scripted response.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) after: After,
    /// Sent as soon as the request head has arrived, before its body.
    pub(crate) early: bool,
    pub(crate) delay: Duration,
}

/// What the application does with the connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
    Reset,
    /// Keeps the connection open and sends nothing more.
    Hang,
    /// Sends back every byte that it receives.
    Echo,
}

#[derive(Default)]
struct Record {
    seen: Vec<Request>,
    /// Input that was not a valid request.
    violations: Vec<String>,
    /// Shared between threads, because some are large.
    replies: HashMap<String, Arc<Reply>>,
}

/// The application. Clones share their record.
#[derive(Clone, Default)]
pub(crate) struct App {
    record: Arc<Mutex<Record>>,
}

impl Request {
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
    pub(crate) fn new(bytes: impl AsRef<[u8]>, after: After) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), after, early: false, delay: Duration::ZERO }
    }
}

impl App {
    /// Listens at the pod's address.
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

    /// Sets the reply to requests for a target. The default is 200.
    pub(crate) fn reply(&self, target: &str, reply: Reply) {
        self.lock().replies.insert(target.to_owned(), Arc::new(reply));
    }

    /// The requests since the last call.
    pub(crate) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.lock().seen)
    }

    /// Waits for the request for a target, and returns the other requests since the last call.
    pub(crate) fn take_up_to(&self, target: &str) -> Vec<Request> {
        wait(target, || self.lock().seen.iter().any(|seen| seen.target == target));
        let mut seen = self.take();
        seen.retain(|seen| seen.target != target);
        seen
    }

    /// Invalid input since the last call.
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
            match self.serve_one(&mut connection) {
                Ok(true) => {}
                Ok(false) => return,
                Err(violation) => {
                    // The proxy truncates requests that it refuses, so that is no violation.
                    if violation != TRUNCATED {
                        self.lock().violations.push(violation);
                    }
                    return;
                }
            }
        }
    }

    /// Serves one request. Returns whether the connection may carry another.
    fn serve_one(&self, connection: &mut Connection) -> Result<bool, String> {
        let Some(mut seen) = connection.read_head()? else { return Ok(false) };
        let reply = self.lock().replies.get(&seen.target).cloned().unwrap_or_else(|| {
            let body = format!("{} {}", seen.method, seen.target);
            let shown = if seen.method == "HEAD" { "" } else { body.as_str() };
            Arc::new(Reply::new(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-app: 1\r\n\r\n{shown}", body.len()),
                After::Keep,
            ))
        });
        if reply.early {
            let _ = connection.stream.write_all(&reply.bytes);
        }
        if !(reply.early && reply.after != After::Keep) {
            connection.read_body(&mut seen)?;
            self.lock().seen.push(seen);
        }
        if !reply.early {
            thread::sleep(reply.delay);
            let _ = connection.stream.write_all(&reply.bytes);
        }
        match reply.after {
            After::Keep => return Ok(true),
            After::Close => {}
            After::Reset => {
                // Lets the proxy read the reply before the reset discards it.
                thread::sleep(Duration::from_millis(20));
                let _ = socket2::SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
            }
            After::Hang => thread::sleep(Duration::from_secs(3600)),
            After::Echo => {
                let mut bytes = std::mem::take(&mut connection.buffer);
                loop {
                    if connection.stream.write_all(&bytes).is_err() {
                        break;
                    }
                    let mut buffer = [0; 1024];
                    match connection.stream.read(&mut buffer) {
                        Ok(count @ 1..) => bytes = buffer[..count].to_vec(),
                        _ => break,
                    }
                }
            }
        }
        Ok(false)
    }
}

const TRUNCATED: &str = "truncated";

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&buffer[..count]);
                true
            }
            _ => false,
        }
    }

    fn read_line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).take(at).collect();
                return if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                    Err(format!("a control character in the line {:?}", String::from_utf8_lossy(&line)))
                } else {
                    Ok(line)
                };
            }
            if !self.read_more() {
                return Err(TRUNCATED.to_owned());
            }
        }
    }

    fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < count {
            if !self.read_more() {
                return Err(TRUNCATED.to_owned());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn read_head(&mut self) -> Result<Option<Request>, String> {
        if self.buffer.is_empty() && !self.read_more() {
            return Ok(None);
        }
        let line = self.read_line()?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let bad = |what: &str| format!("{what}: {text:?}");
        let parts: Vec<&str> = text.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else { return Err(bad("invalid request line")) };
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(bad("invalid method"));
        }
        if !target.starts_with('/') && target != "*" || target.contains('#') {
            return Err(bad("invalid target"));
        }
        let mut seen = Request { method: method.to_owned(), target: target.to_owned(), ..Request::default() };
        loop {
            let line = self.read_line()?;
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

    fn read_body(&mut self, seen: &mut Request) -> Result<(), String> {
        if let Some(encoding) = seen.header("transfer-encoding") {
            if encoding != "chunked" {
                return Err(format!("transfer encoding {encoding:?}"));
            }
            loop {
                let line = String::from_utf8_lossy(&self.read_line()?).into_owned();
                if line.is_empty() || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(format!("invalid chunk size: {line:?}"));
                }
                let size = usize::from_str_radix(&line, 16).map_err(|error| format!("{line:?}: {error}"))?;
                if size == 0 {
                    break;
                }
                seen.body.extend(self.read_exactly(size)?);
                if self.read_exactly(2)? != b"\r\n" {
                    return Err("no CRLF after a chunk".to_owned());
                }
            }
            loop {
                let line = self.read_line()?;
                if line.is_empty() {
                    return Ok(());
                }
                seen.trailers.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        if let Some(length) = seen.header("content-length") {
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits).ok_or_else(|| format!("content length {length:?}"))?;
            seen.body = self.read_exactly(length)?;
        }
        Ok(())
    }
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let bad = || format!("invalid header: {:?}", String::from_utf8_lossy(line));
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
