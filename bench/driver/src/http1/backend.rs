//! An HTTP/1.1 server with one fixed response.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::first_message;
use crate::Server;
use crate::poll::{Flags, Poll};
use crate::socket;

const LISTENER: usize = 0;

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// The client has sent `Connection: close`.
    last: bool,
}

/// Serves forever.
pub(crate) fn run(server: &Server) -> anyhow::Result<()> {
    let response = response(server.bytes);
    let listener = socket::listen(server.port)?;
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER, Flags::IN)?;
    let mut connections: HashMap<usize, Connection> = HashMap::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut ready = Vec::new();
    loop {
        ready.extend(poll.wait(None)?);
        for (token, flags) in ready.drain(..) {
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let token = stream.as_raw_fd() as usize;
                    poll.add(&stream, token, Flags::IN | Flags::RDHUP)?;
                    connections.insert(token, Connection::new(stream)?);
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&token) else { continue };
            let was_blocked = !connection.unsent.is_empty();
            match connection.serve(flags, &mut buffer, &response) {
                Ok(true) => {
                    let is_blocked = !connection.unsent.is_empty();
                    if is_blocked != was_blocked {
                        let writable = if is_blocked { Flags::OUT } else { Flags::empty() };
                        poll.modify(&connection.stream, token, Flags::IN | Flags::RDHUP | writable)?;
                    }
                }
                Ok(false) | Err(_) => drop(connections.remove(&token)),
            }
        }
    }
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new(), unsent: Vec::new(), last: false })
    }

    /// Reads requests and answers them. Returns false when the connection is done.
    fn serve(&mut self, flags: Flags, buffer: &mut [u8], response: &[u8]) -> io::Result<bool> {
        if flags.contains(Flags::IN) {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            while let Some(request) = first_message(&self.received) {
                self.received.drain(..request.length);
                self.unsent.extend_from_slice(response);
                self.last |= request.close;
            }
        }
        if !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(!(self.last && self.unsent.is_empty()))
    }
}

fn response(body: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nserver: mb\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\n\r\n");
    let mut response = head.into_bytes();
    response.resize(response.len() + body, b'x');
    response
}
