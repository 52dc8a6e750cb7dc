//! Where a redirected connection was meant to go, as the kernel remembers it (`SO_ORIGINAL_DST`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination of what this peer sends. A connection that was not redirected gives the address that it was made to.
pub(crate) fn original_destination(stream: &TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    // A dual-stack listener sees IPv4 peers as mapped addresses, and their connections are the IPv4 tracker's.
    let original = match peer.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let address = match original.ok().and_then(|address| address.as_socket()) {
        Some(address) => address,
        // Nothing is tracked for it: it came here directly.
        None => stream.local_addr()?,
    };
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
