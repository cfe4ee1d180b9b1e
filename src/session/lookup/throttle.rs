//! Keeps early lookups within their share of a core, by sampling the first packets.

use crate::model::{Packet, Protocol};
use crate::owner::{EarlyLookupStats, Meter};
use crate::tap::SamplingRate;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::time::Duration;

/// The share of one core that early lookups may take.
const SHARE: f64 = 0.10;

/// The same share if hardly any lookup finds an owner, as in a flood of connections that are never made.
const VAIN_SHARE: f64 = 0.03;

/// Number of lookups after which their success is judged, and the number of them of which one must have found
/// an owner.
const LOOKS: u64 = 256;
const ONE_IN: u64 = 4;

/// Datagrams from one port within an interval after which further ones tell little.
const ENOUGH: u32 = 16;

/// Number of packets after which the filter is adjusted before the interval is over.
const FLOOD: u32 = 256;

/// Time for which a port stays left out.
const LEFT_OUT: Duration = Duration::from_secs(10);

/// Minimum share of the packets that pass, so that the throttle notices when more would be affordable.
const LEAST: f64 = 1.0 / 1024.0;

/// Counts first packets, and decides which of them pass the filter.
pub struct FirstPacketThrottle {
    meter: Box<dyn Meter>,
    used: Duration,
    /// The results of lookups when they were last judged.
    judged: EarlyLookupStats,
    share: f64,
    openings: u32,
    datagrams: u32,
    ports: HashMap<u16, u32, RandomState>,
    /// Ports left out, and the times at which they are admitted again.
    left_out: HashMap<u16, Duration, RandomState>,
    /// Time since the throttle was created.
    now: Duration,
    thinning: SamplingRate,
}

impl FirstPacketThrottle {
    /// Returns a throttle that lets everything pass. `meter` measures the thread's CPU time.
    pub fn new(mut meter: Box<dyn Meter>) -> FirstPacketThrottle {
        let used = meter.cpu_time();
        FirstPacketThrottle {
            meter,
            used,
            judged: EarlyLookupStats::default(),
            share: SHARE,
            openings: 0,
            datagrams: 0,
            ports: HashMap::default(),
            left_out: HashMap::default(),
            now: Duration::ZERO,
            thinning: SamplingRate::default(),
        }
    }

    /// Counts a first packet.
    pub fn count(&mut self, packet: &Packet) {
        if packet.protocol == Protocol::TCP {
            self.openings += 1;
        } else {
            self.datagrams += 1;
            *self.ports.entry(packet.source.port).or_default() += 1;
        }
    }

    /// Returns true if so many packets have arrived that the interval is to end now.
    pub fn is_flooded(&self) -> bool {
        self.openings + self.datagrams >= FLOOD
    }

    /// Sets the share by the success of the lookups so far.
    pub fn judge(&mut self, stats: &EarlyLookupStats) {
        let since = |now: u64, then: u64| now.saturating_sub(then);
        let found = since(stats.found, self.judged.found);
        let in_vain =
            since(stats.too_late, self.judged.too_late) + since(stats.not_found, self.judged.not_found);
        if found + in_vain >= LOOKS {
            self.share = if found * ONE_IN < found + in_vain { VAIN_SHARE } else { SHARE };
            self.judged = *stats;
        }
    }

    /// Ends an interval of the given length. Returns the new sampling rate if it has changed.
    pub fn govern(&mut self, passed: Duration) -> Option<SamplingRate> {
        let used = self.meter.cpu_time();
        let share =
            used.saturating_sub(self.used).as_secs_f64() / passed.as_secs_f64().max(f64::MIN_POSITIVE);
        self.used = used;
        self.now += passed;
        let mut next = SamplingRate { ports: self.choose_ports(), ..self.thinning };
        // The more frequent kind of packet causes the cost.
        let (more, less) = if self.datagrams > self.openings {
            (&mut next.datagrams, &mut next.openings)
        } else {
            (&mut next.openings, &mut next.datagrams)
        };
        // Leaving out busy ports may be enough.
        let is_relieved = next.ports.iter().any(|port| !self.thinning.ports.contains(port));
        if share > self.share && !is_relieved {
            *more = (*more * self.share / share).max(LEAST);
        } else if share < self.share / 2.0 {
            *more = (*more * 2.0).min(1.0);
            *less = (*less * 2.0).min(1.0);
        }
        (self.openings, self.datagrams) = (0, 0);
        self.ports.clear();
        let changed = next != self.thinning;
        self.thinning = next;
        changed.then(|| self.thinning.clone())
    }

    /// Returns the ports to leave out: those left out before whose time is not over, and the busiest of the
    /// others.
    fn choose_ports(&mut self) -> Vec<u16> {
        let now = self.now;
        self.left_out.retain(|_, until| *until > now);
        let mut busy: Vec<(u32, u16)> = self
            .ports
            .iter()
            .filter(|(_, count)| **count >= ENOUGH)
            .map(|(port, count)| (*count, *port))
            .collect();
        busy.sort_unstable_by(|one, other| other.cmp(one));
        let room = SamplingRate::MAX_PORTS.saturating_sub(self.left_out.len());
        self.left_out.extend(busy.into_iter().take(room).map(|(_, port)| (port, now + LEFT_OUT)));
        let mut ports: Vec<u16> = self.left_out.keys().copied().collect();
        ports.sort_unstable();
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Endpoint, Fragment, TcpFlags};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const INTERVAL: Duration = Duration::from_millis(250);

    /// A meter that the test advances.
    #[derive(Clone, Default)]
    struct Moved(Arc<AtomicU64>);

    impl Meter for Moved {
        fn cpu_time(&mut self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn throttle() -> (FirstPacketThrottle, Moved) {
        let meter = Moved::default();
        (FirstPacketThrottle::new(Box::new(meter.clone())), meter)
    }

    #[test]
    fn looks_in_vain_are_to_cost_less_than_others() {
        let (mut throttle, meter) = throttle();
        let mut stats = EarlyLookupStats::default();
        let mut openings = |found, too_late, milliseconds| {
            (stats.found, stats.too_late) = (stats.found + found, stats.too_late + too_late);
            throttle.judge(&stats);
            meter.0.fetch_add(milliseconds, Ordering::Relaxed);
            throttle.count(&packet(Protocol::TCP, 1));
            throttle.govern(INTERVAL).map(|thinning| thinning.openings)
        };
        assert_eq!(openings(100, 900, 20), Some(0.375), "20 ms of 250 are above 3 %");
        assert_eq!(openings(1, 100, 7), None, "too few to judge by");
        assert_eq!(openings(500, 1_000, 10), Some(0.75), "one in three is found");
        assert_eq!(openings(0, 0, 20), None);
    }

    fn packet(protocol: Protocol, port: u16) -> Packet {
        let end = |port| Endpoint::new(Address::v4([10, 0, 0, 1]), port);
        Packet {
            protocol,
            source: end(port),
            destination: end(80),
            tcp_flags: TcpFlags::SYN,
            has_payload: true,
            fragment: Fragment::Whole,
            vlan: 0,
        }
    }

    #[test]
    fn what_costs_too_much_is_thinned_until_it_costs_less() {
        let (mut throttle, meter) = throttle();
        throttle.count(&packet(Protocol::TCP, 1));
        meter.0.fetch_add(20, Ordering::Relaxed);
        assert_eq!(throttle.govern(INTERVAL), None, "20 ms of 250 are within a tenth");
        throttle.count(&packet(Protocol::TCP, 1));
        meter.0.fetch_add(50, Ordering::Relaxed);
        let thinned = throttle.govern(INTERVAL).unwrap();
        assert!((thinned.openings - 0.5).abs() < 1e-9 && thinned.datagrams == 1.0, "{thinned:?}");
        for _ in 0..40 {
            throttle.count(&packet(Protocol::UDP, 1));
            meter.0.fetch_add(250, Ordering::Relaxed);
            throttle.govern(INTERVAL);
        }
        assert_eq!(throttle.thinning.datagrams, LEAST, "never nothing");
        for _ in 0..10 {
            throttle.govern(INTERVAL);
        }
        assert_eq!((throttle.thinning.datagrams, throttle.thinning.openings), (1.0, 1.0));
    }

    #[test]
    fn busy_ports_are_left_out_for_a_while() {
        let (mut throttle, _) = throttle();
        for _ in 0..ENOUGH {
            throttle.count(&packet(Protocol::UDP, 53));
        }
        throttle.count(&packet(Protocol::UDP, 54));
        assert_eq!(throttle.govern(INTERVAL).unwrap().ports, [53]);
        assert_eq!(throttle.govern(LEFT_OUT - INTERVAL), None);
        assert!(throttle.govern(INTERVAL).unwrap().ports.is_empty());
    }

    #[test]
    fn a_flood_is_noticed() {
        let (mut throttle, _) = throttle();
        for number in 0..FLOOD {
            assert!(!throttle.is_flooded());
            throttle.count(&packet(if number % 2 == 0 { Protocol::UDP } else { Protocol::TCP }, 53));
        }
        assert!(throttle.is_flooded());
        assert_eq!(throttle.govern(Duration::from_millis(1)).unwrap().ports, [53]);
        assert!(!throttle.is_flooded());
    }

    #[test]
    fn no_more_ports_are_left_out_than_a_filter_holds() {
        let (mut throttle, _) = throttle();
        for port in 0..1000 {
            for _ in 0..ENOUGH + u32::from(port == 700) {
                throttle.count(&packet(Protocol::UDP, port));
            }
        }
        let ports = throttle.govern(INTERVAL).unwrap().ports;
        assert_eq!(ports.len(), SamplingRate::MAX_PORTS);
        assert!(ports.contains(&700), "the busiest are");
    }
}
