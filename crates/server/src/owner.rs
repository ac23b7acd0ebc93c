//! What the server needs of the node and of its store: the seam between threads and machines.
//!
//! Two implementations each: the real ones in [`crate::real`], and fakes in the tests, which is why these are traits.

use broker::{Alarm, Client, ConnectionId, Effects, Error, Position, Read, ReadDone, Reply, Request};
pub use broker::{Answer, Change};
use protocol::Now;
use std::sync::Arc;
use std::time::Duration;
use storage::{Batch, Offset};

/// The owner of everything, held by one mutex for one read's batch.
///
/// The order that the server keeps for each connection: what was said to it before a call of `handle`, then the replies of
/// that call, then the events of that call. A list that ends with a request without a ticket (a declare, a consume, a
/// cancel) is handed over in two calls, so that no delivery of the first part can overtake the answer to the last request.
pub trait Owner: Send {
    fn connect(&mut self, now: Now, client: Client) -> Result<ConnectionId, Error>;
    fn disconnect(&mut self, now: Now, id: ConnectionId, effects: &mut Effects);
    fn handle(
        &mut self,
        now: Now,
        id: ConnectionId,
        requests: &mut Vec<Request>,
        replies: &mut Vec<Reply>,
        effects: &mut Effects,
    );
    /// Called when an outbox has drained and something was said since the last time: `cost` is never 0.
    fn handle_written(&mut self, now: Now, id: ConnectionId, cost: u64, effects: &mut Effects);
    fn handle_read(&mut self, now: Now, done: ReadDone, effects: &mut Effects);
    fn handle_timeout(&mut self, now: Now, effects: &mut Effects);
    /// Asked after every use: must not take long.
    fn next_timeout(&self) -> Option<u64>;
    fn set_alarm(&mut self, alarm: Alarm, on: bool, effects: &mut Effects);
    /// Named numbers for `/metrics` and `braid status`.
    fn figures(&self) -> Figures;
    fn administer(&mut self, now: Now, change: Change, effects: &mut Effects) -> Result<Answer, Error>;
}

pub const ALARMS: [Alarm; 3] = [Alarm::Memory, Alarm::Disk, Alarm::Journal];

pub fn alarm_name(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::Memory => "memory",
        Alarm::Disk => "disk",
        Alarm::Journal => "journal",
    }
}

/// One number of the node, the store or the server.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Figure {
    /// As Prometheus names it, without the leading `braid_`.
    pub name: &'static str,
    #[serde(skip)]
    pub help: &'static str,
    #[serde(skip)]
    pub kind: Kind,
    /// `protocol="amqp"`, or empty.
    pub labels: String,
    pub value: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises; the name ends in `_total`.
    Counter,
    Gauge,
    /// `name_bucket`, `name_sum` and `name_count` of one family, in this order.
    Histogram,
}

pub type Figures = Vec<Figure>;

impl Figure {
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Figure {
        Figure { name, help, kind: Kind::Counter, labels: String::new(), value: value as f64 }
    }

    pub fn gauge(name: &'static str, help: &'static str, value: u64) -> Figure {
        Figure { name, help, kind: Kind::Gauge, labels: String::new(), value: value as f64 }
    }

    pub fn with(mut self, label: &str, value: impl std::fmt::Display) -> Figure {
        let comma = if self.labels.is_empty() { "" } else { "," };
        self.labels.push_str(&format!("{comma}{label}=\"{value}\""));
        self
    }
}

/// The store, as the threads around it see it.
pub trait Journal: Send + Sync {
    fn durable(&self) -> Position;
    /// True when a group is due.
    fn wait_for_group(&self, at_most: Duration) -> bool;
    /// An error is final: nobody was confirmed and nobody will be.
    fn write_group(&self) -> Result<Position, String>;
    fn wait_for_checkpoint(&self, at_most: Duration) -> bool;
    fn checkpoint(&self) -> Result<(), String>;
    fn read(&self, read: Read) -> Result<Vec<(Offset, Arc<Batch>)>, String>;
    /// Publishers must wait until a checkpoint has made room.
    fn is_pressed(&self) -> bool;
    fn figures(&self) -> Figures;
    /// The last group, a checkpoint, the clean mark.
    fn close(&self) -> Result<(), String>;
}
