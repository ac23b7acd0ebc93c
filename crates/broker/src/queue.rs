//! The destructive engine: a queue holds a log for each priority in use; a message leaves when it is settled.

pub mod level;

use crate::arguments::{Overflow, QueueArguments, QueueType};
use crate::death::DeathReason;
use crate::request::{ConnectionId, LinkId};
use crate::topology::QueueKey;
use crate::value::Table;
use level::{Level, Returned};
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use storage::{LogId, Offset};

/// Slot of a virtual host in the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VhostKey(pub u32);

/// A consumer as the queue sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consumer {
    pub connection: ConnectionId,
    pub link: LinkId,
    pub priority: i64,
}

/// A deadline of one message, Unix ms: the earliest first.
pub type Deadline = Reverse<(u64, LogId, Offset)>;

/// Dead letters that reached no queue. Their bytes lie in the store, where they are not settled.
#[derive(Debug, Default)]
pub struct Parked {
    pub letters: VecDeque<(LogId, Offset, DeathReason)>,
    /// The next try is under way or has its time.
    pub is_busy: bool,
    /// How many may still fail in this turn.
    pub failures_left: u32,
}

#[derive(Debug)]
pub struct Queue {
    pub key: QueueKey,
    pub vhost: VhostKey,
    pub name: Box<str>,
    pub durable: bool,
    /// Exclusive: only this connection may use it, and it goes with it.
    pub owner: Option<ConnectionId>,
    pub auto_delete: bool,
    /// As declared, unknown names included.
    pub declared: Table,
    pub arguments: Box<QueueArguments>,
    /// `arguments` under the policies in force.
    pub effective: Box<QueueArguments>,
    /// Highest priority first; never empty.
    pub levels: SmallVec<[Level; 1]>,
    /// Highest priority first, in the order they came within one.
    pub consumers: Vec<Consumer>,
    /// Whose turn it is, as an index into `consumers`.
    pub turn: usize,
    pub had_consumer: bool,
    pub ready: u64,
    /// Body bytes of ready messages; kept only while a length limit in bytes is in force.
    pub ready_bytes: u64,
    pub unsettled: u64,
    /// Messages with an expiration of their own, ready or not.
    pub deadlines: BinaryHeap<Deadline>,
    /// Has held a durable message with an expiration of its own.
    pub expiring: bool,
    /// Monotonic ms for which the timer of messages is set.
    pub expiry_at: Option<u64>,
    /// Ready messages of `deadlines` whose time has come but whose bytes are still in the store.
    pub overdue: std::collections::BTreeSet<(LogId, Offset)>,
    /// Monotonic ms of the last use that counts for `x-expires`.
    pub used_ms: u64,
    /// Returned messages that wait before they are ready again, by monotonic ms.
    pub waiting: BTreeMap<(u64, LogId, Offset), Returned>,
    /// Dead letters that found no way, and stay until they do.
    pub parked: Parked,
    /// Waits in the node's list of queues to dispatch.
    pub dirty: bool,
    /// What `x-message-deduplication` has seen.
    pub seen: Option<Box<crate::dedup::Cache>>,
}

impl Queue {
    /// Says whether this still is the queue that a delivery came from: log ids are never reused.
    pub fn level_of(&mut self, log: LogId) -> Option<&mut Level> {
        self.levels.iter_mut().find(|level| level.log == log)
    }

    /// The highest priority that it tells apart.
    pub fn priority_max(&self) -> u8 {
        match self.effective.max_priority {
            Some(max) => max,
            None if self.effective.queue_type == QueueType::Quorum => QUORUM_PRIORITY_MAX,
            None => 0,
        }
    }

    /// Whether messages of this persistence are kept over a restart: a quorum queue keeps all of them.
    pub fn keeps(&self, persistent: bool) -> bool {
        self.durable && (persistent || self.arguments.queue_type == QueueType::Quorum)
    }

    /// Refuses what comes now.
    pub fn is_full(&self) -> bool {
        let limits = &self.effective;
        let full = limits.max_length.is_some_and(|max| self.ready + self.parked.letters.len() as u64 >= max)
            || limits.max_length_bytes.is_some_and(|max| self.ready_bytes >= max);
        full && limits.overflow() != Overflow::DropHead
    }

    pub fn may_expire(&self) -> bool {
        self.effective.message_ttl_ms.is_some() || !self.deadlines.is_empty()
    }

    /// Of a single-active-consumer queue only the first consumer is served.
    pub fn served(&self) -> &[Consumer] {
        match self.consumers.first() {
            Some(_) if self.effective.single_active_consumer => &self.consumers[..1],
            _ => &self.consumers,
        }
    }

    pub fn add_consumer(&mut self, consumer: Consumer) {
        // The active one of a single-active-consumer queue stays active, whatever the newcomer's priority.
        let sticky = usize::from(self.effective.single_active_consumer && !self.consumers.is_empty());
        let rest = &self.consumers[sticky..];
        let at = sticky + rest.partition_point(|other| other.priority >= consumer.priority);
        self.consumers.insert(at, consumer);
        self.had_consumer = true;
    }

    pub fn remove_consumer(&mut self, connection: ConnectionId, link: LinkId) -> bool {
        let at = self.consumers.iter().position(|c| c.connection == connection && c.link == link);
        if let Some(at) = at {
            self.consumers.remove(at);
            self.turn = 0;
        }
        at.is_some()
    }

    pub fn first_offsets(&self) -> impl Iterator<Item = (LogId, Offset)> {
        self.levels.iter().map(|level| (level.log, level.cursor()))
    }
}

/// Quorum queues have 32 strict priorities without being asked.
const QUORUM_PRIORITY_MAX: u8 = 31;
