//! Appends batches to segmented logs, finds them again, says when they are safe.
//!
//! Knows logs, offsets, bytes; knows no protocol and no engine.

pub mod batch;
pub mod commit;
pub mod disk;
mod error;
pub mod limits;
mod range_set;
mod store;

pub use batch::{Batch, BatchBuilder, Record};
pub use commit::{Commit, Level, LogId, Offset, Op, Position, Refused, Run};
pub use disk::{Disk, DiskFile};
pub use error::{Damage, Error};
pub use range_set::RangeSet;
pub use store::{Pressure, Recovered, RecoveredLog, Settings, Stats, Store};
