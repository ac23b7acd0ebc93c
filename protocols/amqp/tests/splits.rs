//! However the input is cut, the broker is asked the same.

mod harness;

use amqp::Settings;
use amqp::frame::{self, Scan};
use broker::message::Facts;
use broker::{Delivery, Event, Request};
use harness::{Random, answer, client_bytes};
use protocol::{Now, Peer};
use std::collections::BTreeMap;
use std::sync::Arc;

fn conversation(random: &mut Random) -> Vec<u8> {
    let mut bytes = b"AMQP\x00\x00\x09\x01".to_vec();
    let mut say = |line: &str| bytes.extend(client_bytes(line));
    say("0 ConnectionStartOk mechanism=PLAIN response=\\0guest\\0guest locale=en_US");
    say("0 ConnectionTuneOk channel_max=2047 frame_max=131072 heartbeat=0");
    say("0 ConnectionOpen virtual_host=/");
    say("1 ChannelOpen");
    say("2 ChannelOpen");
    say("2 ConfirmSelect");
    say("1 BasicConsume queue=q consumer_tag=c");
    let mut tag = 0;
    for i in 0..600 {
        let channel = 1 + random.below(2);
        let key = ["a", "b", "cc"][random.below(3)];
        let mode = 1 + random.below(2);
        let size = [0, 1, 10, 5_000, 30_000][random.below(5)];
        match random.below(20) {
            0 => say(&format!("{channel} QueueDeclare queue=q{i}")),
            1 => say(&format!("{channel} publish x {key} headers=CC:[z];i:{i} text")),
            2 => say(&format!("{channel} publish x {key} expiration={i} text{i}")),
            3 => say("0 heartbeat"),
            // Many of a kind, but for the size.
            8 => (0..20).for_each(|j| say(&format!("1 publish x a mode=2 content-type=t {}", "b".repeat(j % 7 * 700)))),
            9 => (0..20).for_each(|j| say(&format!("2 publish x a headers=n:1 {}", "b".repeat(j % 5 * 40)))),
            4..=6 if tag < 200 => {
                tag += 1;
                say(&format!("1 BasicAck delivery_tag={tag}"));
            }
            7 if tag < 195 => {
                tag += 5;
                say(&format!("1 BasicNack delivery_tag={tag} multiple"));
            }
            _ => {
                let body = "b".repeat(size);
                say(&format!("{channel} publish x {key} mode={mode} message-id={} {body}i{i}", i / 3));
            }
        }
    }
    say("1 BasicRecover requeue");
    say("0 ConnectionClose reply_code=200");
    bytes
}

/// What a channel asked, message by message, and what the client was told but for its confirms.
fn heard(bytes: &[u8], chunk: usize) -> (BTreeMap<u32, Vec<String>>, Vec<Vec<u8>>) {
    let now = Now { unix_ms: 5, mono_ms: 5 };
    let mut connection = amqp::connection(Arc::new(Settings::default()), Peer::default(), now, 3);
    let (mut asked, mut told) = (BTreeMap::new(), Vec::new());
    let (mut input, mut requests) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(chunk) {
        input.extend_from_slice(piece);
        loop {
            let taken = connection.handle_input(now, &input, &mut requests);
            input.drain(..taken);
            let worked = !requests.is_empty();
            for request in std::mem::take(&mut requests) {
                note(&request, &mut asked);
                connection.handle_reply(now, answer(&request), &mut requests);
                assert!(requests.is_empty(), "nothing goes wrong here");
                if let Request::Consume(_) = request {
                    let batch = Arc::new(harness::batch(&["m"; 200], "x", "k", &[], &[0, 0], false));
                    let (first, stride, count, cost) = (0, 1, 200, batch.size() as u32);
                    let delivery = Delivery {
                        link: 0,
                        number: 0,
                        batch,
                        first,
                        stride,
                        count,
                        redelivered: false,
                        delivery_count: None,
                        cost,
                    };
                    connection.handle_event(now, Event::Delivery(delivery), &mut requests);
                }
            }
            if taken == 0 && !worked {
                break;
            }
        }
    }
    assert!(connection.is_finished() && input.is_empty());
    let outbox = connection.outbox();
    while let Scan::Frame(frame) = frame::scan(outbox.ready(), u32::MAX) {
        if !frame.payload.starts_with(&[0, 60, 0, 80]) {
            told.push(frame.payload.to_vec());
        }
        let size = frame.size();
        outbox.advance(size);
    }
    (asked, told)
}

fn note(request: &Request, asked: &mut BTreeMap<u32, Vec<String>>) {
    match request {
        Request::Publish { ticket, publish } => {
            for i in 0..publish.batch.len() {
                let record = publish.batch.record(i);
                let facts = Facts::parse(record.block().unwrap()).unwrap();
                let body = record.value.map(|body| (body.len(), body.last().copied()));
                let line = format!("{:?} {} {facts:?} {body:?}", publish.route, publish.persistent);
                asked.entry(*ticket).or_default().push(line);
            }
        }
        Request::Settle { ticket, link, first, count, outcome, .. } => {
            for number in *first..first + count {
                asked.entry(*ticket).or_default().push(format!("settle {link} {number} {outcome:?}"));
            }
        }
        other => asked.entry(0).or_default().push(harness::describe(other)),
    }
}

#[test]
fn any_split_of_the_input_asks_the_same() {
    for seed in 1..4 {
        let bytes = conversation(&mut Random(seed));
        let whole = heard(&bytes, bytes.len());
        assert!(whole.0[&1].len() > 200 && whole.0[&2].len() > 100);
        for chunk in [1, 7, 100, 4096, 65_536] {
            assert!(heard(&bytes, chunk) == whole, "seed {seed}, chunks of {chunk}");
        }
    }
}
