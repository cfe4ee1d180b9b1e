//! The ring that the kernel shares with a packet socket, TPACKET_V3 of packet(7) and packet_mmap.rst.
//!
//! The kernel fills one block after another and hands each over when it is full or a timeout has passed. A
//! frame is read in place. libpcap also reads such a ring, but does not report the direction of a frame.

use crate::model::Timestamp;
use crate::netlink::attach_filter;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Bytes of a block: a frame of the largest snapshot length, headers included.
const BLOCK: usize = 256 << 10;
/// The minimum number of blocks. With one block the kernel has nowhere to write while it is read.
const MIN_BLOCKS: usize = 2;
/// Room before each frame for the VLAN tag that the kernel keeps apart.
const TAG: usize = 4;
/// The length of the two addresses of an Ethernet header, after which the tag belongs.
const ADDRESSES: usize = 12;
/// The offset of a frame's address, `struct sockaddr_ll`, after its header.
const ADDRESS: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);

/// A frame in the ring.
#[derive(Clone, Copy)]
pub(in crate::tap) struct Captured<'a> {
    pub time: Timestamp,
    /// Its length, of which `data` may be a part.
    pub len: u32,
    /// `PACKET_OUTGOING` and the like.
    pub packet_type: u8,
    /// Its EtherType, as the kernel determined it.
    pub protocol: u16,
    pub data: &'a [u8],
}

/// A block that is being read.
struct Open {
    /// The offset of the next frame in the block.
    offset: usize,
    left: u32,
}

/// A packet socket with its ring.
pub(in crate::tap) struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    blocks: usize,
    /// The block that is being read, or is to be read next.
    block: usize,
    open: Option<Open>,
    /// Set if tags are restored in frames, as Ethernet has them.
    restores_tags: bool,
}

// SAFETY: the memory belongs to the ring, and only the ring accesses it.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives an unbound socket a ring of about `bytes`, or less if memory is short. The kernel hands a block
    /// over after `timeout` at the latest.
    ///
    /// # Errors
    /// Fails with the system's error for the options or for the mapping.
    pub(in crate::tap) fn new(
        socket: OwnedFd,
        bytes: u32,
        timeout: Duration,
        restores_tags: bool,
    ) -> nix::Result<Ring> {
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_option(&socket, libc::PACKET_VERSION, &version)?;
        set_option(&socket, libc::PACKET_RESERVE, &(TAG as libc::c_uint))?;
        let mut blocks = (bytes as usize / BLOCK).max(MIN_BLOCKS);
        while let Err(errno) = request(&socket, blocks, timeout) {
            if errno != Errno::ENOMEM || blocks == MIN_BLOCKS {
                return Err(errno);
            }
            blocks = (blocks / 2).max(MIN_BLOCKS);
        }
        // SAFETY: a new mapping of the whole ring, at an address that the kernel chooses; no existing memory
        // is affected.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                blocks * BLOCK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(Errno::EFAULT)?;
        // A child that the host forks would keep the socket alive by its copy of the mapping, which nothing in the
        // child reads.
        // SAFETY: the mapping is the one just created, of this length; a child does not use memory that it does not
        // inherit.
        unsafe { libc::madvise(memory.as_ptr().cast(), blocks * BLOCK, libc::MADV_DONTFORK) };
        Ok(Ring { socket, memory, blocks, block: 0, open: None, restores_tags })
    }

    /// Hands at most `limit` frames to `each`, or all that are available if fewer. Returns their number. If
    /// `each` panics, the next call begins with the next frame.
    pub(in crate::tap) fn read(&mut self, limit: usize, mut each: impl FnMut(Captured<'_>)) -> usize {
        let mut count = 0;
        while count < limit && (self.open.is_some() || self.begin_block()) {
            match self.next_frame() {
                Some(captured) => {
                    count += 1;
                    each(captured);
                }
                None => self.end_block(),
            }
        }
        count
    }

    /// Takes the next block, if the kernel has handed it over.
    fn begin_block(&mut self) -> bool {
        if self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: the block is inside the mapping, aligned to a page, and has belonged to this ring since the
        // status was read; the kernel writes this header, of which every bit pattern is valid.
        let (left, offset) = unsafe {
            let header = &raw const (*self.descriptor()).hdr.bh1;
            ((*header).num_pkts, (*header).offset_to_first_pkt)
        };
        self.open = Some(Open { offset: offset as usize, left });
        true
    }

    /// Returns the block to the kernel.
    fn end_block(&mut self) {
        self.open = None;
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.block = (self.block + 1) % self.blocks;
    }

    fn descriptor(&self) -> *mut libc::tpacket_block_desc {
        // SAFETY: `block` is below `blocks`, so the address is inside the mapping.
        unsafe { self.memory.add(self.block * BLOCK) }.as_ptr().cast()
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the word is inside the mapping and aligned; the kernel and this ring exchange blocks
        // through it, both with single loads and stores.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.descriptor()).hdr.bh1.block_status) }
    }

    /// Returns the next frame of the open block, or `None` at its end.
    fn next_frame(&mut self) -> Option<Captured<'_>> {
        let block = self.descriptor().cast::<u8>();
        let open = self.open.as_mut().filter(|open| open.left > 0)?;
        let offset = open.offset;
        open.left -= 1;
        let behind = offset.checked_add(ADDRESS + size_of::<libc::sockaddr_ll>())?;
        if behind > BLOCK {
            open.left = 0;
            return None;
        }
        // SAFETY: the block belongs to this ring, and both structures end inside it, as was just checked;
        // every bit pattern is valid.
        let (start, header, address) = unsafe {
            let start = block.add(offset);
            let header: libc::tpacket3_hdr = start.cast::<libc::tpacket3_hdr>().read_unaligned();
            let address: libc::sockaddr_ll = start.add(ADDRESS).cast::<libc::sockaddr_ll>().read_unaligned();
            (start, header, address)
        };
        open.offset = offset.saturating_add(header.tp_next_offset as usize);
        let (mac, mut kept) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        if mac < ADDRESS + size_of::<libc::sockaddr_ll>() + TAG || offset + mac + kept > BLOCK {
            open.left = 0;
            return None;
        }
        // SAFETY: the frame is inside the block, as was just checked.
        let mut frame = unsafe { start.add(mac) };
        let mut len = header.tp_len;
        if self.restores_tags && header.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && kept >= ADDRESSES {
            // If it states no tag protocol, the kernel means 802.1Q.
            let is_named = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if is_named { header.hv1.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
            let [p0, p1] = protocol.to_be_bytes();
            let [t0, t1] = (header.hv1.tp_vlan_tci as u16).to_be_bytes();
            // SAFETY: the TAG bytes before the frame lie after its `sockaddr_ll`, as was checked, and hold no
            // other data; the copy and the tag stay within them and the frame, which is at least as long as
            // the addresses.
            unsafe {
                let tagged = frame.sub(TAG);
                std::ptr::copy(frame, tagged, ADDRESSES);
                tagged.add(ADDRESSES).cast::<[u8; TAG]>().write_unaligned([p0, p1, t0, t1]);
                frame = tagged;
            }
            kept += TAG;
            len = len.saturating_add(TAG as u32);
        }
        // SAFETY: these bytes are inside the block, which belongs to this ring as long as the ring is
        // borrowed: `end_block` returns it to the kernel.
        let data = unsafe { std::slice::from_raw_parts(frame, kept) };
        let seconds = u64::from(header.tp_sec).saturating_mul(1_000_000_000);
        Some(Captured {
            time: Timestamp(seconds.saturating_add(header.tp_nsec.into())),
            len: len.max(u32::try_from(kept).unwrap_or(u32::MAX)),
            packet_type: address.sll_pkttype,
            protocol: u16::from_be(address.sll_protocol),
            data,
        })
    }

    /// Returns the number of frames that found no room since the last call.
    pub(in crate::tap) fn take_dropped(&self) -> u32 {
        let mut stats = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of the structure.
        let status = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if status == 0 { stats.tp_drops } else { 0 }
    }

    /// Takes the error that is pending on the socket, which stays ready as long as there is one: `ENETDOWN`
    /// if its device has gone down.
    pub(in crate::tap) fn take_error(&self) -> Option<Errno> {
        match nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::SocketError) {
            Ok(0) => None,
            Ok(error) => Some(Errno::from_raw(error)),
            Err(errno) => Some(errno),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A child that was forked just as the ring was mapped may have the mapping after all, and with it the
        // socket. This filter passes no byte of any packet (`BPF_RET | BPF_K`, 0). If it cannot be attached,
        // the socket is closed as it is.
        let nothing = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let _ = attach_filter(self.socket.as_fd(), &nothing);
        // SAFETY: the mapping belongs to this ring, has this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.blocks * BLOCK) };
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Requests a ring from the kernel.
fn request(socket: &OwnedFd, blocks: usize, timeout: Duration) -> nix::Result<()> {
    let count = u32::try_from(blocks).map_err(|_| Errno::EINVAL)?;
    let request = libc::tpacket_req3 {
        tp_block_size: BLOCK as u32,
        tp_block_nr: count,
        // Frames of this version have no fixed size, but the kernel checks that these fit the blocks.
        tp_frame_size: BLOCK as u32,
        tp_frame_nr: count,
        tp_retire_blk_tov: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    set_option(socket, libc::PACKET_RX_RING, &request)
}

/// Sets an option of packet(7).
pub(in crate::tap) fn set_option<T: Copy>(
    socket: &OwnedFd,
    option: libc::c_int,
    value: &T,
) -> nix::Result<()> {
    // SAFETY: the kernel reads no more than the given length, which is that of the plain value.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(status).map(drop)
}
