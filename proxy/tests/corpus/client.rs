//! An HTTP/1.1 client that sends raw bytes and parses responses strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::place::TIMEOUT;

/// A client connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// A complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// Why there is no complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResponseError {
    /// The connection was closed before the first byte of a response.
    Closed,
    /// The connection was closed within a response. `body` has what arrived of it.
    Truncated { status: u16, body: Vec<u8> },
    /// No data arrived within the read timeout.
    Timeout,
    /// Not a valid HTTP response.
    Malformed(String),
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes. Ignores errors: a connection that the proxy has closed shows when the response is read.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// Shuts down the sending side.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads the final response to a request whose method is not HEAD.
    pub(crate) fn response(&mut self) -> Result<Response, ResponseError> {
        self.response_to("GET")
    }

    pub(crate) fn response_to(&mut self, method: &str) -> Result<Response, ResponseError> {
        loop {
            let response = self.next_response(method)?;
            // Skips interim responses. 101 is final.
            if !(100..200).contains(&response.status) || response.status == 101 {
                return Ok(response);
            }
        }
    }

    /// Reads the next response, which may be an interim one (1xx).
    pub(crate) fn next_response(&mut self, method: &str) -> Result<Response, ResponseError> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.read_more()? {
                return match self.buffer.is_empty() {
                    true => Err(ResponseError::Closed),
                    false => Err(ResponseError::Malformed(format!("truncated within the head: {:?}", self.unparsed()))),
                };
            }
        };
        let head =
            String::from_utf8(self.buffer[..end].to_vec()).map_err(|_| ResponseError::Malformed(self.unparsed()))?;
        self.buffer.drain(..end + 4);
        let malformed = || ResponseError::Malformed(head.clone());
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.1 ").or(first.strip_prefix("HTTP/1.0 ")).ok_or_else(malformed)?;
        let status: u16 = status.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(malformed)?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(malformed)?;
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let of = |name: &str| -> Vec<&str> {
            headers.iter().filter(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str()).collect()
        };
        let lengths = of("content-length");
        let chunked = of("transfer-encoding");
        if lengths.len() + chunked.len() > 1 || chunked.iter().any(|value| *value != "chunked") {
            return Err(malformed());
        }
        let length = lengths.first().map(|text| text.parse::<usize>()).transpose().map_err(|_| malformed())?;
        let bodiless = method == "HEAD" || matches!(status, 100..200 | 204 | 304);
        let cut = |body| ResponseError::Truncated { status, body };
        let body = match (bodiless, length, chunked.is_empty()) {
            (true, ..) => Vec::new(),
            (_, Some(length), _) => self.read_exactly(length).map_err(cut)?,
            (_, _, false) => self.read_chunks().map_err(cut)?,
            (_, None, true) => {
                while self.read_more()? {}
                std::mem::take(&mut self.buffer)
            }
        };
        Ok(Response { status, headers, body })
    }

    /// Reads `count` bytes. On end of stream or timeout the error holds the bytes that arrived.
    fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>, Vec<u8>> {
        while self.buffer.len() < count {
            if !self.read_more().unwrap_or(false) {
                return Err(std::mem::take(&mut self.buffer));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).ok();
            }
            if !self.read_more().unwrap_or(false) {
                return None;
            }
        }
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.read_line() else { return Err(body) };
            let Ok(size) = usize::from_str_radix(&line, 16) else { return Err(body) };
            if size == 0 {
                loop {
                    match self.read_line() {
                        Some(line) if line.is_empty() => return Ok(body),
                        Some(_) => {}
                        None => return Err(body),
                    }
                }
            }
            match self.read_exactly(size) {
                Ok(chunk) => body.extend(chunk),
                Err(some) => {
                    body.extend(some);
                    return Err(body);
                }
            }
            if self.read_line().as_deref() != Some("") {
                return Err(body);
            }
        }
    }

    /// Reads once. Returns false at the end of the stream.
    fn read_more(&mut self) -> Result<bool, ResponseError> {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.buffer.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(ResponseError::Timeout)
            }
            Err(_) => Ok(false),
        }
    }

    /// Whether the proxy closes the connection within `time`. Data that arrives meanwhile is kept.
    pub(crate) fn closes_within(&mut self, time: Duration) -> bool {
        let begun = std::time::Instant::now();
        self.stream.set_read_timeout(Some(time)).expect("a timeout");
        let mut closed = false;
        while begun.elapsed() < time {
            match self.read_more() {
                Ok(false) => {
                    closed = true;
                    break;
                }
                Ok(true) => {}
                Err(_) => break,
            }
        }
        self.stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        closed
    }

    /// Received data that is not parsed yet.
    pub(crate) fn unparsed(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Reads raw bytes, fewer than `count` if the stream ends.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.read_exactly(count).unwrap_or_else(|some| some)
    }
}

/// Sends one GET on a new connection. Returns the status, or 0 without a response.
pub(crate) fn get(address: SocketAddr, path: &str) -> u16 {
    let mut client = Client::connect(address);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
    client.response().map_or(0, |response| response.status)
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
