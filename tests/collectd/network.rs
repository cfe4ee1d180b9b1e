//! Figures forwarded by collectd's network plugin: from a host to a collector, and from there to Prometheus.

use crate::daemon::Collectd;
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{Comparison, Reading, all_within_two_percent, snippets, with_daemons};
use capture_test_support::counters::settled_port;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

const WINDOW: Duration = Duration::from_secs(60);

#[test]
fn figures_pass_through_another_collectd_under_the_name_of_their_host_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let host = Place::Host(1);
        let counted = Place::Wire(1);
        site.count(counted, &[("p7001", "th dport 7001"), ("p7001", "th sport 7001")]);
        let sender = snippets::changed("network-sender.conf", &[("collector.example", "10.78.1.1")]);
        let parts = [snippets::capture_of("uploader"), ("network-sender.conf", sender)];
        let agent = Collectd::start(&site, host, "web-1", 1, &parts);
        let collector = Collectd::start(&site, Place::Hub, "collector", 1, &[snippets::receiver()]);
        let prometheus = Prometheus::start(&site, &["127.0.0.1".to_owned()], 1);
        let _sink = site.maker(Place::Hub, "peer", "tcp-sink", "10.78.1.1:7001", &[]);
        let orders = [("rate", 2_000_000), ("milliseconds", 75_000)];
        let mut source = site.maker(host, "uploader", "tcp-source", "10.78.1.1:7001", &orders);
        let sent = "collectd_capture_network_bytes_send_total{instance=\"web-1\",capture=\"uploader\"}";
        prometheus.wait_for(sent);
        source.start();
        sleep(Duration::from_secs(5));

        let before = site.at(counted, || Reading::of("p7001"));
        sleep(WINDOW);
        let after = site.at(counted, || Reading::of("p7001"));
        sleep(Duration::from_secs(5));
        let length = after.at.duration_since(before.at).unwrap();
        // The collector shows a value when a packet full of values has arrived, every few seconds. rate()
        // would be off by its extrapolation at both ends.
        let rate = prometheus.value_at(&format!("deriv({sent}[{}ms])", length.as_millis()), after.at);
        let truth = (after.sent - before.sent) as f64 / length.as_secs_f64();
        source.finish();
        let (total, _) = site.at(counted, || settled_port(7001));
        sleep(Duration::from_secs(4));
        all_within_two_percent(&[
            Comparison::new("by way of the collector, B/s".to_owned(), truth, rate),
            Comparison::new(
                "by way of the collector, B".to_owned(),
                total as f64,
                prometheus.value_at(sent, SystemTime::now()),
            ),
        ]);
        agent.stop();
        collector.stop();
    });
}
