//! One log in memory: where it begins and ends, what of it is settled, its tail, its list of segments.
//!
//! ```text
//!          first                                durable_end      next
//!            |   settled ranges:   [==]  [=]         |             |
//!   ---------+---------------------------------------+-------------+
//!   gone     | segments (durable, written)   | tail  | volatile    |
//! ```
//!
//! A log with nothing in it is the few words of [`Log`]; all else is in [`Busy`], which goes when it is empty.

use crate::batch::Batch;
use crate::commit::{LogId, Offset, Run};
use crate::range_set::RangeSet;
use crate::segment::{Segment, SegmentId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Log {
    pub next: Offset,
    /// Everything below is settled or trimmed.
    pub first: Offset,
    /// Where the last durable append ended: what lies between it and the next one is volatile, and that append says so.
    pub durable_end: Offset,
    /// Settled at or above `first`.
    pub settled: RangeSet,
    pub epochs: SmallVec<[(u32, Offset); 1]>,
    pub busy: Option<Box<Busy>>,
    /// Is in the store's list of logs that the next checkpoint writes.
    pub dirty: bool,
    /// Between the two phases of a commit that drops it.
    pub dropped: bool,
}

#[derive(Default)]
pub(crate) struct Busy {
    /// Batches in memory, ascending. Those that were settled before the others are holes until they reach the front.
    pub tail: VecDeque<Tail>,
    pub segments: Vec<Segment>,
    /// Volatile batches that did not fit in memory.
    pub spilled: Vec<Segment>,
    /// Offsets of volatile records: they are gaps for every later start.
    pub volatile: RangeSet,
    pub counts: BTreeMap<Offset, u32>,
    holes: usize,
}

pub(crate) struct Tail {
    pub base: Offset,
    pub batch: Option<Arc<Batch>>,
    pub epoch: u32,
    pub volatile: bool,
    /// How many logs still hold the batch, where it went to several: the last one frees its bytes.
    pub holders: Option<Arc<AtomicU32>>,
}

/// A segment file to be removed once a checkpoint no longer lists it, and whether it is kept aside because it is damaged.
pub(crate) type Doomed = (SegmentId, bool);

impl Tail {
    pub fn end(&self) -> Offset {
        self.base + self.batch.as_ref().map_or(0, |b| b.span() as u64)
    }

    /// Lets go of the batch; the bytes of memory that this frees.
    fn release(&mut self) -> usize {
        let Some(batch) = self.batch.take() else { return 0 };
        match self.holders.take() {
            Some(holders) if holders.fetch_sub(1, Ordering::Relaxed) > 1 => 0,
            _ => batch.size(),
        }
    }
}

impl Log {
    pub fn new() -> Log {
        Log {
            next: 0,
            first: 0,
            durable_end: 0,
            settled: RangeSet::new(),
            epochs: SmallVec::new(),
            busy: None,
            dirty: false,
            dropped: false,
        }
    }

    pub fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Takes a batch into the tail. `next` was moved when the commit was checked.
    pub fn append(&mut self, base: Offset, batch: Arc<Batch>, epoch: u32, volatile: bool, holders: Option<Arc<AtomicU32>>) {
        let end = base + batch.span() as u64;
        assert!(end <= self.next, "an append ends at {end}, the log at {}", self.next);
        if volatile {
            self.busy().volatile.push(base, end);
        } else {
            self.durable_end = end;
            if self.epochs.last().is_none_or(|last| last.0 != epoch) {
                self.epochs.push((epoch, base));
            }
        }
        self.busy().tail.push_back(Tail { base, batch: Some(batch), epoch, volatile, holders });
    }

    /// Settles a run that lies below `next`; the bytes of memory that this frees.
    pub fn settle(&mut self, run: Run) -> usize {
        let Some(last) = (run.count as u64).checked_sub(1) else { return 0 };
        let end = run.first + last * run.stride.max(1) as u64 + 1;
        if end <= self.first {
            return 0;
        }
        if run.first >= self.first {
            self.settled.insert_run(run);
        } else if run.stride <= 1 {
            self.settled.insert(self.first, end);
        } else {
            // Cold: part of the run is gone already.
            let first = self.first;
            run.offsets().filter(|o| *o >= first).for_each(|o| self.settled.insert(o, o + 1));
        }
        self.first = self.settled.cut_front(self.first);
        self.free_settled(run.first, end)
    }

    /// Forgets everything before `before`, which is at most `next`; the bytes of memory that this frees.
    pub fn trim(&mut self, before: Offset) -> usize {
        if before <= self.first {
            return 0;
        }
        let from = self.first;
        self.first = self.settled.cut_front(before);
        self.free_settled(from, before)
    }

    /// Lets go of tail batches that overlap `[from, to)` and are settled whole, and of what else nobody needs.
    fn free_settled(&mut self, from: Offset, to: Offset) -> usize {
        let first = self.first;
        let settled = &self.settled;
        let Some(busy) = self.busy.as_deref_mut() else { return 0 };
        let mut freed = 0;
        let tail = &mut busy.tail;
        let begin = tail.partition_point(|t| t.base <= from).saturating_sub(1);
        for entry in tail.range_mut(begin..).take_while(|t| t.base < to) {
            let end = entry.end();
            if entry.batch.is_some() && (end <= first || settled.covers(entry.base.max(first), end)) {
                freed += entry.release();
                busy.holes += 1;
            }
        }
        busy.close_holes();
        if !busy.counts.is_empty() {
            let gone: SmallVec<[Offset; 8]> = busy.counts.range(from..to).map(|c| *c.0).collect();
            for offset in gone.into_iter().filter(|o| *o < first || settled.contains(*o)) {
                busy.counts.remove(&offset);
            }
        }
        self.relax();
        freed
    }

    /// An empty log keeps nothing but its numbers.
    pub fn relax(&mut self) {
        if self.epochs.len() > 1 {
            // Epochs that end at or below `first` say nothing any more.
            let gone = self.epochs[1..].iter().take_while(|e| e.1 <= self.first).count();
            self.epochs.drain(..gone);
        }
        let Some(busy) = self.busy.as_deref_mut() else { return };
        if !busy.volatile.is_empty() {
            busy.volatile.forget_below(self.first);
        }
        let empty = busy.tail.is_empty() && busy.segments.is_empty() && busy.spilled.is_empty();
        if empty && busy.volatile.is_empty() && busy.counts.is_empty() {
            self.busy = None;
        }
    }

    /// Lets go of the whole tail: the log is dropped. The bytes of memory that this frees.
    pub fn release_tail(&mut self) -> usize {
        let tail = self.busy.as_deref_mut().map(|b| std::mem::take(&mut b.tail));
        tail.into_iter().flatten().map(|mut t| t.release()).sum()
    }

    /// Batches of one kind that are still to be written to a segment, at most `limit`.
    pub fn unwritten(&self, volatile: bool, limit: usize) -> Vec<(Offset, u32, Arc<Batch>)> {
        let tail = self.busy.iter().flat_map(|b| &b.tail).filter(|t| t.volatile == volatile);
        tail.filter_map(|t| Some((t.base, t.epoch, t.batch.clone()?))).take(limit).collect()
    }

    /// These were written to a segment: they are read from there now. The bytes of memory that this frees.
    pub fn forget_written(&mut self, volatile: bool, written: &[(Offset, u32, Arc<Batch>)]) -> usize {
        let Some(busy) = self.busy.as_deref_mut() else { return 0 };
        let mut freed = 0;
        let mut written = written.iter().peekable();
        for entry in &mut busy.tail {
            while written.next_if(|w| w.0 < entry.base).is_some() {}
            let Some(next) = written.peek() else { break };
            if next.0 == entry.base && entry.volatile == volatile && entry.batch.is_some() {
                freed += entry.release();
                busy.holes += 1;
            }
        }
        busy.close_holes();
        freed
    }

    /// Takes out the segments in which nothing is left to deliver.
    pub fn take_settled_segments(&mut self) -> Vec<Doomed> {
        let Some(busy) = self.busy.as_deref_mut() else { return Vec::new() };
        let (first, settled, volatile) = (self.first, &self.settled, &busy.volatile);
        let mut gone = Vec::new();
        busy.segments.retain(|s| {
            let done = s.end <= first || settled.covers(s.id.base.max(first), s.end);
            if done {
                gone.push((s.id, s.damaged));
            }
            !done
        });
        busy.spilled.retain(|s| {
            let live = volatile.window(s.id.base, s.end);
            let done = s.end <= first || live.iter().all(|(from, to)| to <= first || settled.covers(from.max(first), to));
            if done {
                gone.push((s.id, s.damaged));
            }
            !done
        });
        self.relax();
        gone
    }

    /// What a log that is dropped leaves on the disk.
    pub fn all_segments(&self) -> impl Iterator<Item = Doomed> + '_ {
        self.busy.iter().flat_map(|b| b.segments.iter().chain(&b.spilled)).map(|s| (s.id, s.damaged))
    }

    /// What shall not be delivered after a restart: settled, and volatile.
    pub fn settled_at_restart(&self) -> RangeSet {
        let mut settled = self.settled.clone();
        if let Some(busy) = &self.busy {
            settled.insert_all(&busy.volatile);
            settled.forget_below(self.first);
        }
        settled
    }

    /// Batch bytes not settled, an estimate: of a segment the share of its offsets that is not settled.
    pub fn bytes(&self) -> u64 {
        let Some(busy) = &self.busy else { return 0 };
        let segments = busy.segments.iter().map(|s| {
            let span = (s.end - s.id.base).max(1);
            let gone = self.first.clamp(s.id.base, s.end) - s.id.base;
            let left = span - gone - self.settled.count_in(s.id.base + gone, s.end);
            (s.bytes as u128 * left as u128 / span as u128) as u64
        });
        let tail = busy.tail.iter().filter_map(|t| t.batch.as_ref()).map(|b| b.size() as u64);
        segments.sum::<u64>() + tail.sum::<u64>()
    }
}

impl Busy {
    fn close_holes(&mut self) {
        while self.tail.front().is_some_and(|t| t.batch.is_none()) {
            self.tail.pop_front();
            self.holes -= 1;
        }
        // One stuck record at the front must not keep the places of all that came after it.
        if self.holes > 64 && self.holes > self.tail.len() / 2 {
            self.tail.retain(|t| t.batch.is_some());
            self.holes = 0;
        }
        if self.tail.is_empty() && self.tail.capacity() > 1024 {
            self.tail = VecDeque::new();
        }
    }
}

/// Log ids are numbers that we gave out: no client can choose them to collide.
#[derive(Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a log id hashes as one u64")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (value ^ (value >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}

pub(crate) type Logs = std::collections::HashMap<LogId, Log, std::hash::BuildHasherDefault<IdHasher>>;

const _: () = assert!(size_of::<Log>() <= 112, "100,000 idle logs shall cost little");
