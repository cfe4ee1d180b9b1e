//! The kernel's numbers of TCP states (include/net/tcp_states.h), as sock_diag(7), `/proc/net` and eBPF
//! programs report them.

/// The connection is open; a socket of another protocol has a peer.
pub const ESTABLISHED: u8 = 1;
/// It was requested by this end.
pub const SYN_SENT: u8 = 2;
/// It was requested by the other end. The kernel also reports `NEW_SYN_RECV` as this.
pub const SYN_RECV: u8 = 3;
/// This end has closed.
pub const FIN_WAIT1: u8 = 4;
/// This end has closed, and the other has acknowledged it.
pub const FIN_WAIT2: u8 = 5;
/// Both ends have closed. The kernel keeps the endpoints for a while.
pub const TIME_WAIT: u8 = 6;
/// There is no connection; a socket of another protocol has no peer.
pub const CLOSE: u8 = 7;
/// The other end has closed.
pub const CLOSE_WAIT: u8 = 8;
/// This end has closed after the other.
pub const LAST_ACK: u8 = 9;
/// The socket accepts connections.
pub const LISTEN: u8 = 10;
/// Both ends have closed at the same time.
pub const CLOSING: u8 = 11;
/// A request that has no complete socket yet.
pub const NEW_SYN_RECV: u8 = 12;

/// Returns the mask of these states in the form of a sock_diag request: bit `1 << number`.
pub const fn mask(states: &[u8]) -> u32 {
    let (mut mask, mut at) = (0, 0);
    while at < states.len() {
        mask |= 1 << states[at];
        at += 1;
    }
    mask
}

/// Returns true if a socket that no process holds may be one that a server has yet to accept.
pub fn may_be_accepted(state: u8) -> bool {
    matches!(state, ESTABLISHED | SYN_RECV | CLOSE_WAIT | NEW_SYN_RECV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_one_bit_for_each_state() {
        assert_eq!(mask(&[]), 0);
        assert_eq!(mask(&[ESTABLISHED]), 2);
        assert_eq!(mask(&[LISTEN, CLOSE, LISTEN]), 0x480);
    }

    #[test]
    fn a_closing_client_is_not_accepted() {
        let accepted: Vec<u8> = (0..=NEW_SYN_RECV).filter(|state| may_be_accepted(*state)).collect();
        assert_eq!(accepted, [1, 3, 8, 12]);
    }
}
