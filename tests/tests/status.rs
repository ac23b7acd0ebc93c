//! What operators look at: health pages, metrics, `braid status`, `braid ready`.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use tests::Braid;
use tests::wire::{self, Wire, eventually};

#[test]
fn health_and_metrics_are_there_and_nothing_else() {
    let braid = Braid::start("status-pages");
    for path in ["/livez", "/readyz"] {
        assert_eq!(braid.page(path), (200, "ok\n".into()));
    }
    for path in ["/", "/api/overview", "/metrics/", "/livezz", "/..", "/%2e%2e/etc/passwd", "/metrics.json", "//metrics"] {
        assert_eq!(braid.page(path).0, 404, "{path}");
    }
    assert_eq!(braid.page("/metrics?family=all").0, 200);
}

#[test]
fn what_came_and_went_is_counted() {
    let braid = Braid::start("status-metrics");
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.declare_queue("q", true).expect("it may");
    wire.confirm_select();
    for body in [b"1", b"2", b"3"] {
        assert_eq!(wire.publish_confirmed("", "q", body), Ok(true));
    }
    assert_eq!(wire.publish_confirmed("", "nowhere", b"4"), Ok(true));
    wire.get("q").expect("there is one");
    // Held, not acked.
    let held = wire::method(1, 60, 70, &wire::Fields::new().u16(0).short("q").u8(0));
    wire.say(&held);
    wire.wait_for(60, 71).expect("there is one");
    for (name, value) in [
        ("messages_in_total{protocol=\"amqp\"}", 4.0),
        ("messages_out_total{protocol=\"amqp\"}", 2.0),
        ("messages_unroutable_total", 1.0),
        ("messages_ready", 1.0),
        ("messages_unsettled", 1.0),
        ("connections", 1.0),
        ("connections_half_open", 0.0),
        ("protocol_connections{protocol=\"amqp\"}", 1.0),
        ("queues", 1.0),
        ("panics_total", 0.0),
        ("alarm{reason=\"memory\"}", 0.0),
        ("alarm{reason=\"disk\"}", 0.0),
        ("alarm{reason=\"journal\"}", 0.0),
    ] {
        assert_eq!(braid.metric(name), Some(value), "{name}");
    }
    let syncs = braid.metric("fsync_seconds_count").expect("it is there");
    assert!(syncs > 0.0 && braid.metric("fsync_seconds_bucket{le=\"+Inf\"}") == Some(syncs));
    assert!(braid.metric("fsync_seconds_sum").is_some_and(|seconds| seconds > 0.0));
    assert_is_prometheus(&braid.page("/metrics").1);
    drop(wire);
    eventually("it is gone", || braid.metric("connections") == Some(0.0));
    assert_eq!(braid.metric("messages_in_total{protocol=\"amqp\"}"), Some(4.0), "counters outlive connections");
    assert_eq!(braid.metric("messages_out_total{protocol=\"amqp\"}"), Some(2.0));
    assert_eq!(braid.metric("messages_ready"), Some(2.0));
}

/// Each family has one head, and each line is a name, labels and a number.
fn assert_is_prometheus(text: &str) {
    let mut heads = std::collections::BTreeSet::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().expect("a name");
            assert!(heads.insert(family), "{family} has one head");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let name = name.split('{').next().expect("a name");
            assert!(name.starts_with(family) && value.parse::<f64>().is_ok(), "{line}");
            let is_counter = text.contains(&format!("# TYPE {family} counter\n"));
            assert_eq!(name.ends_with("_total"), is_counter, "{line}");
        }
    }
}

#[test]
fn status_says_what_the_metrics_say() {
    let braid = Braid::start("status-command");
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.declare_queue("q", true).expect("it may");
    wire.confirm_select();
    assert_eq!(wire.publish_confirmed("", "q", b"1"), Ok(true));
    let text = braid.tell(&["status"]);
    assert!(text.contains(&braid.address("amqp")) && text.contains(&braid.address("http")), "{text}");
    let all: Value = serde_json::from_str(&braid.tell(&["status", "--json"])).expect("JSON");
    assert_eq!(all["alarms"], Value::Array(Vec::new()));
    let page = braid.page("/metrics").1;
    let figures = all["figures"].as_array().expect("a list");
    for figure in figures {
        let labels = figure["labels"].as_str().expect("text");
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let name = format!("{}{labels}", figure["name"].as_str().expect("text"));
        assert!(page.contains(&format!("\nbraid_{name} ")), "{name}");
        assert!(text.lines().any(|line| line.starts_with(&name)), "{name}: {text}");
    }
    assert_eq!(figures.len(), page.lines().filter(|line| !line.starts_with('#')).count());
    let ready = |figure: &&Value| figure["name"] == "messages_ready";
    assert_eq!(figures.iter().find(ready).expect("it is there")["value"], 1.0);
}

#[test]
fn ready_asks_and_answers_by_its_exit() {
    let mut braid = Braid::start("status-ready");
    let output = braid.ask(&["ready"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Where it listens is found by the configured address as well as by the data directory.
    let address = braid.address("http");
    let run = |address: &str| {
        let mut command = std::process::Command::new(tests::release_binary());
        let output =
            command.current_dir(std::env::temp_dir()).args(["ready", "--http", address, "--data-dir", "/nowhere"]).output();
        let output = output.expect("the binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&address), (Some(0), String::new()));
    assert_eq!(braid.stop(), Some(0));
    let output = braid.ask(&["ready"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(run(&address).0, Some(1));
    assert_eq!(run("off").0, Some(1));
    braid.restart();
    assert!(braid.ask(&["ready"]).status.success());
}

/// Who talks HTTP slowly, or not at all, does not keep the health check from its answer.
#[test]
fn slow_readers_of_pages_are_let_go() {
    let braid = Braid::start("status-slow");
    let before = braid.memory();
    let mut slow: Vec<TcpStream> = (0..200).map(|_| wire::tcp(&braid.address("http"))).collect();
    for (i, stream) in slow.iter_mut().enumerate() {
        let _ = stream.write_all(if i % 2 == 0 { b"" } else { b"GET /metrics HTTP/1.1\r\nX: " });
    }
    let began = std::time::Instant::now();
    assert_eq!(braid.page("/readyz"), (200, "ok\n".into()));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "it waited for those who say nothing");
    let mut long = wire::tcp(&braid.address("http"));
    let _ = long.write_all(b"GET / HTTP/1.1\r\n");
    for _ in 0..1_000 {
        if long.write_all(&[b'x'; 1_000]).is_err() {
            break;
        }
    }
    let mut said = String::new();
    let _ = long.read_to_string(&mut said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");
    for mut stream in slow {
        let end = stream.read_to_end(&mut Vec::new());
        assert!(!end.is_err_and(|error| wire::is_patience(&error)), "it is let go");
    }
    assert!(braid.memory() < before + (16 << 20));
    assert_eq!(braid.metric("panics_total"), Some(0.0));
}
