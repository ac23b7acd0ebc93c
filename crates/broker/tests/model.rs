//! A queue of the real node, over the real store on a simulated disk, beside a set of numbers.
//!
//! Messages carry their number. The model is small because the rule is: *what is ready is delivered in the order of publishing,
//! whatever came back in between*. So every delivery must be the lowest number that is ready. Between random operations the
//! node is closed and opened, or loses power; then everything that was confirmed and not settled must be there, nothing that
//! was not published, nothing twice, in order. A failure prints its seed; `BRAID_SEED=n` replays it.

use broker::message::{Facts, Origin, PERSISTENT, Properties};
use broker::{
    BatchBuilder, Client, ConnectionId, Consume, DeclareQueue, Delivery, Effects, Event, Node, NodeSettings, Now, Outcome,
    Publish, ReadDone, Reply, Request, Route, Table,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::sim_disk::Random;
use storage::{Position, SimDisk, Store};

/// No message of these tests has headers or properties.
struct NoProperties;

impl Properties for NoProperties {
    fn headers(&self, _: &[u8]) -> Table {
        Table::default()
    }

    fn property(&self, _: &[u8], _: &str) -> Option<String> {
        None
    }

    fn for_dead_letter(&self, properties: &[u8], _: bool) -> Vec<u8> {
        properties.to_vec()
    }
}

/// What a number is to the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    /// Held by the consumer, as its delivery of this number.
    Held(u64),
}

struct World {
    random: Random,
    disk: SimDisk,
    store: Arc<Store>,
    node: Node,
    id: ConnectionId,
    now: Now,
    link: u32,
    next: u64,
    /// Number, and whether it is persistent.
    messages: BTreeMap<u64, (State, bool)>,
    /// Persistent ones, by the position that makes them safe.
    published: Vec<(Position, u64)>,
    /// All that was ever settled.
    settled: BTreeSet<u64>,
}

fn settings() -> storage::Settings {
    storage::Settings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 2 << 20,
        tail_bytes_max: 16 << 10,
        segment_bytes: 32 << 10,
        disk_free_min: 0,
        reserve_bytes: 64 << 10,
        entropy: 1,
        ..storage::Settings::new("/data")
    }
}

fn open(disk: &SimDisk, now: Now, entropy: u64) -> (Arc<Store>, Node) {
    let settings = storage::Settings { entropy, ..settings() };
    let (store, recovered) = Store::open(Arc::new(disk.clone()), settings).expect("the store opens");
    let node = NodeSettings { default_user: None, connections_max: 10, seed: 7 };
    let mut node = Node::open(store.clone(), recovered, node, now).expect("the node opens");
    node.register(Origin(1), Arc::new(NoProperties));
    (store, node)
}

impl World {
    fn new(seed: u64) -> World {
        let now = Now { unix_ms: 1_000_000, mono_ms: 1 };
        let disk = SimDisk::new(seed);
        let (store, mut node) = open(&disk, now, seed);
        let id = connect(&mut node, now);
        let random = Random(seed);
        let (messages, published, settled) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut world = World { random, disk, store, node, id, now, link: 0, next: 0, messages, published, settled };
        world.log_in();
        let declare = DeclareQueue {
            name: "q".into(),
            server_named: false,
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: Table::default(),
        };
        world.ask(Request::DeclareQueue(Box::new(declare)));
        // From here on the queue outlives any loss of power.
        world.store.write_group().expect("the disk is well");
        world.consume();
        world
    }

    fn log_in(&mut self) {
        self.ask(Request::Authenticate { user: "guest".into(), password: (*b"guest").into() });
        self.ask(Request::OpenVhost { vhost: "/".into() });
    }

    fn consume(&mut self) {
        self.link += 1;
        let consume = Consume {
            link: self.link,
            pool: 1,
            queue: "q".into(),
            tag: "t".into(),
            auto_settle: false,
            exclusive: false,
            window: 1 + self.random.below(20) as u32,
            arguments: Table::default(),
        };
        self.ask(Request::Consume(Box::new(consume)));
    }

    fn ask(&mut self, request: Request) -> Reply {
        let (mut replies, mut effects) = (Vec::new(), Effects::default());
        self.node.handle(self.now, self.id, &mut vec![request], &mut replies, &mut effects);
        assert_eq!(replies.len(), 1, "one reply each");
        let reply = replies.pop().expect("just counted");
        assert!(!matches!(reply, Reply::Failed(_)), "{reply:?}");
        self.carry_out(effects);
        reply
    }

    /// Reads come back, deliveries are checked, as a server would: until nothing more happens.
    fn carry_out(&mut self, mut effects: Effects) {
        loop {
            for (_, event) in effects.events.drain(..) {
                match event {
                    Event::Delivery(delivery) => self.check_delivery(&delivery),
                    Event::Reply(_) => {}
                    other => panic!("{other:?} was not expected"),
                }
            }
            let mut next = Effects::default();
            for id in effects.starved.drain(..) {
                self.node.handle_written(self.now, id, u64::MAX / 2, &mut next);
            }
            for read in effects.reads.drain(..) {
                let batches = self.store.read(read.log, read.from, read.bytes_max).map_err(|error| error.to_string());
                self.node.handle_read(self.now, ReadDone { read, batches }, &mut next);
            }
            if next.events.is_empty() && next.reads.is_empty() && next.starved.is_empty() {
                return;
            }
            effects = next;
        }
    }

    fn check_delivery(&mut self, delivery: &Delivery) {
        assert_eq!(delivery.link, self.link);
        for (index, number) in delivery.records().zip(delivery.number..) {
            let value = delivery.batch.record(index).value.expect("a body");
            let message = u64::from_be_bytes(value[..8].try_into().expect("eight bytes"));
            let lowest = self.messages.iter().find(|(_, (state, _))| *state == State::Ready).map(|(number, _)| *number);
            let known = (self.messages.get(&message), self.settled.contains(&message));
            assert_eq!(Some(message), lowest, "the lowest that is ready comes first; of {message} is known {known:?}");
            self.messages.get_mut(&message).expect("just found").0 = State::Held(number);
        }
    }

    fn publish(&mut self) {
        let persistent = !self.random.one_in(4);
        let count = 1 + self.random.below(6);
        let filling = vec![7; self.random.below(900) as usize];
        let mut block = Vec::new();
        let facts = Facts {
            origin: Origin(1),
            flags: if persistent { PERSISTENT } else { 0 },
            priority: 0,
            exchange: "",
            routing_key: "q",
            expires_ms: None,
            annotations: &[],
            properties: &[],
        };
        facts.encode_head(&mut block);
        let mut builder = BatchBuilder::marked(self.now.unix_ms as i64);
        let numbers = self.next..self.next + count;
        for number in numbers.clone() {
            builder.push_marked(self.now.unix_ms as i64, &[&number.to_be_bytes(), &filling], &[&block]);
            self.messages.insert(number, (State::Ready, persistent));
        }
        self.next += count;
        let route = Arc::new(Route { exchange: "".into(), routing_key: "q".into(), more_keys: Vec::new() });
        let publish = Publish {
            route,
            batch: Arc::new(builder.finish()),
            persistent,
            priority: None,
            any_expires: false,
            any_headers: false,
            confirm: true,
            transactional: false,
        };
        let Reply::Published(published) = self.ask(Request::Publish { ticket: 1, publish }) else {
            panic!("not a publish's answer")
        };
        assert!(published.error.is_none() && published.refused.is_empty() && published.unroutable.is_empty());
        assert_eq!(published.safe_at.is_some(), persistent);
        self.published.extend(published.safe_at.into_iter().flat_map(|at| numbers.clone().map(move |number| (at, number))));
    }

    fn settle(&mut self) {
        let held = self.messages.values().filter_map(|(state, _)| match state {
            State::Held(number) => Some(*number),
            State::Ready => None,
        });
        let held: Vec<u64> = held.collect();
        if held.is_empty() {
            return;
        }
        let first = held[self.random.below(held.len() as u64) as usize];
        let count = 1 + self.random.below(6);
        let outcome = match self.random.below(6) {
            0 => Outcome::Requeue { failed: false },
            1 => Outcome::Reject,
            _ => Outcome::Accept,
        };
        let those = |state: State| matches!(state, State::Held(number) if number >= first && number < first + count);
        if matches!(outcome, Outcome::Requeue { .. }) {
            self.messages.values_mut().filter(|(state, _)| those(*state)).for_each(|(state, _)| *state = State::Ready);
        } else {
            self.settled.extend(self.messages.iter().filter(|(_, (state, _))| those(*state)).map(|(number, _)| *number));
            self.messages.retain(|_, (state, _)| !those(*state));
        }
        self.ask(Request::Settle { ticket: 1, link: self.link, first, count, outcome, transactional: false });
    }

    fn purge(&mut self) {
        let ready = self.messages.values().filter(|(state, _)| *state == State::Ready).count() as u64;
        let Reply::Removed { messages, .. } = self.ask(Request::Purge { queue: "q".into() }) else {
            panic!("not a purge's answer")
        };
        assert_eq!(messages, ready, "a purge counts what was ready");
        self.settled.extend(self.messages.iter().filter(|(_, (state, _))| *state == State::Ready).map(|(number, _)| *number));
        self.messages.retain(|_, (state, _)| *state != State::Ready);
    }

    /// The consumer goes, and another comes.
    fn reconnect(&mut self) {
        let mut effects = Effects::default();
        self.node.disconnect(self.now, self.id, &mut effects);
        self.messages.values_mut().for_each(|(state, _)| *state = State::Ready);
        self.carry_out(effects);
        self.id = connect(&mut self.node, self.now);
        self.log_in();
        self.consume();
    }

    /// In order: nothing that is not persistent survives, everything that is does.
    fn close_and_open(&mut self) {
        self.store.close().expect("the store closes");
        self.messages.retain(|_, (_, persistent)| *persistent);
        // Not even the power may fail behind a clean close.
        let disk = self.disk.after_crash(self.random.number());
        self.open_again(disk);
    }

    fn lose_power(&mut self) {
        let durable = self.store.durable();
        let disk = self.disk.after_crash(self.random.number());
        let safe: BTreeSet<u64> = self.published.iter().filter(|(at, _)| *at <= durable).map(|(_, number)| *number).collect();
        let (store, mut node) = open(&disk, self.now, self.random.number());
        let found = drained(&store, &mut node, self.now);
        assert!(found.windows(2).all(|two| two[0] < two[1]), "in order, none twice: {found:?}");
        let found: BTreeSet<u64> = found.into_iter().collect();
        for number in &safe {
            assert!(found.contains(number) || self.settled.contains(number), "{number} was confirmed, and is lost");
        }
        let published: BTreeSet<u64> = self.published.iter().map(|(_, number)| *number).collect();
        assert!(found.is_subset(&published), "ghosts: {:?}", found.difference(&published).collect::<Vec<_>>());
        // The next life begins with what was found, untouched: `drained` only looked.
        drop((store, node));
        self.settled.retain(|number| !found.contains(number));
        self.messages = found.into_iter().map(|number| (number, (State::Ready, true))).collect();
        let disk = disk.after_crash(self.random.number());
        self.open_again(disk);
    }

    fn open_again(&mut self, disk: SimDisk) {
        self.now.unix_ms += 10;
        let (store, node) = open(&disk, self.now, self.random.number());
        (self.disk, self.store, self.node) = (disk, store, node);
        self.published = self.messages.keys().map(|number| (Position(0), *number)).collect();
        self.messages.values_mut().for_each(|(state, _)| *state = State::Ready);
        self.id = connect(&mut self.node, self.now);
        self.log_in();
        self.consume();
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..16 => self.publish(),
            16..30 => self.settle(),
            30..34 => drop(self.store.write_group().expect("the disk is well")),
            34 => self.store.checkpoint().expect("the disk is well"),
            35 => self.purge_sometimes(),
            36 => self.reconnect(),
            37 if self.random.one_in(3) => self.close_and_open(),
            38 if self.random.one_in(3) => self.lose_power(),
            _ => {
                self.leave();
                self.consume();
            }
        }
    }

    /// The consumer ends, and what it holds goes back.
    fn leave(&mut self) {
        self.ask(Request::Cancel { link: self.link });
        let (link, outcome) = (self.link, Outcome::Release);
        self.ask(Request::Settle { ticket: 1, link, first: 0, count: u64::MAX, outcome, transactional: false });
        self.messages.values_mut().for_each(|(state, _)| *state = State::Ready);
    }

    fn purge_sometimes(&mut self) {
        if self.random.one_in(4) {
            self.purge();
        }
    }

    /// At the end everything that is there comes, in order.
    fn drain(&mut self) {
        self.leave();
        let expected: Vec<u64> = self.messages.keys().copied().collect();
        assert_eq!(drained(&self.store, &mut self.node, self.now), expected, "at the end");
    }
}

fn connect(node: &mut Node, now: Now) -> ConnectionId {
    let client = Client { address: "127.0.0.1:1".into(), is_loopback: true, protocol: "test" };
    node.connect(now, client).expect("there is room")
}

/// The numbers of all messages, got one by one and not settled.
fn drained(store: &Arc<Store>, node: &mut Node, now: Now) -> Vec<u64> {
    let id = connect(node, now);
    let mut numbers = Vec::new();
    let ask = |node: &mut Node, request: Request| {
        let (mut replies, mut effects) = (Vec::new(), Effects::default());
        node.handle(now, id, &mut vec![request], &mut replies, &mut effects);
        let mut reply = replies.pop().expect("one reply each");
        while let Some(read) = effects.reads.pop() {
            let batches = store.read(read.log, read.from, read.bytes_max).map_err(|error| error.to_string());
            node.handle_read(now, ReadDone { read, batches }, &mut effects);
        }
        for (_, event) in effects.events {
            if let Event::Reply(late) = event {
                reply = late;
            }
        }
        reply
    };
    ask(node, Request::Authenticate { user: "guest".into(), password: (*b"guest").into() });
    ask(node, Request::OpenVhost { vhost: "/".into() });
    loop {
        let get = Request::Get { link: 1, pool: 1, queue: "q".into(), auto_settle: false };
        match ask(node, get) {
            Reply::Got { delivery: Some(delivery), .. } => {
                let value = delivery.batch.record(delivery.first).value.expect("a body");
                numbers.push(u64::from_be_bytes(value[..8].try_into().expect("eight bytes")));
            }
            Reply::Got { delivery: None, .. } => return numbers,
            other => panic!("{other:?} is no answer to a get"),
        }
    }
}

fn live(seed: u64) {
    let mut world = World::new(seed);
    let steps = 100 + world.random.below(500);
    for _ in 0..steps {
        world.step();
    }
    world.drain();
}

#[test]
fn a_queue_agrees_with_its_model_through_restarts_and_power_losses() {
    let fixed = std::env::var("BRAID_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let count = if std::env::var("BRAID_TIER").as_deref() == Ok("ci") { 2_000 } else { 200 };
    let seeds = fixed.map_or(1..count + 1, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| live(seed)) {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
