//! Short of disk or memory, publishers wait and consumers go on; told to stop under load, the broker says goodbye and loses nothing.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant};
use tests::Braid;
use tests::wire::{self, Fields, Login, Wire, eventually};

const MORE_THAN_THERE_IS: &str = "disk_free_limit = \"1000000000MiB\"\n";

fn start(name: &str, settings: &str) -> Braid {
    let dir = Braid::fresh_dir(name);
    std::fs::write(dir.join("braid.toml"), settings).expect("a file");
    Braid::start_in(dir, &["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"])
}

fn set(braid: &Braid, settings: &str) {
    std::fs::write(braid.dir().join("braid.toml"), settings).expect("a file");
    braid.signal("HUP");
}

fn alarm(braid: &Braid, reason: &str) -> bool {
    braid.metric(&format!("alarm{{reason=\"{reason}\"}}")) == Some(1.0)
}

#[test]
fn short_of_disk_publishers_wait_and_consumers_go_on() {
    let braid = start("alarms-disk", "disk_free_limit = 1\n");
    let address = braid.address("amqp");
    let mut publisher = Wire::open(&address);
    publisher.confirm_select();
    publisher.declare_queue("q", true).expect("it may");
    for number in 0..100u8 {
        assert_eq!(publisher.publish_confirmed("", "q", &[number]), Ok(true));
    }
    let mut consumer = Wire::open(&address);
    set(&braid, MORE_THAN_THERE_IS);
    let blocked = publisher.wait_for(10, 60).expect("who has published is told");
    assert_eq!(blocked.short_at(0), "low on disk");
    assert!(alarm(&braid, "disk"));
    assert!(braid.tell(&["status"]).contains("disk"));
    publisher.publish("", "q", &[100]);

    // Who begins to publish now is told now, if it wants to know.
    let mut late = Wire::open(&address);
    late.publish("", "q", &[101]);
    late.wait_for(10, 60).expect("told at its first publish");
    let mut untold = Wire::open_as(&address, &Login { capabilities: &[], ..Login::default() }).expect("it may come in");
    untold.publish("", "q", &[102]);
    untold.say(&wire::method(1, 60, 10, &Fields::new().u32(0).u16(0).u8(0)));

    // Consumers are not publishers: they drain what is there, and may declare and bind.
    consumer.consume("q", "c").expect("it may");
    for number in 0..100u8 {
        consumer.wait_for(60, 60).expect("a delivery");
        assert_eq!(consumer.body(), [number]);
    }
    consumer.declare_queue("another", true).expect("it may");
    // The first message of each late publisher came with the bytes that told that it publishes: those are in.
    set(&braid, "disk_free_limit = 1\n");
    publisher.wait_for(10, 61).expect("unblocked is said");
    late.wait_for(10, 61).expect("unblocked is said");
    publisher.wait_for(60, 80).expect("what it published meanwhile is confirmed now");
    let first = untold.read().expect("an answer");
    assert_eq!(first.method(), (60, 11), "neither blocked nor unblocked is said to who did not ask for it");
    let mut rest = BTreeSet::new();
    for _ in 100..103 {
        consumer.wait_for(60, 60).expect("a delivery");
        rest.extend(consumer.body());
    }
    assert_eq!(rest, BTreeSet::from([100, 101, 102]));
    assert!(!alarm(&braid, "disk"));
}

#[test]
fn short_of_memory_is_said_with_both_reasons() {
    let braid = start("alarms-memory", "memory_limit = 1\ndisk_free_limit = \"1000000000MiB\"\n");
    eventually("both alarms are on", || alarm(&braid, "memory") && alarm(&braid, "disk"));
    let mut publisher = Wire::open(&braid.address("amqp"));
    publisher.publish("", "nobody", b"x");
    assert_eq!(publisher.wait_for(10, 60).expect("told").short_at(0), "low on memory & low on disk");
    set(&braid, "memory_limit = 1\ndisk_free_limit = 1\n");
    eventually("one of them is off", || !alarm(&braid, "disk"));
    set(&braid, "nonsense = 1\n");
    eventually("the log says that it can't be read", || braid.log().contains("nonsense"));
    assert!(alarm(&braid, "memory"), "one reason is enough");
    set(&braid, "disk_free_limit = 1\n");
    publisher.wait_for(10, 61).expect("unblocked when all is well");
}

/// Publishes with confirms until the connection ends; answers how many were confirmed, and what ended it.
fn publish_until_told(address: &str, queue: &str) -> (u64, Option<(u16, String)>) {
    let mut wire = Wire::open(address);
    wire.confirm_select();
    let (mut said, mut confirmed) = (0u64, 0u64);
    loop {
        while said < confirmed + 100 {
            said += 1;
            if !wire.publish("", queue, &said.to_be_bytes()) {
                break;
            }
        }
        let Some(frame) = wire.read() else { return (confirmed, None) };
        if let Some(close) = frame.close() {
            wire.say(&wire::method(0, 10, 51, &Fields::new()));
            return (confirmed, Some(close));
        }
        if frame.method() == (60, 80) {
            confirmed = u64::from_be_bytes(frame.payload[4..12].try_into().expect("a tag"));
        }
    }
}

#[test]
fn told_to_stop_under_load_it_says_goodbye_and_loses_nothing() {
    let mut braid = start("alarms-stop", "");
    let address = braid.address("amqp");
    let queues: Vec<String> = (0..4).map(|i| format!("q{i}")).collect();
    let mut first = Wire::open(&address);
    for queue in &queues {
        first.declare_queue(queue, true).expect("it may");
    }
    let mut idle = Wire::open(&address);
    // One that never answers, and one that does not even listen: they don't hold it up for ever.
    let mut mute = Wire::open(&address);
    let deaf = Wire::open(&address);
    let publishers: Vec<_> = queues
        .iter()
        .map(|queue| {
            let (address, queue) = (address.clone(), queue.clone());
            std::thread::spawn(move || publish_until_told(&address, &queue))
        })
        .collect();
    eventually("it is under load", || first.look_at_queue("q0").expect("it is there").0 > 1_000);
    let began = Instant::now();
    assert_eq!(braid.stop(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "who does not answer is not waited for for ever");
    let goodbye = (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'".to_string());
    let results: Vec<_> = publishers.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    for (confirmed, close) in &results {
        assert!(*confirmed > 0);
        assert_eq!(close.as_ref(), Some(&goodbye));
    }
    for wire in [&mut idle, &mut mute] {
        assert_eq!(wire.read().and_then(|frame| frame.close()).as_ref(), Some(&goodbye));
    }
    drop(deaf);
    let log = braid.log();
    assert!(log.contains("stopped") && !log.contains("panic"), "{log}");

    braid.restart();
    assert!(braid.log().contains("clean=true"), "{}", braid.log());
    let mut wire = Wire::open(&braid.address("amqp"));
    for (queue, (confirmed, _)) in queues.iter().zip(results) {
        let ready = u64::from(wire.look_at_queue(queue).expect("it is there").0);
        assert!(ready >= confirmed, "{queue}: {confirmed} were confirmed, {ready} are there");
        assert_eq!(wire.get(queue), Ok(Some(1u64.to_be_bytes().to_vec())));
    }
}

/// New connections are not let in while it stops; a second word ends its patience.
#[test]
fn stopping_twice_does_not_wait() {
    let mut braid = start("alarms-twice", "");
    let mut stream = wire::tcp(&braid.address("amqp"));
    std::io::Write::write_all(&mut stream, &Login::default().all()).expect("it reads");
    stream.read_exact(&mut [0; 8]).expect("it greets");
    braid.signal("TERM");
    eventually("it stops listening", || std::net::TcpStream::connect(braid.address("amqp")).is_err());
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    Wire::open(&braid.address("amqp")).close();
}
