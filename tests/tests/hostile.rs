//! Bytes and sockets that mean harm, against the real binary: the protocol's own error or a closed socket, nobody else touched,
//! memory bounded, no panic.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use tests::wire::{self, BODY, CONTENT_HEADER, Fields, HEADER, Login, METHOD, Wire, eventually};
use tests::{Braid, Tier};

const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What memory may grow by while hostile bytes are answered: thread caches and pages of the allocator, not what was announced.
const SLACK: u64 = 16 << 20;

fn start(name: &str) -> Braid {
    raise_descriptor_limit();
    Braid::start_and(name, &["--message-bytes-max", "1MiB"])
}

fn assert_unharmed(braid: &Braid, bystander: &mut Wire) {
    assert!(bystander.is_well(), "a connection that did nothing wrong is gone");
    Wire::open(&braid.address("amqp")).close();
    assert_eq!(braid.metric("panics_total"), Some(0.0));
    let log = braid.log();
    assert!(!log.contains("panic"), "{log}");
}

/// Says the bytes on a fresh connection with channel 1 open; answers the close that comes.
fn closed_with(braid: &Braid, bytes: &[u8]) -> (u16, String) {
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.say(bytes);
    loop {
        let frame = wire.read().expect("it says why before it closes");
        if let Some(close) = frame.close() {
            if frame.method() == (10, 50) {
                wire.say(&wire::method(0, 10, 51, &Fields::new()));
                assert_eq!(wire.rest(), [], "nothing follows a close");
            }
            return close;
        }
    }
}

fn header(size: u64) -> Vec<u8> {
    wire::frame(CONTENT_HEADER, 1, &Fields::new().u16(60).u16(0).u64(size).u16(0).0)
}

fn basic_publish() -> Vec<u8> {
    wire::method(1, 60, 40, &Fields::new().u16(0).short("").short("nobody").u8(0))
}

/// An arguments table of `depth` tables (or arrays) inside each other.
fn nested(depth: usize, tag: u8) -> Vec<u8> {
    let level = if tag == b'F' { 7 } else { 5 };
    let mut bytes = Vec::with_capacity(depth * level + 2);
    bytes.extend_from_slice(b"\x01n");
    for i in 0..depth {
        if tag == b'F' && i > 0 {
            bytes.extend_from_slice(b"\x01n");
        }
        bytes.push(tag);
        bytes.extend_from_slice(&(((depth - 1 - i) * level) as u32).to_be_bytes());
    }
    bytes
}

fn declare_with(arguments: &[u8]) -> Vec<u8> {
    wire::method(1, 50, 10, &Fields::new().u16(0).short("q").u8(0).long(arguments))
}

#[test]
fn what_is_too_long_is_refused_in_the_protocols_words() {
    let braid = start("hostile-long");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let before = braid.memory();
    let head = |size: u32| Fields::new().u8(METHOD).u16(1).u32(size).0;
    // A little over frame_max is allowed for, as RabbitMQ does; the next byte is not.
    for size in [131_073u32, 1 << 31, u32::MAX] {
        let (code, text) = closed_with(&braid, &head(size));
        assert_eq!(code, 501, "{size}: {text}");
        assert!(text.contains("frame_too_large"), "{text}");
    }
    let too_large = [basic_publish(), header(MESSAGE_BYTES_MAX as u64 + 1)].concat();
    let (code, text) = closed_with(&braid, &too_large);
    assert_eq!((code, &*text), (406, "PRECONDITION_FAILED - message size 1048577 is larger than configured max size 1048576"));
    for size in [1 << 31, 1 << 62, u64::MAX] {
        let (code, text) = closed_with(&braid, &[basic_publish(), header(size)].concat());
        assert!(matches!(code, 406 | 501), "{size}: {code} {text}");
    }
    let overlong = [basic_publish(), header(3), wire::frame(BODY, 1, b"four")].concat();
    assert_eq!(closed_with(&braid, &overlong).0, 501);
    assert!(braid.memory() < before + SLACK, "{} became {}", before, braid.memory());
    assert_unharmed(&braid, &mut bystander);
}

#[test]
fn tables_without_a_bottom_and_lengths_that_lie_end_their_connection_only() {
    let braid = start("hostile-tables");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let before = braid.memory();
    for tag in *b"FA" {
        for depth in [65, 128, 18_000] {
            let (code, text) = closed_with(&braid, &declare_with(&nested(depth, tag)));
            assert_eq!(code, 502, "{depth}: {text}");
        }
    }
    // What no frame can hold, in a header of one message: 65,535 levels are more bytes than a frame may have.
    let deep = nested(65_535, b'A');
    assert_eq!(closed_with(&braid, &declare_with(&deep)).0, 501);
    let long_table = Fields::new().u16(0).short("q").u8(0).u32(u32::MAX);
    let lies: [Fields; 5] = [
        long_table,
        Fields::new().u16(0).short("q").u8(0).u32(1 << 16),
        Fields::new().u16(0).short("q").u8(0).u32(i32::MAX as u32),
        Fields::new().u16(0).u8(255).raw(b"short"),
        Fields::new(),
    ];
    for lie in lies {
        let (code, text) = closed_with(&braid, &wire::method(1, 50, 10, &lie));
        assert!(matches!(code, 501 | 502), "{code} {text}");
    }
    assert_eq!(closed_with(&braid, &declare_with(b"\x01n?")).0, 502, "a type that there is not");
    assert!(braid.memory() < before + SLACK, "{} became {}", before, braid.memory());
    assert_unharmed(&braid, &mut bystander);
}

#[test]
fn frames_in_the_wrong_place_are_refused_in_the_protocols_words() {
    let braid = start("hostile-order");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let mut bad_end = wire::method(1, 50, 10, &Fields::new());
    *bad_end.last_mut().expect("a frame") = 0xCD;
    let close = wire::method(1, 20, 40, &Fields::new().u16(200).short("").u16(0).u16(0));
    let rows: [(&str, Vec<u8>, u16); 14] = [
        ("an end byte that is none", bad_end, 501),
        ("a type that there is not", wire::frame(0, 1, b"0123456789abcdefg"), 501),
        ("a method too short to have a number", wire::frame(METHOD, 1, &[0, 50]), 501),
        ("a body without a header", wire::frame(BODY, 1, b"x"), 505),
        ("a header without a publish", header(1), 505),
        ("two headers", [basic_publish(), header(1), header(1)].concat(), 505),
        ("a method instead of a header", [basic_publish(), basic_publish()].concat(), 505),
        ("a method instead of a body", [basic_publish(), header(1), basic_publish()].concat(), 505),
        ("a header on channel 0", wire::frame(CONTENT_HEADER, 0, &[0; 14]), 505),
        ("a heartbeat on a channel", wire::frame(wire::HEARTBEAT, 1, b""), 505),
        ("a second channel.open", wire::method(1, 20, 10, &Fields::new().short("")), 504),
        ("a channel that is not open", wire::method(9, 60, 10, &Fields::new().u32(0).u16(0).u8(0)), 504),
        ("start-ok again", Login::default().start_ok(), 504),
        ("a method that there is not", wire::method(1, 60, 999, &Fields::new()), 503),
    ];
    for (what, bytes, code) in rows {
        let (said, text) = closed_with(&braid, &bytes);
        assert_eq!(said, code, "{what}: {text}");
    }
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.say(&close);
    wire.wait_for(20, 41).expect("a channel may be closed");
    assert_unharmed(&braid, &mut bystander);
}

#[test]
fn other_protocols_are_told_which_one_is_spoken_here() {
    let braid = start("hostile-greeting");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let long = vec![b'x'; 300_000];
    let greetings: [&[u8]; 12] = [
        b"AMQP\x00\x01\x00\x00",
        b"AMQP\x03\x01\x00\x00",
        b"AMQP\x02\x01\x00\x00",
        b"AMQP\x01\x01\x08\x00",
        b"AMQP\x01\x01\x09\x01",
        b"AMQP\xff\xff\xff\xff",
        b"HELO\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd",
        b"\x00\x00\x00\x14\x00\x12\x00\x03\x00\x00\x00\x01\x00\x04test\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &long,
    ];
    for greeting in greetings {
        let mut stream = wire::tcp(&braid.address("amqp"));
        let _ = stream.write_all(greeting);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert_eq!(said, HEADER, "{:?}", &greeting[..greeting.len().min(20)]);
    }
    assert_unharmed(&braid, &mut bystander);
}

#[test]
fn before_login_frames_are_small_and_words_are_few() {
    let braid = start("hostile-login");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let started = || {
        let mut wire = Wire::connect(&braid.address("amqp"));
        wire.say(HEADER);
        wire.wait_for(10, 10).expect("it greets");
        wire
    };
    let code = |wire: &mut Wire, bytes: &[u8]| {
        wire.say(bytes);
        let (code, _) = wire.read()?.close()?;
        wire.say(&wire::method(0, 10, 51, &Fields::new()));
        Some(code)
    };
    assert_eq!(code(&mut started(), &Fields::new().u8(METHOD).u16(0).u32(8193).0), Some(501));
    assert_eq!(code(&mut started(), &wire::method(0, 10, 40, &Fields::new().short("/").short("").u8(0))), Some(504));
    let unknown = Login { mechanism: "CRAM-MD5", ..Login::default() };
    assert_eq!(code(&mut started(), &unknown.start_ok()), Some(503));
    let tuned = |frame_max: u32| wire::method(0, 10, 31, &Fields::new().u16(2047).u32(frame_max).u16(0));
    for frame_max in [0, 1, 131_073, u32::MAX] {
        let mut wire = started();
        wire.say(&Login::default().start_ok());
        wire.wait_for(10, 30).expect("it tunes");
        assert_eq!(code(&mut wire, &tuned(frame_max)), Some(530), "{frame_max}");
    }
    assert_unharmed(&braid, &mut bystander);
}

/// Silent, with a header only, one byte now and then, in the middle of start-ok, logged in but nowhere: all are let go by the
/// handshake's time, while who knows what it wants gets in.
#[test]
fn who_does_not_come_to_the_point_is_let_go() {
    let each = if Tier::of_this_run() >= Tier::Ci { 100 } else { 25 };
    let braid = start("hostile-half-open");
    let before = braid.memory();
    let start_ok = Login::default().start_ok();
    let beginnings: [&[u8]; 5] =
        [b"", HEADER, &HEADER[..3], &[&HEADER[..], &start_ok[..20]].concat(), &[&HEADER[..], &start_ok].concat()];
    let mut slow: Vec<TcpStream> = Vec::new();
    for beginning in beginnings {
        for _ in 0..each {
            let mut stream = wire::tcp(&braid.address("amqp"));
            stream.write_all(beginning).expect("it reads");
            slow.push(stream);
        }
    }
    let mut trickling: Vec<TcpStream> = (0..each).map(|_| wire::tcp(&braid.address("amqp"))).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut round = 0;
    while !slow.is_empty() || !trickling.is_empty() {
        assert!(Instant::now() < deadline, "{} silent and {} slow ones are still there", slow.len(), trickling.len());
        Wire::open(&braid.address("amqp")).close();
        slow.retain_mut(|stream| !is_closed(stream));
        let next = HEADER.iter().chain(&start_ok).nth(round).copied().unwrap_or(0);
        trickling.retain_mut(|stream| stream.write_all(&[next]).is_ok() && !is_closed(stream));
        round += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(braid.memory() < before + SLACK, "{} became {}", before, braid.memory());
    eventually("no half-open connection is counted", || braid.metric("connections_half_open") == Some(0.0));
    assert!(!braid.log().contains("panic"));
}

/// Takes in what is said, without waiting.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut said = [0; 4096];
    let closed = loop {
        match stream.read(&mut said) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break !wire::is_patience(&error),
        }
    };
    stream.set_nonblocking(false).expect("a socket");
    closed
}

/// The soft limit of files is often 1,024, which one test here needs alone.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[test]
fn there_are_so_many_half_open_connections_and_no_more() {
    if !Tier::of_this_run().require("a limit of open files above 2,048", raise_descriptor_limit() > 2_048) {
        return;
    }
    let braid = start("hostile-many");
    let address = braid.address("amqp");
    let mut bystander = Wire::open(&address);
    let mut half_open: Vec<TcpStream> = (0..1_024).map(|_| wire::tcp(&address)).collect();
    eventually("all of them are counted", || braid.metric("connections_half_open") == Some(1_024.0));
    for _ in 0..20 {
        let mut one_more = wire::tcp(&address);
        let _ = one_more.write_all(HEADER);
        assert!(!matches!(one_more.read(&mut [0; 1]), Ok(1)), "the 1,025th is greeted");
    }
    assert!(braid.metric("connections_refused_total") >= Some(20.0));
    assert!(bystander.is_well(), "who is in stays in");
    // One goes, one may come.
    half_open.pop();
    eventually("a place is free again", || {
        let mut stream = wire::tcp(&address);
        stream.write_all(HEADER).is_ok() && matches!(stream.read(&mut [0; 1]), Ok(1))
    });
    drop(half_open);
    eventually("all places are free again", || braid.metric("connections_half_open") == Some(0.0));
    assert_unharmed(&braid, &mut bystander);
}

/// Many that are not logged in, each saying as much as it can: what they cost together is bounded.
#[test]
fn all_that_are_not_logged_in_share_a_bounded_memory() {
    let braid = start("hostile-memory");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let before = braid.memory();
    let wrong = Login { password: "wrong", capabilities: &[], ..Login::default() };
    let wrong_and_told = Login { password: "wrong", ..Login::default() };
    let almost = Fields::new().u8(METHOD).u16(0).u32(8192).raw(&[0; 8000]).0;
    let sayings: [Vec<u8>; 3] = [
        [HEADER.to_vec(), wrong.start_ok(), vec![0; 200 << 10]].concat(),
        [HEADER.to_vec(), wrong_and_told.start_ok(), vec![0; 200 << 10]].concat(),
        [HEADER.to_vec(), almost].concat(),
    ];
    let mut peak = 0;
    let mut open = Vec::new();
    for i in 0..900 {
        let mut stream = wire::tcp(&braid.address("amqp"));
        let saying = &sayings[i % sayings.len()];
        stream.set_nonblocking(true).expect("a socket");
        let _ = stream.write(saying);
        open.push(stream);
        if i % 30 == 29 {
            peak = peak.max(braid.memory());
        }
    }
    assert!(peak < before + (900 * 16 << 10) + SLACK, "{before} became {peak}");
    drop(open);
    assert_unharmed(&braid, &mut bystander);
}

/// More knock than there are descriptors: the store keeps its own, who is in goes on, who goes makes room.
#[test]
fn without_descriptors_the_store_goes_on() {
    let dir = Braid::fresh_dir("hostile-files");
    let mut braid = Braid::start_within(dir, &["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"], Some(256));
    let address = braid.address("amqp");
    let mut bystander = Wire::open(&address);
    bystander.declare_queue("q", true).expect("it may");
    bystander.confirm_select();
    let crowd: Vec<TcpStream> = (0..400).map(|_| wire::tcp(&address)).collect();
    eventually("the crowd is refused", || braid.metric("connections_refused_total") > Some(200.0));
    // More than the journal's first part, so that the store has files to make.
    let body = vec![7; 100_000];
    for _ in 0..400 {
        assert_eq!(bystander.publish_confirmed("", "q", &body), Ok(true), "confirmed, so on disk");
    }
    assert_eq!(braid.page("/readyz").0, 200);
    drop(crowd);
    eventually("there is room again", || Wire::open_as(&address, &Login::default()).is_ok());
    assert_eq!(bystander.look_at_queue("q"), Ok((400, 0)));
    assert!(!braid.log().contains(" ERROR "), "{}", braid.log());
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    assert_eq!(Wire::open(&braid.address("amqp")).look_at_queue("q"), Ok((400, 0)));
}

/// Bodies that never come: what was announced costs nothing, what was begun on many channels has one bound.
#[test]
fn unfinished_messages_have_a_bound() {
    let braid = start("hostile-unfinished");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let before = braid.memory();
    let mut announcers: Vec<Wire> = (0..50).map(|_| Wire::open(&braid.address("amqp"))).collect();
    for wire in &mut announcers {
        wire.say(&[basic_publish(), header(MESSAGE_BYTES_MAX as u64)].concat());
    }
    assert!(announcers.iter_mut().all(|wire| wire.declare_queue_on(2).is_ok()));
    assert!(braid.memory() < before + SLACK);
    let begun = |channel: u16| {
        let open = wire::method(channel, 20, 10, &Fields::new().short(""));
        let whole = wire::publish(channel, "", "nobody", &vec![0; MESSAGE_BYTES_MAX]);
        let last_frame = MESSAGE_BYTES_MAX % (131_072 - 8) + 8;
        [&open, &whole[..whole.len() - last_frame]].concat()
    };
    let bytes: Vec<u8> = (2..60).flat_map(begun).collect();
    let (code, text) = closed_with(&braid, &bytes);
    assert!(matches!(code, 501 | 506), "{code} {text}");
    assert!(braid.memory() < before + 2 * SLACK);
    assert_unharmed(&braid, &mut bystander);
}

/// Who asks without listening is not answered for ever into memory.
#[test]
fn who_does_not_listen_is_not_talked_to() {
    let braid = start("hostile-deaf");
    let mut bystander = Wire::open(&braid.address("amqp"));
    let before = braid.memory();
    let mut stream = wire::tcp(&braid.address("amqp"));
    stream.write_all(&Login::default().all()).expect("it reads");
    stream.write_all(&wire::method(1, 20, 10, &Fields::new().short(""))).expect("it reads");
    let question = wire::method(1, 60, 10, &Fields::new().u32(0).u16(0).u8(0)).repeat(10_000);
    stream.set_nonblocking(true).expect("a socket");
    let until = Instant::now() + Duration::from_secs(3);
    let mut said = 0u64;
    while Instant::now() < until {
        match stream.write(&question) {
            Ok(count) => said += count as u64,
            Err(error) if wire::is_patience(&error) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(braid.memory() < before + SLACK, "{before} became {} after {said} bytes", braid.memory());
    assert_unharmed(&braid, &mut bystander);
    stream.shutdown(Shutdown::Both).expect("a socket");
}
