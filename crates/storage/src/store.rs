//! The store's face: see the crate's first page for what stands behind it.

use crate::commit::{Commit, LogId, Offset, Position, Refused};
use crate::disk::Disk;
use crate::error::{Damage, Error};
use crate::limits;
use crate::range_set::RangeSet;
use crate::Batch;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where and how large. Tests and the simulation shrink the sizes.
#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    pub journal_file_bytes: u64,
    pub journal_bytes_max: u64,
    pub tail_bytes_max: usize,
    pub segment_bytes: u64,
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
    pub spilled_bytes: u64,
    pub segment_bytes_written: u64,
    pub damage: u64,
    pub logs: u64,
}

/// Used as `Arc<Store>`. One mutex inside, held briefly.
pub struct Store {}

impl Store {
    /// Takes the lock file, checks the format (or makes it in an empty directory), recovers.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Arc<Store>, Recovered), Error> {
        let _ = (disk, settings);
        todo!()
    }

    /// Takes a commit: checks it, changes the logs, queues it for the journal. Never waits for the disk.
    /// It is durable once [`Store::durable`] is at or above the answer.
    pub fn commit(&self, commit: Commit) -> Result<Position, Refused> {
        let _ = commit;
        todo!()
    }

    pub fn durable(&self) -> Position {
        todo!()
    }

    /// A number for a new durable log; never handed out twice over the life of the data directory.
    pub fn new_log(&self) -> LogId {
        todo!()
    }

    /// A number for a log that ends with this process.
    pub fn new_volatile_log(&self) -> LogId {
        todo!()
    }

    /// Journal thread: sleeps until a group should be written. True when there is something to write.
    pub fn wait_for_group(&self, at_most: Duration) -> bool {
        let _ = at_most;
        todo!()
    }

    /// Journal thread: writes and syncs what waits. Answers what is durable now.
    pub fn write_group(&self) -> Result<Position, Error> {
        todo!()
    }

    /// Checkpointer thread: sleeps until a checkpoint is due.
    pub fn wait_for_checkpoint(&self, at_most: Duration) -> bool {
        let _ = at_most;
        todo!()
    }

    pub fn checkpoint(&self) -> Result<(), Error> {
        todo!()
    }

    /// Reader threads: batches that hold offsets at or above `from`, in order, at least one if there is any.
    pub fn read(&self, log: LogId, from: Offset, bytes_max: usize) -> Result<Vec<(Offset, Arc<Batch>)>, Error> {
        let _ = (log, from, bytes_max);
        todo!()
    }

    pub fn pressure(&self) -> Pressure {
        todo!()
    }

    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// Last group, checkpoint, clean mark.
    pub fn close(&self) -> Result<(), Error> {
        todo!()
    }
}
