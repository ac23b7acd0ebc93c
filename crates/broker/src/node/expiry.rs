//! What happens by itself: messages expire, unused queues go, held deliveries time out, delays end.

use super::{Effects, Node, Purpose, Read};
use crate::death::DeathReason;
use crate::limits;
use crate::message::Facts;
use crate::queue::VhostKey;
use crate::queue::level::Removal;
use crate::request::{ConnectionId, Event, LinkId, Now, Outcome};
use crate::topology::QueueKey;
use std::cmp::Reverse;
use std::sync::Arc;
use storage::{Batch, LogId, Offset};

/// Everything that can happen by itself. A timer may be stale: each looks at what is so when it fires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A message of the queue may have expired.
    Messages(QueueKey),
    /// The queue may have been unused for too long.
    Unused(QueueKey),
    /// The link may hold a delivery for too long.
    Held(ConnectionId, LinkId),
    /// A returned message of the queue may have waited long enough.
    Waiting(QueueKey),
    /// Dead letters that found no way are to be tried again.
    Parked(QueueKey),
    /// A delayed message may be due, or a far bucket near.
    Delays,
    /// The next slice of queues is to get the vhost's new policies.
    Policies(VhostKey),
}

impl Node {
    /// Monotonic ms of the next thing that happens by itself.
    pub fn next_timeout(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Now, effects: &mut Effects) {
        let mut fired = 0;
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now.mono_ms) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Messages(key) => self.expire_due(now, key, effects),
                Timer::Unused(key) => self.expire_queue(now, key, effects),
                Timer::Held(id, link) => self.time_out_held(now, id, link, effects),
                Timer::Waiting(key) => self.end_waits(now, key),
                Timer::Parked(key) => self.retry_parked(now, key, effects),
                Timer::Delays => self.release_delayed(now, effects),
                Timer::Policies(vhost) => self.sweep_policies(now, vhost),
            }
            fired += 1;
            if fired == limits::TIMERS_PER_TURN {
                break; // the rest at the next call, which is due at once
            }
        }
        self.settle_down(now, effects, &mut []);
    }

    pub(super) fn schedule(&mut self, at_mono_ms: u64, timer: Timer) {
        self.timers.insert((at_mono_ms, timer));
    }

    /// Notes the messages of a batch that have an expiration of their own; those that are delivered at once are never looked at again.
    pub(super) fn note_deadlines(&mut self, key: QueueKey, log: LogId, base: Offset, batch: &Arc<Batch>) {
        let queue = &mut self.queues[key.0];
        for index in 0..batch.len() {
            if let Some(deadline) = own_deadline(batch, index) {
                queue.deadlines.push(Reverse((deadline, log, base + index as u64)));
            }
        }
        // Most messages are consumed long before they expire: their entries are swept out before they pile up.
        if queue.deadlines.len() as u64 > limits::DEADLINES_SLACK + 4 * queue.ready {
            let mut deadlines = std::mem::take(&mut queue.deadlines).into_vec();
            deadlines.retain(|Reverse((_, log, offset))| queue.level_of(*log).is_some_and(|level| level.is_ready(*offset)));
            queue.deadlines = deadlines.into();
        }
    }

    /// A restart must know that there are such messages.
    pub(super) fn remember_expiring(&mut self, key: QueueKey) {
        if !self.queues[key.0].expiring {
            self.queues[key.0].expiring = true;
            self.save_queue(key);
        }
    }

    /// After a start: reads a queue's logs through for messages with an expiration of their own.
    pub(super) fn look_for_deadlines(&mut self, key: QueueKey) {
        self.queues[key.0].expiring = true;
        for (log, from) in self.queues[key.0].first_offsets() {
            self.first_reads.push(Read { log, from, bytes_max: limits::READ_BYTES, purpose: Purpose::Deadlines });
        }
    }

    /// The next part of such a log came.
    pub(super) fn note_found_deadlines(
        &mut self,
        key: QueueKey,
        log: LogId,
        batches: &[(Offset, Arc<Batch>)],
        effects: &mut Effects,
    ) {
        for (base, batch) in batches {
            self.note_deadlines(key, log, *base, batch);
        }
        if let Some((base, batch)) = batches.last() {
            let from = base + batch.len() as u64;
            effects.reads.push(Read { log, from, bytes_max: limits::READ_BYTES, purpose: Purpose::Deadlines });
        }
    }

    /// When a ready message expires, by its own wish or its queue's rule; Unix ms.
    fn deadline(&self, key: QueueKey, batch: &Batch, index: u32) -> Option<u64> {
        let ttl = self.queues[key.0].effective.message_ttl_ms;
        let by_queue = ttl.map(|ttl| (batch.record(index).timestamp as u64).saturating_add(ttl));
        let own = own_deadline(batch, index);
        match (by_queue, own) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Expired messages at the front leave. One that expires this very millisecond still has its chance with a consumer:
    /// a TTL of 0 means "now or never".
    pub(super) fn expire_head(&mut self, now: Now, key: QueueKey) {
        for _ in 0..limits::EXPIRED_PER_TURN {
            let Some((at, run)) = self.expired_front(now, key) else { return };
            self.leave(key, at, run, DeathReason::Expired);
        }
        self.schedule(now.mono_ms, Timer::Messages(key));
    }

    fn expired_front(&mut self, now: Now, key: QueueKey) -> Option<(usize, crate::queue::level::ReadyRun)> {
        for at in 0..self.queues[key.0].levels.len() {
            if let Some(mut run) = self.queues[key.0].levels[at].front() {
                if self.deadline(key, &run.batch, run.first).is_some_and(|deadline| deadline < now.unix_ms) {
                    run.count = 1;
                    return Some((at, run));
                }
            }
        }
        None
    }

    /// Sets the timer for the message that expires next.
    pub(super) fn schedule_expiry(&mut self, now: Now, key: QueueKey) {
        let mut next = self.queues[key.0].deadlines.peek().map(|Reverse((deadline, ..))| *deadline);
        if self.queues[key.0].effective.message_ttl_ms.is_some() {
            for at in 0..self.queues[key.0].levels.len() {
                if let Some(run) = self.queues[key.0].levels[at].front() {
                    let deadline = self.deadline(key, &run.batch, run.first);
                    next = [next, deadline].into_iter().flatten().min();
                }
            }
        }
        if let Some(deadline) = next {
            let at = now.mono_ms + deadline.saturating_sub(now.unix_ms) + 1;
            let queue = &mut self.queues[key.0];
            if queue.expiry_at.is_none_or(|set| at < set) {
                queue.expiry_at = Some(at);
                self.schedule(at, Timer::Messages(key));
            }
        }
    }

    /// Takes out every message whose own time has come, wherever it stands.
    fn expire_due(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        let Some(queue) = self.queues.at_mut(key.0) else { return };
        queue.expiry_at = None;
        for _ in 0..limits::EXPIRED_PER_TURN {
            let queue = &mut self.queues[key.0];
            let Some(&Reverse((deadline, log, offset))) = queue.deadlines.peek() else { break };
            if deadline >= now.unix_ms {
                break;
            }
            queue.deadlines.pop();
            self.expire_at(key, log, offset, effects);
        }
        self.touch(key);
    }

    fn expire_at(&mut self, key: QueueKey, log: LogId, offset: Offset, effects: &mut Effects) {
        let queue = &mut self.queues[key.0];
        let Some(level) = queue.level_of(log) else { return };
        match level.remove(offset) {
            Removal::Taken { batch, index, durable } => {
                self.leave_one(key, log, offset, &batch, index, durable, DeathReason::Expired);
            }
            Removal::NotReady => {}
            Removal::InStore => {
                queue.overdue.insert((log, offset));
                effects.reads.push(Read { log, from: offset, bytes_max: 1, purpose: Purpose::Overdue });
            }
        }
    }

    /// A batch came from the store for the sake of messages in it that have expired.
    pub(super) fn expire_overdue(&mut self, key: QueueKey, log: LogId, base: Offset, batch: &Arc<Batch>) {
        let range = (log, base)..(log, base + batch.len() as u64);
        let due: Vec<Offset> = self.queues[key.0].overdue.range(range).map(|(_, offset)| *offset).collect();
        for offset in due {
            let queue = &mut self.queues[key.0];
            queue.overdue.remove(&(log, offset));
            let Some(level) = queue.level_of(log) else { return };
            if level.remove_unseen(offset) {
                let index = (offset - base) as u32;
                let durable = self.is_durable(key, batch);
                self.leave_one(key, log, offset, batch, index, durable, DeathReason::Expired);
            }
        }
    }

    /// `x-expires`: the queue is deleted when nobody has used it for so long.
    pub(super) fn use_queue(&mut self, now: Now, key: QueueKey) {
        let queue = &mut self.queues[key.0];
        queue.used_ms = now.mono_ms;
        if let Some(expires) = queue.effective.expires_ms.filter(|_| queue.consumers.is_empty()) {
            self.schedule(now.mono_ms + expires, Timer::Unused(key));
        }
    }

    fn expire_queue(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        let Some(queue) = self.queues.at(key.0) else { return };
        let Some(expires) = queue.effective.expires_ms.filter(|_| queue.consumers.is_empty()) else { return };
        if now.mono_ms >= queue.used_ms + expires {
            self.remove_queue(now, key, effects);
        }
    }

    pub(super) fn schedule_consumer_timeout(&mut self, id: ConnectionId, link: LinkId, timeout_ms: u64) {
        let connection = self.connection(id);
        if let Some(oldest) = connection.links.get(&link).and_then(|link| link.held.front()) {
            let at = oldest.since_ms + timeout_ms;
            self.schedule(at, Timer::Held(id, link));
        }
    }

    /// A delivery was held too long: everything the link holds goes back, and the link is no more.
    fn time_out_held(&mut self, now: Now, id: ConnectionId, link_id: LinkId, effects: &mut Effects) {
        let Some(connection) = self.connections.get(id.slot, id.generation) else { return };
        let Some(link) = connection.links.get(&link_id) else { return };
        let (Some(timeout_ms), Some(oldest)) = (link.timeout_ms, link.held.front()) else { return };
        let deadline = oldest.since_ms + timeout_ms;
        if now.mono_ms < deadline {
            self.schedule(deadline, Timer::Held(id, link_id));
            return;
        }
        let consumed = link.queue;
        self.connection_mut(id).links.get_mut(&link_id).expect("just seen").queue = None;
        if let Some(key) = consumed {
            // Taken off first: what goes back shall reach another worker.
            self.consumer_gone(now, key, id, link_id);
        }
        self.settle(now, id, link_id, 0, u64::MAX, Outcome::Release);
        self.connection_mut(id).links.remove(&link_id);
        effects.events.push((id, Event::TimedOut { link: link_id, timeout_ms }));
    }
}

/// The expiration that the publisher gave, as Unix ms.
pub(super) fn own_deadline(batch: &Batch, index: u32) -> Option<u64> {
    let record = batch.record(index);
    let expires = record.block().and_then(Facts::parse)?.expires_ms?;
    Some((record.timestamp as u64).saturating_add(expires))
}
