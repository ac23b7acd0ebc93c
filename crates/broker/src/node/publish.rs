//! A publish: where it leads, whether every target takes it, and its place in their logs.

use super::{Node, THIS_COMMIT};
use crate::access::{Action, Resource};
use crate::arguments::{Durability, Overflow};
use crate::error::{Error, Reason};
use crate::limits;
use crate::message::{Facts, HEADERS, Origin, Properties};
use crate::queue::VhostKey;
use crate::request::{ConnectionId, LinkId, Now, Publish, Published, Route};
use crate::topology::{Entry, ExchangeKey, MessageView, NoMessage, QueueKey, Routed};
use crate::value::Table;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use storage::{Batch, Level as CommitLevel, LogId, Offset, Op, Pressure, Run};

/// A route as this connection last resolved it. Known by the address of the protocol's `Arc`, which it keeps alive.
pub(super) struct KnownRoute {
    route: Arc<Route>,
    /// Of the node: permissions, policies and reply addresses are as they were.
    version: u64,
    way: Way,
}

/// Where a route leads.
#[derive(Clone)]
pub(super) enum Way {
    /// To the same queues, whatever the message, as long as the topology says that it is current.
    Fixed(Arc<FixedWay>),
    /// Depends on each message (headers, properties, chance, delay).
    PerMessage,
    /// Straight to a consumer that waits for replies.
    Reply(ConnectionId, LinkId),
}

pub(super) struct FixedWay {
    targets: Vec<QueueKey>,
    routed: Routed,
}

/// Routes that a connection remembers.
const KNOWN_ROUTES_MAX: usize = 64;

/// Messages on their way into queues.
#[derive(Clone, Copy)]
pub(super) struct Incoming<'a> {
    pub batch: &'a Arc<Batch>,
    pub persistent: bool,
    pub priority: u8,
    pub any_expires: bool,
    pub any_headers: bool,
    pub confirm: bool,
}

impl<'a> Incoming<'a> {
    /// One record as a batch of its own.
    pub fn single(&self, index: u32) -> Arc<Batch> {
        if self.batch.len() == 1 { self.batch.clone() } else { Arc::new(self.batch.subset(index..index + 1)) }
    }

    pub fn of(publish: &'a Publish) -> Incoming<'a> {
        Incoming {
            batch: &publish.batch,
            persistent: publish.persistent,
            priority: publish.priority.unwrap_or(0),
            any_expires: publish.any_expires,
            any_headers: publish.any_headers,
            confirm: publish.confirm,
        }
    }
}

impl Node {
    pub(super) fn publish(&mut self, now: Now, id: ConnectionId, ticket: u32, publish: Publish) -> Published {
        let way = match self.way_of(id, &publish.route) {
            Ok(way) => way,
            Err(error) => return Published { error: Some(error), ..Published::default() },
        };
        self.counters.published += publish.batch.len() as u64;
        if publish.transactional {
            return Published { error: self.note_publish(id, ticket, publish), ..Published::default() };
        }
        if self.store.pressure() == Pressure::DrainOnly {
            let error = Error::new(Reason::ResourceError, "the journal is full");
            return Published { error: Some(error), ..Published::default() };
        }
        let mut published = Published::default();
        self.send(now, id, &way, &publish, &mut published);
        published
    }

    /// Sends messages along a way.
    pub(super) fn send(&mut self, now: Now, id: ConnectionId, way: &Way, publish: &Publish, published: &mut Published) {
        match way {
            Way::Fixed(fixed) if fixed.targets.is_empty() => {
                self.counters.unroutable += publish.batch.len() as u64;
                published.unroutable.push(0..publish.batch.len());
            }
            Way::Fixed(fixed) => self.enqueue(now, &fixed.targets, Incoming::of(publish), published),
            Way::Reply(connection, link) => self.reply_directly(*connection, *link, &publish.batch),
            Way::PerMessage => self.send_one_by_one(now, id, publish, published),
        }
    }

    /// Routes each message by itself; equal neighbours still share a batch.
    fn send_one_by_one(&mut self, now: Now, id: ConnectionId, publish: &Publish, published: &mut Published) {
        let Ok((_, vhost)) = self.who(id) else { return };
        let mut part = 0..0;
        let mut targets: Vec<QueueKey> = Vec::new();
        for index in 0..publish.batch.len() {
            let mut these = Vec::new();
            let routed =
                self.route_record(now, vhost, &publish.route, Entry::Publish, &Incoming::of(publish), index, &mut these);
            let kept_back = match routed {
                Ok(kept_back) => kept_back,
                Err(error) => {
                    published.error = Some(error);
                    return;
                }
            };
            if kept_back.durable {
                published.safe_at = Some(THIS_COMMIT);
            }
            if !kept_back.any && these.is_empty() {
                self.counters.unroutable += 1;
                published.unroutable.push(index..index + 1);
            }
            if these == targets {
                part.end = index + 1;
            } else {
                self.send_part(now, publish, part, &targets, published);
                (part, targets) = (index..index + 1, these);
            }
        }
        self.send_part(now, publish, part, &targets, published);
    }

    fn send_part(&mut self, now: Now, publish: &Publish, part: Range<u32>, targets: &[QueueKey], published: &mut Published) {
        if targets.is_empty() || part.is_empty() {
            return;
        }
        let batch = if part.len() == publish.batch.len() as usize {
            publish.batch.clone()
        } else {
            Arc::new(publish.batch.subset(part.clone()))
        };
        let mut result = Published::default();
        self.enqueue(now, targets, Incoming { batch: &batch, ..Incoming::of(publish) }, &mut result);
        published.safe_at = published.safe_at.max(result.safe_at);
        published.slow_down |= result.slow_down;
        published.refused.extend(result.refused.into_iter().map(|index| index + part.start));
    }

    /// Where one record goes by its own headers and properties. What delaying exchanges hold back is put away here.
    #[allow(clippy::too_many_arguments)] // one message, and how it comes to its exchange
    pub(super) fn route_record(
        &mut self,
        now: Now,
        vhost: VhostKey,
        route: &Route,
        entry: Entry,
        incoming: &Incoming,
        index: u32,
        targets: &mut Vec<QueueKey>,
    ) -> Result<KeptBack, Error> {
        let random = self.next_random();
        let mut view = RecordView::new(&self.properties, incoming.batch, index);
        let topology = &self.vhosts[vhost.0].topology;
        if let Some(duplicate) = topology.exchange_named(&route.exchange).and_then(|x| x.deduplication.as_ref()) {
            let cache = self.exchange_caches.entry((vhost, route.exchange.clone())).or_default();
            if duplicate.key(view.headers()).is_some_and(|key| !cache.insert(key, duplicate, now.mono_ms)) {
                return Ok(KeptBack { any: true, durable: false }); // dropped, and not unroutable
            }
        }
        let routed = topology.route(&route.exchange, entry, &keys_of(route), &mut view, random, targets)?;
        let mut kept_back = KeptBack::default();
        let name = |key: &ExchangeKey| topology.exchange(*key).map(|exchange| exchange.record.name.clone());
        let delayed_at: SmallVec<[Box<str>; 1]> = routed.delays.iter().filter_map(name).collect();
        for name in delayed_at {
            let single = incoming.single(index);
            self.delay(now, vhost, &name, routed.delay_ms, &Incoming { batch: &single, ..*incoming });
            kept_back.any = true;
            kept_back.durable |= incoming.persistent;
        }
        for key in routed.remember {
            self.remember(vhost, key, incoming, index);
        }
        Ok(kept_back)
    }

    /// Looks a route up, with every check that a publish to it needs.
    pub(super) fn way_of(&mut self, id: ConnectionId, route: &Arc<Route>) -> Result<Way, Error> {
        let version = self.version;
        let Some(connection) = self.connections.get(id.slot, id.generation) else { return Ok(Way::PerMessage) };
        let known = connection.routes.iter().position(|known| Arc::ptr_eq(&known.route, route));
        if let Some(known) = known.map(|at| &connection.routes[at]).filter(|known| known.version == version) {
            let current = match (&known.way, connection.vhost) {
                (Way::Fixed(fixed), Some(vhost)) => self.vhosts[vhost.0].topology.is_current(&fixed.routed),
                (Way::PerMessage, _) => false,
                _ => true,
            };
            if current {
                return Ok(known.way.clone());
            }
        }
        let way = self.resolve(id, route)?;
        let entry = KnownRoute { route: route.clone(), version, way: way.clone() };
        let routes = &mut self.connection_mut(id).routes;
        match known {
            Some(at) => routes[at] = entry,
            None if routes.len() < KNOWN_ROUTES_MAX => routes.push(entry),
            None => {
                routes.remove(0);
                routes.push(entry);
            }
        }
        Ok(way)
    }

    fn resolve(&mut self, id: ConnectionId, route: &Route) -> Result<Way, Error> {
        let (user, vhost_key) = self.who(id)?;
        self.connection_mut(id).publishes = true;
        let vhost = &self.vhosts[vhost_key.0];
        self.access.authorise(&user, &vhost.name, Action::Write, Resource::Exchange(&route.exchange))?;
        if route.exchange.is_empty() && route.routing_key.starts_with(crate::REPLY_ADDRESS) {
            return Ok(match self.reply_addresses.get(&route.routing_key) {
                Some(&(connection, link)) => Way::Reply(connection, link),
                // Nobody waits for it any more: dropped, and never returned.
                None => Way::Reply(id, LinkId::MAX),
            });
        }
        let exchange = vhost.topology.exchange_named(&route.exchange);
        if exchange.is_some_and(|exchange| exchange.is_topic()) {
            for key in keys_of(route) {
                let topic = Resource::Topic { exchange: &route.exchange, routing_key: key, client_id: None };
                self.access.authorise(&user, &vhost.name, Action::Write, topic)?;
            }
        }
        let mut targets = Vec::new();
        let routed = vhost.topology.route(
            &route.exchange,
            Entry::Publish,
            &keys_of(route),
            &mut NoMessage::default(),
            0,
            &mut targets,
        )?;
        let deduplicates = exchange.is_some_and(|exchange| exchange.deduplication.is_some());
        Ok(if routed.per_message || deduplicates {
            Way::PerMessage
        } else {
            Way::Fixed(Arc::new(FixedWay { targets, routed }))
        })
    }

    /// Puts messages into queues: one batch, one append, however many they are.
    pub(super) fn enqueue(&mut self, now: Now, targets: &[QueueKey], incoming: Incoming, published: &mut Published) {
        let mut to: SmallVec<[(LogId, Offset); 2]> = SmallVec::new();
        let mut settled: SmallVec<[(LogId, Run); 2]> = SmallVec::new();
        // A confirm waits for the strongest level among its durable targets.
        let mut durability = Durability::Os;
        for &key in targets {
            let refused = self.refused_by(now, key, &incoming, published);
            if refused.len() == incoming.batch.len() as usize {
                continue;
            }
            let queue = &self.queues[key.0];
            if queue.durable {
                durability = durability.max(queue.effective.durability.unwrap_or_default());
            }
            self.place(key, &incoming, &refused, &mut to, &mut settled);
            published.slow_down |= self.is_ahead_of_sockets(key);
        }
        if !to.is_empty() {
            let level = match durability {
                Durability::Fsync if incoming.confirm => CommitLevel::Sync,
                Durability::Fsync | Durability::Interval => CommitLevel::Lazy,
                Durability::Os => CommitLevel::Interval,
            };
            self.commit_bytes += incoming.batch.size();
            self.put(Op::Append { batch: incoming.batch.clone(), to }, level);
            for (log, run) in settled {
                self.put(Op::Settle { log, run }, CommitLevel::Lazy);
            }
            published.safe_at = (durability == Durability::Fsync).then_some(THIS_COMMIT);
        }
    }

    /// Much is ready in memory, and consumers would take it if their sockets did: a little patience saves it the way to disk.
    fn is_ahead_of_sockets(&self, key: QueueKey) -> bool {
        let queue = &self.queues[key.0];
        queue.levels.iter().any(|level| level.hot_bytes() >= limits::SLOW_DOWN_BYTES)
            && queue.served().iter().any(|consumer| {
                let id = consumer.connection;
                self.connections.get(id.slot, id.generation).is_some_and(|connection| connection.starved)
            })
    }

    /// Appends to one queue's log. Records that it refused keep their offsets, settled at once: the batch is shared.
    fn place(
        &mut self,
        key: QueueKey,
        incoming: &Incoming,
        refused: &[u32],
        to: &mut SmallVec<[(LogId, Offset); 2]>,
        settled: &mut SmallVec<[(LogId, Run); 2]>,
    ) {
        let priority = incoming.priority.min(self.queues[key.0].priority_max());
        let at = self.level_for(key, priority);
        let queue = &mut self.queues[key.0];
        let durable = queue.keeps(incoming.persistent);
        let level = &mut queue.levels[at];
        let (log, base) = (level.log, level.next);
        let count = incoming.batch.len();
        let kept = level.append(incoming.batch, durable);
        if durable || !kept {
            let told = level.tell_store(base, base + count as u64);
            if told == 0 && log.is_volatile() {
                self.put(Op::Create { log }, CommitLevel::Lazy);
            }
            if told < base {
                self.put(Op::Skip { log, from: told, to: base }, CommitLevel::Lazy);
            }
        }
        let queue = &mut self.queues[key.0];
        let level = &mut queue.levels[at];
        for &index in refused {
            level.remove_unseen(base + index as u64);
            if durable {
                settled.push((log, Run::one(base + index as u64)));
            }
        }
        queue.ready += (count - refused.len() as u32) as u64;
        if queue.effective.max_length_bytes.is_some() {
            queue.ready_bytes += body_bytes(incoming.batch, refused);
        }
        if incoming.any_expires {
            self.note_deadlines(key, log, base, incoming.batch);
            if durable {
                self.remember_expiring(key);
            }
        }
        if durable {
            to.push((log, base));
        } else if !kept {
            self.queues[key.0].levels[at].spilled();
            self.commit_bytes += incoming.batch.size();
            self.put(Op::Spill { log, base, batch: incoming.batch.clone() }, CommitLevel::Lazy);
        }
        self.touch(key);
    }

    /// Which records a queue does not take, ascending: duplicates (dropped), and what a full queue rejects.
    fn refused_by(&mut self, now: Now, key: QueueKey, incoming: &Incoming, published: &mut Published) -> Vec<u32> {
        let mut refused = self.duplicates(now, key, incoming);
        let queue = &self.queues[key.0];
        let rejects = queue.effective.overflow() != Overflow::DropHead;
        if !rejects || (queue.effective.max_length.is_none() && queue.effective.max_length_bytes.is_none()) {
            return refused;
        }
        let parked = queue.parked.letters.len() as u64;
        let max = queue.effective.max_length.map(|max| max.saturating_sub(parked));
        let bytes_max = queue.effective.max_length_bytes;
        let to_dead_letter = queue.effective.overflow() == Overflow::RejectPublishDlx;
        // Consumers with credit take theirs first: those never count as ready.
        let (mut ready, mut bytes) = (queue.ready, queue.ready_bytes);
        let mut free = self.credit_of(key);
        let queue = &self.queues[key.0];
        let mut rejected = Vec::new();
        for index in (0..incoming.batch.len()).filter(|index| refused.binary_search(index).is_err()) {
            let full = max.is_some_and(|max| ready >= max) || bytes_max.is_some_and(|max| bytes >= max);
            if full && free == 0 {
                rejected.push(index);
            } else if free > 0 && queue.ready == ready {
                free -= 1;
            } else {
                ready += 1;
                bytes += body_len(incoming.batch, index);
            }
        }
        if to_dead_letter {
            rejected.iter().for_each(|&index| self.dead_letter_refused(key, incoming, index));
        }
        published.refused.extend(&rejected);
        published.refused.sort_unstable();
        published.refused.dedup();
        refused.extend(rejected);
        refused.sort_unstable();
        refused
    }

    fn duplicates(&mut self, now: Now, key: QueueKey, incoming: &Incoming) -> Vec<u32> {
        let queue = &mut self.queues[key.0];
        let (Some(deduplication), true) = (&queue.effective.deduplication, incoming.any_headers) else { return Vec::new() };
        let mut duplicates = Vec::new();
        for index in 0..incoming.batch.len() {
            let mut view = RecordView::new(&self.properties, incoming.batch, index);
            let key = deduplication.key(view.headers());
            if key.is_some_and(|key| !queue.seen.get_or_insert_default().insert(key, deduplication, now.mono_ms)) {
                duplicates.push(index);
            }
        }
        duplicates
    }

    /// The level of a priority, made when first needed.
    fn level_for(&mut self, key: QueueKey, priority: u8) -> usize {
        let queue = &self.queues[key.0];
        match queue.levels.binary_search_by(|level| priority.cmp(&level.priority)) {
            Ok(at) => at,
            Err(at) => {
                self.add_level(key, priority, at);
                at
            }
        }
    }
}

pub(super) fn body_len(batch: &Batch, index: u32) -> u64 {
    batch.record(index).value.map_or(0, <[u8]>::len) as u64
}

fn body_bytes(batch: &Batch, refused: &[u32]) -> u64 {
    (0..batch.len()).filter(|index| refused.binary_search(index).is_err()).map(|index| body_len(batch, index)).sum()
}

/// What a route did besides finding queues.
#[derive(Default)]
pub(super) struct KeptBack {
    /// It is kept for later, or was a duplicate: not unroutable.
    pub any: bool,
    pub durable: bool,
}

fn keys_of(route: &Route) -> SmallVec<[&str; 4]> {
    std::iter::once(&*route.routing_key).chain(route.more_keys.iter().map(|key| &**key)).collect()
}

/// What routing may ask of one record.
pub(super) struct RecordView<'a> {
    properties: &'a HashMap<Origin, Arc<dyn Properties>>,
    facts: Option<Facts<'a>>,
    headers: Option<Table>,
}

impl<'a> RecordView<'a> {
    pub fn new(properties: &'a HashMap<Origin, Arc<dyn Properties>>, batch: &'a Batch, index: u32) -> RecordView<'a> {
        RecordView { properties, facts: batch.record(index).block().and_then(Facts::parse), headers: None }
    }
}

impl MessageView for RecordView<'_> {
    fn headers(&mut self) -> &Table {
        let RecordView { properties, facts, headers } = self;
        headers.get_or_insert_with(|| {
            let facts = facts.filter(|facts| facts.flags & HEADERS != 0);
            facts.and_then(|f| Some(properties.get(&f.origin)?.headers(f.properties))).unwrap_or_default()
        })
    }

    fn property(&mut self, name: &str) -> Option<String> {
        self.facts.and_then(|f| self.properties.get(&f.origin)?.property(f.properties, name))
    }
}
