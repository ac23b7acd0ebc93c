//! The owner of everything: one value, held by one mutex, for one read's batch of requests at a time.
//!
//! A call works off its requests in order, and then settles down: queues that were touched dispatch once, dead letters are
//! routed, and all that became durable is queued for the journal as one commit. Its position is filled into the replies.

mod admin;
mod catalog;
mod consume;
mod dead_letter;
mod declare;
mod delay;
mod dispatch;
mod expiry;
mod login;
mod park;
mod policies;
mod publish;
mod retry;
mod settle;
mod slab;
mod stats;
mod transaction;

pub use admin::{Answer, Change};
pub use stats::{Stats, Traffic};

use crate::access::Access;
use crate::dedup::Cache;
use crate::definitions::{self, Definitions};
use crate::error::{Error, Reason};
use crate::limits;
use crate::link::Link;
use crate::message::{Origin, Properties};
use crate::policy::Policies;
use crate::queue::{Queue, VhostKey};
use crate::request::{ConnectionId, Event, LinkId, Now, PoolId, Published, Reply, Request};
use crate::topology::{ExchangeKey, QueueKey, Topology};
use dead_letter::DeadLetter;
use expiry::Timer;
use publish::KnownRoute;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use storage::{Batch, Commit, Level as CommitLevel, LogId, Offset, Op, Position, Pressure, Store};
use transaction::Transaction;

/// What the server knows of a client when it connects.
#[derive(Clone, Debug)]
pub struct Client {
    /// `address:port`, for people.
    pub address: String,
    pub is_loopback: bool,
    /// Names the wire protocol in counters and lists: `amqp`, …
    pub protocol: &'static str,
}

/// What the caller has to carry out after it released the node.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be handed to the connections, in this order.
    pub events: Vec<(ConnectionId, Event)>,
    /// These connections wait for room: [`Node::handle_written`] is to be called as soon as their outbox has drained.
    pub starved: Vec<ConnectionId>,
    /// To be read from the store by a reader thread, and brought back by [`Node::handle_read`].
    pub reads: Vec<Read>,
}

/// A read that the node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub log: LogId,
    pub from: Offset,
    pub bytes_max: usize,
    pub purpose: Purpose,
}

/// Why something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A queue's cursor comes near.
    Cursor,
    /// Messages that expired before their turn came.
    Overdue,
    /// After a start: which messages have an expiration of their own?
    Deadlines,
    /// A bucket of delayed messages is near.
    Delayed,
    /// A dead letter that found no way is tried again.
    Parked,
}

/// Its result; an `Err` text means the store could not read (the messages stay where they are).
#[derive(Debug)]
pub struct ReadDone {
    pub read: Read,
    pub batches: Result<Vec<(Offset, Arc<Batch>)>, String>,
}

/// What stops publishers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Alarm {
    Memory,
    Disk,
    Journal,
}

impl Alarm {
    fn reason(self) -> &'static str {
        match self {
            Alarm::Memory => "low on memory",
            Alarm::Disk => "low on disk",
            Alarm::Journal => "low on journal",
        }
    }
}

#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// User, password and vhost made on an empty data directory; without it guest/guest on `/`.
    pub default_user: Option<(String, String, String)>,
    pub connections_max: usize,
    /// Seeds everything random: consumer rings, salts, exchange choices.
    pub seed: u64,
}

struct Vhost {
    name: Box<str>,
    /// What definitions say of it, its name included.
    description: definitions::Vhost,
    topology: Topology,
    queue_count: usize,
    policies: Policies,
    operator_policies: Policies,
}

struct Pool {
    /// 0 is no limit.
    window: u32,
    outstanding: u32,
}

struct Connection {
    client: Client,
    user: Option<Box<str>>,
    vhost: Option<VhostKey>,
    links: HashMap<LinkId, Link>,
    pools: HashMap<PoolId, Pool>,
    routes: Vec<KnownRoute>,
    transactions: HashMap<u32, Transaction>,
    /// Cost of deliveries that have not left for the socket.
    unwritten: u64,
    starved: bool,
    /// Its direct reply address, and the link that it feeds.
    reply_address: Option<(Box<str>, LinkId)>,
    exclusive_queues: Vec<QueueKey>,
    /// Has published: alarms are told to it, and stop it.
    publishes: bool,
    blocked: bool,
    /// Messages that it has published, and that were delivered to it.
    published: u64,
    delivered: u64,
    /// Channels of a user who may have so many and no more.
    counted_pools: BTreeSet<PoolId>,
}

pub struct Node {
    store: Arc<Store>,
    properties: HashMap<Origin, Arc<dyn Properties>>,
    access: Access,
    vhosts: Slab<Vhost>,
    vhost_names: HashMap<Box<str>, VhostKey>,
    queues: Slab<Queue>,
    /// Which queue's level a log is.
    logs: HashMap<LogId, QueueKey>,
    connections: Slab<Connection>,
    reply_addresses: HashMap<Box<str>, (ConnectionId, LinkId)>,
    /// Gets whose message is on its way from the store.
    waiting_gets: HashMap<QueueKey, VecDeque<consume::WaitingGet>>,
    /// Auto-delete queues that lost their last consumer in this call.
    unused: Vec<QueueKey>,
    /// What this call says to connections beside queues' deliveries: replies to their addresses, and that they are blocked.
    told: Vec<(ConnectionId, Event)>,
    /// Reads that recovery wants.
    first_reads: Vec<Read>,
    delays: delay::Delays,
    /// What deduplicating exchanges have seen.
    exchange_caches: HashMap<(VhostKey, Box<str>), Cache>,
    /// What recent-history exchanges remember.
    histories: HashMap<(VhostKey, ExchangeKey), VecDeque<Arc<Batch>>>,
    /// Where applying a vhost's new policies to its queues has come to.
    policy_sweeps: HashMap<VhostKey, u32>,
    /// What definitions files said that means nothing here.
    extras: Definitions,
    timers: BTreeSet<(u64, Timer)>,
    alarms: BTreeSet<Alarm>,
    /// Rises with every change of permissions, policies and reply addresses: routes remembered before are void.
    version: u64,
    /// What this call makes durable.
    commit: Commit,
    commit_bytes: usize,
    last_commit: Option<Position>,
    dirty: Vec<QueueKey>,
    dead_letters: VecDeque<DeadLetter>,
    random: u64,
    pub counters: stats::Counters,
    /// Of connections that are gone, by protocol.
    past_traffic: BTreeMap<&'static str, stats::Traffic>,
    settings: NodeSettings,
}

/// Stands in a reply until the commit of the call has its position.
const THIS_COMMIT: Position = Position(u64::MAX);

impl Node {
    pub fn register(&mut self, origin: Origin, properties: Arc<dyn Properties>) {
        self.properties.insert(origin, properties);
    }

    pub fn connect(&mut self, _now: Now, client: Client) -> Result<ConnectionId, Error> {
        if self.connections.len() >= self.settings.connections_max {
            return Err(Error::new(Reason::NotAllowed, "node connection limit is reached"));
        }
        self.counters.connections_opened += 1;
        let (slot, generation) = self.connections.insert(Connection {
            client,
            user: None,
            vhost: None,
            links: HashMap::new(),
            pools: HashMap::new(),
            routes: Vec::new(),
            transactions: HashMap::new(),
            unwritten: 0,
            starved: false,
            reply_address: None,
            exclusive_queues: Vec::new(),
            publishes: false,
            blocked: false,
            published: 0,
            delivered: 0,
            counted_pools: BTreeSet::new(),
        });
        Ok(ConnectionId { slot, generation })
    }

    /// The client is gone: what it held goes back, what was its own goes away.
    pub fn disconnect(&mut self, now: Now, id: ConnectionId, effects: &mut Effects) {
        if self.connections.get(id.slot, id.generation).is_none() {
            return;
        }
        self.counters.connections_closed += 1;
        self.leave_world(now, id, effects);
        if let Some(connection) = self.connections.remove(id.slot, id.generation) {
            self.past_traffic.entry(connection.client.protocol).or_default().add(&connection);
            if let Some((name, _)) = connection.reply_address {
                self.reply_addresses.remove(&name);
            }
        }
        self.settle_down(now, effects, &mut []);
    }

    /// What a connection held goes back; what was its own goes away.
    fn leave_world(&mut self, now: Now, id: ConnectionId, effects: &mut Effects) {
        self.connection_mut(id).transactions.clear();
        self.close_links(now, id, None);
        self.delete_exclusive_queues(now, id, effects);
    }

    /// Drains `requests`; pushes exactly one reply each, in order.
    pub fn handle(
        &mut self,
        now: Now,
        id: ConnectionId,
        requests: &mut Vec<Request>,
        replies: &mut Vec<Reply>,
        effects: &mut Effects,
    ) {
        let first = replies.len();
        let mut failed: SmallVec<[u32; 2]> = SmallVec::new();
        for request in requests.drain(..) {
            let reply = match ticket(&request) {
                Some(ticket) if failed.contains(&ticket) => Reply::Skipped,
                ticket => {
                    let reply = self.work_off(now, id, request, effects);
                    if let (Some(ticket), true) = (ticket, is_failure(&reply)) {
                        failed.push(ticket);
                    }
                    reply
                }
            };
            replies.push(reply);
            if self.commit_bytes > limits::COMMIT_BYTES_SOFT {
                self.settle_down(now, effects, &mut replies[first..]);
            }
        }
        self.settle_down(now, effects, &mut replies[first..]);
    }

    fn work_off(&mut self, now: Now, id: ConnectionId, request: Request, effects: &mut Effects) -> Reply {
        if self.connections.get(id.slot, id.generation).is_none() {
            return Reply::Skipped;
        }
        let result = match request {
            Request::Publish { ticket, publish } => return Reply::Published(self.publish(now, id, ticket, publish)),
            Request::Settle { ticket, link, first, count, outcome, transactional } => {
                if transactional {
                    self.note_settle(id, ticket, transaction::Settle { link, first, count, outcome });
                } else {
                    self.settle(now, id, link, first, count, outcome);
                }
                return Reply::Settled;
            }
            other => {
                // A control request sees the queues as its client does: with everything before it worked off.
                self.dispatch_dirty(now, effects);
                self.control(now, id, other, effects)
            }
        };
        result.unwrap_or_else(Reply::Failed)
    }

    fn control(&mut self, now: Now, id: ConnectionId, request: Request, effects: &mut Effects) -> Result<Reply, Error> {
        if makes_something(&request) && self.store.pressure() == Pressure::DrainOnly {
            return Err(Error::new(Reason::ResourceError, "the journal is full"));
        }
        match request {
            Request::Publish { .. } | Request::Settle { .. } => unreachable!("worked off by the caller"),
            Request::Authenticate { user, password } => self.authenticate(id, &user, &password),
            Request::AuthenticateAs { user } => self.authenticate_as(id, &user),
            Request::OpenVhost { vhost } => self.open_vhost(id, &vhost),
            Request::UpdateSecret { secret } => self.update_secret(id, &secret),
            Request::DeclareExchange(mut declare) => self.declare_exchange(id, &mut declare),
            Request::DeleteExchange { name, if_unused } => self.delete_exchange(id, &name, if_unused),
            Request::DeclareQueue(declare) => self.declare_queue(now, id, *declare),
            Request::DeleteQueue { name, if_unused, if_empty } => {
                self.delete_queue(now, id, &name, if_unused, if_empty, effects)
            }
            Request::Purge { queue } => self.purge(id, &queue),
            Request::Bind(binding) => self.bind(now, id, &binding),
            Request::Unbind(binding) => self.unbind(id, &binding),
            Request::Consume(consume) => self.consume(now, id, *consume),
            Request::Cancel { link } => self.cancel(now, id, link, effects),
            Request::OpenReplyAddress { link } => self.open_reply_address(id, link),
            Request::Get { link, pool, queue, auto_settle } => self.get(now, id, link, pool, &queue, auto_settle, effects),
            Request::SetWindow { pool, window } => self.set_window(id, pool, window),
            Request::Commit { ticket } => self.commit_transaction(now, id, ticket, effects),
            Request::Rollback { ticket } => {
                self.connection_mut(id).transactions.remove(&ticket);
                Ok(Reply::Done { safe_at: None })
            }
            Request::Leave => {
                self.leave_world(now, id, effects);
                Ok(Reply::Done { safe_at: None })
            }
            Request::OpenPool { pool } => self.open_pool(id, pool),
            Request::ClosePool { pool } => {
                self.connection_mut(id).transactions.remove(&pool);
                self.close_links(now, id, Some(pool));
                self.connection_mut(id).pools.remove(&pool);
                self.connection_mut(id).counted_pools.remove(&pool);
                self.delete_unused(now, effects);
                Ok(Reply::Done { safe_at: None })
            }
        }
    }

    /// Dispatches what was touched, routes dead letters, and queues the commit of the call.
    fn settle_down(&mut self, now: Now, effects: &mut Effects, replies: &mut [Reply]) {
        effects.reads.append(&mut self.first_reads);
        loop {
            self.dispatch_dirty(now, effects);
            if self.dead_letters.is_empty() {
                break;
            }
            self.route_dead_letters(now);
        }
        effects.events.append(&mut self.told);
        if let Some(position) = self.flush() {
            replies.iter_mut().for_each(|reply| fill_in(reply, position));
        } else {
            replies.iter_mut().for_each(|reply| fill_in(reply, self.store.durable()));
        }
    }

    /// Queues what has gathered for the journal. `None`: there was nothing.
    fn flush(&mut self) -> Option<Position> {
        if self.commit.is_empty() {
            return None;
        }
        let commit = std::mem::replace(&mut self.commit, Commit::new(CommitLevel::Interval));
        self.commit_bytes = 0;
        match self.store.commit(commit) {
            Ok(position) => {
                self.last_commit = Some(position);
                Some(position)
            }
            // Admission looked at the pressure before anything changed; what still fails here is a poisoned store (the
            // process is about to end) or a bug. Nothing may be answered as done.
            Err(refused) => panic!("the store refused a commit of the node: {refused:?}"),
        }
    }

    /// Adds to the commit of this call.
    fn put(&mut self, op: Op, level: CommitLevel) {
        self.commit.ops.push(op);
        // The most urgent of them decides.
        self.commit.level = match (self.commit.level, level) {
            (CommitLevel::Sync, _) | (_, CommitLevel::Sync) => CommitLevel::Sync,
            (CommitLevel::Lazy, _) | (_, CommitLevel::Lazy) => CommitLevel::Lazy,
            _ => CommitLevel::Interval,
        };
    }

    fn touch(&mut self, key: QueueKey) {
        if let Some(queue) = self.queues.at_mut(key.0).filter(|queue| !queue.dirty) {
            queue.dirty = true;
            self.dirty.push(key);
        }
    }

    fn dispatch_dirty(&mut self, now: Now, effects: &mut Effects) {
        while let Some(key) = self.dirty.pop() {
            if let Some(queue) = self.queues.at_mut(key.0) {
                queue.dirty = false;
                self.dispatch(now, key, effects);
            }
        }
    }

    /// `cost` of deliveries of this connection (sum of `Delivery::cost`) has left for the socket.
    pub fn handle_written(&mut self, now: Now, id: ConnectionId, cost: u64, effects: &mut Effects) {
        let Some(connection) = self.connections.get_mut(id.slot, id.generation) else { return };
        connection.unwritten = connection.unwritten.saturating_sub(cost);
        if !connection.starved || connection.unwritten >= limits::OUTBOX_BYTES_LOW {
            if connection.starved {
                effects.starved.push(id);
            }
            return;
        }
        connection.starved = false;
        let queues: SmallVec<[QueueKey; 8]> = connection.links.values().filter_map(|link| link.queue).collect();
        queues.into_iter().for_each(|key| self.touch(key));
        self.settle_down(now, effects, &mut []);
    }

    /// Alarms: publishers stop while any is on.
    pub fn set_alarm(&mut self, alarm: Alarm, on: bool, effects: &mut Effects) {
        let changed = if on { self.alarms.insert(alarm) } else { self.alarms.remove(&alarm) };
        if !changed {
            return;
        }
        let reason = self.alarm_reason();
        for (slot, generation, connection) in self.connections.iter_mut() {
            let id = ConnectionId { slot, generation };
            match &reason {
                Some(reason) if connection.publishes => {
                    connection.blocked = true;
                    effects.events.push((id, Event::Blocked { reason: reason.clone() }));
                }
                None if connection.blocked => {
                    connection.blocked = false;
                    effects.events.push((id, Event::Unblocked));
                }
                _ => {}
            }
        }
    }

    /// Its first publish: from now on alarms are its business, the one that is on as well.
    fn becomes_publisher(&mut self, id: ConnectionId) {
        let reason = self.alarm_reason();
        let connection = self.connection_mut(id);
        if std::mem::replace(&mut connection.publishes, true) {
            return;
        }
        if let Some(reason) = reason {
            connection.blocked = true;
            self.told.push((id, Event::Blocked { reason }));
        }
    }

    fn alarm_reason(&self) -> Option<Box<str>> {
        let reasons: Vec<&str> = self.alarms.iter().map(|alarm| alarm.reason()).collect();
        (!reasons.is_empty()).then(|| reasons.join(" & ").into())
    }

    fn connection(&self, id: ConnectionId) -> &Connection {
        self.connections.get(id.slot, id.generation).expect("checked when the request was taken")
    }

    fn connection_mut(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections.get_mut(id.slot, id.generation).expect("checked when the request was taken")
    }

    /// The user and vhost of an opened connection.
    fn who(&self, id: ConnectionId) -> Result<(Box<str>, VhostKey), Error> {
        let connection = self.connection(id);
        match (&connection.user, connection.vhost) {
            (Some(user), Some(vhost)) => Ok((user.clone(), vhost)),
            _ => Err(Error::new(Reason::NotAllowed, "no vhost is open")),
        }
    }

    /// xorshift64*: enough to spread load; nothing secret comes from it.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// What a failure of the request reaches: requests without one are barriers, nothing follows them.
fn ticket(request: &Request) -> Option<u32> {
    match request {
        Request::Publish { ticket, .. } | Request::Settle { ticket, .. } => Some(*ticket),
        _ => None,
    }
}

/// What is left of a full journal belongs to those who empty queues.
fn makes_something(request: &Request) -> bool {
    matches!(request, Request::DeclareExchange(_) | Request::DeclareQueue(_) | Request::Bind(_) | Request::Commit { .. })
}

fn is_failure(reply: &Reply) -> bool {
    match reply {
        Reply::Failed(_) => true,
        Reply::Published(published) => published.error.is_some(),
        _ => false,
    }
}

fn fill_in(reply: &mut Reply, position: Position) {
    let safe_at = match reply {
        Reply::Published(published) => &mut published.safe_at,
        Reply::Done { safe_at }
        | Reply::Committed { safe_at, .. }
        | Reply::Queue { safe_at, .. }
        | Reply::Removed { safe_at, .. } => safe_at,
        _ => return,
    };
    if *safe_at == Some(THIS_COMMIT) {
        *safe_at = Some(position);
    }
}
