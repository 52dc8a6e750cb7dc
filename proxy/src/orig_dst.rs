//! The original destination of a redirected connection, from the kernel's connection tracking (`SO_ORIGINAL_DST`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination of a connection from this peer. For a connection that was not redirected: the address it
/// was made to.
pub(crate) fn original_destination(stream: &TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    // A dual-stack listener sees IPv4 peers as mapped addresses; their original destination is an IPv4 option.
    let original = match peer.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let address = match original.ok().and_then(|address| address.as_socket()) {
        Some(address) => address,
        // Not tracked: the connection was not redirected.
        None => stream.local_addr()?,
    };
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
