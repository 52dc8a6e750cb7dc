//! Where a redirected connection was meant to go, as the kernel remembers it (`SO_ORIGINAL_DST`).

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination. A connection that was not redirected gives the address that it was made to.
pub(crate) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        // A dual-stack listener sees IPv4 peers as mapped addresses, and their connections are the IPv4 tracker's.
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let address = match original {
        Ok(address) => address.as_socket().unwrap_or(local),
        // Nothing is tracked for it: it came here directly.
        Err(_) => local,
    };
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
