//! What a quorum queue promises beyond a durable one, on the running binary.

use tests::Braid;
use tests::wire::{Fields, Refused, Wire, frame, method};

/// Declares a durable queue; a value that is a number goes over the wire as one.
fn declare(wire: &mut Wire, name: &str, arguments: &[(&str, &str)]) {
    let mut table = Vec::new();
    for (key, value) in arguments {
        let entry = Fields::new().short(key);
        let entry = match value.parse::<u32>() {
            Ok(number) => entry.u8(b'I').u32(number),
            Err(_) => entry.u8(b'S').long(value.as_bytes()),
        };
        table.extend(entry.0);
    }
    wire.ask(1, 50, 10, &Fields::new().u16(0).short(name).u8(2).long(&table)).expect("declared");
}

/// Gets a message that has to be settled; answers its tag.
fn hold(wire: &mut Wire, queue: &str) -> Result<u64, Refused> {
    let got = wire.ask(1, 60, 70, &Fields::new().u16(0).short(queue).u8(0))?;
    wire.body();
    Ok(u64::from_be_bytes(got.payload[4..12].try_into().expect("eight bytes")))
}

fn reject(wire: &mut Wire, tag: u64, requeue: bool) {
    wire.say(&method(1, 60, 90, &Fields::new().u64(tag).u8(requeue.into())));
}

#[test]
fn keeps_what_was_published_as_transient() {
    let mut braid = Braid::start("quorum-transient");
    let mut wire = Wire::open(&braid.address("amqp"));
    declare(&mut wire, "q", &[("x-queue-type", "quorum")]);
    wire.say(&method(1, 60, 40, &Fields::new().u16(0).short("").short("q").u8(0)));
    wire.say(&frame(2, 1, &Fields::new().u16(60).u16(0).u64(4).u16(0x1000).u8(1).0));
    wire.say(&frame(3, 1, b"kept"));
    assert_eq!(wire.look_at_queue("q"), Ok((1, 0)));
    wire.close();
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    let mut wire = Wire::open(&braid.address("amqp"));
    assert_eq!(wire.get("q"), Ok(Some(b"kept".to_vec())));
}

#[test]
fn a_dead_letter_stays_until_it_arrives() {
    let braid = Braid::start("quorum-dead-letter");
    let mut wire = Wire::open(&braid.address("amqp"));
    let arguments = [
        ("x-queue-type", "quorum"),
        ("x-overflow", "reject-publish"),
        ("x-max-length", "2"),
        ("x-dead-letter-exchange", "dlx"),
        ("x-dead-letter-strategy", "at-least-once"),
    ];
    declare(&mut wire, "q", &arguments);
    wire.confirm_select();
    for body in [b"1", b"2"] {
        assert_eq!(wire.publish_confirmed("", "q", body), Ok(true));
        let tag = hold(&mut wire, "q").expect("it is there");
        reject(&mut wire, tag, false);
    }
    assert_eq!(wire.get("q"), Ok(None), "no consumer sees them again");
    assert_eq!(wire.publish_confirmed("", "q", b"3"), Ok(false), "they take their room");
    wire.declare_exchange("dlx", "fanout").expect("declared");
    wire.declare_queue("dead", true).expect("declared");
    wire.bind("dead", "dlx", "").expect("bound");
    let mut arrived = [wire.get_soon("dead"), wire.get_soon("dead")];
    arrived.sort();
    assert_eq!(arrived, [b"1".to_vec(), b"2".to_vec()]);
    assert_eq!(wire.publish_confirmed("", "q", b"4"), Ok(true));
    assert_eq!(wire.get("dead"), Ok(None));
}

#[test]
fn a_returned_message_waits_as_long_as_it_was_told() {
    let braid = Braid::start("quorum-retry");
    let mut wire = Wire::open(&braid.address("amqp"));
    let waits = [("x-queue-type", "quorum"), ("x-delayed-retry-type", "failed")];
    declare(&mut wire, "soon", &[&waits[..], &[("x-delayed-retry-min", "1")]].concat());
    declare(&mut wire, "late", &[&waits[..], &[("x-delayed-retry-min", "3600000")]].concat());
    for queue in ["soon", "late"] {
        wire.publish("", queue, b"m");
        let tag = hold(&mut wire, queue).expect("it is there");
        reject(&mut wire, tag, true);
    }
    assert_eq!(wire.get_soon("soon"), b"m");
    assert_eq!(wire.get("late"), Ok(None), "not before an hour is over");
    let purged = wire.ask(1, 50, 30, &Fields::new().u16(0).short("late").u8(0)).expect("purged");
    assert_eq!(purged.u32_at(0), 1);
}

#[test]
fn the_name_of_all_reply_addresses_can_be_looked_at() {
    let braid = Braid::start("reply-address");
    let mut wire = Wire::open(&braid.address("amqp"));
    assert_eq!(wire.look_at_queue("amq.rabbitmq.reply-to"), Ok((0, 1)));
}
