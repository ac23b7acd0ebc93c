//! Dead letters under `at-least-once` that reached no queue: they stay unsettled where they died, out of consumers' sight, and
//! are tried again until they arrive. A restart finds them as messages of their queue.

use super::expiry::Timer;
use super::{Effects, Node, Purpose, Read};
use crate::death::DeathReason;
use crate::limits;
use crate::request::Now;
use crate::topology::QueueKey;
use std::sync::Arc;
use storage::{Batch, LogId, Offset, Run};

impl Node {
    pub(super) fn park(&mut self, now: Now, key: QueueKey, log: LogId, offset: Offset, reason: DeathReason) {
        let Some(queue) = self.queues.at_mut(key.0).filter(|queue| queue.levels.iter().any(|level| level.log == log)) else {
            return; // deleted, and its dead with it
        };
        queue.parked.letters.push_back((log, offset, reason));
        if !queue.parked.is_busy {
            queue.parked.is_busy = true;
            self.schedule(now.mono_ms + limits::PARKED_RETRY_MS, Timer::Parked(key));
        }
    }

    /// The time of the next turn has come.
    pub(super) fn retry_parked(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        let Some(queue) = self.queues.at_mut(key.0) else { return };
        queue.parked.failures_left = limits::PARKED_FAILURES_PER_TURN.min(queue.parked.letters.len() as u32);
        self.read_parked(now, key, effects);
    }

    /// Has the next one read, or ends the turn.
    fn read_parked(&mut self, now: Now, key: QueueKey, effects: &mut Effects) {
        let parked = &mut self.queues[key.0].parked;
        match parked.letters.front() {
            Some(&(log, from, _)) if parked.failures_left > 0 => {
                effects.reads.push(Read { log, from, bytes_max: 1, purpose: Purpose::Parked });
            }
            Some(_) => self.schedule(now.mono_ms + limits::PARKED_RETRY_MS, Timer::Parked(key)),
            None => parked.is_busy = false,
        }
    }

    /// It came from the store, or could not be read (`None`).
    pub(super) fn handle_parked_read(
        &mut self,
        now: Now,
        key: QueueKey,
        read: Read,
        batches: Option<&[(Offset, Arc<Batch>)]>,
        effects: &mut Effects,
    ) {
        let parked = &mut self.queues[key.0].parked;
        let (log, offset) = (read.log, read.from);
        let Some(&(.., reason)) = parked.letters.front().filter(|(l, o, _)| (*l, *o) == (log, offset)) else { return };
        parked.letters.pop_front();
        let holds = |(base, batch): &&(Offset, Arc<Batch>)| (*base..*base + batch.len() as u64).contains(&offset);
        let done = match batches.map(|batches| batches.iter().find(holds)) {
            None => false,
            Some(None) => true, // damage, which the store reports
            Some(Some((base, batch))) => {
                let letter = self.dead_letter(key, reason, batch, (offset - base) as u32, Some((key, log, offset)));
                // Without a dead-letter exchange, by now, it just goes.
                letter.is_none_or(|letter| self.route_dead_letter(now, &letter))
            }
        };
        if done {
            self.settled(log, Run::one(offset), true);
        } else {
            let parked = &mut self.queues[key.0].parked;
            parked.letters.push_back((log, offset, reason));
            parked.failures_left = parked.failures_left.saturating_sub(1);
        }
        self.read_parked(now, key, effects);
    }
}
