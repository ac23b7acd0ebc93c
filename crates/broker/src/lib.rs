//! Decides what happens to messages: routing, queues, consumers.
//!
//! Plain values with one owner: no lock, no thread, no clock, no socket; time and randomness come in as arguments.

pub mod access;
pub mod arguments;
pub mod death;
pub mod dedup;
pub mod definitions;
pub mod error;
pub mod exchange;
pub mod limits;
pub mod message;
pub mod node;
pub mod pattern;
pub mod policy;
pub mod request;
pub mod table;
pub mod topology;
pub mod value;

pub use error::{Error, Reason};
pub use node::{Client, Effects, Read, ReadDone};
pub use request::*;
pub use storage::{Batch, BatchBuilder, Position};
pub use value::{Table, Value};
