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
pub mod link;
pub mod message;
pub mod node;
pub mod pattern;
pub mod policy;
pub mod queue;
pub mod request;
pub mod table;
pub mod topology;
pub mod value;

pub use error::{Error, Reason};
pub use node::{Alarm, Answer, Change, Client, Effects, Node, NodeSettings, Purpose, Read, ReadDone, Traffic};
pub use request::*;
pub use storage::{Batch, BatchBuilder, Position};
pub use value::{Table, Value};

/// Names that lead straight to a consumer of replies begin so; a client consumes from, and replies to, just this.
pub const REPLY_ADDRESS: &str = "amq.rabbitmq.reply-to";
