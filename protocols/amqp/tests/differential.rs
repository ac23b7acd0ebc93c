//! Our codec against `amq-protocol`, an independent one, both ways: what we write it reads, what it writes again is the same
//! bytes, and we read them back.
//!
//! Where it could not stand in for ours (so these inputs are kept out of the comparison):
//! * tables are sorted maps: order is lost, of duplicate names only one survives;
//! * 'L' is written back as 'l', 'U' as 's'; 'U' is a type to it, RabbitMQ and we refuse it;
//! * a short string that is no UTF-8 and an unknown tag fail the whole frame, with the same error as every other fault, so 501,
//!   502, 503 and 505 can't be told apart;
//! * a decimal's or boolean's odd bytes are normalised (a bool of 2 is written as 1);
//! * nested tables are parsed recursively without a bound: 100,000 levels in one long string overflow its stack.

mod harness;

use amq_protocol::frame::{AMQPFrame, WriteContext, gen_frame, parse_frame};
use amqp::frame;
use amqp::method::{self, Method, ROWS, Row};
use amqp::reader::{put_long, put_short};
use harness::Random;

/// Through the other codec and back.
fn through(bytes: &[u8]) -> (AMQPFrame, Vec<u8>) {
    let (rest, frame) = parse_frame(bytes).unwrap_or_else(|error| panic!("{error:?} in {bytes:02x?}"));
    assert!(rest.is_empty());
    let context = gen_frame(&frame)(WriteContext::from(Vec::new())).expect("generated");
    (frame.clone(), context.into_inner().0)
}

fn random_fields(random: &mut Random, row: &Row) -> Vec<u8> {
    let mut out = Vec::new();
    // The other codec leaves what the specification reserves at zero.
    const RESERVED: [&str; 9] = [
        "ticket",
        "realm",
        "out_of_band",
        "channel_id",
        "capabilities",
        "known_hosts",
        "cluster_id",
        "insist",
        "prefetch_size",
    ];
    let field = |random: &mut Random, out: &mut Vec<u8>, (name, kind): &(&str, &str)| match *kind {
        _ if RESERVED.contains(name) => out.extend_from_slice(match *kind {
            "u16" => &[0; 2],
            "u32" => &[0; 4],
            kind if kind.starts_with("Long") => &[0; 4],
            _ => &[0],
        }),
        "u8" => out.push(random.next() as u8),
        "u16" => out.extend_from_slice(&(random.next() as u16).to_be_bytes()),
        "u32" => out.extend_from_slice(&(random.next() as u32).to_be_bytes()),
        "u64" => out.extend_from_slice(&(random.next() << 20).to_be_bytes()),
        kind if kind.starts_with("RawTable") => put_long(out, &amqp::field_table::encode(&random.table(3))),
        kind if kind.starts_with("Long") => put_long(out, random.text(300).as_bytes()),
        _ => put_short(out, &random.text(255)),
    };
    row.before.iter().for_each(|entry| field(random, &mut out, entry));
    if !row.bits.is_empty() {
        out.push(if row.bits == ["insist"] { 0 } else { random.below(1 << row.bits.len()) as u8 });
    }
    row.after.iter().for_each(|entry| field(random, &mut out, entry));
    out
}

#[test]
fn every_method_means_the_same_to_both() {
    let mut random = Random(11);
    // (It answers access.request with ticket 1 whatever it is told.)
    for row in ROWS.iter().filter(|row| row.name != "AccessRequestOk") {
        for _ in 0..200 {
            let fields = random_fields(&mut random, row);
            let ours = Method::decode(row.id, &fields).unwrap_or_else(|error| panic!("{}: {error:?}", row.name));
            let mut bytes = Vec::new();
            method::put(&mut bytes, 7, &ours);
            let (frame, again) = through(&bytes);
            assert!(matches!(frame, AMQPFrame::Method(7, _)), "{}", row.name);
            assert_eq!(again, bytes, "{}", row.name);
        }
    }
}

#[test]
fn every_property_means_the_same_to_both() {
    let mut random = Random(12);
    for round in 0..3000 {
        let (mut flags, mut fields) = (0u16, Vec::new());
        for i in 0..14 {
            if random.below(2) == 0 {
                continue;
            }
            flags |= 0x8000 >> i;
            match i {
                2 => put_long(&mut fields, &amqp::field_table::encode(&random.table(3))),
                3 | 4 => fields.push(random.next() as u8),
                9 => fields.extend_from_slice(&random.next().to_be_bytes()),
                _ => put_short(&mut fields, &random.text(60)),
            }
        }
        let block = [&flags.to_be_bytes()[..], &fields].concat();
        let mut bytes = Vec::new();
        frame::put_content(&mut bytes, 3, &block, &[], 4096);
        let (frame, again) = through(&bytes);
        assert_eq!(again, bytes, "round {round}");
        let AMQPFrame::Header(3, header) = frame else { panic!("not a header") };
        let spans = amqp::properties::Spans::scan(&block).unwrap();
        use amqp::properties::Property;
        let text = |property| spans.short(property).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        assert_eq!(header.properties.message_id().as_ref().map(|id| id.as_str().to_owned()), text(Property::MessageId));
        assert_eq!(header.properties.user_id().as_ref().map(|id| id.as_str().to_owned()), text(Property::UserId));
        assert_eq!(*header.properties.priority(), spans.octet(Property::Priority));
        assert_eq!(*header.properties.timestamp(), spans.timestamp());
    }
}

#[test]
fn every_table_means_the_same_to_both() {
    let mut random = Random(13);
    for _ in 0..3000 {
        let table = random.table(5);
        let inside = amqp::field_table::encode(&table);
        let mut bytes = Vec::new();
        let arguments = amqp::method::RawTable(&inside);
        let bind = Method::QueueBind { ticket: 0, queue: "q", exchange: "x", routing_key: "k", nowait: false, arguments };
        method::put(&mut bytes, 1, &bind);
        let (_, again) = through(&bytes);
        assert_eq!(again, bytes);
        assert_eq!(amqp::field_table::decode(&inside), Ok(table));
    }
}
