//! Who is at the other end of a Unix socket, or listens on this machine: the kernel's word, not the peer's.

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

/// The users who listen on a TCP port of this network namespace, on whichever address; none where the kernel does not say.
#[must_use]
pub fn listeners_on(port: u16) -> Vec<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let tables = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok());
    tables.flat_map(|table| listeners_in(&table, port)).collect()
}

/// The lines have: number, local address, remote address, state, queues, timer, retransmissions, user, ... Addresses end in the
/// port in hexadecimal; 0A is listening.
fn listeners_in(table: &str, port: u16) -> Vec<u32> {
    let user = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, user) = (words.get(1)?, words.get(3)?, words.get(7)?);
        let here = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()? == port;
        (here && *state == "0A").then(|| user.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_and_who_is_connected_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connected = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(listeners_on(port), [own_uid()]);
        assert_eq!(listeners_on(connected.local_addr().unwrap().port()), [0; 0]);
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     \x20  0: 0100007F:1CFC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 7 1\n\
                     \x20  1: 0100007F:1CFC 0100007F:9000 01 00000000:00000000 00:00000000 00000000  1002        0 8 1\n";
        assert_eq!(listeners_in(table, 7420), [1001]);
    }

    #[test]
    fn our_own_other_end_is_us() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_of(&one).unwrap().uid, own_uid());
    }
}
