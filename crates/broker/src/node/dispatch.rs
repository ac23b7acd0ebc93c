//! From ready to delivered: which consumer gets what, by the batch.

use super::{Effects, Node, Purpose, Read};
use crate::arguments::{Overflow, QueueType};
use crate::death::DeathReason;
use crate::limits;
use crate::link::Held;
use crate::queue::level::ReadyRun;
use crate::request::{ConnectionId, Delivery, Event, LinkId, Now};
use crate::topology::QueueKey;
use smallvec::SmallVec;
use std::sync::Arc;
use storage::{Batch, Level as CommitLevel, Op, Run};

/// A consumer that can take more now, and how many messages.
#[derive(Clone, Copy, Debug)]
struct Taker {
    connection: ConnectionId,
    link: LinkId,
    credit: u32,
    /// Its place in the queue's list of consumers.
    at: usize,
    /// Shares a window with others: takes one message at a time.
    shared: bool,
}

impl Node {
    /// Delivers what is ready as far as credit goes, then looks after length limits, expiry and reading ahead.
    pub(super) fn dispatch(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        loop {
            if self.queues[key.0].may_expire() {
                self.expire_head(now, key);
            }
            if self.queues[key.0].consumers.is_empty() {
                break;
            }
            let Some((at, run)) = self.front(key) else { break };
            let takers = self.takers(key, average_size(&run), Some(effects));
            if takers.is_empty() {
                break;
            }
            self.hand_out(now, key, at, run, &takers, effects);
        }
        self.drop_overflow(key);
        if self.queues[key.0].may_expire() {
            self.expire_head(now, key);
            self.schedule_expiry(now, key);
        }
        self.read_ahead(key, effects);
    }

    /// The next ready messages and their level. A level whose next message is still in the store holds back lower ones.
    pub(super) fn front(&mut self, key: QueueKey) -> Option<(usize, ReadyRun)> {
        let may_expire = self.queues[key.0].may_expire();
        for (at, level) in self.queues[key.0].levels.iter_mut().enumerate() {
            if let Some(mut run) = level.front() {
                if may_expire {
                    // Each message is looked at by itself: the next may have expired though this one has not.
                    run.count = 1;
                }
                return Some((at, run));
            }
            if !level.is_empty() {
                return None;
            }
        }
        None
    }

    /// The consumers whose turn it may be: those of the highest priority among which one has credit.
    fn takers(&mut self, key: QueueKey, size: u64, mut effects: Option<&mut Effects>) -> SmallVec<[Taker; 8]> {
        let queue = &self.queues[key.0];
        let mut takers: SmallVec<[Taker; 8]> = SmallVec::new();
        let mut priority = i64::MAX;
        for (at, consumer) in queue.served().iter().enumerate() {
            if !takers.is_empty() && consumer.priority < priority {
                break;
            }
            priority = consumer.priority;
            let id = consumer.connection;
            let Some(connection) = self.connections.get_mut(id.slot, id.generation) else { continue };
            let Some(link) = connection.links.get(&consumer.link) else { continue };
            let (mut credit, mut shared) = (link.credit(), false);
            if let Some(pool) = connection.pools.get(&link.pool).filter(|pool| pool.window > 0 && !link.auto_settle) {
                credit = credit.min(pool.window.saturating_sub(pool.outstanding));
                shared = true;
            }
            if credit == 0 {
                continue;
            }
            if connection.unwritten >= limits::OUTBOX_BYTES_MAX {
                if let Some(effects) = effects.as_deref_mut().filter(|_| !connection.starved) {
                    connection.starved = true;
                    effects.starved.push(id);
                }
                continue;
            }
            let room = (limits::OUTBOX_BYTES_MAX - connection.unwritten) / size + 1;
            takers.push(Taker { connection: id, link: consumer.link, credit: credit.min(room as u32), at, shared });
        }
        takers
    }

    /// How many messages the queue's consumers could take now.
    pub(super) fn credit_of(&mut self, key: QueueKey) -> u64 {
        let takers = self.takers(key, 1, None);
        takers.iter().map(|taker| taker.credit as u64).sum()
    }

    /// Shares a run among takers in turn: each gets every n-th message, as if they had been dealt one by one.
    fn hand_out(&mut self, now: Now, key: QueueKey, at: usize, run: ReadyRun, takers: &[Taker], effects: &mut Effects) {
        let queue = &mut self.queues[key.0];
        let n = takers.len();
        let first = takers.iter().position(|taker| taker.at >= queue.turn).unwrap_or(0);
        let shared = takers.iter().any(|taker| taker.shared) && n > 1;
        let rounds = if shared { 1 } else { takers.iter().map(|taker| taker.credit).min().unwrap_or(0) };
        let total = (rounds as u64 * n as u64).min(run.count as u64) as u32;
        let total = if shared { 1 } else { total };
        queue.levels[at].take(total);
        queue.turn = takers[(first + (total as usize - 1)) % n].at + 1;
        queue.ready -= total as u64;
        if queue.effective.max_length_bytes.is_some() {
            let bytes: u64 = (run.first..run.first + total).map(|i| super::publish::body_len(&run.batch, i)).sum();
            queue.ready_bytes = queue.ready_bytes.saturating_sub(bytes);
        }
        let log = queue.levels[at].log;
        for i in 0..n.min(total as usize) as u32 {
            let taker = takers[(first + i as usize) % n];
            let count = (total - i).div_ceil(n as u32);
            let share = Held {
                number: 0,
                count,
                queue: key,
                log,
                offset: run.offset + i as u64,
                batch: run.batch.clone(),
                first: run.first + i,
                stride: n as u32,
                durable: run.durable,
                deliveries: run.deliveries,
                failures: run.failures,
                since_ms: now.mono_ms,
            };
            self.deliver(taker.connection, taker.link, share, run.redelivered, effects);
        }
    }

    /// Gives a run to a link. What a link settles by being written is settled here.
    pub(super) fn deliver(&mut self, id: ConnectionId, link_id: LinkId, held: Held, redelivered: bool, effects: &mut Effects) {
        let delivery = self.hold(id, link_id, held, redelivered);
        effects.events.push((id, Event::Delivery(delivery)));
    }

    /// Books a run on a link, and makes the delivery of it.
    pub(super) fn hold(&mut self, id: ConnectionId, link_id: LinkId, held: Held, redelivered: bool) -> Delivery {
        let count = held.count;
        self.counters.delivered += count as u64;
        if redelivered {
            self.counters.redelivered += count as u64;
        }
        let queue = &mut self.queues[held.queue.0];
        let shows_count = queue.effective.queue_type == QueueType::Quorum || queue.effective.max_retries.is_some();
        let delivery = Delivery {
            link: link_id,
            number: 0,
            batch: held.batch.clone(),
            first: held.first,
            stride: held.stride,
            count,
            redelivered,
            delivery_count: (shows_count && held.deliveries > 0).then_some(held.failures),
            cost: cost(&held.batch, held.first, held.stride, count),
        };
        let connection = self.connections.get_mut(id.slot, id.generation).expect("a taker is connected");
        connection.unwritten += delivery.cost as u64;
        let link = connection.links.get_mut(&link_id).expect("a taker has a link");
        let number = link.next_number;
        if link.auto_settle {
            link.next_number += count as u64;
            let (log, run, durable) = (held.log, held.run(), held.durable);
            self.settled(log, run, durable);
        } else {
            if let Some(pool) = connection.pools.get_mut(&link.pool) {
                pool.outstanding += count;
            }
            link.hold(held);
            queue.unsettled += count as u64;
            if let Some(timeout_ms) = link.timeout_ms {
                self.schedule_consumer_timeout(id, link_id, timeout_ms);
            }
        }
        Delivery { number, ..delivery }
    }

    /// These records are done with.
    pub(super) fn settled(&mut self, log: storage::LogId, run: Run, durable: bool) {
        if durable || self.may_be_spilled(log, run) {
            self.put(Op::Settle { log, run }, CommitLevel::Lazy);
        }
    }

    fn may_be_spilled(&mut self, log: storage::LogId, run: Run) -> bool {
        let Some(queue) = self.logs.get(&log).and_then(|key| self.queues.at_mut(key.0)) else { return false };
        queue.level_of(log).is_some_and(|level| level.may_be_spilled(run.first))
    }

    /// `drop-head`: what is too much leaves at the front, as RabbitMQ does after consumers had their chance.
    fn drop_overflow(&mut self, key: QueueKey) {
        loop {
            let queue = &self.queues[key.0];
            let limits = &queue.effective;
            let over = limits.max_length.is_some_and(|max| queue.ready > max)
                || limits.max_length_bytes.is_some_and(|max| queue.ready_bytes > max);
            if !over || limits.overflow() != Overflow::DropHead {
                return;
            }
            let Some((at, run)) = self.lowest(key) else { return };
            self.leave(key, at, run, DeathReason::MaxLength);
        }
    }

    /// The message that an overflow takes: the oldest of the lowest priority.
    fn lowest(&mut self, key: QueueKey) -> Option<(usize, ReadyRun)> {
        let levels = &mut self.queues[key.0].levels;
        for (at, level) in levels.iter_mut().enumerate().rev() {
            if let Some(run) = level.front() {
                return Some((at, ReadyRun { count: 1, ..run }));
            }
            if !level.is_empty() {
                return None;
            }
        }
        None
    }

    /// Asks for what the levels' cursors will need soon.
    pub(super) fn read_ahead(&mut self, key: QueueKey, effects: &mut Effects) {
        let wanted = !self.queues[key.0].consumers.is_empty();
        for level in &mut self.queues[key.0].levels {
            // Without a consumer only the head is of interest, and only while it is not in memory.
            if let Some(from) = level.wants_read().filter(|_| wanted || level.hot_bytes() == 0) {
                level.reading = true;
                effects.reads.push(Read { log: level.log, from, bytes_max: limits::READ_BYTES, purpose: Purpose::Cursor });
            }
        }
    }
}

fn average_size(run: &ReadyRun) -> u64 {
    (run.batch.size() as u64 / run.batch.len() as u64).max(1)
}

/// Bytes of a run's records.
pub(super) fn cost(batch: &Arc<Batch>, first: u32, stride: u32, count: u32) -> u32 {
    if stride == 1 {
        batch.records_size(first..first + count) as u32
    } else {
        (0..count).map(|i| batch.record_size(first + i * stride)).sum::<usize>() as u32
    }
}
