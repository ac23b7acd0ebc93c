//! Accept, requeue, release, reject.

use super::Node;
use crate::death::DeathReason;
use crate::link::Held;
use crate::queue::level::Returned;
use crate::request::{ConnectionId, LinkId, Now, Outcome, PoolId};
use crate::topology::QueueKey;
use smallvec::SmallVec;
use storage::{Level as CommitLevel, Op};

impl Node {
    pub(super) fn settle(&mut self, now: Now, id: ConnectionId, link_id: LinkId, first: u64, count: u64, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(id.slot, id.generation) else { return };
        let Some(link) = connection.links.get_mut(&link_id) else { return };
        let mut released: SmallVec<[Held; 4]> = SmallVec::new();
        let before = link.outstanding;
        link.release(first, count, |held| released.push(held));
        let settled = before - link.outstanding;
        let (pool_id, consumed) = (link.pool, link.queue);
        if link.queue.is_none() && link.held.is_empty() && !link.tag.is_empty() {
            // Cancelled before, and now nothing is held any more.
            connection.links.remove(&link_id);
        }
        let mut pool_limits = false;
        if let Some(pool) = connection.pools.get_mut(&pool_id) {
            pool.outstanding -= settled;
            pool_limits = pool.window > 0;
        }
        for held in released {
            self.counters.settled += held.count as u64;
            self.apply(now, held, outcome);
        }
        // New credit: for this link's queue, and where a window is shared for everything under it.
        if pool_limits {
            self.touch_pool(id, pool_id);
        } else if let Some(key) = consumed {
            self.touch(key);
        }
    }

    pub(super) fn touch_pool(&mut self, id: ConnectionId, pool: PoolId) {
        let links = self.connection(id).links.values();
        let queues: SmallVec<[QueueKey; 8]> = links.filter(|link| link.pool == pool).filter_map(|link| link.queue).collect();
        queues.into_iter().for_each(|key| self.touch(key));
    }

    /// What becomes of a run that a link no longer holds.
    fn apply(&mut self, now: Now, held: Held, outcome: Outcome) {
        let Some(queue) = self.queues.at_mut(held.queue.0) else { return };
        if queue.level_of(held.log).is_none() {
            return; // another queue by now: the one it came from was deleted
        }
        queue.unsettled -= held.count as u64;
        match outcome {
            Outcome::Accept => self.settled(held.log, held.run(), held.durable),
            Outcome::Requeue { failed } => self.give_back(now, held, failed),
            Outcome::Release => self.give_back(now, held, true),
            Outcome::Reject => {
                self.leave_held(&held, DeathReason::Rejected);
            }
        }
    }

    /// Back to its place, unless that was once too often.
    fn give_back(&mut self, now: Now, held: Held, failed: bool) {
        let key = held.queue;
        let deliveries = held.deliveries + 1;
        let failures = held.failures + u32::from(failed);
        let limits = &self.queues[key.0].effective;
        let exhausted = limits.max_retries.is_some_and(|max| deliveries > max)
            || failed && limits.delivery_limit().is_some_and(|max| failures > max);
        if exhausted {
            self.leave_held(&held, DeathReason::DeliveryLimit);
            return;
        }
        let wait_ms = limits.retry_delay_ms(failed, deliveries);
        for i in 0..held.count {
            let (offset, index) = (held.offset + (i * held.stride) as u64, held.first + i * held.stride);
            let message = Returned { batch: held.batch.clone(), index, durable: held.durable, deliveries, failures };
            if wait_ms > 0 {
                self.wait(now, key, held.log, offset, message, wait_ms);
            } else {
                self.ready_again(key, held.log, offset, message);
            }
            // A restart knows then that it was delivered before, and how often.
            if held.durable {
                self.put(Op::Count { log: held.log, offset, deliveries: failures.max(deliveries) }, CommitLevel::Lazy);
            }
        }
        self.schedule_expiry(now, key);
        self.touch(key);
    }

    /// Cancels the links of a pool, or of a whole connection: what they hold goes back, in order.
    pub(super) fn close_links(&mut self, now: Now, id: ConnectionId, pool: Option<PoolId>) {
        let connection = self.connection(id);
        let mut links: SmallVec<[LinkId; 8]> =
            connection.links.iter().filter(|(_, link)| pool.is_none_or(|pool| link.pool == pool)).map(|(&id, _)| id).collect();
        links.sort_unstable();
        for link_id in links {
            self.settle(now, id, link_id, 0, u64::MAX, Outcome::Release);
            let Some(link) = self.connection_mut(id).links.remove(&link_id) else { continue };
            if let Some(key) = link.queue {
                self.consumer_gone(now, key, id, link_id);
            }
            let connection = self.connection_mut(id);
            if connection.reply_address.as_ref().is_some_and(|(_, l)| *l == link_id) {
                if let Some((name, _)) = connection.reply_address.take() {
                    self.reply_addresses.remove(&name);
                    self.version += 1;
                }
            }
        }
    }
}
