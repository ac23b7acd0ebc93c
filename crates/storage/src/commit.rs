//! The commit: the only way anything becomes durable. All or nothing, over any number of logs and keys.

use crate::batch::Batch;
use smallvec::SmallVec;
use std::sync::Arc;

/// Names a log. Never reused, also not after the log is dropped.
///
/// Durable logs count up from 1. A log that shall not survive a restart has [`LogId::VOLATILE`] set: its number is given out
/// by the caller and is forgotten, with its files, at the next start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogId(pub u64);

impl LogId {
    pub const VOLATILE: u64 = 1 << 63;

    pub fn is_volatile(self) -> bool {
        self.0 & Self::VOLATILE != 0
    }
}

/// The logical number of a record in its log. Rises, never reused.
pub type Offset = u64;

/// Where a commit stands in the journal: the number of commits up to and with it, over the whole life of the data directory.
/// It is durable once the store's durable position is at or above it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

/// When a commit is written and synced. It never changes *whether* it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Starts a group at once: somebody waits for it.
    Sync,
    /// Rides with the next group, at the latest after [`crate::limits::LAZY_MS`]: settles.
    Lazy,
    /// Rides with the next group, at the latest after the store's `interval_ms`: its publisher was answered already.
    Interval,
    /// Skips the journal: transient records and everything about volatile logs. Gone after a restart.
    Volatile,
}

/// `count` offsets: `first`, `first + stride`, `first + 2 * stride`, …
///
/// Two workers that share a backlog take turns, so what one of them settles is every second offset: a stride keeps that one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub first: Offset,
    pub count: u32,
    pub stride: u32,
}

impl Run {
    pub fn dense(first: Offset, count: u32) -> Run {
        Run { first, count, stride: 1 }
    }

    pub fn one(offset: Offset) -> Run {
        Run::dense(offset, 1)
    }

    pub fn offsets(self) -> impl Iterator<Item = Offset> {
        (0..self.count as u64).map(move |i| self.first + i * self.stride as u64)
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    /// Writes one batch to any number of logs. It stands once in memory and in the journal.
    Append {
        batch: Arc<Batch>,
        to: SmallVec<[(LogId, Offset); 2]>,
    },
    /// Gives a batch of transient records to the store to keep until they are settled, or the process ends. Never journaled,
    /// whatever commit it stands in; the next durable append says that there is a gap.
    Spill {
        log: LogId,
        base: Offset,
        batch: Arc<Batch>,
    },
    /// The offsets from `from` (the log's end) up to `to` are of transient records that their owner keeps in its own memory:
    /// the store never sees them. Never journaled either.
    Skip {
        log: LogId,
        from: Offset,
        to: Offset,
    },
    /// These records of a destructive log are done with.
    Settle {
        log: LogId,
        run: Run,
    },
    /// How often the record at `offset` has been delivered; a lower bound after a crash.
    Count {
        log: LogId,
        offset: Offset,
        deliveries: u32,
    },
    /// Everything before `before` is gone (purge, retention).
    Trim {
        log: LogId,
        before: Offset,
    },
    Create {
        log: LogId,
    },
    Drop {
        log: LogId,
    },
    /// Sets (`Some`) or deletes (`None`) a metadata key.
    Put {
        key: Box<[u8]>,
        value: Option<Box<[u8]>>,
    },
}

/// One atomic change. At most [`crate::limits::COMMIT_BYTES_MAX`] encoded.
#[derive(Clone, Debug)]
pub struct Commit {
    pub ops: SmallVec<[Op; 2]>,
    pub level: Level,
}

impl Commit {
    pub fn new(level: Level) -> Commit {
        Commit { ops: SmallVec::new(), level }
    }

    pub fn op(mut self, op: Op) -> Commit {
        self.ops.push(op);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Why a commit was not taken. Nothing of it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// An append does not begin where the log ends: a stale owner, or a bug.
    Stale {
        log: LogId,
        next: Offset,
        given: Offset,
    },
    UnknownLog(LogId),
    /// A log is created once.
    Exists(LogId),
    TooLarge {
        bytes: usize,
    },
    /// The journal is too full for this kind of commit ([`crate::Pressure`]).
    Full,
    /// A sync failed before. Final: the process must end.
    Poisoned,
}
