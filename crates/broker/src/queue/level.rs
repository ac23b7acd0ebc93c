//! One log of a queue and what is ready in it, in order. A plain queue has one level; a priority queue one for each
//! priority in use.
//!
//! ```text
//!        returned (in memory, each where it was)      cursor                hot_end                next
//!  ──●────────●──────────────────────────────────────── │ ▓▓▓▓ hot chunks ▓▓▓▓ │ ░░░ in the store ░░░ │
//!    delivered before, ready again                      └ the next that was never delivered
//! ```
//!
//! What lies before the cursor is settled, held by a link, or returned. What lies behind `hot_end` costs no memory here: it
//! is read from the store when the cursor comes near.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use storage::{Batch, LogId, Offset, RangeSet};

/// Ready batches that one level keeps in memory; beyond that new ones stay in the store until their turn comes.
pub const HOT_BYTES_MAX: usize = 2 << 20;
/// A read is asked for when less than this is left.
const HOT_BYTES_LOW: usize = 512 << 10;

#[derive(Debug)]
struct Chunk {
    base: Offset,
    batch: Arc<Batch>,
    durable: bool,
}

impl Chunk {
    fn end(&self) -> Offset {
        self.base + self.batch.len() as u64
    }
}

/// A message that was delivered and came back.
#[derive(Clone, Debug)]
pub struct Returned {
    pub batch: Arc<Batch>,
    pub index: u32,
    pub durable: bool,
    /// How often it was delivered.
    pub deliveries: u32,
    /// How often it came back as failed: what a delivery limit counts.
    pub failures: u32,
}

/// Consecutive ready messages of one batch.
#[derive(Clone, Debug)]
pub struct ReadyRun {
    pub offset: Offset,
    pub batch: Arc<Batch>,
    pub first: u32,
    pub count: u32,
    pub durable: bool,
    /// They were delivered before (then `count` is 1), or may have been: the start before this was unclean.
    pub redelivered: bool,
    pub deliveries: u32,
    pub failures: u32,
}

#[derive(Debug)]
pub struct Level {
    pub priority: u8,
    pub log: LogId,
    pub next: Offset,
    cursor: Offset,
    hot: VecDeque<Chunk>,
    hot_end: Offset,
    hot_bytes: usize,
    returned: BTreeMap<Offset, Returned>,
    /// Offsets at or behind the cursor that are not to be delivered: settled before a restart, or expired in the middle.
    gone: RangeSet,
    /// Delivery counts that a restart brought back, for offsets behind the cursor.
    counts: BTreeMap<Offset, u32>,
    /// Everything before this may have been delivered before the last, unclean, stop.
    suspect_until: Offset,
    /// Transient records before this may have gone to the store.
    spilled_until: Offset,
    /// Where the log ends for the store.
    told: Offset,
    /// A read is under way.
    pub reading: bool,
}

impl Level {
    pub fn new(priority: u8, log: LogId) -> Level {
        Level {
            priority,
            log,
            next: 0,
            cursor: 0,
            hot: VecDeque::new(),
            hot_end: 0,
            hot_bytes: 0,
            returned: BTreeMap::new(),
            gone: RangeSet::default(),
            counts: BTreeMap::new(),
            suspect_until: 0,
            spilled_until: 0,
            told: 0,
            reading: false,
        }
    }

    /// As a restart found it. After an unclean one every message counts as delivered before.
    pub fn recovered(priority: u8, log: LogId, state: storage::RecoveredLog, clean: bool) -> Level {
        let mut level = Level::new(priority, log);
        level.next = state.next;
        level.told = state.next;
        level.cursor = state.first;
        level.hot_end = state.first;
        level.gone = state.settled;
        level.counts = state.counts;
        level.suspect_until = if clean { 0 } else { state.next };
        level
    }

    /// Ready messages, as a restart counts them.
    pub fn count_ready(&self) -> u64 {
        (self.next - self.cursor).saturating_sub(self.gone.count_in(self.cursor, self.next)) + self.returned.len() as u64
    }

    /// Takes a batch in at the end. `false`: it is not kept here, its bytes must be in the store.
    pub fn append(&mut self, batch: &Arc<Batch>, durable: bool) -> bool {
        let base = self.next;
        self.next += batch.len() as u64;
        let keep = self.hot_end == base && (self.hot_bytes < HOT_BYTES_MAX || self.hot.is_empty());
        if keep {
            self.hot_bytes += batch.size();
            self.hot_end = self.next;
            self.hot.push_back(Chunk { base, batch: batch.clone(), durable });
        }
        keep
    }

    /// The store is about to be told of a batch at `base`: answers where it thinks that the log ends. What lies between is of
    /// transient records that stay here.
    pub fn tell_store(&mut self, base: Offset, end: Offset) -> Offset {
        debug_assert!(self.told <= base);
        std::mem::replace(&mut self.told, end).min(base)
    }

    /// Where the log ends for the store.
    pub fn told(&self) -> Offset {
        self.told
    }

    /// Notes that the batch just appended went to the store though it is transient.
    pub fn spilled(&mut self) {
        self.spilled_until = self.next;
    }

    /// Whether the store may know a transient record: those that never left memory it does not.
    pub fn may_be_spilled(&self, offset: Offset) -> bool {
        offset < self.spilled_until
    }

    /// Takes a message that was never delivered out, wherever its bytes are; `false` if it was not ready.
    pub fn remove_unseen(&mut self, offset: Offset) -> bool {
        let unseen = offset >= self.cursor && offset < self.next && !self.gone.contains(offset);
        if unseen {
            self.gone.insert(offset, offset + 1);
        }
        unseen
    }

    pub fn is_ready(&self, offset: Offset) -> bool {
        self.returned.contains_key(&offset) || offset >= self.cursor && offset < self.next && !self.gone.contains(offset)
    }

    pub fn hot_bytes(&self) -> usize {
        self.hot_bytes
    }

    /// What would be delivered next; `None` when nothing is ready in memory (see [`Level::wants_read`]).
    pub fn front(&mut self) -> Option<ReadyRun> {
        if let Some((&offset, returned)) = self.returned.first_key_value() {
            return Some(ReadyRun {
                offset,
                batch: returned.batch.clone(),
                first: returned.index,
                count: 1,
                durable: returned.durable,
                redelivered: true,
                deliveries: returned.deliveries,
                failures: returned.failures,
            });
        }
        loop {
            self.skip_gone();
            let chunk = self.hot.front()?;
            if chunk.end() <= self.cursor {
                self.pop_chunk();
                continue;
            }
            if chunk.base > self.cursor {
                self.cursor = chunk.base;
                continue;
            }
            let mut end = chunk.end();
            if !self.gone.is_empty() && self.gone.count_in(self.cursor, end) > 0 {
                end = self.gone.window(self.cursor, end).iter().next().map_or(end, |(from, _)| from);
            }
            let mut redelivered = false;
            let mut deliveries = 0;
            if self.cursor < self.suspect_until {
                redelivered = true;
                end = end.min(self.suspect_until);
            }
            if !self.counts.is_empty() {
                if let Some((&counted, &count)) = self.counts.range(self.cursor..).next() {
                    if counted == self.cursor {
                        (redelivered, deliveries, end) = (true, count, self.cursor + 1);
                    } else {
                        end = end.min(counted);
                    }
                }
            }
            return Some(ReadyRun {
                offset: self.cursor,
                batch: chunk.batch.clone(),
                first: (self.cursor - chunk.base) as u32,
                count: (end - self.cursor) as u32,
                durable: chunk.durable,
                redelivered,
                deliveries,
                failures: deliveries,
            });
        }
    }

    /// The first `count` messages of [`Level::front`] are somebody else's now.
    pub fn take(&mut self, count: u32) {
        if self.returned.pop_first().is_some() {
            debug_assert_eq!(count, 1);
            return;
        }
        self.cursor += count as u64;
        while self.hot.front().is_some_and(|chunk| chunk.end() <= self.cursor) {
            self.pop_chunk();
        }
    }

    /// Back to its place.
    pub fn give_back(&mut self, offset: Offset, message: Returned) {
        self.returned.insert(offset, message);
    }

    /// Takes a message out of the middle, if it is ready and in memory.
    pub fn remove(&mut self, offset: Offset) -> Removal {
        if let Some(returned) = self.returned.remove(&offset) {
            return Removal::Taken { batch: returned.batch, index: returned.index, durable: returned.durable };
        }
        if offset < self.cursor || self.gone.contains(offset) {
            return Removal::NotReady;
        }
        if offset >= self.hot_end {
            return Removal::InStore;
        }
        let at = self.hot.partition_point(|chunk| chunk.end() <= offset);
        match self.hot.get(at) {
            Some(chunk) if chunk.base <= offset => {
                let removal =
                    Removal::Taken { batch: chunk.batch.clone(), index: (offset - chunk.base) as u32, durable: chunk.durable };
                self.gone.insert(offset, offset + 1);
                removal
            }
            _ => Removal::NotReady,
        }
    }

    /// Forgets everything that is ready; says how much and where the log now begins.
    pub fn clear(&mut self) {
        self.returned.clear();
        self.hot.clear();
        self.hot_bytes = 0;
        self.cursor = self.next;
        self.hot_end = self.next;
        self.gone = RangeSet::default();
        self.counts.clear();
    }

    /// Offsets that are ready and were returned.
    pub fn returned_offsets(&self) -> impl Iterator<Item = (Offset, bool)> {
        self.returned.iter().map(|(&offset, returned)| (offset, returned.durable))
    }

    pub fn cursor(&self) -> Offset {
        self.cursor
    }

    /// Where to read on, when what is in memory runs low and no read is under way.
    pub fn wants_read(&self) -> Option<Offset> {
        (!self.reading && self.hot_end < self.next && self.hot_bytes < HOT_BYTES_LOW).then_some(self.hot_end)
    }

    /// What a read from `from` brought. Returns how many messages turned out not to be there.
    pub fn fill(&mut self, from: Offset, batches: Vec<(Offset, Arc<Batch>)>, durable: impl Fn(&Batch) -> bool) -> u64 {
        self.reading = false;
        if from != self.hot_end {
            return 0; // purged meanwhile
        }
        let mut missing = 0;
        if batches.is_empty() {
            missing += self.skip_to(self.next);
        }
        for (base, batch) in batches {
            let end = base + batch.len() as u64;
            if end <= self.hot_end || base >= self.next {
                continue;
            }
            missing += self.skip_to(base);
            self.hot_bytes += batch.size();
            self.hot_end = end.min(self.next);
            let durable = durable(&batch);
            self.hot.push_back(Chunk { base, batch, durable });
        }
        missing
    }

    /// The store has nothing between `hot_end` and `to`: what was not known to be gone is missing.
    fn skip_to(&mut self, to: Offset) -> u64 {
        if to <= self.hot_end {
            return 0;
        }
        let from = self.hot_end.max(self.cursor);
        let missing = to.saturating_sub(from).saturating_sub(self.gone.count_in(from, to));
        if to > from {
            self.gone.insert(from, to);
        }
        self.hot_end = to;
        missing
    }

    fn skip_gone(&mut self) {
        if !self.gone.is_empty() && self.gone.contains(self.cursor) {
            self.cursor = self.gone.next_absent(self.cursor).min(self.next);
            self.gone.cut_front(self.cursor);
            self.hot_end = self.hot_end.max(self.cursor);
        }
    }

    fn pop_chunk(&mut self) {
        if let Some(chunk) = self.hot.pop_front() {
            self.hot_bytes -= chunk.batch.size();
        }
    }

    /// Body bytes of what is ready and in memory.
    pub fn ready_body_bytes(&self) -> u64 {
        let body = |batch: &Batch, index: u32| batch.record(index).value.map_or(0, |value| value.len() as u64);
        let returned: u64 = self.returned.values().map(|r| body(&r.batch, r.index)).sum();
        let hot = self.hot.iter().flat_map(|chunk| {
            (0..chunk.batch.len()).filter(|i| self.is_ready(chunk.base + *i as u64)).map(|i| body(&chunk.batch, i))
        });
        returned + hot.sum::<u64>()
    }

    pub fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.cursor == self.next
    }
}

/// What [`Level::remove`] found.
#[derive(Debug)]
pub enum Removal {
    Taken {
        batch: Arc<Batch>,
        index: u32,
        durable: bool,
    },
    /// Held by a link, or settled.
    NotReady,
    /// Ready, but not in memory.
    InStore,
}
