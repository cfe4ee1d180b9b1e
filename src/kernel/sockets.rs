//! The socket probes: loading them, and asking who uses a socket.

use super::Fault;
use super::load::{
    Place, attach, check_numbers, fault, kernel_types, load_iterator, load_object, open_cgroups,
    open_iterator,
};
use aya::programs::CgroupSkbAttachType;
use aya::{Ebpf, include_bytes_aligned};
use std::io::Read;

/// The compiled programs.
static OBJECT: &[u8] = include_bytes_aligned!("probes/sockets.bpf.o");

/// Where each program is attached. Those that make records come before those that count.
const PLACES: &[(&str, Place)] = &[
    ("capture_create", Place::Sockets),
    ("capture_release", Place::Sockets),
    ("capture_state", Place::Tracepoint("inet_sock_set_state")),
    ("capture_destroy", Place::Tracepoint("tcp_destroy_sock")),
    ("capture_send", Place::Tracepoint("sock_send_length")),
    ("capture_receive", Place::Tracepoint("sock_recv_length")),
    ("capture_egress", Place::Packets(CgroupSkbAttachType::Egress)),
    ("capture_ingress", Place::Packets(CgroupSkbAttachType::Ingress)),
];

/// The socket probes at work. Dropping it detaches them and frees what they noted.
pub struct Sockets {
    object: Ebpf,
}

impl Sockets {
    /// Loads and attaches the probes, and notes the sockets that are open already.
    ///
    /// # Errors
    /// Why they cannot work here.
    pub fn load() -> Result<Sockets, Fault> {
        check_numbers()?;
        let types = kernel_types()?;
        let cgroups = open_cgroups()?;
        let mut object = load_object(OBJECT, &types, |_| {})?;
        for &(name, place) in PLACES {
            attach(&mut object, name, place, &types, &cgroups)?;
        }
        load_iterator(&mut object, "capture_seed", "task_file", &types)?;
        let mut sockets = Sockets { object };
        sockets.seed()?;
        Ok(sockets)
    }

    /// Walks all descriptors of all processes once.
    fn seed(&mut self) -> Result<(), Fault> {
        let mut walk = open_iterator(&mut self.object, "capture_seed")?;
        let mut nothing = [0; 64];
        // The program writes nothing: the first read walks to the end.
        walk.read(&mut nothing).map_err(|error| fault("the sockets that are open", &error)).map(drop)
    }
}
