//! The frames of a device: only those of the device with that name, with their direction and their tag.

use crate::machine::*;
use capture::internals::model::Passage;
use capture::internals::tap::{Tap, TapOptions};
use std::time::Instant;

#[test]
fn a_device_may_bear_any_name_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        let mut all = open(&[]);
        // libpcap reserves these names for its own sources.
        let names = ["any", "nflog", "nfqueue", "usbmon1", "bluetooth0", "dbus-system"];
        for (name, net) in names.into_iter().zip(1..) {
            elsewhere.link(name);
            configure(name, net);
            all.refresh().unwrap();
            // "any" names every device.
            let mut alone = open(&[name]);
            let text = send(&format!("10.9.{net}.2:9"), 10);
            assert_eq!((count(&mut all, &text, 10), count(&mut alone, &text, 10)), (10, 10), "{name}");
            let text = send("127.0.0.1:9", 10);
            let others = if name == "any" { 10 } else { 0 };
            assert_eq!(
                (count(&mut all, &text, 10), count(&mut alone, &text, others)),
                (10, others),
                "{name}"
            );
        }
        assert_eq!(all.stats().devices_open as usize, names.len() + 1);
    });
}

#[test]
fn each_frame_says_which_way_it_went_needs_root() {
    in_new_namespace(|| {
        // The first neighbour has the hardware address of the peer device, the second that of another host.
        ip("link add va type veth peer name vb address 02:00:00:00:00:01");
        configure("va", 1);
        ip("neigh replace 10.9.1.3 lladdr 02:00:00:00:00:99 dev va nud permanent");
        ip("link set vb up");
        for (device, to, expected) in [
            ("va", "10.9.1.2:9", Passage::Outgoing),
            ("vb", "10.9.1.2:9", Passage::Incoming),
            ("vb", "10.9.1.3:9", Passage::Copied),
            ("lo", "127.0.0.1:9", Passage::Loopback),
        ] {
            let mut tap = open(&[device]);
            let text = send(to, 10);
            let (mut seen, deadline) = (0, Instant::now() + TIMEOUT);
            while seen < 10 && Instant::now() < deadline {
                tap.wait(TURN).unwrap();
                tap.read(
                    64,
                    &mut each(|frame| {
                        if bears(&frame, &text) {
                            assert_eq!(frame.passage, expected);
                            seen += 1;
                        }
                    }),
                )
                .unwrap();
            }
            assert_eq!(seen, 10, "{expected:?}");
        }
    });
}

#[test]
fn a_tag_that_the_kernel_keeps_apart_is_put_back_needs_root() {
    in_new_namespace(|| {
        ip("link add va type veth peer name vb");
        ip("link set va up");
        ip("link set vb up");
        let mut tap = open(&["va"]);
        let filtered = |filter: &str| {
            Tap::live(&TapOptions { devices: vec!["va".into()], filter: Some(filter.into()), ..options() })
        };
        let (mut wanted, mut unwanted) = (filtered("vlan 5").unwrap(), filtered("vlan 6").unwrap());
        // Ethernet addresses, 802.1Q tag with the identifier 5, an experimental payload type.
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 0x81, 0x00, 0x00, 0x05, 0x88, 0xb5]);
        frame.resize(80, 0x5a);
        let mut sender = pcap::Capture::from_device("vb").unwrap().open().unwrap();
        sender.sendpacket(&frame[..]).unwrap();
        let (mut seen, deadline) = (0, Instant::now() + TIMEOUT);
        while seen == 0 && Instant::now() < deadline {
            tap.wait(TURN).unwrap();
            let is_ours = |data: &[u8]| data == frame;
            tap.read(64, &mut each(|got| seen += usize::from(is_ours(got.data) && got.wire_len == 80)))
                .unwrap();
        }
        assert_eq!(seen, 1);
        let mut tagged = 0;
        while tagged == 0 && Instant::now() < deadline {
            wanted.wait(TURN).unwrap();
            wanted.read(64, &mut each(|got| tagged += usize::from(got.data == frame))).unwrap();
        }
        settle(&mut unwanted);
        assert_eq!((tagged, wanted.stats().received, unwanted.stats().received), (1, 1, 0));
    });
}

#[test]
fn rings_are_not_copied_by_a_fork_needs_root() {
    in_new_namespace(|| {
        let _tap = open(&["lo"]);
        let listing = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut flags = Vec::new();
        let mut is_ring = false;
        for line in listing.lines() {
            match line.strip_prefix("VmFlags:") {
                Some(text) if is_ring => flags.push(text.split_whitespace().any(|flag| flag == "dc")),
                Some(_) => {}
                None if line.contains("socket:[") => is_ring = true,
                None if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) => is_ring = false,
                None => {}
            }
        }
        // Devices of other tests may be among them.
        assert!(!flags.is_empty() && flags.iter().all(|is_left_out| *is_left_out), "{listing}");
    });
}
