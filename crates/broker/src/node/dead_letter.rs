//! Messages that leave a queue otherwise than by being accepted: dropped, or sent on to the dead-letter exchange.
//!
//! The settle here and the append there stand in one commit: dead letters of a call are routed before its commit is queued.

use super::publish::Incoming;
use super::{Node, Published};
use crate::death::{self, DeathReason};
use crate::link::Held;
use crate::message::{Facts, HEADERS, PERSISTENT, Properties};
use crate::queue::VhostKey;
use crate::queue::level::ReadyRun;
use crate::request::{Now, Route};
use crate::table;
use crate::topology::{Entry, QueueKey};
use crate::value::Value;
use std::sync::Arc;
use storage::{Batch, BatchBuilder, LogId, Offset, Run};

/// A message that waits to be routed on.
pub(super) struct DeadLetter {
    vhost: VhostKey,
    /// Where it died.
    queue: Box<str>,
    reason: DeathReason,
    exchange: Box<str>,
    routing_key: Option<Box<str>>,
    batch: Arc<Batch>,
    index: u32,
    /// It is not settled where it died before it has reached a queue (`at-least-once`).
    kept_at: Option<(QueueKey, LogId, Offset)>,
}

impl Node {
    /// Takes the first `run.count` ready messages of a level out of the queue for good.
    pub(super) fn leave(&mut self, key: QueueKey, at: usize, run: ReadyRun, reason: DeathReason) {
        let queue = &mut self.queues[key.0];
        queue.levels[at].take(run.count);
        let log = queue.levels[at].log;
        for i in 0..run.count {
            self.no_longer_ready(key, &run.batch, run.first + i);
        }
        let records = Records { batch: &run.batch, first: run.first, stride: 1, count: run.count };
        self.retire(key, log, run.offset, records, run.durable, reason);
    }

    /// A message taken out of the middle leaves for good.
    pub(super) fn leave_one(
        &mut self,
        key: QueueKey,
        log: LogId,
        offset: Offset,
        batch: &Arc<Batch>,
        index: u32,
        durable: bool,
        reason: DeathReason,
    ) {
        self.no_longer_ready(key, batch, index);
        self.retire(key, log, offset, Records { batch, first: index, stride: 1, count: 1 }, durable, reason);
    }

    /// What a link held leaves for good.
    pub(super) fn leave_held(&mut self, held: &Held, reason: DeathReason) {
        let records = Records { batch: &held.batch, first: held.first, stride: held.stride, count: held.count };
        self.retire(held.queue, held.log, held.offset, records, held.durable, reason);
    }

    fn no_longer_ready(&mut self, key: QueueKey, batch: &Batch, index: u32) {
        let queue = &mut self.queues[key.0];
        queue.ready -= 1;
        if queue.effective.max_length_bytes.is_some() {
            queue.ready_bytes = queue.ready_bytes.saturating_sub(super::publish::body_len(batch, index));
        }
    }

    fn retire(&mut self, key: QueueKey, log: LogId, offset: Offset, records: Records, durable: bool, reason: DeathReason) {
        let kept = durable && self.queues[key.0].effective.dead_letters_at_least_once();
        for i in 0..records.count {
            let kept_at = kept.then_some((key, log, offset + (i * records.stride) as u64));
            if let Some(letter) = self.dead_letter(key, reason, records.batch, records.first + i * records.stride, kept_at) {
                self.dead_letters.push_back(letter);
            }
        }
        self.counters.dropped += records.count as u64;
        if !kept {
            self.settled(log, Run { first: offset, count: records.count, stride: records.stride }, durable);
        }
    }

    /// A full queue's `reject-publish-dlx`: the message never was in the queue.
    pub(super) fn dead_letter_refused(&mut self, key: QueueKey, incoming: &Incoming, index: u32) {
        let letter = self.dead_letter(key, DeathReason::MaxLength, incoming.batch, index, None);
        self.dead_letters.extend(letter);
    }

    /// What is to be routed on; `None`: the queue has no dead-letter exchange.
    pub(super) fn dead_letter(
        &self,
        key: QueueKey,
        reason: DeathReason,
        batch: &Arc<Batch>,
        index: u32,
        kept_at: Option<(QueueKey, LogId, Offset)>,
    ) -> Option<DeadLetter> {
        let queue = &self.queues[key.0];
        Some(DeadLetter {
            vhost: queue.vhost,
            queue: queue.name.clone(),
            reason,
            exchange: queue.effective.dead_letter_exchange.clone()?,
            routing_key: queue.effective.dead_letter_routing_key.clone(),
            batch: batch.clone(),
            index,
            kept_at,
        })
    }

    /// Routes all that wait. They may make queues overflow, and so make more of them.
    pub(super) fn route_dead_letters(&mut self, now: Now) {
        while let Some(letter) = self.dead_letters.pop_front() {
            let arrived = self.route_dead_letter(now, &letter);
            match letter.kept_at {
                Some((_, log, offset)) if arrived => self.settled(log, Run::one(offset), true),
                Some((key, log, offset)) => self.park(now, key, log, offset, letter.reason),
                None => {}
            }
        }
    }

    /// Whether it reached a queue. A missing exchange drops silently.
    pub(super) fn route_dead_letter(&mut self, now: Now, letter: &DeadLetter) -> bool {
        let topology = self.vhosts.at(letter.vhost.0).map(|vhost| &vhost.topology);
        if topology.and_then(|topology| topology.exchange_key(&letter.exchange)).is_none() {
            return false;
        }
        let record = letter.batch.record(letter.index);
        let Some(facts) = record.block().and_then(Facts::parse) else { return false };
        let Some(properties) = self.properties.get(&facts.origin).cloned() else { return false };
        let carbon_copies = carbon_copies_of(Some(&properties), &facts);
        let keys: Vec<&str> = std::iter::once(facts.routing_key).chain(carbon_copies.iter().map(|key| &**key)).collect();
        let expiration = facts.expires_ms.map(|ms| ms.to_string());
        let before = if facts.annotations.is_empty() { None } else { table::decode_table(facts.annotations) };
        let before = before.unwrap_or_default();
        let event = death::Death {
            queue: &letter.queue,
            reason: letter.reason,
            exchange: facts.exchange,
            routing_keys: &keys,
            time_s: now.unix_ms / 1000,
            original_expiration: expiration.as_deref(),
            count: 1,
        };
        let annotations = death::record(&before, &event);
        let route = match &letter.routing_key {
            Some(key) => Route { exchange: letter.exchange.clone(), routing_key: key.clone(), more_keys: Vec::new() },
            None => {
                Route { exchange: letter.exchange.clone(), routing_key: facts.routing_key.into(), more_keys: carbon_copies }
            }
        };
        let mut block = Vec::new();
        let mut encoded = Vec::new();
        table::encode_table(&annotations, &mut encoded);
        let dead = Facts {
            exchange: &route.exchange,
            routing_key: &route.routing_key,
            expires_ms: None,
            annotations: &encoded,
            ..facts
        };
        dead.encode_head(&mut block);
        let rest = properties.for_dead_letter(facts.properties, letter.routing_key.is_some());
        let mut builder = BatchBuilder::marked(now.unix_ms as i64);
        builder.push_marked(now.unix_ms as i64, &[record.value.unwrap_or_default()], &[&block, &rest]);
        let batch = Arc::new(builder.finish());
        let incoming = Incoming {
            batch: &batch,
            persistent: facts.flags & PERSISTENT != 0,
            priority: facts.priority,
            any_expires: false,
            any_headers: facts.flags & HEADERS != 0,
            confirm: false,
        };
        self.send_dead_letter(now, letter, &route, incoming, &annotations)
    }

    fn send_dead_letter(
        &mut self,
        now: Now,
        letter: &DeadLetter,
        route: &Route,
        incoming: Incoming,
        annotations: &crate::Table,
    ) -> bool {
        let mut targets = Vec::new();
        let routed = self.route_record(now, letter.vhost, route, Entry::DeadLetter, &incoming, 0, &mut targets);
        let Ok(kept_back) = routed else { return false };
        let queues = &self.queues;
        targets.retain(|key| !death::is_cycle(annotations, &queues[key.0].name));
        if letter.kept_at.is_some() && targets.iter().any(|key| queues[key.0].is_full()) {
            return kept_back.any; // all of them or none: a later try would reach the others twice
        }
        self.counters.dead_lettered += 1;
        self.enqueue(now, &targets, incoming, &mut Published::default());
        kept_back.any || !targets.is_empty()
    }
}

/// Records of one batch in even distances.
#[derive(Clone, Copy)]
struct Records<'a> {
    batch: &'a Arc<Batch>,
    first: u32,
    stride: u32,
    count: u32,
}

/// The further routing keys that a message was published with (header CC).
pub(super) fn carbon_copies_of(properties: Option<&Arc<dyn Properties>>, facts: &Facts) -> Vec<Box<str>> {
    match properties {
        Some(properties) if facts.flags & HEADERS != 0 => carbon_copies(&properties.headers(facts.properties)),
        _ => Vec::new(),
    }
}

fn carbon_copies(headers: &crate::Table) -> Vec<Box<str>> {
    match headers.get("CC") {
        Some(Value::Array(keys)) => keys.iter().filter_map(|key| key.as_str().map(Box::from)).collect(),
        _ => Vec::new(),
    }
}
