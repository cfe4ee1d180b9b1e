//! Filter expressions (pcap-filter(7)). libpcap compiles them; the kernel or libpcap runs them.

use super::frames::words;
use crate::error::{Code, Error, Result};
use crate::model::LinkType;
use pcap::{Capture, Linktype};
use std::ffi::{c_int, c_long, c_uint};

/// Declarations as in `pcap/pcap.h`. The `pcap` crate links the library.
mod ffi {
    use super::{c_int, c_long, c_uint};

    #[repr(C)]
    pub struct BpfProgram {
        pub length: c_uint,
        pub instructions: *const libc::sock_filter,
    }

    #[repr(C)]
    pub struct PacketHeader {
        pub seconds: c_long,
        pub microseconds: c_long,
        pub captured: u32,
        pub length: u32,
    }

    unsafe extern "C" {
        pub fn pcap_offline_filter(
            program: *const BpfProgram,
            header: *const PacketHeader,
            data: *const u8,
        ) -> c_int;
    }
}

/// A compiled filter expression.
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// Compiles an expression for frames of a link type.
    ///
    /// # Errors
    /// Fails with `CompileFilter`, the expression and libpcap's text if libpcap rejects the expression.
    pub(super) fn compile(expression: &str, link: LinkType) -> Result<Filter> {
        let refused =
            |error| Error::new(Code::CompileFilter, format!("the filter \"{expression}\": {}", words(error)));
        let handle = Capture::dead(Linktype(link.dlt())).map_err(refused)?;
        let compiled = handle.compile(expression, true).map_err(refused)?;
        // SAFETY: `BpfInstruction` is a transparent wrapper of libpcap's `struct bpf_insn`, which has the
        // same fields as the kernel's `struct sock_filter` (bpf(4), linux/filter.h). The slice is copied
        // while `compiled` lives.
        let program = unsafe {
            let instructions = compiled.get_instructions();
            std::slice::from_raw_parts(instructions.as_ptr().cast::<libc::sock_filter>(), instructions.len())
        };
        Ok(Filter { program: program.to_vec() })
    }

    /// Returns the filter for the kernel, which keeps `snaplen` bytes of each frame that passes.
    pub(super) fn for_kernel(&self, snaplen: u32) -> Vec<libc::sock_filter> {
        let passes = |instruction: &libc::sock_filter| {
            instruction.code == (libc::BPF_RET | libc::BPF_K) as u16 && instruction.k != 0
        };
        let mut program = self.program.clone();
        program.iter_mut().filter(|one| passes(one)).for_each(|one| one.k = snaplen);
        program
    }

    /// Returns true if a frame of `len` bytes passes, of which `data` was captured.
    pub(super) fn matches(&self, data: &[u8], len: u32) -> bool {
        let program = ffi::BpfProgram {
            length: c_uint::try_from(self.program.len()).unwrap_or(0),
            instructions: self.program.as_ptr(),
        };
        let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let header = ffi::PacketHeader { seconds: 0, microseconds: 0, captured, length: len };
        // SAFETY: libpcap reads the filter program, which it compiled itself, the header, and as many bytes
        // of the data as the header states. All of them live throughout the call.
        let outcome =
            unsafe { ffi::pcap_offline_filter(&raw const program, &raw const header, data.as_ptr()) };
        outcome != 0
    }
}

/// Returns a kernel filter that keeps `snaplen` bytes of every frame.
pub(super) fn everything(snaplen: u32) -> Vec<libc::sock_filter> {
    vec![libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: snaplen }]
}

/// Returns true if an expression may test VLAN tags. The kernel keeps the tags apart from the frames that it
/// passes to a filter.
pub(super) fn asks_for_tags(expression: &str) -> bool {
    expression.split(|other: char| !other.is_alphanumeric()).any(|word| word == "vlan")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an Ethernet frame whose bytes after the addresses are `rest`, the EtherType first, padded to
    /// 60 bytes.
    fn frame(rest: &[u8]) -> Vec<u8> {
        let mut frame = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], rest].concat();
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn expressions_are_run_here_and_cut_by_the_kernel() {
        let (plain, tagged) =
            (frame(&[0x08, 0x00, 0x45]), frame(&[0x81, 0x00, 0x00, 0x05, 0x08, 0x00, 0x45]));
        let filter = |text| Filter::compile(text, LinkType::Ethernet).unwrap();
        assert!(filter("ip").matches(&plain, 60) && !filter("ip6").matches(&plain, 60));
        assert!(filter("vlan 5").matches(&tagged, 60) && !filter("vlan 5").matches(&plain, 60));
        assert!(filter("greater 61").matches(&plain, 61) && !filter("greater 61").matches(&plain, 60));
        assert!(filter("ip").for_kernel(77).iter().any(|one| one.k == 77 && one.code == 6));
        assert!(!filter("ip").for_kernel(77).iter().any(|one| one.k > 77 && one.code == 6));
        // Tests of the kernel's own metadata compile, too.
        assert!(!filter("outbound").for_kernel(1).is_empty());
        let raw = Filter::compile("ether host 00:00:00:00:00:00", LinkType::RawIp);
        assert_eq!(raw.err().map(|error| error.code), Some(Code::CompileFilter));
    }

    #[test]
    fn the_word_is_found() {
        assert!(asks_for_tags("vlan") && asks_for_tags("(vlan 5)and ip") && !asks_for_tags("host vlan5"));
        assert!(!asks_for_tags("") && !asks_for_tags("tcp port 80"));
    }
}
