//! What a message costs in this crate alone: publishes of 100 bytes parsed into runs, deliveries encoded, acks parsed.
//!
//! `cargo run --release -p amqp --example cost [ROUNDS]`; times are of this process on the CPU, so a busy machine hurts less.

use amqp::Settings;
use amqp::frame;
use amqp::method::{self, Long, Method, RawTable};
use broker::{Batch, Delivery, Event, Now, Published, QueueFacts, Reply, Request};
use protocol::{Connection, Peer};
use std::sync::Arc;

const NOW: Now = Now { unix_ms: 1_700_000_000_000, mono_ms: 1 };
/// As much as a server reads at once.
const READ_BYTES: usize = 256 << 10;

/// Nanoseconds that this process has run.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn answer(request: &Request) -> Reply {
    match request {
        Request::Publish { .. } => Reply::Published(Published::default()),
        Request::Settle { .. } => Reply::Settled,
        Request::Authenticate { user, .. } => Reply::Authenticated { user: user.clone(), impersonator: false, counted: false },
        Request::DeclareQueue(declare) => {
            Reply::Queue { facts: QueueFacts { name: declare.name.clone(), messages: 0, consumers: 0 }, safe_at: None }
        }
        _ => Reply::Done { safe_at: None },
    }
}

fn feed(
    connection: &mut dyn Connection,
    mut input: &[u8],
    requests: &mut Vec<Request>,
    batches: &mut Vec<Arc<Batch>>,
) -> usize {
    let before = input.len();
    loop {
        let taken = connection.handle_input(NOW, input, requests);
        input = &input[taken..];
        if taken == 0 {
            return before - input.len();
        }
        let mut asked = std::mem::take(requests);
        for request in asked.drain(..) {
            connection.handle_reply(NOW, answer(&request), requests);
            if let Request::Publish { publish, .. } = request
                && batches.len() < 4
            {
                batches.push(publish.batch);
            }
        }
        *requests = asked;
    }
}

fn publishes(properties: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let mut count = 0;
    while bytes.len() < READ_BYTES {
        let publish = Method::BasicPublish { ticket: 0, exchange: "", routing_key: "q", mandatory: false, immediate: false };
        method::put(&mut bytes, 1, &publish);
        frame::put_content(&mut bytes, 1, properties, &[b'b'; 100], 131_072);
        count += 1;
    }
    (bytes, count)
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(1_000, |rounds| rounds.parse().expect("a number of rounds"));
    let mut connection = amqp::connection(Arc::new(Settings::default()), Peer::default(), NOW, 1);
    let (mut requests, mut batches) = (Vec::new(), Vec::new());
    let mut hello = b"AMQP\x00\x00\x09\x01".to_vec();
    let client_properties = RawTable(b"");
    let response = Long(b"\0guest\0guest");
    method::put(&mut hello, 0, &Method::ConnectionStartOk { client_properties, mechanism: "PLAIN", response, locale: "en_US" });
    method::put(&mut hello, 0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 0 });
    method::put(&mut hello, 0, &Method::ConnectionOpen { virtual_host: "/", capabilities: "", insist: false });
    method::put(&mut hello, 1, &Method::ChannelOpen { out_of_band: "" });
    feed(&mut *connection, &hello, &mut requests, &mut batches);

    for (name, properties) in [
        ("transient, no properties", &[0u8, 0][..]),
        ("transient, content-type and mode", b"\x90\x00\x0atext/plain\x01"),
        ("persistent, content-type and mode (with its CRC)", b"\x90\x00\x0atext/plain\x02"),
    ] {
        let (bytes, count) = publishes(properties);
        let start = cpu_ns();
        for _ in 0..rounds {
            let taken = feed(&mut *connection, &bytes, &mut requests, &mut batches);
            assert_eq!(taken, bytes.len());
        }
        report("publish", name, start, count * rounds);
    }

    let mut consume = Vec::new();
    let arguments = RawTable(b"");
    let (no_local, nowait, exclusive) = (false, true, false);
    for (consumer_tag, no_ack) in [("auto", true), ("manual", false)] {
        let queue = "q";
        let method = Method::BasicConsume { ticket: 0, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
        method::put(&mut consume, 1, &method);
    }
    feed(&mut *connection, &consume, &mut requests, &mut batches);
    let batch = batches[1].clone();
    let count = batch.len();
    let deliver = |connection: &mut dyn Connection, requests: &mut Vec<Request>, link, number, redelivered| {
        let (cost, delivery_count) = (batch.size() as u32, None);
        let batch = batch.clone();
        let delivery = Delivery { link, number, batch, first: 0, stride: 1, count, redelivered, delivery_count, cost };
        connection.handle_event(NOW, Event::Delivery(delivery), requests);
        let outbox = connection.outbox();
        let length = outbox.ready().len();
        outbox.advance(length);
    };
    let start = cpu_ns();
    for _ in 0..rounds {
        deliver(&mut *connection, &mut requests, 0, 0, false);
    }
    report("deliver", "auto-ack", start, count as usize * rounds);

    // Tags go on from the auto-acked ones.
    let mut tag = (count as usize * rounds) as u64;
    let (mut delivering, mut acking) = (0u64, 0u64);
    for round in 0..rounds as u64 {
        let start = cpu_ns();
        deliver(&mut *connection, &mut requests, 1, round * u64::from(count), false);
        delivering += cpu_ns() - start;
        let mut acks = Vec::new();
        for _ in 0..count {
            tag += 1;
            method::put(&mut acks, 1, &Method::BasicAck { delivery_tag: tag, multiple: false });
        }
        let start = cpu_ns();
        feed(&mut *connection, &acks, &mut requests, &mut batches);
        acking += cpu_ns() - start;
    }
    let messages = u64::from(count) * rounds as u64;
    println!("deliver  {:>7.1} ns  manual ack", delivering as f64 / messages as f64);
    println!("ack      {:>7.1} ns  one by one", acking as f64 / messages as f64);
}

fn report(what: &str, name: &str, start: u64, count: usize) {
    println!("{what:8} {:>7.1} ns  {name}", (cpu_ns() - start) as f64 / count as f64);
}
