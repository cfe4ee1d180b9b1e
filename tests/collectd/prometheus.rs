//! Prometheus with the project's own configuration, queried through its HTTP interface.

use crate::site::{Place, Site};
use crate::{snippets, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

/// The address that Prometheus listens on, at the hub.
const ADDRESS: &str = "127.0.0.1:9090";

/// Labels of a series.
pub type Labels = BTreeMap<String, String>;

/// Samples of one series: time in seconds, and value.
pub type Samples = Vec<(f64, f64)>;

/// A Prometheus at the hub of a site. Dropping this ends it.
pub struct Prometheus {
    child: Child,
}

impl Prometheus {
    /// Starts it with the project's `prometheus.yml` and `rules.yml`. It scrapes these addresses at this
    /// interval.
    pub fn start(site: &Site, targets: &[String], interval_s: u64) -> Prometheus {
        let directory = site.path().join("prometheus");
        snippets::write_prometheus_files(&directory, targets, interval_s);
        let mut command = site.command(Place::Hub, "prometheus");
        command.arg("--config.file").arg(directory.join("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(directory.join("data"));
        command.args(["--log.level=warn", "--web.listen-address", ADDRESS]);
        let log = File::create(directory.join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let prometheus = Prometheus { child };
        let is_ready = || http_get("/-/ready").is_ok_and(|(status, _)| status == 200);
        wait_for("Prometheus is ready", is_ready, || std::fs::read_to_string(directory.join("log")).unwrap());
        prometheus
    }

    /// Returns the result of an expression at a time: a value for each set of labels.
    pub fn query_at(&self, expression: &str, at: SystemTime) -> Vec<(Labels, f64)> {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let vector = ask("query", &[("query", expression), ("time", &format!("{at:.3}"))]);
        vector.into_iter().map(|item| (labels(&item), sample(&item["value"]).1)).collect()
    }

    /// Returns the current result of an expression.
    pub fn query(&self, expression: &str) -> Vec<(Labels, f64)> {
        self.query_at(expression, SystemTime::now())
    }

    /// Returns the one value of an expression at a time.
    #[track_caller]
    pub fn value_at(&self, expression: &str, at: SystemTime) -> f64 {
        match self.query_at(expression, at).as_slice() {
            [(_, value)] => *value,
            values => panic!("{expression} should be one value: {values:?}; {:?}", self.samples("up[1m]")),
        }
    }

    /// Returns the raw samples of each series that a range selector such as `up[1m]` matches.
    pub fn samples(&self, selector: &str) -> Vec<(Labels, Samples)> {
        let matrix = ask("query", &[("query", selector)]);
        let samples = |item: &Value| item["values"].as_array().unwrap().iter().map(sample).collect();
        matrix.iter().map(|item| (labels(item), samples(item))).collect()
    }

    /// Waits until an expression has a result.
    #[track_caller]
    pub fn wait_for(&self, expression: &str) {
        let is_there = || !self.query(expression).is_empty();
        wait_for(expression, is_there, || format!("{:?}", self.query("up")));
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already. Its files are removed with the site.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn labels(item: &Value) -> Labels {
    let labels = item["metric"].as_object().unwrap();
    labels.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn sample(pair: &Value) -> (f64, f64) {
    (pair[0].as_f64().unwrap(), pair[1].as_str().unwrap().parse().unwrap())
}

fn ask(what: &str, parameters: &[(&str, &str)]) -> Vec<Value> {
    let text = |(name, value): &(&str, &str)| format!("{name}={}", percent_encoded(value));
    let query = parameters.iter().map(text).collect::<Vec<_>>().join("&");
    data_of(&format!("/api/v1/{what}?{query}"))["result"].as_array().unwrap().clone()
}

fn data_of(path: &str) -> Value {
    let (status, body) = http_get(path).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["status"]), (200, &Value::from("success")), "{path}: {body}");
    body["data"].clone()
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Fetches a page at the hub, which the calling thread must be in. HTTP 1.0 has neither chunks nor persistent
/// connections.
fn http_get(path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let body_at = answer.windows(4).position(|part| part == b"\r\n\r\n").ok_or_else(invalid)? + 4;
    let head = String::from_utf8_lossy(&answer[..body_at]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    Ok((status, answer.split_off(body_at)))
}
