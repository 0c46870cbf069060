//! Who is at the other end of a Unix socket: the kernel's word, not the peer's.

use std::io;
use std::os::fd::AsFd;

/// Identity of a connected process, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Reads `SO_PEERCRED` of a connected Unix stream socket.
///
/// # Errors
/// When the socket is not one.
pub fn peer_of(socket: impl AsFd) -> io::Result<Peer> {
    let found = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer { uid: found.uid.as_raw(), gid: found.gid.as_raw() })
}

/// The user this process acts as.
#[must_use]
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_other_end_is_us() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_of(&one).unwrap().uid, own_uid());
    }
}
