//! The checkpointer: moves what is unsettled from memory to segments, and what changed to the snapshot log, so that the
//! journal can be reused.
//!
//! One pass, in this order; the state's mutex is held for one slice of one log at a time:
//!
//! 1. The *cut*: the number of commits accepted now. The lists of logs and keys that changed before it are taken.
//! 2. Per log: what is unsettled goes to its segment; its state is noted *as of* that moment, which may be later than the
//!    cut: a replay skips, for this log, what the state already has.
//! 3. Segments are synced, then their directory.
//! 4. The notes go to the snapshot log, synced.
//! 5. The checkpoint's record goes through the journal like a commit. Every commit that a note knows of was accepted before
//!    it, so once the record is durable nothing in the notes can be ahead of the journal.
//! 6. The root file names the checkpoint. From here on it counts.
//! 7. Journal files and segments that nobody needs any more are freed.
//!
//! A full disk ends a pass at any place: what was taken is given back, and nothing that was written counts.

use crate::batch::Batch;
use crate::commit::{LogId, Offset};
use crate::error::{Error, SYNC_DIR};
use crate::frame::Checkpoint;
use crate::journal::write_zeros;
use crate::limits;
use crate::log::Doomed;
use crate::planted::{self, Bug};
use crate::range_set::RangeSet;
use crate::segment::{Segment, SegmentId, Stretch, walk, write_batches};
use crate::snapshot::{self, Root, Snapshot};
use crate::state::{Keys, State};
use crate::store::Store;
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::mem::take;
use std::path::Path;
use std::sync::Arc;

/// Owned by whoever writes segments. Locked before the writer and the state, never after.
pub(crate) struct Checkpointer {
    pub root: Root,
    pub snapshot: Snapshot,
    pub next_snapshot: u64,
    /// Counts checkpoints.
    pub number: u64,
    pub incarnation: u64,
    /// Segments with bytes that no sync has covered, and whether names were added to their directory.
    pub unsynced: BTreeSet<SegmentId>,
    pub names_unsynced: bool,
    /// A checkpoint of this start was lined up.
    pub begun: bool,
    /// A record that waits for the journal and not known to be durable.
    pub waiting: Option<Waiting>,
}

pub(crate) struct Waiting {
    record: Checkpoint,
    doomed: Vec<Doomed>,
    old_snapshot: Option<u64>,
    /// The first one of this start.
    is_first: bool,
}

/// What one pass took over from the state.
struct Pass {
    cut: u64,
    todo: Vec<LogId>,
    noted: Vec<LogId>,
    keys: Keys,
    dropped: Vec<LogId>,
    doomed: Vec<Doomed>,
    entries: Vec<u8>,
}

type Batches = Vec<(Offset, u32, Arc<Batch>)>;

impl Store {
    /// May be called at any time, from one thread at a time or several.
    ///
    /// A full disk is not an error: [`Store::pressure`] says so, and the next checkpoint tries again.
    pub fn checkpoint(&self) -> Result<(), Error> {
        self.make_ready().inspect_err(|_| self.poison())?;
        self.checkpoint_with(false, &mut || ())
    }

    /// `between` is called wherever another thread could come in: the simulation is that thread.
    #[doc(hidden)]
    pub fn checkpoint_with(&self, clean: bool, between: &mut dyn FnMut()) -> Result<(), Error> {
        let mut ck = self.checkpointer.lock().expect("a panic while writing a checkpoint is final");
        loop {
            let done = self.pass(&mut ck, clean, between);
            match &done {
                Err(error) if error.is_full() => {
                    if self.release_reserve() {
                        continue;
                    }
                    self.lock().checkpoint_full = true;
                    return Ok(());
                }
                Err(_) => self.poison(),
                Ok(()) => {}
            }
            return done;
        }
    }

    /// Recovery's own: without it a start does not count, so a full disk is an error here.
    pub(crate) fn first_checkpoint(&self) -> Result<(), Error> {
        let mut ck = self.checkpointer.lock().expect("nobody else is here yet");
        loop {
            match self.pass(&mut ck, false, &mut || ()) {
                Err(error) if error.is_full() && self.release_reserve() => {}
                Ok(()) if ck.waiting.is_some() => {
                    return Err(Error::io("write", &self.journal_dir, std::io::ErrorKind::StorageFull.into()));
                }
                done => return done,
            }
        }
    }

    fn pass(&self, ck: &mut Checkpointer, clean: bool, between: &mut dyn FnMut()) -> Result<(), Error> {
        if let Some(waiting) = ck.waiting.take() {
            self.complete(ck, waiting)?;
            if ck.waiting.is_some() {
                return Ok(());
            }
        }
        self.drop_settled_spill();
        let mut pass = self.begin_pass()?;
        let written = self.write_pass(ck, &mut pass, between);
        let old_snapshot = match written {
            Ok(old) => old,
            Err(error) => {
                self.give_back(pass);
                return Err(error);
            }
        };
        between();
        let is_first = !std::mem::replace(&mut ck.begun, true);
        let record = self.enter_record(ck, pass.cut, clean);
        self.complete(ck, Waiting { record, doomed: pass.doomed, old_snapshot, is_first })
    }

    fn begin_pass(&self) -> Result<Pass, Error> {
        let mut state = self.lock();
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        let mut todo = take(&mut state.dirty);
        todo.sort_unstable();
        Ok(Pass {
            cut: state.accepted,
            todo,
            noted: Vec::new(),
            keys: take(&mut state.dirty_keys),
            dropped: take(&mut state.dropped),
            doomed: take(&mut state.doomed),
            entries: Vec::new(),
        })
    }

    /// The pass failed: everything it took has to be done again.
    fn give_back(&self, pass: Pass) {
        let mut state = self.lock();
        let State { logs, dirty, dirty_keys, .. } = &mut *state;
        for id in pass.noted {
            if let Some(log) = logs.get_mut(&id).filter(|l| !l.dirty) {
                log.dirty = true;
                dirty.push(id);
            }
        }
        dirty.extend(pass.todo);
        for (key, value) in pass.keys {
            dirty_keys.entry(key).or_insert(value);
        }
        state.dropped.extend(pass.dropped);
        state.doomed.extend(pass.doomed);
    }

    /// Steps 2 to 4. Answers the snapshot log that was replaced, if one was.
    fn write_pass(&self, ck: &mut Checkpointer, pass: &mut Pass, between: &mut dyn FnMut()) -> Result<Option<u64>, Error> {
        while let Some(id) = pass.todo.pop() {
            if let Err(error) = self.write_log(ck, pass, id, between) {
                pass.todo.push(id);
                return Err(error);
            }
            between();
        }
        for id in &pass.dropped {
            snapshot::put_dropped(&mut pass.entries, *id, pass.cut);
        }
        snapshot::put_keys(&mut pass.entries, &pass.keys);
        if planted::has(Bug::DeleteBeforeCheckpoint) {
            let first = self.lock().files.back().map_or(0, |f| f.number);
            self.free(u64::MAX, first, take(&mut pass.doomed))?;
        }
        self.sync_segments(ck)?;
        between();
        self.write_snapshot(ck, pass)
    }

    /// One log: what is unsettled to its segment, its state to the entries.
    fn write_log(&self, ck: &mut Checkpointer, pass: &mut Pass, id: LogId, between: &mut dyn FnMut()) -> Result<(), Error> {
        self.rewrite_segments(ck, pass, id)?;
        // A long tail goes in slices; what is left for the moment that counts is short, unless it grows faster than we write.
        for _ in 0..64 {
            if self.spill_slice(ck, id, false, limits::SLICE_BATCHES)? < limits::SLICE_BATCHES {
                break;
            }
            between();
        }
        let (noted, batches) = {
            let mut state = self.lock();
            let as_of = state.accepted;
            let Some(log) = state.logs.get_mut(&id) else {
                // Dropped while this pass ran. No replay may look for it.
                snapshot::put_dropped(&mut pass.entries, id, as_of);
                return Ok(());
            };
            pass.doomed.extend(log.take_settled_segments());
            log.dirty = false;
            (snapshot::encode_state(id, log, as_of), log.unwritten(false, usize::MAX))
        };
        pass.noted.push(id);
        self.write_to_segments(ck, id, false, batches)?;
        let state = self.lock();
        let segments = state.logs.get(&id).and_then(|l| l.busy.as_ref()).map_or(&[][..], |b| &b.segments);
        snapshot::put_log(&mut pass.entries, &noted, segments);
        Ok(())
    }

    fn sync_segments(&self, ck: &mut Checkpointer) -> Result<(), Error> {
        while let Some(id) = ck.unsynced.first().copied() {
            match self.files.sync(id) {
                // The log was dropped, or everything in the segment settled, and the file went: nothing to sync.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                synced => synced?,
            }
            ck.unsynced.remove(&id);
        }
        if ck.names_unsynced {
            let dir = self.files.dir(false);
            self.disk.sync_dir(dir).map_err(|e| Error::io(SYNC_DIR, dir, e))?;
            ck.names_unsynced = false;
        }
        Ok(())
    }

    fn write_snapshot(&self, ck: &mut Checkpointer, pass: &Pass) -> Result<Option<u64>, Error> {
        let dir = &self.settings.dir;
        if ck.snapshot.is_mostly_garbage(pass.entries.len(), self.settings.segment_bytes) {
            // A copy that does not read back is not the base of a new one: what is there is appended to and kept.
            if let Ok(entries) = ck.snapshot.compact(&pass.entries, pass.cut) {
                let number = ck.next_snapshot;
                ck.next_snapshot += 1;
                let old = ck.snapshot.number;
                ck.snapshot = Snapshot::create(&*self.disk, dir, number, &entries)?;
                return Ok(Some(old));
            }
            self.lock().stats.damage += 1;
        }
        ck.snapshot.append(dir, &pass.entries)?;
        ck.snapshot.appended(pass.entries.len());
        Ok(None)
    }

    /// Step 5, first half. From here on the record may become durable at any time, and everything in it is true already.
    fn enter_record(&self, ck: &mut Checkpointer, cut: u64, clean: bool) -> Checkpoint {
        let mut state = self.lock();
        ck.number += 1;
        state.accepted += 1;
        let ahead = if clean { 0 } else { limits::LOG_NUMBERS_AHEAD };
        state.log_numbers_end = state.next_log + ahead;
        let current = *state.files.back().expect("there is always a current file");
        let first = state.files.iter().find(|f| f.last_position > cut).copied().unwrap_or(current);
        let record = Checkpoint {
            number: ck.number,
            epoch: self.epoch,
            incarnation: ck.incarnation,
            snapshot: ck.snapshot.number,
            snapshot_bytes: ck.snapshot.bytes,
            cut,
            synced: state.accepted,
            first_file: first.number,
            first_group: first.first_group,
            next_log: state.log_numbers_end,
            file_bytes: self.settings.journal_file_bytes,
            clean,
        };
        state.backlog.checkpoint(&record);
        state.sync_waits = true;
        record
    }

    /// Steps 5 to 7.
    fn complete(&self, ck: &mut Checkpointer, waiting: Waiting) -> Result<(), Error> {
        if self.durable().0 < waiting.record.synced && self.write_group()?.0 < waiting.record.synced {
            ck.waiting = Some(waiting);
            return Ok(());
        }
        let record = &waiting.record;
        ck.root.write(record, record.number)?;
        if waiting.is_first {
            // What the other slot names is about to be freed, and it may be torn.
            ck.root.write(record, record.number + 1)?;
        }
        {
            let mut state = self.lock();
            state.stats.checkpoints += 1;
            state.checkpoint_full = false;
        }
        self.free(record.cut, record.first_file, waiting.doomed)?;
        if let Some(old) = waiting.old_snapshot {
            snapshot::remove(&*self.disk, &self.settings.dir, old);
        }
        if waiting.is_first { self.remove_orphans(ck) } else { Ok(()) }
    }

    /// What earlier starts left, and no checkpoint names: only now is it certain that nobody will ask for it. Where something
    /// was damaged it may be all that is left, and stays.
    fn remove_orphans(&self, ck: &Checkpointer) -> Result<(), Error> {
        let listed: BTreeSet<String> = {
            let state = self.lock();
            if state.stats.damage > 0 {
                return Ok(());
            }
            state.logs.values().flat_map(|l| l.all_segments()).filter(|s| !s.0.volatile).map(|s| s.0.name()).collect()
        };
        self.remove_files(self.files.dir(false), |name| name.ends_with(".log") && !listed.contains(name))?;
        let dir = &self.settings.dir;
        let names = self.disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
        let old = names.iter().filter_map(|n| snapshot::number_of(n)).filter(|n| *n != ck.snapshot.number);
        old.for_each(|number| snapshot::remove(&*self.disk, dir, number));
        Ok(())
    }

    pub(crate) fn remove_files(&self, dir: &Path, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let names = self.disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
        for name in names.into_iter().filter(|name| which(name)) {
            let path = dir.join(name);
            self.disk.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// Step 7. Journal files are renamed to numbers to come: what they hold has older group numbers than anything that will
    /// be written to them.
    fn free(&self, cut: u64, first_file: u64, doomed: Vec<Doomed>) -> Result<(), Error> {
        for (id, damaged) in doomed {
            self.files.remove(id, damaged).map_err(|e| Error::io("remove", &self.files.path(id), e))?;
        }
        let mut renamed = Vec::new();
        loop {
            let (number, new) = {
                let mut state = self.lock();
                let Some(file) = state.files.front().filter(|f| f.number < first_file).copied() else { break };
                assert!(file.last_position <= cut, "file {} is still needed", file.number);
                state.files.pop_front();
                let kept = self.kept.contains(&file.number);
                let reuse =
                    !kept && file.number >= state.reuse_from && state.ready.len() + renamed.len() < limits::JOURNAL_READY_MAX;
                let new = reuse.then_some(state.next_file);
                state.next_file += reuse as u64;
                (file.number, new)
            };
            self.free_file(number, new)?;
            renamed.extend(new);
        }
        if !renamed.is_empty() {
            self.sync_journal_dir()?;
        }
        renamed.into_iter().try_for_each(|number| self.add_ready(number))
    }

    fn free_file(&self, number: u64, new: Option<u64>) -> Result<(), Error> {
        let path = self.journal_path(number);
        let done = match new {
            _ if self.kept.contains(&number) => self.disk.rename(&path, &path.with_extension("damaged")),
            Some(new) => self.disk.rename(&path, &self.journal_path(new)),
            None => self.disk.remove(&path),
        };
        match done {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && new.is_none() => Ok(()),
            done => done.map_err(|e| Error::io("free", &path, e)),
        }
    }

    /// Hands a file to the writer, unless the writer, in want of one, has gone past its number meanwhile.
    fn add_ready(&self, number: u64) -> Result<(), Error> {
        let mut state = self.lock();
        let current = state.files.back().map_or(0, |f| f.number);
        if number > current {
            let at = state.ready.partition_point(|n| *n < number);
            state.ready.insert(at, number);
            return Ok(());
        }
        drop(state);
        let path = self.journal_path(number);
        self.disk.remove(&path).map_err(|e| Error::io("remove", &path, e))
    }

    /// One journal file ahead of the writer, written once in full: overwriting it will change no size and no extent.
    pub(crate) fn make_ready(&self) -> Result<(), Error> {
        self.look_at_space();
        let number = {
            let mut state = self.lock();
            if !state.ready.is_empty() || state.poisoned {
                return Ok(());
            }
            state.next_file += 1;
            state.next_file - 1
        };
        match self.new_journal_file(number, true) {
            Ok(_) => self.add_ready(number),
            Err(error) if error.is_full() => {
                // Not needed yet: what space there is, is for segments.
                self.lock().space_low = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Watches the free space, and sets some of it aside while there is enough.
    fn look_at_space(&self) {
        let Ok(free) = self.disk.free_space(&self.settings.dir) else { return };
        self.lock().space_low = free < self.settings.disk_free_min;
        let bytes = self.settings.reserve_bytes;
        let path = self.settings.dir.join("reserve");
        let mut reserve = self.reserve.lock().expect("nothing panics under this lock");
        if !*reserve && bytes > 0 && free > 2 * bytes + self.settings.disk_free_min {
            let made = self.disk.create(&path).and_then(|file| {
                write_zeros(&*file, bytes)?;
                file.sync_data()
            });
            *reserve = made.is_ok();
        }
    }

    /// Gives up the space that was set aside; whether there was any.
    pub(crate) fn release_reserve(&self) -> bool {
        let mut reserve = self.reserve.lock().expect("nothing panics under this lock");
        take(&mut *reserve) && self.disk.remove(&self.settings.dir.join("reserve")).is_ok()
    }

    /// Memory is short: tails are written to segments, unsynced, until half the bound is free.
    pub(crate) fn spill(&self) -> Result<(), Error> {
        let mut ck = self.checkpointer.lock().expect("a panic while writing a checkpoint is final");
        self.drop_settled_spill();
        let (mut durable, volatile) = {
            let state = self.lock();
            (state.dirty.clone(), state.volatile.iter().copied().collect::<Vec<_>>())
        };
        durable.sort_unstable();
        let all = durable.into_iter().map(|id| (id, false)).chain(volatile.into_iter().map(|id| (id, true)));
        for (id, volatile) in all {
            loop {
                if self.lock().tail_bytes <= self.settings.tail_bytes_max / 2 {
                    return Ok(());
                }
                match self.spill_slice(&mut ck, id, volatile, limits::SLICE_BATCHES) {
                    Ok(written) if written == limits::SLICE_BATCHES => {}
                    Ok(_) => break,
                    Err(error) if error.is_full() => {
                        self.lock().checkpoint_full = true;
                        return Ok(());
                    }
                    Err(error) => {
                        self.poison();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Spilled files of volatile logs are in no checkpoint: they go as soon as they are settled.
    fn drop_settled_spill(&self) {
        let ids: Vec<LogId> = self.lock().volatile.iter().copied().filter(|id| id.is_volatile()).collect();
        for id in ids {
            let gone = self.lock().logs.get_mut(&id).map(|l| l.take_settled_segments());
            // A file that stays is removed at the next start.
            gone.into_iter().flatten().for_each(|(id, _)| drop(self.files.remove(id, false)));
        }
        let State { logs, volatile, .. } = &mut *self.lock();
        let is_used = |id: &LogId| {
            let busy = logs.get(id).and_then(|l| l.busy.as_ref());
            busy.is_some_and(|b| !b.spilled.is_empty() || b.tail.iter().any(|t| t.volatile))
        };
        volatile.retain(is_used);
    }

    fn spill_slice(&self, ck: &mut Checkpointer, id: LogId, volatile: bool, limit: usize) -> Result<usize, Error> {
        let batches = {
            let state = self.lock();
            state.logs.get(&id).map_or(Vec::new(), |l| l.unwritten(volatile, limit))
        };
        let count = batches.len();
        self.write_to_segments(ck, id, volatile, batches)?;
        Ok(count)
    }

    /// Appends batches to the log's segments, new ones as they fill up; then memory lets go of them.
    fn write_to_segments(&self, ck: &mut Checkpointer, id: LogId, volatile: bool, batches: Batches) -> Result<(), Error> {
        if batches.is_empty() {
            return Ok(());
        }
        let last = {
            let state = self.lock();
            let busy = state.logs.get(&id).and_then(|l| l.busy.as_ref());
            busy.and_then(|b| if volatile { b.spilled.last() } else { b.segments.last() }).cloned()
        };
        let mut written: Vec<Segment> = last.into_iter().collect();
        let mut bytes = 0;
        let mut rest = &batches[..];
        while !rest.is_empty() {
            if written.last().is_none_or(|s| s.bytes >= self.settings.segment_bytes || s.damaged) {
                let segment = SegmentId { log: id, base: rest[0].0, generation: 0, volatile };
                self.files.create(segment).map_err(|e| Error::io("create", &self.files.path(segment), e))?;
                ck.names_unsynced |= !volatile;
                written.push(Segment::new(segment));
            }
            let segment = written.last_mut().expect("made a line ago");
            let count = self.fill(ck, segment, rest)?;
            bytes += rest[..count].iter().map(|b| b.2.size() as u64).sum::<u64>();
            rest = &rest[count..];
        }
        let mut state = self.lock();
        let freed = match state.logs.get_mut(&id) {
            Some(log) => {
                let busy = log.busy();
                let segments = if volatile { &mut busy.spilled } else { &mut busy.segments };
                if let Some(last) = segments.pop() {
                    written[0].damaged |= last.damaged;
                }
                segments.extend(written);
                log.forget_written(volatile, &batches)
            }
            None => {
                // Dropped meanwhile; the segment that it had then is doomed already, and removing twice does not hurt.
                state.doomed.extend(written.iter().map(|s| (s.id, false)));
                0
            }
        };
        state.tail_bytes -= freed;
        state.stats.segment_bytes_written += bytes;
        Ok(())
    }

    /// Writes to one segment until it is full; how many batches that took.
    fn fill(
        &self,
        ck: &mut Checkpointer,
        segment: &mut Segment,
        batches: &[(Offset, u32, Arc<Batch>)],
    ) -> Result<usize, Error> {
        let path = self.files.path(segment.id);
        let file = self.files.open(segment.id).map_err(|e| Error::io("open", &path, e))?;
        let mut run = Vec::new();
        let mut bytes = segment.bytes;
        for (base, epoch, batch) in batches {
            if !run.is_empty() && (bytes >= self.settings.segment_bytes || run.len() == 512) {
                break;
            }
            bytes += batch.size() as u64;
            run.push((batch.head(*base, *epoch), batch.clone()));
        }
        if !segment.id.volatile {
            ck.unsynced.insert(segment.id);
            self.files.mark_unsynced(segment.id);
        }
        write_batches(&*file, segment.bytes, &run).map_err(|e| Error::io("write", &path, e))?;
        for (head, (base, _, batch)) in run.iter().map(|r| &r.0).zip(batches) {
            segment.push(*base, batch.span() as u64, head, batch.size(), self.settings.read_bytes);
        }
        Ok(run.len())
    }

    /// One stuck record does not pin a segment: what is left of a mostly settled one is written anew.
    fn rewrite_segments(&self, ck: &mut Checkpointer, pass: &mut Pass, id: LogId) -> Result<(), Error> {
        for (segment, settled, first) in self.mostly_settled(id) {
            let replaced = self.rewrite(ck, &segment, &settled, first)?;
            let mut state = self.lock();
            let Some(busy) = state.logs.get_mut(&id).and_then(|l| l.busy.as_mut()) else { return Ok(()) };
            let Some(at) = busy.segments.iter().position(|s| s.id == segment.id) else { continue };
            match replaced {
                Some(new) => {
                    pass.doomed.push((segment.id, busy.segments[at].damaged));
                    busy.segments.splice(at..at + 1, new);
                }
                None => {
                    let gone = first.clamp(segment.id.base, segment.end) - segment.id.base;
                    busy.segments[at].rewrite_tried_at = gone + settled.count_in(first.max(segment.id.base), segment.end);
                }
            }
        }
        Ok(())
    }

    fn mostly_settled(&self, id: LogId) -> Vec<(Segment, RangeSet, Offset)> {
        let state = self.lock();
        let Some(log) = state.logs.get(&id) else { return Vec::new() };
        let Some(busy) = &log.busy else { return Vec::new() };
        let last = busy.segments.len().saturating_sub(1);
        let sealed = busy.segments.iter().enumerate().filter(|(i, s)| *i < last || s.bytes >= self.settings.segment_bytes);
        let mut found = Vec::new();
        for (_, segment) in sealed {
            let (base, end) = (segment.id.base, segment.end);
            let from = log.first.clamp(base, end);
            let gone = from - base + log.settled.count_in(from, end);
            let span = end - base;
            // Settled whole it is simply dropped; and one where it did not pay is looked at again when more is settled.
            if gone < span && gone * 4 > span * 3 && gone > segment.rewrite_tried_at + span / 16 && !segment.damaged {
                found.push((segment.clone(), log.settled.window(from, end), log.first));
            }
        }
        found
    }

    /// `None` if it does not pay; else the new segment, or nothing if nothing is left.
    fn rewrite(
        &self,
        ck: &mut Checkpointer,
        segment: &Segment,
        settled: &RangeSet,
        first: Offset,
    ) -> Result<Option<Option<Segment>>, Error> {
        let crc_after = segment.heads_crc;
        let whole = Stretch { id: segment.id, at: 0, bytes: segment.bytes as usize, crc_before: 0, crc_after };
        let Ok(bytes) = self.files.read(&whole) else { return Ok(None) };
        let Some(mut found) = walk(&bytes, &whole) else { return Ok(None) };
        found.retain(|b| b.base + b.span > first && !settled.covers(b.base.max(first), b.base + b.span));
        let left: usize = found.iter().map(|b| b.to - b.from).sum();
        if left as u64 * 2 > segment.bytes {
            return Ok(None);
        }
        if found.is_empty() {
            return Ok(Some(None));
        }
        if found.iter().any(|b| Batch::parse(&bytes[b.from..b.to]).is_err()) {
            // What is rotten is not copied: it stays where it is, and is reported to whoever reads it.
            return Ok(None);
        }
        let id = SegmentId { generation: segment.id.generation + 1, ..segment.id };
        let path = self.files.path(id);
        let file = self.files.create(id).map_err(|e| Error::io("create", &path, e))?;
        ck.names_unsynced = true;
        ck.unsynced.insert(id);
        let mut new = Segment::new(id);
        let slices: Vec<_> = found.iter().map(|b| IoSlice::new(&bytes[b.from..b.to])).collect();
        file.write_at(&slices, 0).map_err(|e| Error::io("write", &path, e))?;
        for batch in &found {
            let head = bytes[batch.from..].first_chunk().expect("walked over it");
            new.push(batch.base, batch.span, head, batch.to - batch.from, self.settings.read_bytes);
        }
        // It answers for the whole range: nothing else does.
        new.end = segment.end;
        Ok(Some(Some(new)))
    }
}
