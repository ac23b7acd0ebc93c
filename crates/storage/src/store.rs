//! The store's face: see the crate's first page for what stands behind it.

use crate::checkpoint::Checkpointer;
use crate::commit::{Commit, LogId, Offset, Position, Refused};
use crate::disk::Disk;
use crate::error::{Damage, Error};
use crate::journal::Writer;
use crate::limits;
use crate::range_set::RangeSet;
use crate::recovery;
use crate::segment::Files;
use crate::state::State;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Where and how large. Tests and the simulation shrink the sizes.
#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    pub journal_file_bytes: u64,
    pub journal_bytes_max: u64,
    pub tail_bytes_max: usize,
    pub segment_bytes: u64,
    /// Read-ahead, and how much of a segment is checked at a time.
    pub read_bytes: usize,
    /// [`crate::Level::Interval`] commits wait at most this long for a group.
    pub interval_ms: u64,
    /// Below this much free disk publishers are stopped.
    pub disk_free_min: u64,
    /// Disk kept back, so that a full disk can still be drained.
    pub reserve_bytes: u64,
    /// Randomness: another number at every start. Tells this start's frames from those of any other.
    pub entropy: u64,
}

impl Settings {
    pub fn new(dir: impl Into<PathBuf>) -> Settings {
        Settings {
            dir: dir.into(),
            journal_file_bytes: limits::JOURNAL_FILE_BYTES,
            journal_bytes_max: limits::JOURNAL_BYTES_MAX,
            tail_bytes_max: limits::TAIL_BYTES_MAX,
            segment_bytes: limits::SEGMENT_BYTES,
            read_bytes: limits::READ_BYTES,
            interval_ms: 100,
            disk_free_min: 1 << 30,
            reserve_bytes: limits::JOURNAL_FILE_BYTES,
            entropy: 0,
        }
    }
}

/// What a start found.
#[derive(Debug)]
pub struct Recovered {
    pub keys: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub logs: HashMap<LogId, RecoveredLog>,
    /// Counts the starts of this data directory.
    pub epoch: u32,
    /// The last commit that is there. Those of the last process beyond it are lost: nobody was told that they were safe.
    pub position: Position,
    /// The last process closed the store; nothing was replayed.
    pub clean: bool,
    pub damage: Vec<Damage>,
    pub node_id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredLog {
    /// The offset of the next append.
    pub next: Offset,
    /// Everything before is settled or trimmed.
    pub first: Offset,
    /// Settled, or lost because transient: ranges at or above `first` that shall not be delivered.
    pub settled: RangeSet,
    pub counts: BTreeMap<Offset, u32>,
    /// Batch bytes not settled, an estimate.
    pub bytes: u64,
    /// (epoch, first offset appended in it), ascending.
    pub epochs: Vec<(u32, Offset)>,
}

/// How full it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pressure {
    Normal,
    /// Stop whoever appends: the journal is above 3/4, the disk nearly full, or memory waits for the disk.
    Publishers,
    /// The last eighth of the journal: only settles, trims, drops and deletes of keys are taken.
    DrainOnly,
}

/// Plain counters since the start, and gauges.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub commits: u64,
    pub groups: u64,
    pub group_bytes: u64,
    /// Syncs of the journal by duration: bucket i counts those below 2^i microseconds.
    pub sync_us: [u64; 24],
    pub sync_ns_total: u64,
    pub tail_bytes: u64,
    pub queued_bytes: u64,
    pub journal_bytes: u64,
    pub checkpoints: u64,
    pub segment_bytes_written: u64,
    pub damage: u64,
    pub logs: u64,
}

/// Used as `Arc<Store>`.
///
/// Locks, in the order in which they are taken: `checkpointer`, `writer`, `state`. Only `state` is ever waited for by
/// [`Store::commit`], and it is held for memory work only.
pub struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) settings: Settings,
    pub(crate) epoch: u32,
    pub(crate) journal_dir: PathBuf,
    pub(crate) files: Files,
    pub(crate) durable: AtomicU64,
    pub(crate) state: Mutex<State>,
    pub(crate) group_wake: Condvar,
    pub(crate) checkpoint_wake: Condvar,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) checkpointer: Mutex<Checkpointer>,
    /// Whether the reserve file is there.
    pub(crate) reserve: Mutex<bool>,
    /// Journal files in which recovery found damage: never reused, never removed.
    pub(crate) kept: BTreeSet<u64>,
    /// The exclusive lock on the directory.
    pub(crate) _lock: Box<dyn Any + Send + Sync>,
}

impl Store {
    /// Takes the lock file, checks the format (or makes it in an empty directory), recovers.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Arc<Store>, Recovered), Error> {
        recovery::open(disk, settings)
    }

    /// Takes a commit: checks it, changes the logs, queues it for the journal. Never waits for the disk.
    /// It is durable once [`Store::durable`] is at or above the answer.
    pub fn commit(&self, commit: Commit) -> Result<Position, Refused> {
        let mut state = self.lock();
        let (waited, deadline) = (state.sync_waits, state.deadline);
        let position = state.commit(&self.settings, commit);
        let group = state.sync_waits != waited || state.deadline != deadline;
        let checkpoint = state.wants_spill(&self.settings);
        drop(state);
        if group {
            self.group_wake.notify_one();
        }
        if checkpoint {
            self.checkpoint_wake.notify_one();
        }
        position
    }

    pub fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::Acquire))
    }

    /// A number for a new durable log; never handed out twice over the life of the data directory.
    pub fn new_log(&self) -> LogId {
        let mut state = self.lock();
        state.next_log += 1;
        LogId(state.next_log - 1)
    }

    /// A number for a log that ends with this process.
    pub fn new_volatile_log(&self) -> LogId {
        let mut state = self.lock();
        state.next_volatile_log += 1;
        LogId(LogId::VOLATILE | state.next_volatile_log)
    }

    /// Journal thread: sleeps until a group should be written. True when there is something to write, and always once
    /// the store is being closed.
    pub fn wait_for_group(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.closing || state.poisoned {
                return true;
            }
            if state.disk_full {
                // What waits cannot be written yet: try again, but not all the time.
                let pause = at_most.min(FULL_PAUSE);
                drop(self.group_wake.wait_timeout(state, pause).expect("a panic under this lock is final"));
                return true;
            }
            if state.sync_waits || state.deadline.is_some_and(|d| d <= now) {
                return true;
            }
            if now >= end {
                return false;
            }
            let until = state.deadline.map_or(end, |d| d.min(end));
            state = self.group_wake.wait_timeout(state, until - now).expect("a panic under this lock is final").0;
        }
    }

    /// Checkpointer thread: sleeps until a checkpoint is due. Spills tails and prepares journal files meanwhile.
    pub fn wait_for_checkpoint(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        loop {
            if self.make_ready().is_err() || self.lock().wants_spill(&self.settings) && self.spill().is_err() {
                self.poison();
                return true;
            }
            let state = self.lock();
            let now = Instant::now();
            if state.poisoned || now >= end && !state.wants_checkpoint(&self.settings) {
                return state.poisoned;
            }
            let full = state.checkpoint_full;
            if state.wants_checkpoint(&self.settings) && !full {
                return true;
            }
            // After a failure for want of space: again, but not all the time.
            let until = if full { end.min(now + FULL_PAUSE) } else { end };
            let waits = !state.wants_spill(&self.settings) || full;
            if waits {
                let wait = until.saturating_duration_since(now);
                drop(self.checkpoint_wake.wait_timeout(state, wait).expect("a panic under this lock is final"));
            }
            if full {
                return true;
            }
        }
    }

    pub fn pressure(&self) -> Pressure {
        self.lock().pressure(&self.settings)
    }

    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            tail_bytes: state.tail_bytes as u64,
            queued_bytes: (state.queue.bytes + state.in_flight) as u64,
            journal_bytes: state.journal_bytes(&self.settings),
            logs: state.logs.len() as u64,
            ..state.stats.clone()
        }
    }

    /// Last group, checkpoint, clean mark. Nothing is taken or written afterwards.
    pub fn close(&self) -> Result<(), Error> {
        self.lock().closing = true;
        self.group_wake.notify_all();
        self.checkpoint_wake.notify_all();
        self.write_group()?;
        self.checkpoint_with(true, &mut || ())?;
        // A clean end is the end: nothing may come behind the mark.
        self.poison();
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic under this lock is final")
    }

    /// Nothing more is taken or written.
    pub(crate) fn poison(&self) {
        self.lock().poisoned = true;
        self.group_wake.notify_all();
        self.checkpoint_wake.notify_all();
    }
}

/// Between two attempts at a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(100);
