//! The owner of everything: one value, held by one mutex, for one read's batch of requests at a time.

use crate::request::{ConnectionId, Event};
use std::sync::Arc;
use storage::{Batch, LogId, Offset};

/// What the server knows of a client when it connects.
#[derive(Clone, Debug)]
pub struct Client {
    /// `address:port`, for people.
    pub address: String,
    pub is_loopback: bool,
    /// Names the wire protocol in counters and lists: `amqp`, …
    pub protocol: &'static str,
}

/// What the caller has to carry out after it released the node.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be handed to the connections, in this order.
    pub events: Vec<(ConnectionId, Event)>,
    /// These connections wait for room: [`Node::handle_written`] is to be called as soon as their outbox has drained.
    pub starved: Vec<ConnectionId>,
    /// To be read from the store by a reader thread, and brought back by [`Node::handle_read`].
    pub reads: Vec<Read>,
}

/// A read that the node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub log: LogId,
    pub from: Offset,
    pub bytes_max: usize,
}

/// Its result; an `Err` text means the store could not read (the messages stay where they are).
#[derive(Debug)]
pub struct ReadDone {
    pub read: Read,
    pub batches: Result<Vec<(Offset, Arc<Batch>)>, String>,
}
