//! Opening a data directory: what the last checkpoint knew, then the journal from there on.
//!
//! The journal is walked frame by frame. Where no valid frame stands, either the journal ends, torn or not: the group that
//! was being written was never synced, and nobody was told otherwise. Or something that *was* synced cannot be read. The two
//! differ by what follows: a group is only written after the one before it was synced, so a valid frame of a later group
//! proves that everything before it had been durable. Then the file is kept, the commits behind the hole are applied, and the
//! damage is reported.
//!
//! Nothing that counts is changed before a new checkpoint, written with the same steps as any other, is durable, or the
//! frames of a start that goes on without one: a power loss at any place in here finds the directory as it was.

use crate::batch::Batch;
use crate::checkpoint::Checkpointer;
use crate::commit::{Level, LogId, Op, Position};
use crate::disk::Disk;
use crate::error::{Damage, Error, SYNC, SYNC_DIR};
use crate::frame::{self, Checkpoint, Content, Frame, FrameHead, FrameOp, Start, Target};
use crate::journal::Writer;
use crate::limits;
use crate::planted::{self, Bug};
use crate::segment::Files;
use crate::snapshot::{self, Entry, OFFSET_MAX, Root, Snapshot};
use crate::state::{JournalFile, State, run_end};
use crate::store::{Recovered, RecoveredLog, Settings, Store};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

pub(crate) const FORMAT: u32 = 1;

pub(crate) fn open(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Arc<Store>, Recovered), Error> {
    let dir = settings.dir.clone();
    let found = read_format(&*disk, &dir)?;
    if found.is_none() {
        disk.make_dir(&dir).map_err(|e| Error::io("make", &dir, e))?;
    }
    let lock = disk.lock(&dir.join("lock")).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock => Error::Locked(dir.clone()),
        _ => Error::io("lock", &dir, e),
    })?;
    let node_id = match found {
        Some(node_id) => node_id,
        None => make_format(&*disk, &settings)?,
    };
    // Holds nothing that outlives a process; a copy of the directory may have left it out.
    let spill = dir.join("spill");
    disk.make_dir(&spill).map_err(|e| Error::io("make", &spill, e))?;
    let root = Root::open(&*disk, &dir)?;
    let journal = journal_files(&*disk, &dir.join("journal"))?;
    let slots = root.read();
    let base = match find_checkpoint(&*disk, &dir, &journal, slots)? {
        Some(base) => base,
        None => {
            first_checkpoint(&*disk, &dir, &root)?;
            Checkpoint { first_file: 1, ..Checkpoint::default() }
        }
    };
    Recovery::new(disk, settings, lock, root, journal, base)?.run(node_id)
}

/// The node's id, if the directory has our format. Changes nothing.
fn read_format(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>, Error> {
    let path = dir.join("format");
    let file = match disk.open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let mut bytes = vec![0; file.len().map_err(|e| Error::io("read", &path, e))?.min(256) as usize];
    file.read_at(&mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Foreign(dir.to_owned()))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let found = field("braid storage format ").and_then(|f| f.parse().ok()).ok_or(Error::Foreign(dir.to_owned()))?;
    if found != FORMAT {
        return Err(Error::Version { found, known: FORMAT });
    }
    let node = field("node ").and_then(|f| u64::from_str_radix(f, 16).ok());
    node.map(Some).ok_or(Error::Foreign(dir.to_owned()))
}

/// Makes an empty data directory; the format file comes last, and what was begun without it is begun again.
fn make_format(disk: &dyn Disk, settings: &Settings) -> Result<u64, Error> {
    let dir = &settings.dir;
    if Root::open(disk, dir).is_ok_and(|root| root.read().iter().any(Option::is_some)) {
        return Err(Error::Foreign(dir.clone()));
    }
    for name in ["journal", "segments", "spill"] {
        let path = dir.join(name);
        disk.make_dir(&path).map_err(|e| Error::io("make", &path, e))?;
    }
    Root::create(disk, dir)?;
    let node_id = mix(settings.entropy);
    let (new, path) = (dir.join("format.new"), dir.join("format"));
    let text = format!("braid storage format {FORMAT}\nnode {node_id:016x}\n");
    let file = disk.create(&new).map_err(|e| Error::io("create", &new, e))?;
    file.write_at(&[IoSlice::new(text.as_bytes())], 0).map_err(|e| Error::io("write", &new, e))?;
    file.sync_data().map_err(|e| Error::io(SYNC, &new, e))?;
    disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
    disk.sync_dir(dir).map_err(|e| Error::io(SYNC_DIR, dir, e))?;
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(|e| Error::io(SYNC_DIR, parent, e))?;
    }
    Ok(node_id)
}

/// SplitMix64: spreads the entropy that we were given.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn journal_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, Error> {
    let names = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let numbers = names.iter().filter(|n| n.len() == 16).filter_map(|n| u64::from_str_radix(n, 16).ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a whole file into a buffer that is used again and again: fresh memory costs more than the reading.
fn read_journal_file(disk: &dyn Disk, dir: &Path, number: u64, bytes: &mut Vec<u8>) -> Result<(), Error> {
    let path = dir.join("journal").join(format!("{number:016x}"));
    let failed = |e| Error::io("read", &path, e);
    let file = disk.open(&path).map_err(failed)?;
    bytes.resize(file.len().map_err(failed)? as usize, 0);
    file.read_at(bytes, 0).map_err(failed)
}

/// The checkpoint to begin with. Usually the newer slot of the root file; if a slot does not read back, a record in the
/// journal may be newer than the other one.
fn find_checkpoint(
    disk: &dyn Disk,
    dir: &Path,
    journal: &[u64],
    slots: [Option<Checkpoint>; 2],
) -> Result<Option<Checkpoint>, Error> {
    let newest = slots.into_iter().flatten().max_by_key(|c| c.number);
    if slots.iter().all(Option::is_some) {
        return Ok(newest);
    }
    let mut best = newest;
    // (incarnation, position) of the last frame, and where the unbroken run of frames that leads to it began.
    let mut last = (0, 0, 0);
    let mut bytes = Vec::new();
    for number in journal {
        read_journal_file(disk, dir, *number, &mut bytes)?;
        let mut at = 0;
        while at < bytes.len() {
            let Some(frame) = next_frame(&bytes, &mut at, |_| true) else { break };
            let head = frame.head;
            if (head.incarnation, head.position) != (last.0, last.1 + 1) {
                last.2 = head.position;
            }
            (last.0, last.1) = (head.incarnation, head.position);
            if let Content::Checkpoint(record) = frame.content {
                // A record in a group that was torn before it may know of commits that are lost.
                let whole = record.cut + 1 >= last.2 || record.cut + 1 == record.synced;
                // A checkpoint that never came to the root file is made once more by the next start, over the same bytes.
                if whole && best.is_none_or(|b| (b.epoch, b.number) < (record.epoch, record.number)) {
                    best = Some(record);
                }
            }
        }
    }
    Ok(best)
}

/// The next valid frame at or after `at`, which moves behind it. Of those that are not wanted only the head is looked at:
/// most of a journal file may be what stood there before.
fn next_frame(bytes: &[u8], at: &mut usize, wanted: impl Fn(&FrameHead) -> bool) -> Option<Frame> {
    while *at < bytes.len() {
        let head = frame::peek(&bytes[*at..]).filter(|head| wanted(head));
        if let Some(frame) = head.and_then(|_| frame::parse(&bytes[*at..])) {
            *at += frame.bytes;
            return Some(frame);
        }
        *at += frame::ALIGN;
    }
    None
}

/// A directory that never came to its first checkpoint holds nothing that anybody was promised.
fn first_checkpoint(disk: &dyn Disk, dir: &Path, _: &Root) -> Result<(), Error> {
    let names = disk.list(&dir.join("segments")).map_err(|e| Error::io("list", dir, e))?;
    if names.is_empty() { Ok(()) } else { Err(Error::Foreign(dir.to_owned())) }
}

struct Recovery {
    store: Store,
    base: Checkpoint,
    journal: Vec<u64>,
    keys: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Commits up to here are in the log's entry already.
    as_of: HashMap<LogId, u64>,
    /// The last frame that was applied or skipped.
    last: FrameHead,
    replayed: bool,
    damage: Vec<Damage>,
    old_files: Vec<JournalFile>,
}

impl Recovery {
    fn new(
        disk: Arc<dyn Disk>,
        settings: Settings,
        lock: Box<dyn Any + Send + Sync>,
        root: Root,
        journal: Vec<u64>,
        base: Checkpoint,
    ) -> Result<Recovery, Error> {
        let dir = settings.dir.clone();
        let mut damage = Vec::new();
        let names = disk.list(&dir).map_err(|e| Error::io("list", &dir, e))?;
        let highest = names.iter().filter_map(|n| snapshot::number_of(n)).max().unwrap_or(0).max(base.snapshot);
        let mut state = State { epoch: base.epoch, next_log: base.next_log.max(1), ..State::default() };
        let (mut keys, mut as_of) = (BTreeMap::new(), HashMap::new());
        let snapshot = if base.number == 0 {
            Snapshot::create(&*disk, &dir, highest + 1, &[])?
        } else {
            let snapshot = Snapshot::open(&*disk, &dir, base.snapshot, base.snapshot_bytes)?;
            let loaded = snapshot.load(|entry| load(&mut state, &mut keys, &mut as_of, entry));
            if let Err(at) = loaded {
                let file = dir.join(format!("snapshot-{:016x}-a", base.snapshot));
                damage.push(Damage { file, at, log: None, what: "both copies of the snapshot log are unreadable".into() });
            }
            if planted::has(Bug::TrustSegmentSize) {
                trust_sizes(&*disk, &dir, &mut state);
            }
            snapshot
        };
        let checkpointer = Checkpointer {
            root,
            next_snapshot: highest + 2,
            snapshot,
            number: base.number,
            incarnation: 0,
            unsynced: BTreeSet::new(),
            names_unsynced: true,
            begun: false,
            waiting: None,
        };
        let reserve = names.iter().any(|n| n == "reserve");
        let store = Store {
            files: Files::new(disk.clone(), &dir),
            journal_dir: dir.join("journal"),
            disk,
            settings,
            epoch: base.epoch + 1,
            durable: AtomicU64::new(0),
            state: Mutex::new(state),
            group_wake: Condvar::new(),
            checkpoint_wake: Condvar::new(),
            writer: Mutex::default(),
            checkpointer: Mutex::new(checkpointer),
            reserve: Mutex::new(reserve),
            kept: BTreeSet::new(),
            _lock: lock,
        };
        let last = FrameHead {
            incarnation: base.incarnation,
            group: base.first_group.saturating_sub(1),
            position: 0,
            epoch: base.epoch,
            first: true,
            last: true,
        };
        let old_files = Vec::new();
        Ok(Recovery { store, base, journal, keys, as_of, last, replayed: false, damage, old_files })
    }

    fn run(mut self, node_id: u64) -> Result<(Arc<Store>, Recovered), Error> {
        match self.base.number {
            // No checkpoint was ever durable: whatever is there was promised to nobody.
            0 => self.old_files = self.journal.iter().map(|n| unneeded(*n)).collect(),
            _ => self.replay()?,
        }
        self.settle_what_was_volatile();
        self.store.epoch = self.base.epoch.max(self.last.epoch) + 1;
        let recovered = self.recovered(node_id);
        self.begin()?;
        Ok((Arc::new(self.store), recovered))
    }

    fn replay(&mut self) -> Result<(), Error> {
        let (needed, older): (Vec<u64>, Vec<u64>) = self.journal.iter().partition(|n| **n >= self.base.first_file);
        self.old_files = older.into_iter().map(unneeded).collect();
        let (mut walk, mut bytes) = (Walk::default(), Vec::new());
        for number in needed {
            self.old_files.push(unneeded(number));
            walk.file = number;
            if self.is_history(&walk, number) {
                continue;
            }
            match read_journal_file(&*self.store.disk, &self.store.settings.dir, number, &mut bytes) {
                Ok(()) => {
                    if (bytes.len() as u64) < self.base.file_bytes {
                        let what = format!("cut to {} of {} bytes", bytes.len(), self.base.file_bytes);
                        self.damage_at(self.store.journal_path(number), bytes.len() as u64, None, what);
                        self.store.kept.insert(number);
                    }
                    let before = (self.last.position, walk.waiting.len());
                    self.walk_file(&bytes, &mut walk)?;
                    let idle = before == (self.last.position, walk.waiting.len());
                    walk.idle_files = if idle { walk.idle_files + 1 } else { 0 };
                }
                Err(Error::Io { source, path, .. }) if source.raw_os_error().is_some() => {
                    self.damage_at(path, 0, None, format!("cannot be read: {source}"));
                    self.store.kept.insert(number);
                }
                Err(error) => return Err(error),
            }
        }
        if self.last.position < self.base.synced {
            let what = format!("the journal ends at commit {}, it was synced to {}", self.last.position, self.base.synced);
            self.damage_at(self.store.journal_dir.clone(), 0, None, what);
            self.store.kept.extend(self.journal.iter().filter(|n| **n >= self.base.first_file));
        }
        Ok(())
    }

    /// Whether a file need not be read. Files are used in order, each for one group at least: behind two in which nothing of
    /// this life was found, one is read only if it begins with something of this life. A clean end is the end.
    fn is_history(&self, walk: &Walk, number: u64) -> bool {
        if self.base.clean && self.last.position >= self.base.synced {
            return true;
        }
        if walk.idle_files < 2 {
            return false;
        }
        let mut head = [0; START_PLACES[1] + frame::HEAD_BYTES];
        let read = self.store.disk.open(&self.store.journal_path(number)).and_then(|file| file.read_at(&mut head, 0));
        read.is_ok()
            && !START_PLACES.iter().any(|place| frame::is_start(&head[*place..]))
            && frame::peek(&head).is_none_or(|head| head.incarnation != self.last.incarnation || head.group <= self.last.group)
    }

    /// A file may begin with a start that went on from where we are; it stands there twice. Answers how far it reaches.
    fn walk_start(&mut self, bytes: &[u8], walk: &mut Walk) -> Result<usize, Error> {
        for place in START_PLACES {
            let at = bytes.get(place..).filter(|at| frame::is_start(at));
            if let Some(frame) = at.and_then(frame::parse)
                && let Some(end) = self.go_on_from(frame, walk)?
            {
                if place > 0 {
                    let path = self.store.journal_path(walk.file);
                    self.store.kept.insert(walk.file);
                    self.damage_at(path, 0, None, "one of two copies of a start is unreadable".into());
                }
                return Ok(place + end);
            }
        }
        Ok(0)
    }

    fn go_on_from(&mut self, frame: Frame, walk: &mut Walk) -> Result<Option<usize>, Error> {
        let Content::Start(before) = frame.content else { return Ok(None) };
        // In its own life it is a frame like any other; and it may be of a time that is over.
        if frame.head.incarnation == self.last.incarnation || before.incarnation != self.last.incarnation {
            return Ok(None);
        }
        let (end, begin) = (frame.bytes, self.last.position);
        let mut waiting = std::mem::take(&mut walk.waiting);
        let hole = walk.hole.take();
        if begin < before.position {
            // The last life had these, and made sure that they stay.
            let (file, at) = hole.unwrap_or((walk.file, 0));
            let what = format!("commits {} to {} cannot all be read", begin + 1, before.position);
            self.store.kept.insert(file);
            self.damage_at(self.store.journal_path(file), at, None, what);
            waiting.retain(|frame| frame.head.position <= before.position);
            waiting.into_iter().try_for_each(|frame| self.accept(frame))?;
        }
        self.accept(frame)?;
        Ok(Some(end))
    }

    /// Applies the frames of one file. A place where none stands leaves what follows it in `walk` until it is known whether
    /// that is a torn tail or damage.
    fn walk_file(&mut self, bytes: &[u8], walk: &mut Walk) -> Result<(), Error> {
        let mut at = self.walk_start(bytes, walk)?;
        while at < bytes.len() {
            let expected = at;
            let last = self.last;
            let later = |head: &FrameHead| {
                (head.incarnation == last.incarnation && (head.group, head.position) > (last.group, last.position))
                    || planted::has(Bug::NoIncarnationOnReuse)
            };
            let Some(frame) = next_frame(bytes, &mut at, later) else {
                walk.note_hole(expected as u64);
                return Ok(());
            };
            let begin = at - frame.bytes;
            let aligned = (expected as u64).next_multiple_of(limits::GROUP_ALIGN);
            if begin != expected && begin as u64 != aligned {
                walk.note_hole(expected as u64);
            }
            self.walk_frame(frame, walk, begin)?;
        }
        Ok(())
    }

    fn walk_frame(&mut self, frame: Frame, walk: &mut Walk, begin: usize) -> Result<(), Error> {
        let (head, last) = (frame.head, self.last);
        if planted::has(Bug::NoIncarnationOnReuse) && walk.waiting.is_empty() {
            return self.accept(frame);
        }
        let follows = if last.last { head.group == last.group + 1 && head.first } else { head.group == last.group };
        let next = last.position == 0 || head.position == last.position + 1;
        let known = last.position > 0 || head.position <= self.base.cut + 1;
        if follows && next && known && walk.waiting.is_empty() {
            walk.hole = None;
            return self.accept(frame);
        }
        // It stands behind something that cannot be read.
        let proves = if last.last { head.group > last.group + 1 } else { head.group > last.group };
        let proves = proves || head.position <= self.base.synced;
        walk.waiting.push(frame);
        if proves && !planted::has(Bug::TruncateAtFirstBad) {
            return self.apply_damaged(walk, begin);
        }
        Ok(())
    }

    /// What waits behind the hole is proven to have been synced.
    fn apply_damaged(&mut self, walk: &mut Walk, begin: usize) -> Result<(), Error> {
        let (file, at) = walk.hole.take().unwrap_or((walk.file, begin as u64));
        let waiting = std::mem::take(&mut walk.waiting);
        let next = waiting.first().map_or(0, |f| f.head.position);
        let what = format!("commits {} to {} cannot be read", self.last.position + 1, next.saturating_sub(1));
        self.store.kept.insert(file);
        self.damage_at(self.store.journal_path(file), at, None, what);
        waiting.into_iter().try_for_each(|frame| self.accept(frame))
    }

    fn damage_at(&mut self, file: PathBuf, at: u64, log: Option<LogId>, what: String) {
        self.damage.push(Damage { file, at, log, what });
    }

    fn accept(&mut self, frame: Frame) -> Result<(), Error> {
        self.last = frame.head;
        if let Some(file) = self.old_files.last_mut() {
            file.last_position = frame.head.position;
        }
        let ops = match frame.content {
            Content::Commit(ops) => ops,
            Content::Checkpoint(_) => return Ok(()),
            Content::Start(start) => {
                let mut state = self.store.lock();
                state.next_log = state.next_log.max(start.next_log);
                return Ok(());
            }
        };
        if frame.head.position <= self.base.cut {
            return Ok(());
        }
        self.replayed = true;
        for op in ops {
            match op {
                FrameOp::Append { batch, to } => self.replay_append(frame.head, batch, &to),
                FrameOp::Other(op) => self.replay_op(frame.head, op),
            }
        }
        // Much of what was appended is settled further on: room to wait for that spares writing it.
        let excess = self.store.settings.tail_bytes_max.saturating_mul(limits::TAIL_EXCESS);
        if self.store.lock().tail_bytes > excess { self.store.spill() } else { Ok(()) }
    }

    /// Whether the log's entry does not know of this commit yet; a log that no entry knows is missing its creation.
    fn is_news(&mut self, head: FrameHead, id: LogId) -> bool {
        if self.as_of.get(&id).is_some_and(|as_of| head.position <= *as_of) {
            return false;
        }
        let mut state = self.store.lock();
        if !state.logs.contains_key(&id) && !id.is_volatile() {
            state.perform(Op::Create { log: id }, Level::Sync);
            drop(state);
            let what = format!("commit {} changes log {}, of which nothing is known", head.position, id.0);
            self.damage_at(self.store.journal_dir.clone(), 0, Some(id), what);
        }
        !id.is_volatile()
    }

    fn replay_append(&mut self, head: FrameHead, batch: Arc<Batch>, to: &[Target]) {
        let to: Vec<Target> = to.iter().copied().filter(|t| self.is_news(head, t.0)).collect();
        let holders = Arc::new(AtomicU32::new(to.len() as u32));
        let mut held = false;
        for target in to {
            if !self.fits(head, &batch, &target) {
                holders.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (id, base, _) = target;
            let mut state = self.store.lock();
            state.tail_bytes += if held { 0 } else { batch.size() };
            held = true;
            state.stretch_to(id, base + batch.span() as u64);
            state.append(id, base, batch.clone(), head.epoch, false, Some(holders.clone()));
        }
    }

    /// Every gap in a log's offsets is explained by the append behind it, or it is damage.
    fn fits(&mut self, head: FrameHead, batch: &Batch, (id, base, gap): &Target) -> bool {
        let mut state = self.store.lock();
        let log = state.logs.get_mut(id).expect("made if it was not there");
        let end = log.durable_end;
        if *base < end || *base > OFFSET_MAX {
            drop(state);
            let what = format!("commit {} appends {} records at {base}, the log ends at {end}", head.position, batch.span());
            self.damage_at(self.store.journal_dir.clone(), 0, Some(*id), what);
            return false;
        }
        log.next = log.next.max(*base);
        log.settled.insert(end.max(log.first), *base);
        log.first = log.settled.cut_front(log.first);
        drop(state);
        if base - end != *gap {
            let what = format!("records {end} to {} are missing", base.saturating_sub(*gap));
            self.damage_at(self.store.journal_dir.clone(), 0, Some(*id), what);
        }
        true
    }

    fn replay_op(&mut self, head: FrameHead, op: Op) {
        let (log, end) = match &op {
            Op::Put { key, value } => {
                match value {
                    Some(value) => drop(self.keys.insert(key.clone(), value.clone())),
                    None => drop(self.keys.remove(key)),
                }
                return self.store.lock().perform(op, Level::Sync);
            }
            Op::Settle { log, run } => (*log, run_end(run)),
            Op::Count { log, offset, .. } => (*log, offset.saturating_add(1)),
            Op::Trim { log, before } => (*log, *before),
            Op::Create { log } => {
                if self.as_of.get(log).is_none_or(|as_of| head.position > *as_of) {
                    self.store.lock().perform(op, Level::Sync);
                }
                return;
            }
            Op::Drop { log } => (*log, 0),
            Op::Append { .. } | Op::Spill { .. } | Op::Skip { .. } => unreachable!("never journaled as an op"),
        };
        if self.is_news(head, log) && end <= OFFSET_MAX {
            let mut state = self.store.lock();
            state.stretch_to(log, end);
            state.perform(op, Level::Sync);
        }
    }

    /// Volatile records are gone. Their offsets are not given out again where a durable commit named a later one.
    fn settle_what_was_volatile(&mut self) {
        let mut state = self.store.lock();
        for log in state.logs.values_mut() {
            let (from, to) = (log.durable_end.max(log.first), log.next);
            if from < to {
                log.settled.insert(from, to);
                log.first = log.settled.cut_front(log.first);
            }
            log.relax();
        }
    }

    fn recovered(&mut self, node_id: u64) -> Recovered {
        let state = self.store.lock();
        let logs = state.logs.iter().map(|(id, log)| {
            let recovered = RecoveredLog {
                next: log.next,
                first: log.first,
                settled: log.settled.clone(),
                counts: log.busy.as_ref().map(|b| b.counts.clone()).unwrap_or_default(),
                bytes: log.bytes(),
                epochs: log.epochs.to_vec(),
            };
            (*id, recovered)
        });
        Recovered {
            logs: logs.collect(),
            keys: std::mem::take(&mut self.keys),
            epoch: self.store.epoch,
            position: Position(self.last.position.max(self.base.synced)),
            clean: self.base.clean && !self.replayed && self.damage.is_empty(),
            damage: self.damage.clone(),
            node_id,
        }
    }

    /// A new journal file, an incarnation of its own, and a first checkpoint: from here on the old files are history. Where
    /// much would have to be written for that, the start goes on from the old files instead.
    fn begin(&mut self) -> Result<(), Error> {
        let number = self.journal.last().copied().unwrap_or(0).max(self.base.first_file) + 1;
        let goes_on = self.goes_on();
        if goes_on {
            self.sync_last_group()?;
        }
        let store = &self.store;
        let file = store.new_journal_file(number, false)?;
        let (position, group) = (self.last.position.max(self.base.synced), self.last.group + 2);
        let incarnation = mix(store.settings.entropy ^ mix(store.epoch as u64 ^ number << 32));
        {
            let mut state = store.lock();
            state.epoch = store.epoch;
            (state.accepted, state.durable) = (position, position);
            state.stats.damage = self.damage.len() as u64;
            state.files = std::mem::take(&mut self.old_files).into();
            for file in &mut state.files {
                file.last_position = file.last_position.min(position);
            }
            state.files.push_back(JournalFile { number, first_group: group, last_position: 0 });
            state.next_file = number + 1;
            state.reuse_from = if self.base.file_bytes == store.settings.journal_file_bytes { 0 } else { number };
        }
        store.durable.store(position, Ordering::Release);
        *store.writer.lock().expect("nobody else is here yet") =
            Writer::new(file, store.journal_path(number), incarnation, group, position);
        store.checkpointer.lock().expect("nobody else is here yet").incarnation = incarnation;
        store.remove_files(store.files.dir(true), |_| true)?;
        store.remove_files(&store.journal_dir, |name| name.ends_with(".new"))?;
        if goes_on { self.write_start() } else { store.first_checkpoint() }
    }

    /// Whether a first checkpoint would make everybody wait for the disk. It can come later if the journal has room until
    /// then and all of it can be read.
    fn goes_on(&self) -> bool {
        let settings = &self.store.settings;
        let has_spilled = !self.store.checkpointer.lock().expect("nobody else is here yet").unsynced.is_empty();
        let state = self.store.lock();
        let needed = self.old_files.iter().filter(|file| file.last_position > 0).count() as u64;
        let used = (needed + 1) * settings.journal_file_bytes;
        (has_spilled || state.tail_bytes > settings.tail_bytes_max)
            && used <= settings.journal_bytes_max / 8 * 5
            && self.base.file_bytes == settings.journal_file_bytes
            && self.last.position > self.base.synced
            && self.damage.is_empty()
            && !state.checkpoint_full
    }

    /// After a mere kill the last group may be known to the page cache alone; all before it was synced.
    fn sync_last_group(&self) -> Result<(), Error> {
        let file = self.old_files.iter().rev().find(|file| file.last_position > 0);
        let path = self.store.journal_path(file.map_or(self.base.first_file, |file| file.number));
        let synced = self.store.disk.open(&path).and_then(|file| file.sync_data());
        synced.map_err(|e| Error::io(SYNC, &path, e))
    }

    /// In place of a first checkpoint: whoever recovers next finds his way from the last life's files to this one's.
    fn write_start(&self) -> Result<(), Error> {
        let FrameHead { incarnation, group, position, .. } = self.last;
        let next_log = {
            let mut state = self.store.lock();
            state.log_numbers_end = state.next_log + limits::LOG_NUMBERS_AHEAD;
            state.log_numbers_end
        };
        // Two groups, on two pages: nothing else tells that this life follows the last one.
        for _ in START_PLACES {
            let due = {
                let mut state = self.store.lock();
                state.accepted += 1;
                state.backlog.start(&Start { incarnation, group, position, next_log });
                state.sync_waits = true;
                state.accepted
            };
            if self.store.write_group()?.0 < due {
                return Err(Error::io("write", &self.store.journal_dir, ErrorKind::StorageFull.into()));
            }
        }
        Ok(())
    }
}

/// Where a start stands in the first file of its life.
const START_PLACES: [usize; 2] = [0, limits::GROUP_ALIGN as usize];

/// A file of an earlier start; until a frame in it is applied nothing in it is known to be needed.
fn unneeded(number: u64) -> JournalFile {
    JournalFile { number, first_group: 0, last_position: 0 }
}

#[derive(Default)]
struct Walk {
    file: u64,
    /// Where the walk first found no frame.
    hole: Option<(u64, u64)>,
    /// Valid frames behind the hole: applied if a later group proves that they were synced.
    waiting: Vec<Frame>,
    /// Files in a row in which nothing of this life was found.
    idle_files: u32,
}

impl Walk {
    fn note_hole(&mut self, at: u64) {
        self.hole.get_or_insert((self.file, at));
    }
}

fn load(state: &mut State, keys: &mut BTreeMap<Box<[u8]>, Box<[u8]>>, as_of: &mut HashMap<LogId, u64>, entry: Entry) {
    match entry {
        Entry::Log { id, as_of: position, log } => {
            as_of.insert(id, position);
            state.next_log = state.next_log.max(id.0.saturating_add(1));
            state.logs.insert(id, log);
        }
        Entry::Dropped { id, as_of: position } => {
            as_of.insert(id, position);
            state.logs.remove(&id);
        }
        Entry::Key { key, value: Some(value) } => drop(keys.insert(key, value)),
        Entry::Key { key, value: None } => drop(keys.remove(&key)),
    }
}

/// Planted: takes a segment's size for what was written to it.
fn trust_sizes(disk: &dyn Disk, dir: &Path, state: &mut State) {
    let busy = state.logs.values_mut().filter_map(|l| l.busy.as_mut());
    for segment in busy.filter_map(|b| b.segments.last_mut()) {
        let file = disk.open(&dir.join("segments").join(segment.id.name()));
        segment.bytes = file.and_then(|f| f.len()).unwrap_or(segment.bytes);
    }
}
