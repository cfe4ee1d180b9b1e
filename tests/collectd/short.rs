//! Processes that live for milliseconds: their bytes are in their group's figures, which never decrease.

use crate::daemon::Collectd;
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{Comparison, all_within_two_percent, snippets, with_daemons};
use capture_test_support::counters::settled_port;
use std::thread::sleep;
use std::time::Duration;

const A_SECOND: u64 = 100;
const SECONDS: u64 = 60;

#[test]
fn a_group_of_short_lived_processes_never_falls_and_has_all_their_bytes_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let host = Place::Host(1);
        let counted = Place::Wire(1);
        site.count(counted, &[("p7001", "th dport 7001"), ("p7001", "th sport 7001")]);
        let agent = Collectd::start(&site, host, "host", 1, &[snippets::capture_of("client")]);
        let prometheus = Prometheus::start(&site, &["10.78.1.2".to_owned()], 1);
        let _server = site.maker(Place::Hub, "peer", "tcp-server", "10.78.1.1:7001", &[]);
        let orders = [("rate", A_SECOND), ("milliseconds", SECONDS * 1000)];
        let mut clients = site.maker(host, "client", "processes", "10.78.1.1:7001", &orders);
        prometheus.wait_for("up == 1");
        clients.start();
        let report = clients.finish();
        assert_eq!((report.processes.len() as u64, report.failed), (A_SECOND * SECONDS, 0));
        let truth = site.at(counted, || settled_port(7001));
        // Two readings and two scrapes later.
        sleep(Duration::from_secs(4));

        let mut compared = Vec::new();
        for (direction, truth) in [("send", truth.0), ("receive", truth.1)] {
            let range = report.took.as_secs() + 10;
            let metric =
                format!("collectd_capture_network_bytes_{direction}_total{{capture=\"client\"}}[{range}s]");
            let series = prometheus.samples(&metric);
            let [(_, samples)] = series.as_slice() else {
                panic!("{metric} should be one series: {series:?}")
            };
            // Prometheus leaves out a scrape now and then on a busy machine.
            assert!(samples.len() as u64 > SECONDS / 2, "{samples:?}");
            assert!(samples.is_sorted_by_key(|(_, value)| *value), "{samples:?}");
            assert_eq!(samples[0].1, 0.0, "a series begins with nothing");
            let what = format!("{} processes {direction}, B", report.processes.len());
            compared.push(Comparison::new(what, truth as f64, samples.last().unwrap().1));
        }
        all_within_two_percent(&compared);
        agent.stop();
    });
}
