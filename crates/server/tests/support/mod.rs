//! A node, a store and a protocol small enough to see through, for real sockets on real threads.
//!
//! Wire: every frame is `length u32 | kind u8 | payload`, big endian.
//! In: `P queue\0body` publish with confirm, `T queue\0body` the same without, `C queue` consume, `?` ask for a ping in 50 ms,
//! `!` make the machine panic, `#` make the node panic, `X` be told goodbye. Out: `D body`, `K count` confirms, `p` ping,
//! `X reason` goodbye.

#![allow(dead_code)]

use broker::*;
use protocol::{Connection, Now, Outbox};
use server::clock::Clock;
use server::conn::Speech;
use server::hub::Hub;
use server::journal;
use server::owner::*;
use server::talk::Talk;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use storage::{LogId, Offset};

/// What an outbox may hold before the node stops delivering.
pub const ROOM: u64 = 256 << 10;

#[derive(Default)]
pub struct FakeJournal {
    state: Mutex<Groups>,
    queued: Condvar,
    durable: AtomicU64,
    pub batches: Mutex<Vec<Arc<Batch>>>,
    pub sync_time: Mutex<Duration>,
    pub closed: AtomicBool,
}

#[derive(Default)]
struct Groups {
    queued: u64,
}

impl FakeJournal {
    pub fn commit(&self) -> Position {
        let mut state = self.state.lock().unwrap();
        state.queued += 1;
        self.queued.notify_one();
        Position(state.queued)
    }
}

impl Journal for FakeJournal {
    fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::SeqCst))
    }
    fn wait_for_group(&self, at_most: Duration) -> bool {
        let state = self.state.lock().unwrap();
        let durable = self.durable.load(Ordering::SeqCst);
        !self.queued.wait_timeout_while(state, at_most, |s| s.queued == durable).unwrap().1.timed_out()
    }
    fn write_group(&self) -> Result<Position, String> {
        let queued = self.state.lock().unwrap().queued;
        std::thread::sleep(*self.sync_time.lock().unwrap());
        self.durable.store(queued, Ordering::SeqCst);
        Ok(Position(queued))
    }
    fn wait_for_checkpoint(&self, at_most: Duration) -> bool {
        std::thread::sleep(at_most);
        false
    }
    fn checkpoint(&self) -> Result<(), String> {
        Ok(())
    }
    fn read(&self, read: Read) -> Result<Vec<(Offset, Arc<Batch>)>, String> {
        let batches = self.batches.lock().unwrap();
        Ok(batches.iter().enumerate().skip(read.from as usize).take(10).map(|(i, b)| (i as u64, b.clone())).collect())
    }
    fn is_pressed(&self) -> bool {
        false
    }
    fn figures(&self) -> Figures {
        vec![Figure::counter("groups_total", "Groups.", 1)]
    }
    fn close(&self) -> Result<(), String> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Batch>>,
    consumers: Vec<(ConnectionId, LinkId)>,
    turn: usize,
}

pub struct FakeNode {
    journal: Arc<FakeJournal>,
    queues: HashMap<Box<str>, Queue>,
    next_slot: u32,
    /// Bytes on their way to each connection, and whether it starves.
    rooms: BTreeMap<ConnectionId, (u64, bool)>,
    numbers: HashMap<(ConnectionId, LinkId), u64>,
    cold_next: u64,
    cold_reading: bool,
    pub alarms: Vec<(Alarm, bool)>,
    pub timeouts: u64,
    pub slow_down_at: usize,
}

impl FakeNode {
    pub fn new(journal: Arc<FakeJournal>) -> FakeNode {
        FakeNode {
            journal,
            queues: HashMap::new(),
            next_slot: 0,
            rooms: BTreeMap::new(),
            numbers: HashMap::new(),
            cold_next: 0,
            cold_reading: false,
            alarms: Vec::new(),
            timeouts: 0,
            slow_down_at: usize::MAX,
        }
    }

    fn pump(&mut self, name: &str, effects: &mut Effects) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        'next: while let Some(batch) = queue.ready.front() {
            for _ in 0..queue.consumers.len() {
                let consumer = queue.consumers[queue.turn % queue.consumers.len()];
                queue.turn += 1;
                let Some(room) = self.rooms.get_mut(&consumer.0) else {
                    continue;
                };
                if room.0 >= ROOM {
                    if !std::mem::replace(&mut room.1, true) {
                        effects.starved.push(consumer.0);
                    }
                    continue;
                }
                room.0 += batch.size() as u64;
                let number = self.numbers.entry(consumer).or_default();
                let batch = queue.ready.pop_front().unwrap();
                let delivery = Delivery {
                    link: consumer.1,
                    number: *number,
                    first: 0,
                    stride: 1,
                    count: batch.len(),
                    redelivered: false,
                    delivery_count: None,
                    cost: batch.size() as u32,
                    batch,
                };
                *number += u64::from(delivery.count);
                effects.events.push((consumer.0, Event::Delivery(delivery)));
                continue 'next;
            }
            return;
        }
    }

    fn read_on(&mut self, effects: &mut Effects) {
        let has_consumer = self.queues.get("cold").is_some_and(|q| !q.consumers.is_empty());
        if has_consumer && !self.cold_reading && self.cold_next < self.journal.batches.lock().unwrap().len() as u64 {
            self.cold_reading = true;
            effects.reads.push(Read { log: LogId(1), from: self.cold_next, bytes_max: 1 << 20, purpose: Purpose::Cursor });
        }
    }

    fn publish(&mut self, publish: Publish, effects: &mut Effects) -> Published {
        let name = publish.route.routing_key.clone();
        assert_ne!(&*name, "panic", "planted");
        if &*name == "cold" {
            self.journal.batches.lock().unwrap().push(publish.batch);
            self.read_on(effects);
        } else {
            self.queues.entry(name.clone()).or_default().ready.push_back(publish.batch);
            self.pump(&name, effects);
        }
        let safe_at = publish.confirm.then(|| self.journal.commit());
        let slow_down = self.queues.get(&name).is_some_and(|q| q.ready.len() > self.slow_down_at);
        Published { safe_at, slow_down, ..Published::default() }
    }
}

impl Owner for FakeNode {
    fn connect(&mut self, _: Now, _: Client) -> Result<ConnectionId, Error> {
        let id = ConnectionId { slot: self.next_slot, generation: 1 };
        self.next_slot += 1;
        self.rooms.insert(id, (0, false));
        Ok(id)
    }
    fn disconnect(&mut self, _: Now, id: ConnectionId, _: &mut Effects) {
        self.rooms.remove(&id);
        self.queues.values_mut().for_each(|q| q.consumers.retain(|c| c.0 != id));
    }
    fn handle(
        &mut self,
        _: Now,
        id: ConnectionId,
        requests: &mut Vec<Request>,
        replies: &mut Vec<Reply>,
        effects: &mut Effects,
    ) {
        for request in requests.drain(..) {
            replies.push(match request {
                Request::Publish { publish, .. } => Reply::Published(self.publish(publish, effects)),
                Request::Consume(consume) => {
                    self.queues.entry(consume.queue.clone()).or_default().consumers.push((id, consume.link));
                    self.pump(&consume.queue, effects);
                    self.read_on(effects);
                    Reply::Done { safe_at: None }
                }
                Request::Authenticate { user, .. } => Reply::Authenticated { user, impersonator: false, counted: false },
                _ => Reply::Skipped,
            });
        }
    }
    fn handle_written(&mut self, _: Now, id: ConnectionId, cost: u64, effects: &mut Effects) {
        assert!(cost > 0);
        let Some(room) = self.rooms.get_mut(&id) else {
            return;
        };
        room.0 = room.0.checked_sub(cost).expect("never more than was given");
        room.1 = false;
        let names: Vec<_> =
            self.queues.iter().filter(|(_, q)| q.consumers.iter().any(|c| c.0 == id)).map(|(n, _)| n.clone()).collect();
        names.iter().for_each(|name| self.pump(name, effects));
    }
    fn handle_read(&mut self, _: Now, done: ReadDone, effects: &mut Effects) {
        self.cold_reading = false;
        for (offset, batch) in done.batches.unwrap() {
            assert_eq!(offset, self.cold_next);
            self.cold_next += 1;
            self.queues.get_mut("cold").unwrap().ready.push_back(batch);
        }
        self.pump("cold", effects);
        self.read_on(effects);
    }
    fn handle_timeout(&mut self, _: Now, _: &mut Effects) {
        self.timeouts += 1;
    }
    fn next_timeout(&self) -> Option<u64> {
        None
    }
    fn set_alarm(&mut self, alarm: Alarm, on: bool, _: &mut Effects) {
        self.alarms.push((alarm, on));
    }
    fn figures(&self) -> Figures {
        vec![Figure::counter("messages_in_total", "Messages.", 7).with("protocol", "line")]
    }
    fn administer(&mut self, _: Now, change: Change, _: &mut Effects) -> Result<Answer, Error> {
        let value = match change {
            Change::ListUsers => serde_json::json!([{"user": "guest", "tags": ["administrator"]}]),
            Change::DeleteUser { user } => return Err(Error::not_found(format!("no user '{user}'"))),
            other => serde_json::to_value(other).unwrap(),
        };
        Ok(Answer { value, safe_at: Some(self.journal.commit()) })
    }
}

/// The line protocol.
pub struct Line {
    outbox: Outbox,
    links: u32,
    /// Publishes asked for and not answered: how many messages each stands for.
    asked: VecDeque<u64>,
    /// Answered: (position, messages).
    unconfirmed: VecDeque<(Position, u64)>,
    ping_at: Option<u64>,
    finished: bool,
}

impl Line {
    pub fn new() -> Line {
        Line {
            outbox: Outbox::default(),
            links: 0,
            asked: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            ping_at: None,
            finished: false,
        }
    }

    fn say(&mut self, kind: u8, payload: &[u8]) {
        let out = self.outbox.buffer();
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.push(kind);
        out.extend_from_slice(payload);
    }

    fn flush_run(&mut self, run: &mut Option<(Vec<u8>, bool, BatchBuilder)>, requests: &mut Vec<Request>) {
        let Some((queue, confirm, builder)) = run.take() else {
            return;
        };
        self.asked.push_back(if confirm { builder.len() as u64 } else { 0 });
        let key = String::from_utf8(queue).unwrap();
        requests.push(Request::Publish {
            ticket: 1,
            publish: Publish {
                route: Arc::new(Route { exchange: "".into(), routing_key: key.into(), more_keys: Vec::new() }),
                batch: Arc::new(builder.finish()),
                persistent: confirm,
                priority: None,
                any_expires: false,
                any_headers: false,
                confirm,
                transactional: false,
            },
        });
    }
}

impl Connection for Line {
    fn handle_input(&mut self, now: Now, input: &[u8], requests: &mut Vec<Request>) -> usize {
        let mut at = 0;
        let mut run: Option<(Vec<u8>, bool, BatchBuilder)> = None;
        while let Some((length, rest)) = input[at..].split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = rest.get(..length + 1) else {
                break;
            };
            at += 5 + length;
            let (kind, payload) = (frame[0], &frame[1..]);
            match kind {
                b'P' | b'T' => {
                    let nul = payload.iter().position(|b| *b == 0).unwrap();
                    let (queue, body) = (&payload[..nul], &payload[nul + 1..]);
                    if run.as_ref().is_some_and(|(q, c, b)| q != queue || *c != (kind == b'P') || b.size() > 32 << 10) {
                        self.flush_run(&mut run, requests);
                    }
                    let (_, _, builder) = run.get_or_insert_with(|| (queue.to_vec(), kind == b'P', BatchBuilder::marked(0)));
                    builder.push_marked(0, &[body], &[]);
                }
                b'C' => {
                    self.flush_run(&mut run, requests);
                    self.links += 1;
                    requests.push(Request::Consume(Box::new(Consume {
                        link: self.links,
                        pool: 1,
                        queue: std::str::from_utf8(payload).unwrap().into(),
                        tag: "".into(),
                        auto_settle: true,
                        exclusive: false,
                        window: 0,
                        arguments: Table::default(),
                    })));
                    return at;
                }
                b'A' => requests.push(Request::Authenticate { user: "guest".into(), password: Box::new([]) }),
                b'?' => self.ping_at = Some(now.mono_ms + 50),
                b'X' => {
                    self.say(b'X', b"asked");
                    self.finished = true;
                    break;
                }
                b'!' => panic!("planted"),
                other => panic!("no such frame {other}"),
            }
        }
        self.flush_run(&mut run, requests);
        at
    }

    fn handle_reply(&mut self, _: Now, reply: Reply, _: &mut Vec<Request>) {
        match reply {
            Reply::Published(published) => {
                let count = self.asked.pop_front().expect("one reply each");
                if let Some(position) = published.safe_at {
                    self.unconfirmed.push_back((position, count));
                }
            }
            Reply::Done { .. } => self.say(b'c', b""),
            Reply::Authenticated { .. } => self.say(b'a', b""),
            other => panic!("{other:?}"),
        }
    }

    fn handle_event(&mut self, _: Now, event: Event, _: &mut Vec<Request>) {
        match event {
            Event::Delivery(delivery) => {
                for i in delivery.records() {
                    let body = delivery.batch.record(i).value.unwrap();
                    self.say(b'D', body);
                }
            }
            Event::Close { reason } => {
                self.say(b'X', reason.as_bytes());
                self.finished = true;
            }
            _ => {}
        }
    }

    fn handle_durable(&mut self, durable: Position) {
        let mut count = 0;
        while let Some((_, messages)) = self.unconfirmed.pop_front_if(|(position, _)| *position <= durable) {
            count += messages;
        }
        if count > 0 {
            self.say(b'K', &count.to_be_bytes());
        }
    }

    fn handle_timeout(&mut self, _: Now, _: &mut Vec<Request>) {
        self.ping_at = None;
        self.say(b'p', b"");
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.ping_at
    }

    fn awaits(&self) -> Option<Position> {
        self.unconfirmed.front().map(|(position, _)| *position)
    }

    fn wants_input(&self) -> bool {
        !self.finished
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    fn is_finished(&self) -> bool {
        self.finished
    }
}

/// A whole server on a free port; its runtime and threads end with the process.
pub struct Rig {
    pub hub: Arc<Hub>,
    pub journal: Arc<FakeJournal>,
    pub address: SocketAddr,
    pub runtime: tokio::runtime::Runtime,
}

impl Rig {
    /// `send_buffer`: what the kernel takes for each connection before EAGAIN.
    pub fn start(send_buffer: Option<u32>, adapt: impl FnOnce(&mut FakeNode)) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let fake = Arc::new(FakeJournal::default());
        *fake.sync_time.lock().unwrap() = Duration::from_micros(200);
        let mut node = FakeNode::new(fake.clone());
        adapt(&mut node);
        let hub = Hub::new(Box::new(node), fake.clone(), Clock::start());
        journal::spawn_writer(&hub, Arc::default()).unwrap();
        server::reader::spawn(&hub, 0).unwrap();
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            if let Some(bytes) = send_buffer {
                socket.set_send_buffer_size(bytes).unwrap();
            }
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(1024).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let serving = hub.clone();
        runtime.spawn(server::timer::run(hub.clone()));
        runtime.spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (read, write) = stream.into_split();
                let client = Client { address: peer.to_string(), is_loopback: true, protocol: "line" };
                let speech = Speech::new(Box::new(Line::new()), None);
                let conn = serving.connect(client, write, speech).unwrap();
                tokio::spawn(Talk::new(serving.clone(), conn, read, false, Vec::new()).run(|| {}));
            }
        });
        Rig { hub, journal: fake, address, runtime }
    }

    pub fn client(&self) -> Client1 {
        Client1 { stream: std::net::TcpStream::connect(self.address).unwrap() }
    }
}

/// A blocking client of the line protocol.
pub struct Client1 {
    pub stream: std::net::TcpStream,
}

impl Client1 {
    pub fn say(&mut self, kind: u8, payload: &[u8]) {
        use std::io::Write;
        self.stream.write_all(&frame(kind, payload)).unwrap();
    }

    pub fn hear(&mut self) -> Option<(u8, Vec<u8>)> {
        hear(&mut self.stream)
    }

    pub fn consume(&mut self, queue: &str) {
        self.say(b'C', queue.as_bytes());
        assert_eq!(self.hear().unwrap().0, b'c');
    }
}

pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(payload);
    frame
}

/// `None` at the end of the stream.
pub fn hear(from: &mut impl std::io::Read) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).ok()?;
    Some((head[4], payload))
}
