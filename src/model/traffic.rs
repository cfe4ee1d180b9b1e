//! Bytes and packets in each direction.

/// The direction of a packet, seen from the local end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the local endpoint.
    Send,
    /// To the local endpoint.
    Receive,
}

/// The size on the wire of a captured frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WireSize {
    /// Bytes, including the headers of every packet.
    pub bytes: u32,
    /// Packets, at least one.
    pub packets: u32,
}

impl From<u32> for WireSize {
    /// Returns the size of one packet of this many bytes.
    #[inline]
    fn from(bytes: u32) -> WireSize {
        WireSize { bytes, packets: 1 }
    }
}

/// Bytes and packets in each direction. Bytes are lengths on the wire, link header included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Bytes sent.
    pub send_bytes: u64,
    /// Bytes received.
    pub receive_bytes: u64,
    /// Packets sent.
    pub send_packets: u64,
    /// Packets received.
    pub receive_packets: u64,
}

impl Traffic {
    /// Counts a captured frame.
    #[inline]
    pub fn count(&mut self, direction: Direction, size: impl Into<WireSize>) {
        let WireSize { bytes, packets } = size.into();
        match direction {
            Direction::Send => {
                self.send_bytes += u64::from(bytes);
                self.send_packets += u64::from(packets);
            }
            Direction::Receive => {
                self.receive_bytes += u64::from(bytes);
                self.receive_packets += u64::from(packets);
            }
        }
    }

    /// Returns true if nothing was counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == Traffic::default()
    }

    /// Returns the counts and resets them to zero.
    #[inline]
    pub fn take(&mut self) -> Traffic {
        std::mem::take(self)
    }

    /// Returns the bytes of both directions.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.send_bytes + self.receive_bytes
    }
}

impl std::ops::SubAssign for Traffic {
    #[inline]
    fn sub_assign(&mut self, other: Traffic) {
        self.send_bytes -= other.send_bytes;
        self.receive_bytes -= other.receive_bytes;
        self.send_packets -= other.send_packets;
        self.receive_packets -= other.receive_packets;
    }
}

impl std::ops::AddAssign for Traffic {
    #[inline]
    fn add_assign(&mut self, other: Traffic) {
        self.send_bytes += other.send_bytes;
        self.receive_bytes += other.receive_bytes;
        self.send_packets += other.send_packets;
        self.receive_packets += other.receive_packets;
    }
}
