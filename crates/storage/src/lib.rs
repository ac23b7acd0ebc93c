//! Appends batches to segmented logs, finds them again, says when they are safe.
//!
//! Knows logs, offsets, bytes; knows no protocol and no engine.

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
