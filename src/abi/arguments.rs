//! Conversion of the C option structures to the session's options.

use super::boundary::{bytes_of, read_sized, text_of};
use super::classic_types::*;
use super::session_types::*;
use crate::config::{Engine, Options, Source};
use crate::error::{Code, Error, Result};
use crate::log::LogOptions;
use crate::model::{Address, SampleSet, Selection};
use crate::namespace::NamespaceChoice;
use crate::tap::TapOptions;
use std::ffi::{OsStr, c_char};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// Bytes of packets that the classic interface holds between two updates.
const CLASSIC_PACKET_BYTES: usize = 64 << 20;

/// Size of `CaptureOptions` in the first version.
const MIN_OPTIONS_SIZE: usize = std::mem::offset_of!(CaptureOptions, namespaces);

/// Returns the options that the caller passed to `CaptureInit`.
///
/// # Safety
/// The strings are NULL or NUL-terminated.
pub unsafe fn classic_options(config: &CaptureInitt, wants_packets: bool) -> Result<Options> {
    let loop_type = enumeration(&config.r#loop);
    if loop_type > LoopType::NONE as u32 {
        let text = format!("loop is {loop_type}; it must be SELECT (0), EPOLL (1) or NONE (2)");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    // SAFETY: the caller guarantees that the strings are valid.
    let (filter, log_file) = unsafe { (text_of("fliter", config.fliter)?, path_of(config.logfile)) };
    let mut capture = TapOptions {
        filter: filter.map(str::to_owned),
        promiscuous: config.promise != 0,
        ..TapOptions::default()
    };
    set(&mut capture.snaplen, non_negative("snaplen", config.snaplen)?);
    set(&mut capture.timeout, Duration::from_millis(non_negative("ms", config.ms)?.into()));
    let options = Options {
        capture,
        packet_bytes: if wants_packets { CLASSIC_PACKET_BYTES } else { 0 },
        log: LogOptions { file: log_file, ..LogOptions::default() },
        ..Options::default()
    };
    options.check()?;
    Ok(options)
}

/// Returns the options that the caller passed to `CaptureSessionOpen`.
///
/// # Safety
/// `given` is NULL or a structure that [`read_sized`] accepts; its pointers are NULL or valid.
pub unsafe fn session_options(given: *const CaptureOptions) -> Result<Options> {
    let mut options = Options::default();
    if given.is_null() {
        return Ok(options);
    }
    // SAFETY: the caller guarantees that the structure is readable; every field is valid when zero.
    let given = unsafe { read_sized("CaptureOptions", given, MIN_OPTIONS_SIZE)? };
    // SAFETY: the caller guarantees that the strings are valid.
    let (devices, filter, local) = unsafe {
        (
            text_of("devices", given.devices)?,
            text_of("filter", given.filter)?,
            text_of("local_addresses", given.local_addresses)?,
        )
    };
    if let Some(devices) = devices {
        options.capture.devices = listed(devices).map(str::to_owned).collect();
    }
    // SAFETY: as above.
    if let Some(path) = unsafe { path_of(given.savefile) } {
        if devices.is_some() {
            let text = "both devices and savefile are set; set only one of them";
            return Err(Error::new(Code::InvalidArgument, text));
        }
        options.source = Source::Savefile(path);
    }
    apply_disable(given.disable, &mut options)?;
    apply_enable(given.enable, &mut options)?;
    options.capture.filter = filter.map(str::to_owned);
    options.local_addresses = listed(local.unwrap_or_default()).map(address).collect::<Result<_>>()?;
    // SAFETY: the caller guarantees that the arrays and their elements are valid.
    options.selection = unsafe { selection(&given)? };
    options.capture.promiscuous = flag("promiscuous", given.promiscuous)?;
    options.flows = flag("flows", given.flows)?;
    options.ended_flow_limit = (given.ended_flow_limit > 0).then_some(given.ended_flow_limit as usize);
    // SAFETY: as above.
    options.capture.namespaces = NamespaceChoice::from_words(unsafe { path_of(given.namespaces) }.as_deref());
    set(&mut options.capture.snaplen, given.snaplen);
    set(&mut options.capture.buffer_bytes, narrow("buffer_bytes", given.buffer_bytes)?);
    options.flow_limit = Some(narrow("flow_limit", given.flow_limit)?).filter(|limit| *limit > 0);
    set(&mut options.packet_bytes, narrow("packet_bytes", given.packet_bytes)?);
    set(&mut options.capture.timeout, Duration::from_millis(given.timeout_ms.into()));
    options.interval = (given.interval_ms != 0).then(|| Duration::from_millis(given.interval_ms.into()));
    options.engine = engine(enumeration(&given.engine))?;
    options.log = LogOptions {
        // SAFETY: the caller guarantees that the string is valid.
        file: unsafe { path_of(given.log_file) },
        level: log_level(enumeration(&given.log_level))?,
        queue: given.log_handler.is_some(),
    };
    options.check()?;
    Ok(options)
}

/// Returns the number in a field that should contain a value of a C enumeration but may contain any number.
fn enumeration<T>(field: &std::mem::MaybeUninit<T>) -> u32 {
    const { assert!(size_of::<T>() == 4, "C enumerations are 4 bytes wide here") };
    // SAFETY: the field is 4 bytes that the caller has set, or zero; every pattern is a valid u32.
    unsafe { field.as_ptr().cast::<u32>().read_unaligned() }
}

fn engine(number: u32) -> Result<Engine> {
    Ok(match number {
        n if n == CaptureEngine::Pcap as u32 => Engine::Pcap,
        n if n == CaptureEngine::Kernel as u32 => Engine::Kernel,
        n if n == CaptureEngine::Auto as u32 => Engine::Auto,
        other => {
            let text = format!("engine is {other}; it must be one of CaptureEngine, 0 to 2");
            return Err(Error::new(Code::InvalidArgument, text));
        }
    })
}

fn log_level(number: u32) -> Result<LevelFilter> {
    Ok(match number {
        n if n == CaptureLogLevel::Default as u32 => LogOptions::default().level,
        n if n == CaptureLogLevel::Error as u32 => LevelFilter::ERROR,
        n if n == CaptureLogLevel::Warn as u32 => LevelFilter::WARN,
        n if n == CaptureLogLevel::Info as u32 => LevelFilter::INFO,
        n if n == CaptureLogLevel::Debug as u32 => LevelFilter::DEBUG,
        n if n == CaptureLogLevel::Trace as u32 => LevelFilter::TRACE,
        n if n == CaptureLogLevel::Off as u32 => LevelFilter::OFF,
        other => {
            let text = format!("log_level is {other}; it must be one of CaptureLogLevel, 0 to 6");
            return Err(Error::new(Code::InvalidArgument, text));
        }
    })
}

fn apply_enable(enable: u32, options: &mut Options) -> Result<()> {
    let samples = [
        (CAPTURE_ENABLE_SWITCHES, SampleSet::SWITCHES),
        (CAPTURE_ENABLE_CGROUPS, SampleSet::CGROUP),
        (CAPTURE_ENABLE_PROPORTIONAL, SampleSet::PROPORTIONAL),
    ];
    let others = CAPTURE_ENABLE_WAIT_FOR_ENDED | CAPTURE_ENABLE_REPLAY_OWNERS;
    let known = samples.iter().fold(others, |bits, (bit, _)| bits | bit);
    if enable & !known != 0 {
        let text = format!("enable is {enable:#x} and has unknown bits; the known bits are {known:#x}");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    for (bit, sample) in samples {
        if enable & bit != 0 {
            options.sample |= sample;
        }
    }
    options.wait_for_ended = enable & CAPTURE_ENABLE_WAIT_FOR_ENDED != 0;
    options.replay_owners = enable & CAPTURE_ENABLE_REPLAY_OWNERS != 0;
    Ok(())
}

fn apply_disable(disable: u32, options: &mut Options) -> Result<()> {
    let samples = [
        (CAPTURE_DISABLE_MEMORY, SampleSet::MEMORY),
        (CAPTURE_DISABLE_IO, SampleSet::IO),
        (CAPTURE_DISABLE_DESCRIPTORS, SampleSet::DESCRIPTORS),
        (CAPTURE_DISABLE_COMMAND_LINE, SampleSet::COMMAND_LINE),
    ];
    let others = CAPTURE_DISABLE_NETWORK | CAPTURE_DISABLE_PROBES;
    let known = samples.iter().fold(others, |bits, (bit, _)| bits | bit);
    if disable & !known != 0 {
        let text = format!("disable is {disable:#x} and has unknown bits; the known bits are {known:#x}");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    for (bit, sample) in samples {
        if disable & bit != 0 {
            options.sample.0 &= !sample.0;
        }
    }
    if disable & CAPTURE_DISABLE_NETWORK != 0 {
        options.source = Source::None;
    }
    options.probes = disable & CAPTURE_DISABLE_PROBES == 0;
    Ok(())
}

/// # Safety
/// The arrays have the lengths that the counts state; the strings are NUL-terminated.
unsafe fn selection(given: &CaptureOptions) -> Result<Selection> {
    // SAFETY: the caller guarantees that the arrays are valid.
    unsafe {
        Ok(Selection {
            pids: array("pids", given.pids, given.pid_count)?.to_vec(),
            users: texts("users", given.users, given.user_count)?,
            names: texts("names", given.names, given.name_count)?,
        })
    }
}

/// # Safety
/// As [`selection`].
unsafe fn texts(name: &str, given: *const *const c_char, count: usize) -> Result<Vec<Vec<u8>>> {
    // SAFETY: the caller guarantees that the array and its strings are valid.
    let texts = unsafe { array(name, given, count)?.iter().map(|&text| bytes_of(text).map(<[u8]>::to_vec)) };
    texts
        .enumerate()
        .map(|(index, text)| {
            text.ok_or_else(|| Error::new(Code::InvalidArgument, format!("{name}[{index}] is NULL")))
        })
        .collect()
}

/// # Safety
/// `given` is NULL or points to `count` values.
unsafe fn array<'a, T>(name: &str, given: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if given.is_null() || count > MAX_SELECTED {
        let text = format!(
            "{name} is {given:?} with {count} elements; it must be an array of at most {MAX_SELECTED}"
        );
        return Err(Error::new(Code::InvalidArgument, text));
    }
    // SAFETY: the caller guarantees `count` values.
    Ok(unsafe { std::slice::from_raw_parts(given, count) })
}

/// Number of entries that a list of processes to deliver may have. A larger count is a field that was not
/// set.
const MAX_SELECTED: usize = 1 << 20;

/// # Safety
/// `text` is NULL or NUL-terminated.
unsafe fn path_of(text: *const c_char) -> Option<PathBuf> {
    // SAFETY: the caller guarantees that the string is valid.
    let bytes = unsafe { bytes_of(text) }.filter(|bytes| !bytes.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}

fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn address(text: &str) -> Result<Address> {
    text.parse::<IpAddr>().map(Address::from).map_err(|error| {
        Error::new(Code::InvalidArgument, format!("local_addresses has \"{text}\": {error}"))
    })
}

fn non_negative(name: &str, value: i32) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::new(Code::InvalidArgument, format!("{name} is {value}; it must not be negative")))
}

/// Parses an option that is on or off.
fn flag(name: &str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::new(Code::InvalidArgument, format!("{name} is {other}; it must be 0 or 1"))),
    }
}

fn narrow<T: TryFrom<u64>>(name: &str, value: u64) -> Result<T> {
    T::try_from(value)
        .map_err(|_| Error::new(Code::InvalidArgument, format!("{name} is {value}, which is too large")))
}

/// Sets an option unless the value is zero, which means the default.
fn set<T: Default + PartialEq>(option: &mut T, value: T) {
    if value != T::default() {
        *option = value;
    }
}
