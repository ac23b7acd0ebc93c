//! Many tasks, one connection: order is kept, nothing is lost, nobody sleeps through his turn.

mod support;

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use support::*;

/// A publish of (producer, sequence number, padding).
fn publish(kind: u8, queue: &str, producer: u32, number: u32, padding: usize) -> Vec<u8> {
    let mut payload = queue.as_bytes().to_vec();
    payload.push(0);
    payload.extend_from_slice(&producer.to_be_bytes());
    payload.extend_from_slice(&number.to_be_bytes());
    payload.resize(payload.len() + padding, b'.');
    frame(kind, &payload)
}

fn parse(body: &[u8]) -> (u32, u32) {
    (u32::from_be_bytes(body[..4].try_into().unwrap()), u32::from_be_bytes(body[4..8].try_into().unwrap()))
}

/// Drains `total` deliveries and checks each producer's order; false if the stream ended or fell silent.
fn drain(client: &mut Client1, total: u32, producers: usize, mut between: impl FnMut(u32)) {
    client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut next = vec![0; producers];
    let mut reader = BufReader::with_capacity(64 << 10, client.stream.try_clone().unwrap());
    for n in 0..total {
        let (kind, body) = hear(&mut reader).unwrap_or_else(|| panic!("silence after {n} of {total}: a wake-up was lost"));
        assert_eq!(kind, b'D');
        let (producer, number) = parse(&body);
        assert_eq!(number, next[producer as usize], "producer {producer} out of order");
        next[producer as usize] += 1;
        between(n);
    }
}

fn produce(rig: &Rig, queue: &str, producers: u32, each: u32, padding: usize, burst: u32) -> Vec<std::thread::JoinHandle<()>> {
    (0..producers)
        .map(|producer| {
            let (mut client, queue) = (rig.client(), queue.to_owned());
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                for number in 0..each {
                    bytes.extend(publish(b'T', &queue, producer, number, padding));
                    if (number + 1) % burst == 0 || number + 1 == each {
                        client.stream.write_all(&bytes).unwrap();
                        bytes.clear();
                    }
                }
                // Stays connected until everything has been taken in.
                client.say(b'X', b"");
                assert_eq!(client.hear().unwrap().0, b'X');
            })
        })
        .collect()
}

#[test]
fn deliveries_of_many_tasks_reach_one_consumer_in_order() {
    let rig = Rig::start(None, |_| {});
    let mut consumer = rig.client();
    consumer.consume("q");
    let producers = produce(&rig, "q", 8, 20_000, 20, 7);
    drain(&mut consumer, 160_000, 8, |_| {});
    producers.into_iter().for_each(|p| p.join().unwrap());
}

#[test]
fn a_slow_reader_with_a_tiny_socket_buffer_gets_everything() {
    let rig = Rig::start(Some(4096), |_| {});
    let mut consumer = rig.client();
    socket2::SockRef::from(&consumer.stream).set_recv_buffer_size(48 << 10).unwrap();
    consumer.consume("q");
    let producers = produce(&rig, "q", 4, 5_000, 200, 3);
    drain(&mut consumer, 20_000, 4, |n| {
        if n % 500 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    producers.into_iter().for_each(|p| p.join().unwrap());
}

#[test]
fn single_messages_back_and_forth_never_stall() {
    // One message at a time between four pairs: every lost wake-up would be a stall, not just a delay.
    let rig = Rig::start(None, |_| {});
    let pairs: Vec<_> = (0..4)
        .map(|pair| {
            let (mut a, mut b) = (rig.client(), rig.client());
            let (to_a, to_b) = (format!("a{pair}"), format!("b{pair}"));
            a.consume(&to_a);
            b.consume(&to_b);
            std::thread::spawn(move || {
                for client in [&a, &b] {
                    client.stream.set_nodelay(true).unwrap();
                    client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                }
                for number in 0..10_000 {
                    a.stream.write_all(&publish(b'T', &to_b, pair, number, 0)).unwrap();
                    assert_eq!(parse(&b.hear().expect("stalled").1).1, number);
                    b.stream.write_all(&publish(b'T', &to_a, pair, number, 0)).unwrap();
                    assert_eq!(parse(&a.hear().expect("stalled").1).1, number);
                }
            })
        })
        .collect();
    pairs.into_iter().for_each(|pair| pair.join().unwrap());
}

#[test]
fn one_connection_that_consumes_what_it_and_others_publish_hears_everything() {
    // Its own task, other tasks and the journal thread all want to speak at once.
    let rig = Rig::start(Some(8192), |_| {});
    let mut both = rig.client();
    both.consume("q");
    let producers = produce(&rig, "q", 3, 10_000, 50, 5);
    let mut writer = both.stream.try_clone().unwrap();
    let own = std::thread::spawn(move || {
        for number in 0..10_000 {
            writer.write_all(&publish(b'P', "q", 3, number, 50)).unwrap();
        }
    });
    both.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(both.stream.try_clone().unwrap());
    let (mut delivered, mut confirmed, mut next) = (0, 0, [0; 4]);
    while delivered < 40_000 || confirmed < 10_000 {
        match hear(&mut reader).unwrap_or_else(|| panic!("silence after {delivered} deliveries, {confirmed} confirms")) {
            (b'D', body) => {
                let (producer, number) = parse(&body);
                assert_eq!(number, next[producer as usize]);
                next[producer as usize] += 1;
                delivered += 1;
            }
            (b'K', count) => confirmed += u64::from_be_bytes(count.try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    own.join().unwrap();
    producers.into_iter().for_each(|p| p.join().unwrap());
}

#[test]
fn every_confirm_comes_and_none_before_its_sync() {
    confirms_one_by_one(8, Duration::from_micros(200));
}

#[test]
fn every_confirm_comes_although_the_sync_is_over_before_anyone_waits_for_it() {
    // Alone: nobody else's group would make up for a confirm that was forgotten.
    confirms_one_by_one(1, Duration::ZERO);
}

fn confirms_one_by_one(clients: u32, sync_time: Duration) {
    let rig = Rig::start(None, |_| {});
    *rig.journal.sync_time.lock().unwrap() = sync_time;
    let clients: Vec<_> = (0..clients)
        .map(|producer| {
            let mut client = rig.client();
            let journal = rig.journal.clone();
            std::thread::spawn(move || {
                use server::owner::Journal;
                client.stream.set_nodelay(true).unwrap();
                client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut durable = journal.durable();
                for number in 0..16_000 / clients {
                    client.stream.write_all(&publish(b'P', "sink", producer, number, 0)).unwrap();
                    let (kind, count) = client.hear().expect("a confirm was lost");
                    assert_eq!((kind, u64::from_be_bytes(count.try_into().unwrap())), (b'K', 1));
                    // Each confirm of one client needs a sync of its own: it published after the last one.
                    let now = journal.durable();
                    assert!(now > durable);
                    durable = now;
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
}

#[test]
fn a_window_of_confirms_is_fully_answered() {
    let rig = Rig::start(None, |_| {});
    let mut client = rig.client();
    client.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut writer = client.stream.try_clone().unwrap();
    let producer = std::thread::spawn(move || {
        for number in 0..100_000 {
            writer.write_all(&publish(b'P', "sink", 0, number, 10)).unwrap();
        }
    });
    let mut confirmed = 0;
    while confirmed < 100_000 {
        let (kind, count) = client.hear().expect("a confirm was lost");
        assert_eq!(kind, b'K');
        confirmed += u64::from_be_bytes(count.try_into().unwrap());
    }
    assert_eq!(confirmed, 100_000);
    producer.join().unwrap();
}

#[test]
fn publishers_that_are_told_to_slow_down_go_on() {
    let rig = Rig::start(Some(8192), |node| node.slow_down_at = 2);
    let mut consumer = rig.client();
    consumer.consume("q");
    let producers = produce(&rig, "q", 6, 10_000, 100, 50);
    drain(&mut consumer, 60_000, 6, |_| {});
    producers.into_iter().for_each(|p| p.join().unwrap());
}

#[test]
fn what_must_be_read_from_the_store_arrives_in_order() {
    let rig = Rig::start(None, |_| {});
    let mut consumer = rig.client();
    let producers = produce(&rig, "cold", 1, 50_000, 30, 100);
    consumer.consume("cold");
    drain(&mut consumer, 50_000, 1, |_| {});
    producers.into_iter().for_each(|p| p.join().unwrap());
}

#[test]
fn a_panic_ends_one_connection_and_no_other() {
    let rig = Rig::start(None, |_| {});
    let mut witness = rig.client();
    witness.consume("q");
    let mut victim = rig.client();
    victim.say(b'!', b"");
    assert_eq!(victim.hear(), None);
    // The same while the owner is held.
    let mut victim = rig.client();
    victim.say(b'T', b"panic\0x");
    assert_eq!(victim.hear(), None);
    witness.stream.write_all(&publish(b'T', "q", 0, 0, 0)).unwrap();
    assert_eq!(witness.hear().unwrap().0, b'D');
    assert_eq!(rig.hub.counts.panics.load(Ordering::Relaxed), 2);
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.hub.connections() != 1 {
        assert!(Instant::now() < deadline, "the panicked connections were not taken away");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_frame_larger_than_the_shared_buffer_is_put_together() {
    let rig = Rig::start(None, |_| {});
    let mut client = rig.client();
    client.consume("q");
    let mut body = b"q\0".to_vec();
    body.extend((0..3_000_000u32).map(|i| (i % 251) as u8));
    let mut writer = client.stream.try_clone().unwrap();
    let sent = body.clone();
    let sending = std::thread::spawn(move || writer.write_all(&frame(b'T', &sent)).unwrap());
    let (kind, got) = client.hear().unwrap();
    assert_eq!((kind, got.len()), (b'D', 3_000_000));
    assert_eq!(got, body[2..]);
    sending.join().unwrap();
}

#[test]
fn deadlines_are_kept() {
    let rig = Rig::start(None, |_| {});
    let mut client = rig.client();
    client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..5 {
        let start = Instant::now();
        client.say(b'?', b"");
        assert_eq!(client.hear().unwrap().0, b'p');
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(49) && took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn the_last_word_arrives_although_input_was_left_unread() {
    let rig = Rig::start(None, |_| {});
    for _ in 0..50 {
        let mut client = rig.client();
        let mut bytes = frame(b'X', b"");
        bytes.extend(vec![0; 100_000]);
        let _ = client.stream.write_all(&bytes);
        assert_eq!(client.hear().map(|said| said.0), Some(b'X'));
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let rig = Rig::start(None, |_| {});
    let stop = Arc::new(AtomicBool::new(false));
    let (done, all_done) = mpsc::channel();
    // Consumers vanish while they are delivered to.
    for _ in 0..4 {
        let (stop, done, address) = (stop.clone(), done.clone(), rig.address);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut client = Client1 { stream: std::net::TcpStream::connect(address).unwrap() };
                client.say(b'C', b"q");
                let _ = client.hear();
                let _ = client.hear();
            }
            done.send(()).unwrap();
        });
    }
    let producers = produce(&rig, "q", 2, 20_000, 100, 4);
    producers.into_iter().for_each(|p| p.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    // Those that wait for a delivery get one.
    let mut last = rig.client();
    let feeding = std::thread::spawn(move || {
        while last.stream.write_all(&publish(b'T', "q", 0, 0, 0)).is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    for _ in 0..4 {
        all_done.recv_timeout(Duration::from_secs(20)).expect("a client hangs");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.hub.connections() != 1 {
        assert!(Instant::now() < deadline, "{} connections are left", rig.hub.connections());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(feeding);
}
