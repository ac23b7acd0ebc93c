//! Hostile bytes: mutated conversations, lengths that lie, tables without a bottom. No panic, the protocol's own error, and
//! memory that follows what was received, never what was announced.

mod harness;

use amqp::Settings;
use amqp::frame::{self, Scan};
use amqp::method::{self, Method};
use broker::{Event, Reply, Request};
use harness::{Random, answer, client_bytes};
use protocol::{Now, Peer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

/// Counts what this thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` held beyond what was held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

struct Victim {
    connection: Box<dyn protocol::Connection>,
    now: Now,
    requests: Vec<Request>,
}

impl Victim {
    fn new() -> Victim {
        let now = Now { unix_ms: 1, mono_ms: 1 };
        let settings = Settings { message_bytes_max: 1 << 20, ..Settings::default() };
        let connection = amqp::connection(Arc::new(settings), Peer::default(), now, 3);
        Victim { connection, now, requests: Vec::new() }
    }

    fn running() -> Victim {
        let mut victim = Victim::new();
        victim.feed(&handshake(), None);
        assert!(victim.said().contains(&(20, 11)), "the channel is open");
        victim
    }

    /// As a server would, with a broker that answers everything; `random` makes it moody.
    fn feed(&mut self, mut input: &[u8], mut random: Option<&mut Random>) {
        loop {
            let taken = self.connection.handle_input(self.now, input, &mut self.requests);
            input = &input[taken..];
            let worked = !self.requests.is_empty();
            while !self.requests.is_empty() {
                for request in std::mem::take(&mut self.requests) {
                    let refused = random.as_mut().is_some_and(|random| random.below(12) == 0);
                    let reply = if refused { Reply::Failed(broker::Error::precondition("no")) } else { answer(&request) };
                    self.connection.handle_reply(self.now, reply, &mut self.requests);
                    if let Request::Consume(consume) = &request {
                        let batch = Arc::new(harness::batch(&["a", "b", "c"], "x", "k", &[], &[0, 0], false));
                        let delivery = broker::Delivery {
                            link: consume.link,
                            number: 0,
                            cost: batch.size() as u32,
                            batch,
                            first: 0,
                            stride: 1,
                            count: 3,
                            redelivered: false,
                            delivery_count: None,
                        };
                        self.connection.handle_event(self.now, Event::Delivery(delivery), &mut self.requests);
                    }
                }
            }
            if taken == 0 && !worked {
                return;
            }
        }
    }

    /// What was said: whole frames only, each of them one that we read ourselves.
    fn said(&mut self) -> Vec<(u16, u16)> {
        let outbox = self.connection.outbox();
        let mut methods = Vec::new();
        loop {
            let ready = outbox.ready();
            if ready.is_empty() {
                return methods;
            }
            if ready.starts_with(b"AMQP") {
                outbox.advance(8);
                continue;
            }
            let Scan::Frame(frame) = frame::scan(ready, u32::MAX) else { panic!("half a frame was said") };
            if frame.kind == frame::METHOD {
                let (id, fields) = method::split(frame.payload).unwrap();
                Method::decode(id, fields).unwrap();
                methods.push(id);
            }
            let size = frame.size();
            outbox.advance(size);
        }
    }
}

fn handshake() -> Vec<u8> {
    let mut bytes = b"AMQP\x00\x00\x09\x01".to_vec();
    for line in [
        "0 ConnectionStartOk mechanism=PLAIN response=\\0guest\\0guest locale=en_US client_properties=product:fuzz",
        "0 ConnectionTuneOk channel_max=2047 frame_max=131072 heartbeat=0",
        "0 ConnectionOpen virtual_host=/",
        "1 ChannelOpen",
    ] {
        bytes.extend(client_bytes(line));
    }
    bytes
}

/// One of everything a client says on an open channel.
fn everything() -> Vec<Vec<u8>> {
    [
        "1 ExchangeDeclare exchange=x kind=topic durable arguments=alternate-exchange:y;n:5",
        "1 QueueDeclare queue=q durable arguments=x-message-ttl:60000;x-dead-letter-exchange:d;list:[1+2+three]",
        "1 QueueBind queue=q exchange=x routing_key=a.* arguments=x-match:all",
        "1 ExchangeBind destination=x source=y routing_key=k",
        "1 BasicQos prefetch_count=10",
        "1 BasicConsume queue=q consumer_tag=c arguments=x-priority:5",
        "1 publish x a.b mode=2 content-type=text/plain headers=a:1;b:two;CC:[k] message-id=7 hello",
        "1 publish x a.b mode=2 expiration=60000 priority=3 hello",
        "1 BasicAck delivery_tag=1",
        "1 BasicNack delivery_tag=2 multiple requeue",
        "1 BasicReject delivery_tag=3",
        "1 BasicGet queue=q",
        "1 BasicRecover requeue",
        "1 BasicCancel consumer_tag=c",
        "1 ConfirmSelect",
        "1 publish x a.b mandatory hello",
        "2 ChannelOpen",
        "2 TxSelect",
        "2 publish x a.b hello",
        "2 TxCommit",
        "2 TxRollback",
        "1 QueueUnbind queue=q exchange=x routing_key=a.*",
        "1 QueuePurge queue=q",
        "1 QueueDelete queue=q",
        "1 ExchangeDelete exchange=x",
        "0 heartbeat",
        "0 ConnectionUpdateSecret new_secret=s reason=r",
        "2 ChannelClose reply_code=200",
        "0 ConnectionClose reply_code=200",
    ]
    .iter()
    .map(|line| client_bytes(line))
    .collect()
}

#[test]
fn mutated_conversations_never_panic_and_end_in_the_protocols_words() {
    let whole = [vec![handshake()], everything()].concat();
    for seed in 0..4000u64 {
        let mut random = Random(seed * 7 + 1);
        let mut bytes = Vec::new();
        for piece in &whole {
            match random.below(25) {
                0 => {}
                1 => bytes.extend(piece.iter().chain(piece)),
                2 => bytes.extend(whole[random.below(whole.len())].iter()),
                _ => bytes.extend(piece),
            }
        }
        for _ in 0..random.below(6) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.next() as u8,
                2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(8)),
            }
        }
        let mut victim = Victim::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(1 + random.below(600)));
            victim.feed(chunk, Some(&mut Random(seed)));
            rest = after;
        }
        victim.said();
        victim.now.mono_ms += 100_000;
        let now = victim.now;
        victim.connection.handle_timeout(now, &mut victim.requests);
        victim.said();
    }
}

#[test]
fn lengths_that_lie_cost_no_memory_and_are_errors() {
    let frames = everything();
    let mut random = Random(99);
    let mut errors = 0;
    for round in 0..10_000 {
        let mut bytes = frames[round % frames.len()].clone();
        let width = [1, 2, 4, 8][random.below(4)];
        let at = random.below(bytes.len().saturating_sub(width).max(1));
        let remaining = (bytes.len() - at) as u64;
        let lie = [0, u64::MAX, 1, remaining + 1, 1 << 16, (1 << 31) - 1, (1 << 32) - 1][random.below(7)];
        let field = lie.to_be_bytes();
        let end = (at + width).min(bytes.len());
        bytes[at..end].copy_from_slice(&field[8 - (end - at)..]);
        let mut victim = Victim::running();
        let ((), peak) = peak_of(|| victim.feed(&bytes, None));
        assert!(peak <= 2 * bytes.len() + (64 << 10), "round {round}: {peak} bytes for a frame of {}", bytes.len());
        errors += victim.said().iter().filter(|id| matches!(id, (10, 50) | (20, 40))).count();
    }
    assert!(errors > 2000, "only {errors} of the lies were found out");
}

#[test]
fn an_announced_body_gets_memory_only_as_it_arrives() {
    let mut victim = Victim::running();
    let announced =
        [client_bytes("1 BasicPublish exchange=x routing_key=k"), client_bytes("1 header 60 1000000 0000")].concat();
    let ((), peak) = peak_of(|| victim.feed(&announced, None));
    assert!(peak < 8 << 10, "{peak} bytes for an announcement");
    let mut piece = Vec::new();
    let at = frame::begin(&mut piece, frame::BODY, 1);
    piece.resize(piece.len() + 1000, b'b');
    frame::finish(&mut piece, at);
    let mut received = 0;
    for _ in 0..999 {
        let ((), peak) = peak_of(|| victim.feed(&piece, None));
        received += 1000;
        assert!(peak <= 2 * received + (64 << 10) + 1024, "{peak} bytes more, {received} received");
    }
    assert!(victim.said().is_empty());
}

#[test]
fn unfinished_messages_of_many_channels_have_one_bound() {
    let mut victim = Victim::running();
    let mut body = Vec::new();
    let at = frame::begin(&mut body, frame::BODY, 0);
    body.resize(body.len() + 100_000, b'b');
    frame::finish(&mut body, at);
    for channel in 2..60u16 {
        let mut bytes = client_bytes(&format!("{channel} ChannelOpen"));
        bytes.extend(client_bytes(&format!("{channel} BasicPublish exchange=x routing_key=k")));
        bytes.extend(client_bytes(&format!("{channel} header 60 1048576 0000")));
        body[1..3].copy_from_slice(&channel.to_be_bytes());
        bytes.extend(&body);
        victim.feed(&bytes, None);
    }
    assert!(victim.said().contains(&(10, 50)));
}

#[test]
fn nesting_ends_at_its_bound_whatever_the_depth() {
    for tag in [b'F', b'A'] {
        for depth in [65usize, 128, 20_000, 100_000] {
            // From the inside out: each level's size is that of the levels in it.
            let level = if tag == b'F' { 6 } else { 5 };
            let mut table = Vec::with_capacity(depth * level + 8);
            table.extend_from_slice(b"\x01n");
            for i in 0..depth {
                if tag == b'F' && i > 0 {
                    table.push(0);
                }
                table.push(tag);
                table.extend_from_slice(&(((depth - 1 - i) * level) as u32).to_be_bytes());
            }
            assert!(amqp::field_table::validate(&table).is_err(), "{depth}");
            assert!(amqp::field_table::decode(&table).is_err(), "{depth}");
            let arguments = amqp::method::RawTable(&table);
            let mut bytes = Vec::new();
            let bind = Method::QueueBind { ticket: 0, queue: "q", exchange: "x", routing_key: "k", nowait: false, arguments };
            method::put(&mut bytes, 1, &bind);
            let mut victim = Victim::running();
            victim.feed(&bytes, None);
            assert_eq!(victim.said(), [(10, 50)], "{depth}");

            let mut properties = 0x2000u16.to_be_bytes().to_vec();
            amqp::reader::put_long(&mut properties, &table);
            let mut bytes = client_bytes("1 BasicPublish exchange=x routing_key=k");
            frame::put_content(&mut bytes, 1, &properties, b"", 4096);
            let mut victim = Victim::running();
            victim.feed(&bytes, None);
            assert_eq!(victim.said(), [(10, 50)], "{depth}");
        }
    }
}
