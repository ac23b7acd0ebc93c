//! Consumers and getters come and go; reads from the store come back.

use super::{Effects, Node, Pool, Purpose, ReadDone};
use crate::access::{Action, Resource};
use crate::arguments::ConsumerArguments;
use crate::arguments::QueueType;
use crate::error::{Error, Reason};
use crate::limits;
use crate::link::{Held, Link};
use crate::message::{Facts, PERSISTENT};
use crate::queue::Consumer;
use crate::request::{ConnectionId, Consume, Delivery, Event, LinkId, Now, PoolId, Reply};
use crate::topology::QueueKey;
use std::collections::VecDeque;
use std::sync::Arc;
use storage::{Batch, LogId, Offset};

/// A Get whose message has to be fetched from the store first.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingGet {
    connection: ConnectionId,
    link: LinkId,
}

impl WaitingGet {
    pub fn connection(self) -> ConnectionId {
        self.connection
    }
}

impl Node {
    pub(super) fn consume(&mut self, now: Now, id: ConnectionId, consume: Consume) -> Result<Reply, Error> {
        let (key, vhost) = self.usable_queue(id, &consume.queue, Action::Read)?;
        let queue = &self.queues[key.0];
        let arguments = ConsumerArguments::parse(&vhost, &queue.name, queue.arguments.queue_type, &consume.arguments)?;
        let resource = format!("queue '{}' in vhost '{}'", queue.name, vhost);
        let exclusive_there = queue.consumers.iter().any(|c| {
            let links = self.connections.get(c.connection.slot, c.connection.generation).map(|c| &c.links);
            links.and_then(|links| links.get(&c.link)).is_some_and(|link| link.exclusive)
        });
        let single_active = queue.effective.single_active_consumer;
        if exclusive_there || consume.exclusive && (!queue.consumers.is_empty() || single_active) {
            return Err(Error::access_refused(format!("{resource} in exclusive use")));
        }
        let timeout_ms = arguments.timeout_ms.or(queue.effective.consumer_timeout_ms).filter(|ms| *ms > 0);
        let link = Link {
            pool: consume.pool,
            queue: Some(key),
            tag: consume.tag,
            auto_settle: consume.auto_settle,
            exclusive: consume.exclusive,
            priority: arguments.priority,
            window: consume.window,
            outstanding: 0,
            next_number: 0,
            held: VecDeque::new(),
            timeout_ms,
        };
        let connection = self.connection_mut(id);
        connection.pools.entry(consume.pool).or_insert(Pool { window: 0, outstanding: 0 });
        connection.links.insert(consume.link, link);
        self.counters.consumers += 1;
        let queue = &mut self.queues[key.0];
        queue.add_consumer(Consumer { connection: id, link: consume.link, priority: arguments.priority });
        queue.used_ms = now.mono_ms;
        self.touch(key);
        Ok(Reply::Done { safe_at: None })
    }

    /// The consumer ends; what it holds stays held until it is settled or the channel ends.
    pub(super) fn cancel(
        &mut self,
        now: Now,
        id: ConnectionId,
        link_id: LinkId,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let connection = self.connection_mut(id);
        if connection.reply_address.as_ref().is_some_and(|(_, link)| *link == link_id) {
            if let Some((name, _)) = connection.reply_address.take() {
                connection.links.remove(&link_id);
                self.reply_addresses.remove(&name);
                self.version += 1;
            }
            return Ok(Reply::Done { safe_at: None });
        }
        let Some(link) = connection.links.get_mut(&link_id) else { return Ok(Reply::Done { safe_at: None }) };
        let consumed = link.queue.take();
        if link.held.is_empty() {
            connection.links.remove(&link_id);
        }
        if let Some(key) = consumed {
            self.consumer_gone(now, key, id, link_id);
            self.delete_unused(now, effects);
        }
        Ok(Reply::Done { safe_at: None })
    }

    /// Takes a consumer off its queue; an auto-delete queue goes with its last one ([`Node::delete_unused`]).
    pub(super) fn consumer_gone(&mut self, now: Now, key: QueueKey, id: ConnectionId, link: LinkId) {
        let Some(queue) = self.queues.at_mut(key.0) else { return };
        if queue.remove_consumer(id, link) {
            self.counters.consumers -= 1;
            self.use_queue(now, key);
            let queue = &self.queues[key.0];
            if queue.auto_delete && queue.consumers.is_empty() {
                self.unused.push(key);
            }
            self.touch(key);
        }
    }

    /// Deletes the auto-delete queues that lost their last consumer in this call.
    pub(super) fn delete_unused(&mut self, now: Now, effects: &mut Effects) {
        while let Some(key) = self.unused.pop() {
            let unused = self.queues.at(key.0).is_some_and(|queue| queue.auto_delete && queue.consumers.is_empty());
            if unused {
                self.remove_queue(now, key, effects);
            }
        }
    }

    /// A queue by name, if this connection may use it so; with the vhost's name for texts.
    pub(super) fn usable_queue(&mut self, id: ConnectionId, name: &str, action: Action) -> Result<(QueueKey, Box<str>), Error> {
        let (user, vhost_key) = self.who(id)?;
        let vhost = &self.vhosts[vhost_key.0];
        self.access.authorise(&user, &vhost.name, action, Resource::Queue(name))?;
        let Some(key) = vhost.topology.queue(name) else {
            return Err(Error::not_found(format!("no queue '{name}' in vhost '{}'", vhost.name)));
        };
        self.check_owner(id, key)?;
        Ok((key, vhost.name.clone()))
    }

    /// An exclusive queue is its own connection's only.
    pub(super) fn check_owner(&self, id: ConnectionId, key: QueueKey) -> Result<(), Error> {
        let queue = &self.queues[key.0];
        match queue.owner {
            Some(owner) if owner != id => Err(self.locked(queue)),
            _ => Ok(()),
        }
    }

    pub(super) fn locked(&self, queue: &crate::queue::Queue) -> Error {
        let vhost = &self.vhosts[queue.vhost.0].name;
        Error::new(
            Reason::Locked,
            format!(
                "cannot obtain exclusive access to locked queue '{}' in vhost '{vhost}'. It could be originally declared on \
                 another connection or the exclusive property value does not match that of the original declaration.",
                queue.name
            ),
        )
    }

    #[allow(clippy::too_many_arguments)] // the fields of `Request::Get`
    pub(super) fn get(
        &mut self,
        now: Now,
        id: ConnectionId,
        link: LinkId,
        pool: PoolId,
        queue: &str,
        auto_settle: bool,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let (key, vhost) = self.usable_queue(id, queue, Action::Read)?;
        let queue = &self.queues[key.0];
        if queue.effective.queue_type == QueueType::Quorum && queue.effective.single_active_consumer {
            let text = format!("queue '{}' in vhost '{vhost}' in exclusive use", queue.name);
            return Err(Error::new(Reason::Locked, text));
        }
        self.use_queue(now, key);
        let connection = self.connection_mut(id);
        connection.pools.entry(pool).or_insert(Pool { window: 0, outstanding: 0 });
        let link_state = connection.links.entry(link).or_insert_with(|| getter(pool));
        link_state.auto_settle = auto_settle;
        if self.queues[key.0].may_expire() {
            self.expire_head(now, key);
        }
        match self.get_front(now, id, link, key) {
            Some(reply) => Ok(reply),
            None => {
                self.waiting_gets.entry(key).or_default().push_back(WaitingGet { connection: id, link });
                self.read_ahead(key, effects);
                Ok(Reply::Later)
            }
        }
    }

    /// The answer to a Get; `None`: the message is still in the store.
    fn get_front(&mut self, now: Now, id: ConnectionId, link: LinkId, key: QueueKey) -> Option<Reply> {
        let Some((at, mut run)) = self.front(key) else {
            let empty = self.queues[key.0].levels.iter().all(|level| level.is_empty());
            return empty.then_some(Reply::Got { delivery: None, left: 0 });
        };
        run.count = 1;
        let queue = &mut self.queues[key.0];
        queue.levels[at].take(1);
        queue.ready -= 1;
        if queue.effective.max_length_bytes.is_some() {
            queue.ready_bytes = queue.ready_bytes.saturating_sub(super::publish::body_len(&run.batch, run.first));
        }
        let left = queue.ready;
        let held = Held {
            number: 0,
            count: 1,
            queue: key,
            log: queue.levels[at].log,
            offset: run.offset,
            batch: run.batch.clone(),
            first: run.first,
            stride: 1,
            durable: run.durable,
            deliveries: run.deliveries,
            failures: run.failures,
            since_ms: now.mono_ms,
        };
        let delivery: Delivery = self.hold(id, link, held, run.redelivered);
        Some(Reply::Got { delivery: Some(delivery), left })
    }

    /// Direct reply-to: a name that leads straight to a link of this connection.
    pub(super) fn open_reply_address(&mut self, id: ConnectionId, link: LinkId) -> Result<Reply, Error> {
        self.who(id)?;
        let (a, b) = (self.next_random(), self.next_random());
        let name: Box<str> = format!("{}.{:08x}{a:016x}.{b:016x}", crate::REPLY_ADDRESS, id.slot).into();
        let connection = self.connection_mut(id);
        if connection.reply_address.is_some() {
            return Err(Error::precondition("reply consumer already set"));
        }
        connection.reply_address = Some((name.clone(), link));
        connection.links.insert(link, Link { auto_settle: true, ..getter(0) });
        self.reply_addresses.insert(name.clone(), (id, link));
        self.version += 1;
        Ok(Reply::ReplyAddress { name })
    }

    /// Straight to the consumer of a reply address: no queue, no log.
    pub(super) fn reply_directly(&mut self, id: ConnectionId, link_id: LinkId, batch: &Arc<Batch>) {
        let Some(connection) = self.connections.get_mut(id.slot, id.generation) else { return };
        let Some(link) = connection.links.get_mut(&link_id) else { return };
        if connection.unwritten >= limits::REPLY_BYTES_MAX {
            return; // a caller that does not read its replies loses them, as with any non-queue
        }
        let count = batch.len();
        let cost = super::dispatch::cost(batch, 0, 1, count);
        connection.unwritten += cost as u64;
        connection.delivered += count as u64;
        let delivery = Delivery {
            link: link_id,
            number: link.next_number,
            batch: batch.clone(),
            first: 0,
            stride: 1,
            count,
            redelivered: false,
            delivery_count: None,
            cost,
        };
        link.next_number += count as u64;
        self.counters.delivered += count as u64;
        self.told.push((id, Event::Delivery(delivery)));
    }

    pub(super) fn set_window(&mut self, id: ConnectionId, pool: PoolId, window: u32) -> Result<Reply, Error> {
        let connection = self.connection_mut(id);
        connection.pools.entry(pool).or_insert(Pool { window: 0, outstanding: 0 }).window = window;
        self.touch_pool(id, pool);
        Ok(Reply::Done { safe_at: None })
    }

    /// What a reader thread brought.
    pub fn handle_read(&mut self, now: Now, done: ReadDone, effects: &mut Effects) {
        let Some(&key) = self.logs.get(&done.read.log) else {
            self.handle_delayed_read(now, done, effects);
            return;
        };
        if done.read.purpose == Purpose::Parked {
            self.handle_parked_read(now, key, done.read, done.batches.as_deref().ok(), effects);
            self.settle_down(now, effects, &mut []);
            return;
        }
        let batches = match done.batches {
            Ok(batches) => batches,
            Err(error) => {
                tracing::error!(
                    log = done.read.log.0,
                    from = done.read.from,
                    error,
                    "cannot read; the messages stay where they are"
                );
                return;
            }
        };
        let log = done.read.log;
        match done.read.purpose {
            Purpose::Deadlines => self.note_found_deadlines(key, log, &batches, effects),
            Purpose::Overdue => batches.iter().for_each(|(base, batch)| self.expire_overdue(key, log, *base, batch)),
            Purpose::Cursor | Purpose::Delayed | Purpose::Parked => self.fill(key, log, done.read.from, batches),
        }
        self.answer_waiting_gets(now, key, effects);
        self.touch(key);
        self.settle_down(now, effects, &mut []);
    }

    /// The cursor's next batches came. Messages that turn out not to be there (damage, reported by the store) are not ready.
    fn fill(&mut self, key: QueueKey, log: LogId, from: Offset, batches: Vec<(Offset, Arc<Batch>)>) {
        let queue = &mut self.queues[key.0];
        let (keeps_transient, keeps_persistent) = (queue.keeps(false), queue.keeps(true));
        let durable = |batch: &Batch| keeps_transient || keeps_persistent && is_persistent(batch);
        if let Some(level) = queue.level_of(log) {
            let missing = level.fill(from, batches, durable);
            queue.ready = queue.ready.saturating_sub(missing);
        }
    }

    fn answer_waiting_gets(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        let Some(mut waiting) = self.waiting_gets.remove(&key) else { return };
        while let Some(get) = waiting.pop_front() {
            let id = get.connection;
            let there = self.connections.get(id.slot, id.generation).is_some_and(|c| c.links.contains_key(&get.link));
            if !there {
                continue;
            }
            match self.get_front(now, id, get.link, key) {
                Some(reply) => effects.events.push((id, Event::Reply(reply))),
                None => {
                    waiting.push_front(get);
                    self.waiting_gets.insert(key, waiting);
                    return;
                }
            }
        }
    }

    pub(super) fn is_durable(&self, key: QueueKey, batch: &Batch) -> bool {
        self.queues[key.0].keeps(is_persistent(batch))
    }
}

/// All messages of a batch have the same persistence.
pub(super) fn is_persistent(batch: &Batch) -> bool {
    batch.record(0).block().and_then(Facts::parse).is_some_and(|facts| facts.flags & PERSISTENT != 0)
}

fn getter(pool: PoolId) -> Link {
    Link {
        pool,
        queue: None,
        tag: "".into(),
        auto_settle: false,
        exclusive: false,
        priority: 0,
        window: 0,
        outstanding: 0,
        next_number: 0,
        held: VecDeque::new(),
        timeout_ms: None,
    }
}
