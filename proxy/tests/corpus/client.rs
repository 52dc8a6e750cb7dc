//! A client that sends bytes as they are, and reads responses strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::place::PATIENCE;

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// A response, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// Why there is no response, or no whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The connection ended, and nothing of a response had come.
    Closed,
    /// The connection ended within a response of this status, with this much of its body.
    Cut { status: u16, body: Vec<u8> },
    /// Nothing came in time.
    Silence,
    /// It is not HTTP.
    Nonsense(String),
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes. That the other side has closed meanwhile is for the reading to find out.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The answer to a request that is no HEAD.
    pub(crate) fn answer(&mut self) -> Result<Answer, NoAnswer> {
        self.answer_to("GET")
    }

    pub(crate) fn answer_to(&mut self, method: &str) -> Result<Answer, NoAnswer> {
        loop {
            let answer = self.one_answer(method)?;
            // Answers before the answer: 101 is one itself.
            if !(100..200).contains(&answer.status) || answer.status == 101 {
                return Ok(answer);
            }
        }
    }

    pub(crate) fn one_answer(&mut self, method: &str) -> Result<Answer, NoAnswer> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.more()? {
                return match self.buffer.is_empty() {
                    true => Err(NoAnswer::Closed),
                    false => Err(NoAnswer::Nonsense(format!("cut within the head: {:?}", self.said()))),
                };
            }
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).map_err(|_| NoAnswer::Nonsense(self.said()))?;
        self.buffer.drain(..end + 4);
        let nonsense = || NoAnswer::Nonsense(head.clone());
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.1 ").or(first.strip_prefix("HTTP/1.0 ")).ok_or_else(nonsense)?;
        let status: u16 = status.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(nonsense)?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(nonsense)?;
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let of = |name: &str| -> Vec<&str> {
            headers.iter().filter(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str()).collect()
        };
        let lengths = of("content-length");
        let chunked = of("transfer-encoding");
        if lengths.len() + chunked.len() > 1 || chunked.iter().any(|value| *value != "chunked") {
            return Err(nonsense());
        }
        let length = lengths.first().map(|text| text.parse::<usize>()).transpose().map_err(|_| nonsense())?;
        let bodiless = method == "HEAD" || matches!(status, 100..200 | 204 | 304);
        let cut = |body| NoAnswer::Cut { status, body };
        let body = match (bodiless, length, chunked.is_empty()) {
            (true, ..) => Vec::new(),
            (_, Some(length), _) => self.take(length).map_err(cut)?,
            (_, _, false) => self.chunks().map_err(cut)?,
            (_, None, true) => {
                while self.more()? {}
                std::mem::take(&mut self.buffer)
            }
        };
        Ok(Answer { status, headers, body })
    }

    /// So many bytes, or those that came before the end.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, Vec<u8>> {
        while self.buffer.len() < count {
            if !self.more().unwrap_or(false) {
                return Err(std::mem::take(&mut self.buffer));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).ok();
            }
            if !self.more().unwrap_or(false) {
                return None;
            }
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.line() else { return Err(body) };
            let Ok(size) = usize::from_str_radix(&line, 16) else { return Err(body) };
            if size == 0 {
                loop {
                    match self.line() {
                        Some(line) if line.is_empty() => return Ok(body),
                        Some(_) => {}
                        None => return Err(body),
                    }
                }
            }
            match self.take(size) {
                Ok(chunk) => body.extend(chunk),
                Err(some) => {
                    body.extend(some);
                    return Err(body);
                }
            }
            if self.line().as_deref() != Some("") {
                return Err(body);
            }
        }
    }

    /// Whether more came before the end.
    fn more(&mut self) -> Result<bool, NoAnswer> {
        let mut space = [0; 64 * 1024];
        match self.stream.read(&mut space) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.buffer.extend_from_slice(&space[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(NoAnswer::Silence),
            Err(_) => Ok(false),
        }
    }

    /// Whether the other side closes, within a time; what it says meanwhile is kept.
    pub(crate) fn closes_within(&mut self, time: Duration) -> bool {
        let begun = std::time::Instant::now();
        self.stream.set_read_timeout(Some(time)).expect("a timeout");
        let mut closed = false;
        while begun.elapsed() < time {
            match self.more() {
                Ok(false) => {
                    closed = true;
                    break;
                }
                Ok(true) => {}
                Err(_) => break,
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        closed
    }

    /// What came and was not read as a response.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// The next bytes as they are.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.take(count).unwrap_or_else(|some| some)
    }
}

/// One GET on a connection of its own: the status, 0 for no answer.
pub(crate) fn get(address: SocketAddr, path: &str) -> u16 {
    let mut client = Client::connect(address);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
    client.answer().map_or(0, |answer| answer.status)
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
