//! Everything that the store's mutex guards, and the two phases of a commit: check all of it, then do all of it.

use crate::batch::Batch;
use crate::commit::{Commit, Level, LogId, Offset, Op, Position, Refused, Run};
use crate::frame::{Backlog, Target};
use crate::limits;
use crate::log::{Doomed, Log, Logs};
use crate::planted::{self, Bug};
use crate::store::{Pressure, Settings, Stats};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// Keys with their values, or `None` where one was deleted.
pub(crate) type Keys = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;

#[derive(Default)]
pub(crate) struct State {
    pub logs: Logs,
    pub epoch: u32,
    /// What waits for the journal; beginning with the commit after those that the writer has taken.
    pub backlog: Backlog,
    /// Bytes that the writer has taken and not yet synced.
    pub in_flight: usize,
    pub accepted: u64,
    pub durable: u64,
    pub next_log: u64,
    /// Numbers below were set aside by a checkpoint.
    pub log_numbers_end: u64,
    pub next_volatile_log: u64,

    // What the next checkpoint has to write.
    pub dirty: Vec<LogId>,
    pub dirty_keys: Keys,
    pub dropped: Vec<LogId>,
    pub doomed: Vec<Doomed>,
    /// Logs with volatile batches in memory or spilled.
    pub volatile: BTreeSet<LogId>,
    pub tail_bytes: usize,

    // The journal's files.
    pub files: VecDeque<JournalFile>,
    /// Where the next group goes in the last of them.
    pub journal_at: u64,
    /// Files made ready, in the order of their numbers, above those of `files`.
    pub ready: VecDeque<u64>,
    pub next_file: u64,
    /// Files below this have another size.
    pub reuse_from: u64,

    // Who waits for what.
    pub sync_waits: bool,
    pub deadline: Option<Instant>,
    pub closing: bool,
    pub poisoned: bool,
    /// The journal could not grow; a checkpoint could not be written.
    pub disk_full: bool,
    pub checkpoint_full: bool,
    pub space_low: bool,
    pub stats: Stats,
    /// Planted: settles that are journaled one commit late.
    pub late: Vec<Op>,
}

/// A journal file that is still needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalFile {
    pub number: u64,
    pub first_group: u64,
    pub last_position: u64,
}

impl State {
    /// The whole of a commit, but for waking whoever has to write it.
    pub fn commit(&mut self, settings: &Settings, commit: Commit) -> Result<Position, Refused> {
        if self.poisoned {
            return Err(Refused::Poisoned);
        }
        let level = commit.level;
        let journaled = level != Level::Volatile && commit.ops.iter().any(is_durable);
        if journaled {
            self.check_size(settings, &commit)?;
        } else if level == Level::Volatile {
            let only_memory = |op: &Op| match op {
                Op::Create { log } | Op::Drop { log } => log.is_volatile(),
                Op::Put { .. } => false,
                _ => true,
            };
            assert!(commit.ops.iter().all(only_memory), "a volatile commit cannot create, drop or put what is durable");
        }
        self.reserve(&commit.ops)?;
        self.stats.commits += 1;
        if !journaled {
            commit.ops.into_iter().for_each(|op| self.perform(op, level));
            return Ok(Position(self.durable));
        }
        let batches = commit.ops.iter().filter(|op| is_durable(op)).filter_map(|op| match op {
            Op::Append { batch, .. } => Some(batch.clone()),
            _ => None,
        });
        self.backlog.begin(batches);
        for op in commit.ops {
            self.journal(&op);
            self.perform(op, level);
        }
        self.backlog.end();
        self.accepted += 1;
        self.ask_for_group(settings, level);
        Ok(Position(self.accepted))
    }

    fn check_size(&self, settings: &Settings, commit: &Commit) -> Result<(), Refused> {
        let bytes = commit.ops.iter().map(op_bytes).sum::<usize>() + 64;
        if bytes > limits::COMMIT_BYTES_MAX.min(settings.journal_file_bytes as usize / 2) {
            return Err(Refused::TooLarge { bytes });
        }
        let fills = |op: &Op| matches!(op, Op::Append { .. } | Op::Create { .. } | Op::Put { value: Some(_), .. });
        let empties = |op: &Op| matches!(op, Op::Settle { .. } | Op::Trim { .. } | Op::Drop { .. });
        // A move (append there, settle here) is one commit, and has to go on while a full journal is drained.
        let limit = if !commit.ops.iter().any(fills) || commit.ops.iter().any(empties) {
            // What is left is the checkpoint's own.
            settings.journal_bytes_max - settings.journal_file_bytes
        } else {
            settings.journal_bytes_max / 8 * 7
        };
        if self.journal_bytes(settings) + bytes as u64 > limit {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// The first phase: every operation is checked against what the ones before it will have done.
    /// On a refusal all is as it was.
    fn reserve(&mut self, ops: &[Op]) -> Result<(), Refused> {
        for (i, op) in ops.iter().enumerate() {
            if let Err(refused) = self.reserve_op(op) {
                ops[..i].iter().rev().for_each(|op| self.unreserve(op));
                return Err(refused);
            }
        }
        Ok(())
    }

    fn reserve_op(&mut self, op: &Op) -> Result<(), Refused> {
        match op {
            Op::Append { batch, to } => {
                for (i, (log, base)) in to.iter().enumerate() {
                    let refused = match self.live(*log) {
                        Ok(l) if l.next == *base => {
                            l.next += batch.span() as u64;
                            continue;
                        }
                        Ok(l) => Refused::Stale { log: *log, next: l.next, given: *base },
                        Err(refused) => refused,
                    };
                    self.unreserve_append(batch, &to[..i]);
                    return Err(refused);
                }
                Ok(())
            }
            Op::Spill { log, base, batch } => self.reserve_to(*log, *base, *base + batch.span() as u64),
            Op::Skip { log, from, to } => self.reserve_to(*log, *from, *to),
            Op::Settle { log, run } => {
                let end = run.first + (run.count as u64).saturating_sub(1) * run.stride.max(1) as u64;
                self.below_next(*log, end, run.count > 0)
            }
            Op::Count { log, offset, .. } => self.below_next(*log, *offset, true),
            Op::Trim { log, before } => self.below_next(*log, before.saturating_sub(1), *before > 0),
            Op::Create { log } => {
                if self.logs.contains_key(log) {
                    return Err(Refused::Exists(*log));
                }
                self.logs.insert(*log, Log::new());
                Ok(())
            }
            Op::Drop { log } => {
                self.live(*log)?.dropped = true;
                Ok(())
            }
            Op::Put { .. } => Ok(()),
        }
    }

    fn live(&mut self, log: LogId) -> Result<&mut Log, Refused> {
        self.logs.get_mut(&log).filter(|l| !l.dropped).ok_or(Refused::UnknownLog(log))
    }

    fn below_next(&mut self, log: LogId, last: Offset, any: bool) -> Result<(), Refused> {
        let next = self.live(log)?.next;
        if any && last >= next { Err(Refused::Stale { log, next, given: last }) } else { Ok(()) }
    }

    fn reserve_to(&mut self, id: LogId, from: Offset, to: Offset) -> Result<(), Refused> {
        let log = self.live(id)?;
        if log.next != from || to < from {
            return Err(Refused::Stale { log: id, next: log.next, given: from });
        }
        log.next = to;
        Ok(())
    }

    fn unreserve(&mut self, op: &Op) {
        match op {
            Op::Spill { log, base: from, .. } | Op::Skip { log, from, .. } => {
                self.logs.get_mut(log).expect("reserved a moment ago").next = *from;
            }
            Op::Append { batch, to } => self.unreserve_append(batch, to),
            Op::Create { log } => drop(self.logs.remove(log)),
            Op::Drop { log } => self.logs.get_mut(log).expect("reserved a moment ago").dropped = false,
            _ => {}
        }
    }

    fn unreserve_append(&mut self, batch: &Batch, to: &[(LogId, Offset)]) {
        for (log, _) in to.iter().rev() {
            self.logs.get_mut(log).expect("reserved a moment ago").next -= batch.span() as u64;
        }
    }

    /// Encodes one operation for the journal, before it is performed: an append names the gap before it.
    fn journal(&mut self, op: &Op) {
        match op {
            _ if !is_durable(op) => {}
            Op::Append { batch, to } => {
                let mut targets: SmallVec<[Target; 2]> = SmallVec::new();
                for (id, base) in to.iter().filter(|t| !t.0.is_volatile()) {
                    let log = self.logs.get_mut(id).expect("the commit was checked");
                    targets.push((*id, *base, base - log.durable_end));
                    // Already here: the same log may be named again.
                    log.durable_end = base + batch.span() as u64;
                }
                self.backlog.append(&targets);
                if planted::has(Bug::LostSettleOrder) {
                    std::mem::take(&mut self.late).iter().for_each(|op| self.backlog.op(op));
                }
            }
            Op::Settle { .. } if planted::has(Bug::LostSettleOrder) => self.late.push(op.clone()),
            Op::Put { .. } if planted::has(Bug::MetadataOutsideJournal) => {}
            op => self.backlog.op(op),
        }
    }

    /// The second phase, and recovery's way in: cannot fail.
    pub fn perform(&mut self, op: Op, level: Level) {
        match op {
            Op::Append { batch, to } => {
                self.tail_bytes += if to.is_empty() { 0 } else { batch.size() };
                let holders = (to.len() > 1).then(|| Arc::new(AtomicU32::new(to.len() as u32)));
                for (log, base) in to {
                    let volatile = level == Level::Volatile || log.is_volatile();
                    self.append(log, base, batch.clone(), self.epoch, volatile, holders.clone());
                }
            }
            Op::Spill { log, base, batch } => {
                self.tail_bytes += batch.size();
                self.append(log, base, batch, self.epoch, true, None);
            }
            // Not there for the store: as good as settled.
            Op::Skip { log, from, to } => self.change(log, |l| l.skip(from, to)),
            Op::Settle { log, run } => self.change(log, |l| l.settle(run)),
            Op::Trim { log, before } => self.change(log, |l| l.trim(before)),
            Op::Count { log, offset, deliveries } => self.change(log, |l| {
                if offset >= l.first && !l.settled.contains(offset) {
                    l.busy().counts.insert(offset, deliveries);
                }
                0
            }),
            Op::Create { log } => {
                self.logs.entry(log).or_insert_with(Log::new);
                if log.is_volatile() {
                    self.next_volatile_log = self.next_volatile_log.max((log.0 & !LogId::VOLATILE) + 1);
                } else {
                    self.next_log = self.next_log.max(log.0 + 1);
                }
                self.change(log, |_| 0);
            }
            Op::Drop { log } => self.drop_log(log),
            Op::Put { key, value } => drop(self.dirty_keys.insert(key, value)),
        }
    }

    pub fn append(
        &mut self,
        log: LogId,
        base: Offset,
        batch: Arc<Batch>,
        epoch: u32,
        volatile: bool,
        holders: Option<Arc<AtomicU32>>,
    ) {
        if volatile {
            self.volatile.insert(log);
        }
        self.change(log, |l| {
            l.append(base, batch, epoch, volatile, holders);
            0
        });
    }

    /// Changes a log, and notes that the next checkpoint has to write it.
    fn change(&mut self, id: LogId, change: impl FnOnce(&mut Log) -> usize) {
        let log = self.logs.get_mut(&id).expect("the commit was checked");
        self.tail_bytes -= change(log);
        if !log.dirty && !id.is_volatile() {
            log.dirty = true;
            self.dirty.push(id);
        }
    }

    fn drop_log(&mut self, id: LogId) {
        let mut log = self.logs.remove(&id).expect("the commit was checked");
        self.tail_bytes -= log.release_tail();
        self.doomed.extend(log.all_segments());
        self.volatile.remove(&id);
        if !id.is_volatile() {
            self.dropped.push(id);
        }
    }

    fn ask_for_group(&mut self, settings: &Settings, level: Level) {
        let wait = match level {
            Level::Sync | Level::Volatile => {
                self.sync_waits = true;
                return;
            }
            Level::Lazy => limits::LAZY_MS,
            Level::Interval => settings.interval_ms,
        };
        if self.sync_waits {
            return;
        }
        // The clock is read once per group, not once per commit, unless a shorter wait joins a longer one.
        if self.deadline.is_none() || level == Level::Lazy && settings.interval_ms > wait {
            let deadline = Instant::now() + Duration::from_millis(wait);
            self.deadline = Some(self.deadline.map_or(deadline, |d| d.min(deadline)));
        }
    }

    /// Journal bytes in use: what a recovery would read.
    pub fn journal_bytes(&self, settings: &Settings) -> u64 {
        // Files of earlier starts in which nothing was found wait to be reused: nobody will read them.
        let full = self.files.iter().rev().skip(1).filter(|file| file.last_position > 0).count();
        full as u64 * settings.journal_file_bytes + self.journal_at + (self.backlog.bytes + self.in_flight) as u64
    }

    pub fn pressure(&self, settings: &Settings) -> Pressure {
        let (used, max) = (self.journal_bytes(settings), settings.journal_bytes_max);
        if used > max / 8 * 7 {
            Pressure::DrainOnly
        } else if used > max / 4 * 3
            || self.disk_full
            || self.checkpoint_full
            || self.space_low
            || self.tail_bytes > settings.tail_bytes_max.saturating_mul(limits::TAIL_EXCESS)
            || self.backlog.bytes + self.in_flight > limits::BACKLOG_BYTES_MAX
        {
            Pressure::Publishers
        } else {
            Pressure::Normal
        }
    }

    pub fn wants_checkpoint(&self, settings: &Settings) -> bool {
        self.journal_bytes(settings) > settings.journal_bytes_max / 4
            || self.next_log + limits::LOG_NUMBERS_AHEAD / 2 > self.log_numbers_end
    }

    pub fn wants_spill(&self, settings: &Settings) -> bool {
        self.tail_bytes > settings.tail_bytes_max
    }

    /// A settle of a run may name offsets that were volatile and are lost: recovery's clamp and extension of `next`.
    pub fn stretch_to(&mut self, log: LogId, end: Offset) {
        if let Some(log) = self.logs.get_mut(&log) {
            log.next = log.next.max(end);
        }
    }
}

pub(crate) fn run_end(run: &Run) -> Offset {
    match run.count {
        0 => run.first,
        count => run.first + (count as u64 - 1) * run.stride.max(1) as u64 + 1,
    }
}

fn is_durable(op: &Op) -> bool {
    match op {
        Op::Append { to, .. } => to.iter().any(|t| !t.0.is_volatile()),
        Op::Settle { log, .. } | Op::Count { log, .. } | Op::Trim { log, .. } | Op::Create { log } | Op::Drop { log } => {
            !log.is_volatile()
        }
        Op::Put { .. } => true,
        Op::Spill { .. } | Op::Skip { .. } => false,
    }
}

/// At least what the operation takes in the journal.
fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Append { batch, to } => batch.size() + 32 + 30 * to.len(),
        Op::Put { key, value } => 24 + key.len() + value.as_ref().map_or(0, |v| v.len()),
        _ => 48,
    }
}
