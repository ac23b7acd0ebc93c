//! Messages that come back: at once, or after a wait that grows with their deliveries (`x-delayed-retry-type`).

use super::Node;
use super::expiry::{Timer, own_deadline};
use crate::limits;
use crate::queue::level::Returned;
use crate::request::Now;
use crate::topology::QueueKey;
use std::cmp::Reverse;
use storage::{LogId, Offset};

impl Node {
    /// A message that was delivered is ready again, in its place.
    pub(super) fn ready_again(&mut self, key: QueueKey, log: LogId, offset: Offset, message: Returned) {
        let queue = &mut self.queues[key.0];
        if queue.effective.max_length_bytes.is_some() {
            queue.ready_bytes += super::publish::body_len(&message.batch, message.index);
        }
        // It may have expired while it was away, or expires now that it is ready.
        if let Some(deadline) = own_deadline(&message.batch, message.index) {
            queue.deadlines.push(Reverse((deadline, log, offset)));
        }
        queue.level_of(log).expect("checked when it came back").give_back(offset, message);
        queue.ready += 1;
    }

    /// It is ready again after `wait_ms`, or to expire when its own time comes, if that is sooner.
    pub(super) fn wait(&mut self, now: Now, key: QueueKey, log: LogId, offset: Offset, message: Returned, wait_ms: u64) {
        let expires_in = own_deadline(&message.batch, message.index).map(|at| at.saturating_sub(now.unix_ms) + 1);
        let due = now.mono_ms + expires_in.map_or(wait_ms, |ms| ms.min(wait_ms));
        self.queues[key.0].waiting.insert((due, log, offset), message);
        self.schedule(due, Timer::Waiting(key));
    }

    pub(super) fn end_waits(&mut self, now: Now, key: QueueKey) {
        for _ in 0..limits::EXPIRED_PER_TURN {
            let Some(queue) = self.queues.at_mut(key.0) else { return };
            let Some(due) = queue.waiting.first_entry().filter(|entry| entry.key().0 <= now.mono_ms) else { break };
            let ((_, log, offset), message) = due.remove_entry();
            self.ready_again(key, log, offset, message);
        }
        let Some(queue) = self.queues.at(key.0) else { return };
        if let Some((&(due, ..), _)) = queue.waiting.first_key_value() {
            self.schedule(due, Timer::Waiting(key));
        }
        self.schedule_expiry(now, key);
        self.touch(key);
    }
}
