//! Appends batches to segmented logs, finds them again, says when they are safe.
//!
//! Knows logs, offsets, bytes; knows no protocol and no engine.

pub mod batch;
pub mod commit;
pub mod limits;

pub use batch::{Batch, BatchBuilder, Record};
pub use commit::{Commit, Level, LogId, Offset, Op, Position, Refused, Run};
