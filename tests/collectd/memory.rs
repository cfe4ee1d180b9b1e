//! collectd with the plugin under valgrind.

use crate::daemon::{Collectd, command, configure};
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{snippets, with_daemons};

#[test]
fn valgrind_finds_no_error_and_no_leak_of_plugin_or_library_root() {
    with_daemons(|| {
        let site = Site::new(1);
        let host = Place::Host(1);
        let directory = configure(&site, "host", 1, &[snippets::capture(1, &[])]);
        let report = directory.join("report.xml");
        let file = format!("--xml-file={}", report.display());
        let wrapper = [
            "valgrind",
            "--xml=yes",
            &file,
            "--leak-check=full",
            "--show-leak-kinds=definite,indirect",
            "--keep-debuginfo=yes",
            "--num-callers=40",
            // Valgrind does not know every ioctl(2) request by name, for example the one for the kind of a
            // namespace.
            "--sim-hints=lax-ioctls",
        ];
        let agent = Collectd::run(&mut command(&site, host, &directory, &wrapper), directory);
        let prometheus = Prometheus::start(&site, &["10.78.1.2".to_owned()], 1);
        prometheus.wait_for("collectd_capture_update_us");
        let _server = site.maker(Place::Hub, "peer", "tcp-server", "10.78.1.1:7001", &[]);
        // Groups appear and disappear meanwhile.
        let orders = [("rate", 10), ("milliseconds", 8000), ("named", 1)];
        let mut clients = site.maker(host, "client", "processes", "10.78.1.1:7001", &orders);
        clients.start();
        clients.finish();
        prometheus.wait_for("sum(collectd_capture_network_bytes_send_total) > 300000");
        agent.stop();

        let text = std::fs::read_to_string(&report).unwrap();
        assert!(text.contains("<state>FINISHED</state>"), "{text}");
        let errors: Vec<&str> = text.split("<error>").skip(1).collect();
        let is_ours = |error: &&&str| error.contains("/capture.so</obj>") || error.contains("/libcapture.so");
        let ours: Vec<&&str> = errors.iter().filter(is_ours).collect();
        println!("valgrind reports {} errors, {} of plugin or library", errors.len(), ours.len());
        assert!(ours.is_empty(), "{ours:#?}");
    });
}
