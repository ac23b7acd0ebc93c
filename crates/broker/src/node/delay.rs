//! Messages that shall arrive later: `x-delayed-message` exchanges.
//!
//! A delayed message waits in the log of its bucket: 65 seconds of due time, one log an exchange and bucket. A bucket is read
//! into memory, and sorted, only when its time is near; until then it costs disk. When a message is due it is routed as if it
//! were published then; its append to the queues and its settle here are one commit.

use super::dead_letter::carbon_copies_of;
use super::expiry::Timer;
use super::publish::{Incoming, RecordView};
use super::{Effects, Node, Published, Purpose, Read, ReadDone};
use crate::limits;
use crate::message::{EXPIRES, Facts, PERSISTENT};
use crate::queue::VhostKey;
use crate::request::{Now, Route};
use crate::topology::{Entry, MessageView};
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use storage::{Batch, Level as CommitLevel, LogId, Offset, Op, RecoveredLog, Run};

/// Due times of one bucket lie within 2^16 ms.
const BUCKET_BITS: u32 = 16;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct BucketName {
    /// Due time >> BUCKET_BITS. First, so that buckets are in the order of their time.
    time: u64,
    vhost: VhostKey,
    exchange: Box<str>,
}

#[derive(Debug)]
struct Bucket {
    log: LogId,
    next: Offset,
    /// Messages that have not been released.
    waiting: u64,
    /// From here on nothing has been read into memory; `next` when all has.
    loaded: Offset,
    /// Released before a restart.
    settled: storage::RangeSet,
}

/// A message whose time is near.
#[derive(Debug)]
struct Near {
    bucket: BucketName,
    offset: Offset,
    batch: Arc<Batch>,
    index: u32,
}

#[derive(Default)]
pub(super) struct Delays {
    buckets: BTreeMap<BucketName, Bucket>,
    logs: HashMap<LogId, BucketName>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    near: HashMap<u64, Near>,
    /// Numbers near messages, so that equal due times keep their order.
    number: u64,
}

impl Node {
    /// Keeps one message at a delaying exchange until `delay_ms` from now.
    pub(super) fn delay(&mut self, now: Now, vhost: VhostKey, exchange: &str, delay_ms: u64, incoming: &Incoming) {
        let due = now.unix_ms + delay_ms;
        let name = BucketName { time: due >> BUCKET_BITS, vhost, exchange: exchange.into() };
        if !self.delays.buckets.contains_key(&name) {
            self.make_bucket(&name);
        }
        let bucket = self.delays.buckets.get_mut(&name).expect("just made");
        let (log, offset) = (bucket.log, bucket.next);
        let in_memory = bucket.loaded == bucket.next && near(now, name.time);
        bucket.next += 1;
        bucket.waiting += 1;
        bucket.loaded += u64::from(in_memory);
        self.commit_bytes += incoming.batch.size();
        let batch = incoming.batch.clone();
        if incoming.persistent {
            let append = Op::Append { batch, to: SmallVec::from_slice(&[(log, offset)]) };
            self.put(append, if incoming.confirm { CommitLevel::Sync } else { CommitLevel::Lazy });
        } else {
            self.put(Op::Spill { log, base: offset, batch }, CommitLevel::Lazy);
        }
        if in_memory {
            self.note_near(now, name, due, offset, incoming.batch.clone(), 0);
        } else {
            self.schedule(near_at(now, name.time), Timer::Delays);
        }
    }

    /// When a record read back is due, Unix ms: its time plus its header `x-delay`.
    fn due_time(&self, batch: &Batch, index: u32) -> Option<u64> {
        let mut view = RecordView::new(&self.properties, batch, index);
        let delay = crate::exchange::delay_ms(view.headers())?;
        Some(batch.record(index).timestamp as u64 + delay)
    }

    fn make_bucket(&mut self, name: &BucketName) {
        let log = self.store.new_log();
        let vhost = self.vhosts[name.vhost.0].name.clone();
        self.put(Op::Create { log }, CommitLevel::Lazy);
        self.save_bucket(&vhost, &name.exchange, name.time, log);
        let bucket = Bucket { log, next: 0, waiting: 0, loaded: 0, settled: Default::default() };
        self.delays.logs.insert(log, name.clone());
        self.delays.buckets.insert(name.clone(), bucket);
    }

    pub(super) fn recover_bucket(
        &mut self,
        now: Now,
        vhost: VhostKey,
        exchange: Box<str>,
        time: u64,
        log: LogId,
        state: RecoveredLog,
    ) {
        let waiting = (state.next - state.first).saturating_sub(state.settled.count_in(state.first, state.next));
        let name = BucketName { time, vhost, exchange };
        let bucket = Bucket { log, next: state.next, waiting, loaded: state.first, settled: state.settled };
        self.delays.logs.insert(log, name.clone());
        self.delays.buckets.insert(name, bucket);
        self.schedule(near_at(now, time), Timer::Delays);
    }

    fn note_near(&mut self, now: Now, bucket: BucketName, due: u64, offset: Offset, batch: Arc<Batch>, index: u32) {
        let number = self.delays.number;
        self.delays.number += 1;
        self.delays.due.push(Reverse((due, number)));
        self.delays.near.insert(number, Near { bucket, offset, batch, index });
        self.schedule(now.mono_ms + due.saturating_sub(now.unix_ms) + 1, Timer::Delays);
    }

    /// Routes on what is due, and has buckets read whose time is near.
    pub(super) fn release_delayed(&mut self, now: Now, effects: &mut Effects) {
        for _ in 0..limits::EXPIRED_PER_TURN {
            let Some(&Reverse((_, number))) = self.delays.due.peek().filter(|Reverse((due, _))| *due <= now.unix_ms) else {
                break;
            };
            self.delays.due.pop();
            if let Some(message) = self.delays.near.remove(&number) {
                self.release(now, message);
            }
        }
        if let Some(Reverse((due, _))) = self.delays.due.peek() {
            let at = now.mono_ms + due.saturating_sub(now.unix_ms) + 1;
            self.schedule(at, Timer::Delays);
        }
        self.read_near_buckets(now, effects);
    }

    fn release(&mut self, now: Now, message: Near) {
        let batch = &message.batch;
        let Some(facts) = batch.record(message.index).block().and_then(Facts::parse) else { return };
        let carbon = carbon_copies_of(self.properties.get(&facts.origin), &facts);
        let route =
            Route { exchange: message.bucket.exchange.clone(), routing_key: facts.routing_key.into(), more_keys: carbon };
        let persistent = facts.flags & PERSISTENT != 0;
        let incoming = Incoming {
            batch,
            persistent,
            priority: facts.priority,
            any_expires: facts.flags & EXPIRES != 0,
            any_headers: true,
            confirm: false,
        };
        let single = incoming.single(message.index);
        let incoming = Incoming { batch: &single, ..incoming };
        let mut targets = Vec::new();
        let vhost = message.bucket.vhost;
        match self.route_record(now, vhost, &route, Entry::AfterDelay, &incoming, 0, &mut targets) {
            Ok(_) if !targets.is_empty() => self.enqueue(now, &targets, incoming, &mut Published::default()),
            _ => self.counters.unroutable += 1,
        }
        self.released(&message.bucket, message.offset);
    }

    fn released(&mut self, name: &BucketName, offset: Offset) {
        let Some(bucket) = self.delays.buckets.get_mut(name) else { return };
        bucket.waiting -= 1;
        let (log, done) = (bucket.log, bucket.waiting == 0);
        self.put(Op::Settle { log, run: Run::one(offset) }, CommitLevel::Lazy);
        if done {
            self.delays.buckets.remove(name);
            self.delays.logs.remove(&log);
            let vhost = self.vhosts.at(name.vhost.0).map(|vhost| vhost.name.clone()).unwrap_or_default();
            self.forget_bucket(&vhost, &name.exchange, name.time);
            self.put(Op::Drop { log }, CommitLevel::Lazy);
        }
    }

    fn read_near_buckets(&mut self, now: Now, effects: &mut Effects) {
        for (name, bucket) in &self.delays.buckets {
            if !near(now, name.time) {
                let at = near_at(now, name.time);
                self.timers.insert((at, Timer::Delays));
                return;
            }
            if bucket.loaded < bucket.next {
                effects.reads.push(Read {
                    log: bucket.log,
                    from: bucket.loaded,
                    bytes_max: limits::READ_BYTES,
                    purpose: Purpose::Delayed,
                });
            }
        }
    }

    /// Part of a near bucket came from the store.
    pub(super) fn handle_delayed_read(&mut self, now: Now, done: ReadDone, effects: &mut Effects) {
        let Some(name) = self.delays.logs.get(&done.read.log).cloned() else { return };
        let Ok(batches) = done.batches else { return };
        let bucket = self.delays.buckets.get_mut(&name).expect("its log is known");
        if bucket.loaded != done.read.from {
            return; // read twice
        }
        let mut messages = Vec::new();
        for (base, batch) in batches {
            for index in 0..batch.len() {
                let offset = base + index as u64;
                if offset >= bucket.loaded && offset < bucket.next && !bucket.settled.contains(offset) {
                    messages.push((offset, batch.clone(), index));
                }
            }
            bucket.loaded = bucket.loaded.max(base + batch.len() as u64);
        }
        if bucket.loaded == done.read.from {
            bucket.loaded = bucket.next; // nothing there any more
        }
        for (offset, batch, index) in messages {
            let due = self.due_time(&batch, index).unwrap_or(now.unix_ms);
            self.note_near(now, name.clone(), due, offset, batch, index);
        }
        self.release_delayed(now, effects);
        self.settle_down(now, effects, &mut []);
    }

    /// Its vhost is gone.
    pub(super) fn forget_delays(&mut self, vhost: VhostKey) {
        let names: Vec<BucketName> = self.delays.buckets.keys().filter(|name| name.vhost == vhost).cloned().collect();
        for name in names {
            if let Some(bucket) = self.delays.buckets.remove(&name) {
                self.delays.logs.remove(&bucket.log);
                let vhost = self.vhosts[vhost.0].name.clone();
                self.forget_bucket(&vhost, &name.exchange, name.time);
                self.put(Op::Drop { log: bucket.log }, CommitLevel::Lazy);
            }
        }
    }

    /// Messages that wait in delaying exchanges.
    pub fn delayed_messages(&self) -> u64 {
        self.delays.buckets.values().map(|bucket| bucket.waiting).sum()
    }
}

/// A bucket is near from one bucket's length before its beginning.
fn near(now: Now, time: u64) -> bool {
    time <= (now.unix_ms >> BUCKET_BITS) + 1
}

fn near_at(now: Now, time: u64) -> u64 {
    let begins = time.saturating_sub(1) << BUCKET_BITS;
    now.mono_ms + begins.saturating_sub(now.unix_ms) + 1
}
