//! The life of a collectd with the plugin: in the background, ended and restarted, with a device that does
//! not exist yet, and with a wrong configuration.

use crate::daemon::{Collectd, command, configure};
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{snippets, wait_for, with_daemons};
use capture_test_support::lab::run;
use std::thread::sleep;
use std::time::Duration;

const SENT: &str = "collectd_capture_network_bytes_send_total";

#[test]
fn a_service_in_the_background_ends_at_once_and_its_figures_go_on_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let host = Place::Host(1);
        let directory = configure(&site, "host", 1, &[snippets::capture_of("uploader")]);
        let start =
            || Collectd::run_in_background(&mut command(&site, host, &directory, &[]), directory.clone());
        let prometheus = Prometheus::start(&site, &["10.78.1.2".to_owned()], 1);
        let _sink = site.maker(Place::Hub, "peer", "tcp-sink", "10.78.1.1:7001", &[]);
        let orders = [("rate", 1_000_000), ("milliseconds", 120_000)];
        let mut source = site.maker(host, "uploader", "tcp-source", "10.78.1.1:7001", &orders);
        source.start();

        let sent = format!("{SENT}{{capture=\"uploader\"}}");
        let mut took = Vec::new();
        for _ in 0..3 {
            let agent = start();
            // The expected rate is half a megabyte a second since this start. Samples of the previous run are
            // more than five seconds old.
            sleep(Duration::from_secs(6));
            prometheus.wait_for(&format!("rate({sent}[5s]) > 500000 and count_over_time({sent}[5s]) > 3"));
            took.push(agent.stop());
            assert!(!directory.join("collectd.pid").exists(), "the file with the process id is gone");
        }
        println!("ended {took:.1?} after SIGTERM");
        // A busy machine may delay some of the three.
        assert!(took.iter().min().unwrap() < &Duration::from_secs(2), "{took:?}");
        // Each start counts from zero; Prometheus recognizes the resets.
        let range = format!("{sent}[2m]");
        let resets = prometheus.value_at(&format!("resets({range})"), std::time::SystemTime::now());
        assert_eq!(resets, 2.0);
    });
}

#[test]
fn a_missing_device_is_reported_once_and_other_plugins_continue_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let host = Place::Host(1);
        let changes =
            [("# Device \"eth0\" ", "Device \"later0\" "), ("Engine \"auto\" ", "Engine \"pcap\" ")];
        let parts = [snippets::capture(1, &changes), ("load.conf", "LoadPlugin load\n".to_owned())];
        let agent = Collectd::start(&site, host, "host", 1, &parts);
        let prometheus = Prometheus::start(&site, &["10.78.1.2".to_owned()], 1);
        agent.wait_for_log("later0");
        prometheus.wait_for("count_over_time(collectd_load_shortterm[1m]) > 5");
        assert!(prometheus.query(SENT).is_empty());
        let complaints: Vec<String> =
            agent.log().lines().filter(|line| line.contains("later0")).map(str::to_owned).collect();
        assert_eq!(complaints.len(), 1, "{complaints:#?}");
        println!("{}", complaints[0]);

        let name = site.name(host);
        run(&format!("ip -n {name} link add later0 type veth peer name later1"));
        run(&format!("ip -n {name} link set later0 up"));
        run(&format!("ip -n {name} link set later1 up"));
        prometheus.wait_for(SENT);
        agent.stop();
    });
}

#[test]
fn a_wrong_option_is_reported_with_key_value_and_reason_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let wrong = [
            ("Engine \"auto\" ", "Engine \"fast\"", "must be \"pcap\" or \"kernel\" or \"auto\""),
            ("GroupBy \"name\" ", "GroupBy \"colour\"", "must be \"name\" or \"user\" or"),
            ("# Top 100 ", "Top -1", "takes one whole number from 0 to 10000"),
            ("# TopBy \"network\" ", "TopBy 7", "takes one text in quotes"),
            ("# Device \"eth0\" ", "Devices \"eth0\"", "is not an option of this plugin"),
            ("# Name \"/^(nginx|php-fpm)/\" ", "Name \"/^(nginx/\"", ""),
            ("# Pid 1234 ", "Pid \"init\"", "takes one whole number from 1"),
            ("# ProportionalMemory true ", "ProportionalMemory 1 \"x\" true", "takes true or false"),
        ];
        for (right, wrong, reason) in wrong {
            let parts = [snippets::capture(1, &[(right, &format!("{wrong} "))])];
            let directory = configure(&site, "host", 1, &parts);
            let agent =
                Collectd::run(&mut command(&site, Place::Host(1), &directory, &[]), directory.clone());
            let text = format!("capture plugin: option {wrong}: {reason}");
            wait_for(&text, || agent.log().contains(&text), || agent.log());
        }
    });
}

#[test]
fn a_filter_that_does_not_compile_is_reported_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let parts = [snippets::capture(1, &[("# Filter \"not port 22\" ", "Filter \"port no\" ")])];
        let agent = Collectd::start(&site, Place::Host(1), "host", 1, &parts);
        let is_reported = |line: &str| line.contains("option Filter: ") && line.contains("\"port no\"");
        wait_for("the filter is reported", || agent.log().lines().any(is_reported), || agent.log());
        agent.stop();
    });
}
