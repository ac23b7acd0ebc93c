//! Appends batches to segmented logs, finds them again, says when they are safe.
//!
//! A *log* is a sequence of records with rising offsets. Records come in *batches* ([`batch`]), the same bytes in memory, in
//! the journal and in segments. Everything durable happens through a [`Commit`], all or nothing over any number of logs and
//! metadata keys. Whoever uses a log settles its records one by one or in runs, or trims it at the front; a record that is
//! settled is gone. This crate knows logs, offsets and bytes; it knows no protocol, no engine, no network and no clock but
//! for the deadline of lazy commits.
//!
//! ```text
//!   commit ──> state (one mutex) ──> backlog ──> journal thread: write_group, one write, one fdatasync ──> durable()
//!                 │   ▲
//!                 │   └── read: memory tail, segments          checkpointer: tails ──> segments, notes ──> snapshot log,
//!                 └── tails, settled ranges, keys                            record ──> journal, then root; journal reused
//! ```
//!
//! # On disk
//!
//! Integers are big endian, numbers are LEB128, CRCs are CRC-32C.
//!
//! ```text
//! D/format        "braid storage format 1\nnode <16 hex digits>\n"; made last, by rename
//! D/lock          held exclusively while a process runs
//! D/root          two slots of 4096 bytes, written in turn: magic "BRR1" | crc u32 | checkpoint (85 bytes, frame.rs)
//! D/snapshot-N-a  "BRSN" 0 0 0 1, then entries: crc u32 | bytes u32 | kind u8 | body       kinds: 1 log, 2 log dropped,
//! D/snapshot-N-b  the same once more                                                       3 key, 4 key deleted
//! D/journal/N     frames; N rises, 16 hex digits; a file is named when its size is durable
//! D/segments/L-B-G.log   log L (hex), first offset B, generation G: batches back to back, nothing else (Kafka's format)
//! D/spill/        the same for volatile batches; emptied at every start
//! D/reserve       space that is given up when the disk is full
//!
//! journal file: groups at multiples of 4096; a group is frames back to back, zeros up to the next multiple
//!
//! frame     0 magic "BRJ1"   4 crc u32, of 8 .. 48 + m      8 bytes u32, of the frame, a multiple of 8
//!          12 kind u8 (1 commit, 2 checkpoint, 3 start)  13 flags u8 (1 first, 2 last of its group)  14 zero u16
//!          16 incarnation u64   24 group u64   32 position u64   40 epoch u32   44 m u32
//!          48 m bytes: count, { batch size u32, batch crc u32 }, then operations:
//!                1 append: count, { log, base offset, volatile offsets directly before it }   the next batch of the list
//!                2 settle: log, first, count, stride    3 count: log, offset, deliveries      4 trim: log, before
//!                5 create: log    6 drop: log           7 put: key, value                     8 delete: key
//!             of a start instead: the incarnation u64, group u64 and position u64 that it goes on from, next log u64; it
//!             stands at 0 and at 4096 of the first file of its life
//!          48 + m the batches in order, each without its first 21 bytes (those differ per log)
//!
//! log entry      log, as of, next, first, durable end, count { gap, length } settled, count { offset, deliveries },
//!                count { epoch, first offset }, count { segment }
//! segment        base, generation, end - base, bytes, heads crc u32, count { base - last, place - last, heads crc u32 before }
//!                blocks; the heads crc covers the first 21 bytes of every batch, which a batch's own CRC does not
//! ```
//!
//! # What holds
//!
//! 1. Nothing is durable before the sync that covers it. A failed sync is final: the store is poisoned.
//! 2. A group is written after the one before it was synced: a valid frame of a later group proves the earlier ones.
//! 3. Every start has an incarnation of its own; a frame of another one, or of an older group, is what stood there before.
//! 4. A page that holds acknowledged bytes is never written again: groups begin on pages.
//! 5. Bytes of a segment or snapshot beyond what a durable checkpoint names are never trusted.
//! 6. A journal file or segment is freed only when the checkpoint that makes it unnecessary is durable.
//! 7. Offsets rise and are never reused. Every gap is explained: by a settled range, or by the append behind it.
//! 8. What cannot be read is reported and kept; it is neither taken for absent nor delivered.
//! 9. Every start begins with a checkpoint, or says in two frames from where in the journal it goes on: then the checkpoint
//!    comes later, and nobody waits until all that was recovered is written once more.
//! 10. Driven from one thread everything is deterministic: no threads in here, no order taken from a hash map.

pub mod batch;
mod checkpoint;
pub mod commit;
pub mod disk;
mod error;
mod fields;
mod frame;
mod journal;
pub mod limits;
mod log;
pub mod planted;
mod range_set;
mod read;
mod real_disk;
mod recovery;
mod segment;
pub mod sim_disk;
mod snapshot;
mod state;
mod store;

pub use batch::{Batch, BatchBuilder, Record};
pub use commit::{Commit, Level, LogId, Offset, Op, Position, Refused, Run};
pub use disk::{Disk, DiskFile};
pub use error::{Damage, Error};
pub use range_set::RangeSet;
pub use real_disk::RealDisk;
pub use sim_disk::SimDisk;
pub use store::{Pressure, Recovered, RecoveredLog, Settings, Stats, Store};
