//! The same savefiles, read by tshark and capinfos.

use super::machine;
use super::replay::{at_once, bytes, file, options, replay};
use capture_test_support::frames::Wire;
use capture_test_support::requirements::left_out;
use capture_test_support::savefile::{Format, link_type, savefile};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

/// Returns the output of a program, or the reason why it is unavailable.
fn output(program: &str, arguments: &[&str], file: &Path) -> Result<String, String> {
    let run = Command::new(program).args(arguments).arg(file).output();
    let output = run.map_err(|error| format!("{program} cannot be run: {error}"))?;
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// Returns the number of packets and the sum of their lengths, by capinfos.
fn totals(file: &Path) -> Result<(u64, u64), String> {
    let text = output("capinfos", &["-M", "-T", "-r", "-c", "-d"], file)?;
    let numbers: Vec<u64> = text.trim().split('\t').skip(1).map(|number| number.parse().unwrap()).collect();
    Ok((numbers[0], numbers[1]))
}

/// Returns source, destination and length of every IP packet, by tshark.
fn ends(file: &Path) -> Result<Vec<(IpAddr, IpAddr, u64)>, String> {
    let fields = ["ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "frame.len"];
    let mut arguments = vec!["-n", "-T", "fields", "-E", "occurrence=f", "-o", "ip.defragment:FALSE"];
    arguments.extend(["-o", "ipv6.defragment:FALSE"]);
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    arguments.push("-r");
    let text = output("tshark", &arguments, file)?;
    let ends = text.lines().filter_map(|line| {
        let values: Vec<&str> = line.split('\t').collect();
        let address = |four: usize, six: usize| [values[four], values[six]].concat().parse().ok();
        Some((address(0, 2)?, address(1, 3)?, values[4].parse().unwrap()))
    });
    Ok(ends.collect())
}

#[test]
fn the_figures_are_those_of_tshark() {
    let tree = machine::tree();
    let files = [
        (Wire::Ethernet, Format::Little),
        (Wire::Tagged, Format::Pcapng),
        (Wire::DoublyTagged, Format::Big),
        (Wire::Cooked1, Format::Nanoseconds),
        (Wire::Cooked2, Format::Little),
        (Wire::RawIp, Format::Pcapng),
    ];
    at_once(files, |(wire, format)| {
        let records = machine::records(wire, &machine::packets());
        let saved = file(&savefile(format, link_type(wire), &records));
        let (totals, ends) = match (totals(saved.path()), ends(saved.path())) {
            (Ok(totals), Ok(ends)) => (totals, ends),
            (Err(reason), _) | (_, Err(reason)) => {
                return left_out(&reason);
            }
        };
        let mut session = replay(options(saved.path(), &tree)).unwrap();
        session.update().unwrap();
        let stats = session.stats_reader().read();
        assert_eq!((stats.frames, stats.frame_bytes), totals, "{wire:?}");
        assert_eq!(ends.len(), records.len(), "{wire:?}");
        let on_link = |(from, to, length)| (from, to, wire.link_len(length as u32).into());
        let expected = machine::expected(ends.into_iter().map(on_link));
        assert_eq!(bytes(session.processes()), expected, "{wire:?}");
    });
}

/// Files that mergecap makes of others, whose interfaces differ in link type or snapshot length,
/// are read in full.
#[test]
fn merged_files_are_read_whole() {
    let tree = machine::tree();
    let packets = machine::packets();
    for wires in
        [[Wire::Ethernet, Wire::RawIp], [Wire::Cooked1, Wire::Tagged], [Wire::Ethernet, Wire::Ethernet]]
    {
        let records = wires.map(|wire| machine::records(wire, &packets));
        let mut saved = [0, 1].map(|at| savefile(Format::Little, link_type(wires[at]), &records[at]));
        // The snapshot length field of pcap-savefile(5).
        saved[1][16..20].copy_from_slice(&4096u32.to_le_bytes());
        let saved = saved.map(|bytes| file(&bytes));
        let merged = tempfile::NamedTempFile::new().unwrap();
        let merge = |path: &str| ["-F", "pcapng", "-w", path].map(str::to_owned);
        let arguments = merge(merged.path().to_str().unwrap());
        let run =
            Command::new("mergecap").args(arguments).args(saved.iter().map(|file| file.path())).output();
        let (total, _) = match (run, totals(merged.path())) {
            (Ok(run), Ok(totals)) if run.status.success() => totals,
            (run, _) => {
                return left_out(&format!("{run:?}"));
            }
        };
        let mut session = replay(options(merged.path(), &tree)).unwrap();
        session.update().unwrap();
        session.health().unwrap();
        assert_eq!(session.stats_reader().read().frames, total, "{wires:?}");
        let carried = [0, 1].map(|at| machine::on_link(wires[at], &records[at]));
        let ends = carried.iter().flat_map(|records| machine::ends(&packets, records));
        assert_eq!(bytes(session.processes()), machine::expected(ends), "{wires:?}");
    }
}
