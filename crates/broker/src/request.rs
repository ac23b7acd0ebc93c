//! All verbs of the broker on one page, their replies, and what it says unasked.
//!
//! A protocol turns bytes into [`Request`]s, one reused list per read of the socket; the owner of the node works them off in
//! order under one lock; every request gets exactly one [`Reply`], in order. Only [`Request::Get`] may be answered later
//! ([`Event::Reply`]), when the message has to be fetched from disk first.
//!
//! **Links and pools.** A *link* is one consumer (or the getter of a channel) of a connection; its number is chosen by the
//! protocol and not used twice on a connection: what a cancelled link holds can still be settled. Deliveries of a link are numbered 0, 1, 2, … and settled by those
//! numbers. A *pool* is what shares one credit window (an AMQP channel); also a number of the protocol's choice.
//!
//! **Failure.** When a request of a `ticket` (AMQP: the channel) fails, later requests of the same list with that ticket
//! are answered [`Reply::Skipped`] and not done: the protocol will close that channel.

use crate::error::Error;
use crate::value::Table;
use std::sync::Arc;
use storage::{Batch, Position};

/// Slot and generation of a connection; given when it connects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnectionId {
    pub slot: u32,
    pub generation: u32,
}

/// A consumer of a connection; the protocol chooses the number, never twice on a connection.
pub type LinkId = u32;
/// What shares a credit window; the protocol chooses the number.
pub type PoolId = u32;

/// Unix milliseconds and monotonic milliseconds of one moment. Deadlines in memory use `mono_ms`, stamps at rest `unix_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub unix_ms: u64,
    pub mono_ms: u64,
}

/// Where a message is published to. Shared by all publishes of a run; the broker remembers where it leads by its address.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub exchange: Box<str>,
    pub routing_key: Box<str>,
    /// Further routing keys (CC and BCC).
    pub more_keys: Vec<Box<str>>,
}

/// A run of messages to one route: one batch, all with the same persistence and priority.
#[derive(Debug)]
pub struct Publish {
    pub route: Arc<Route>,
    /// Every record has a block of [`crate::message`], with this route's exchange and key.
    pub batch: Arc<Batch>,
    pub persistent: bool,
    /// What the publisher set; `None` counts as 0.
    pub priority: Option<u8>,
    /// Some record has EXPIRES.
    pub any_expires: bool,
    /// Some record has HEADERS.
    pub any_headers: bool,
    /// Somebody waits for the confirm: the commit starts a sync.
    pub confirm: bool,
    /// Buffered until [`Request::Commit`] of this ticket; route and permission are checked now.
    pub transactional: bool,
}

/// What a consumer says of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done with it.
    Accept,
    /// Back to its place. `failed`: counts towards a delivery limit of the `x-delivery-limit` kind (AMQP: reject, not nack).
    Requeue { failed: bool },
    /// Back to its place because the channel or connection ended. Counts as a failed delivery.
    Release,
    /// Dead-letter it, or drop it.
    Reject,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    Exchange,
    Queue,
}

#[derive(Debug)]
pub struct DeclareExchange {
    pub name: Box<str>,
    pub kind: Box<str>,
    pub passive: bool,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    pub arguments: Table,
}

#[derive(Debug)]
pub struct DeclareQueue {
    /// Never empty: the protocol makes up a name for an unnamed queue, and says so in `server_named`.
    pub name: Box<str>,
    pub server_named: bool,
    pub passive: bool,
    pub durable: bool,
    pub exclusive: bool,
    pub auto_delete: bool,
    pub arguments: Table,
}

#[derive(Debug)]
pub struct Binding {
    pub source: Box<str>,
    pub destination: Box<str>,
    pub to: Destination,
    pub routing_key: Box<str>,
    pub arguments: Table,
}

#[derive(Debug)]
pub struct Consume {
    pub link: LinkId,
    pub pool: PoolId,
    pub queue: Box<str>,
    /// For lists and the reply text of a timeout.
    pub tag: Box<str>,
    /// Settled by being written (AMQP no_ack): no window applies.
    pub auto_settle: bool,
    pub exclusive: bool,
    /// How many unsettled deliveries the link may hold; 0 is no limit.
    pub window: u32,
    pub arguments: Table,
}

#[derive(Debug)]
pub enum Request {
    Publish {
        ticket: u32,
        publish: Publish,
    },
    /// Deliveries `first..first + count` of a link. Those that the link doesn't hold (any more) are passed over.
    Settle {
        ticket: u32,
        link: LinkId,
        first: u64,
        count: u64,
        outcome: Outcome,
        transactional: bool,
    },

    /// Checks a password. Before it nothing else is allowed.
    Authenticate {
        user: Box<str>,
        password: Box<[u8]>,
    },
    /// The transport has proved who it is (TLS client certificate), or nobody in particular (anonymous).
    AuthenticateAs {
        user: Box<str>,
    },
    OpenVhost {
        vhost: Box<str>,
    },
    /// A new secret for the same user, as `update-secret` brings it.
    UpdateSecret {
        secret: Box<[u8]>,
    },

    DeclareExchange(Box<DeclareExchange>),
    DeleteExchange {
        name: Box<str>,
        if_unused: bool,
    },
    DeclareQueue(Box<DeclareQueue>),
    DeleteQueue {
        name: Box<str>,
        if_unused: bool,
        if_empty: bool,
    },
    Purge {
        queue: Box<str>,
    },
    Bind(Box<Binding>),
    Unbind(Box<Binding>),

    Consume(Box<Consume>),
    Cancel {
        link: LinkId,
    },
    /// A link that is fed as the direct reply address of this connection ([`Reply::ReplyAddress`]); always auto-settled.
    OpenReplyAddress {
        link: LinkId,
    },
    /// One message of a queue, held by `link` (made by the first Get that names it) unless `auto_settle`.
    Get {
        link: LinkId,
        pool: PoolId,
        queue: Box<str>,
        auto_settle: bool,
    },
    /// The window of a pool; 0 is no limit.
    SetWindow {
        pool: PoolId,
        window: u32,
    },

    /// Everything transactional of this ticket becomes one commit.
    Commit {
        ticket: u32,
    },
    Rollback {
        ticket: u32,
    },
    /// The client says goodbye: what was this connection's own goes before it hears the answer, as it may come back at once.
    Leave,
    /// A channel opens, of a user whose channels are counted.
    OpenPool {
        pool: PoolId,
    },
    /// The channel is gone: its transaction is rolled back, its pool's links are cancelled and what they hold is released.
    ClosePool {
        pool: PoolId,
    },
}

/// What became of a [`Publish`].
#[derive(Debug, Default)]
pub struct Published {
    /// When all its durable targets are safe; `None`: now (nothing durable, or nothing at all).
    pub safe_at: Option<Position>,
    /// Records that reached no queue, ascending: to be returned if mandatory.
    pub unroutable: Vec<std::ops::Range<u32>>,
    /// Records that a queue refused (`reject-publish`), by index, ascending: nack those.
    pub refused: Vec<u32>,
    pub error: Option<Error>,
    /// A queue is far ahead of its consumers' sockets: read on a little later.
    pub slow_down: bool,
}

#[derive(Debug)]
pub struct QueueFacts {
    pub name: Box<str>,
    /// Ready messages.
    pub messages: u64,
    pub consumers: u32,
}

#[derive(Debug)]
pub enum Reply {
    Published(Published),
    /// A settle; for a transactional one only that it is noted.
    Settled,
    /// Done; safe at `safe_at` (`None`: now). The answer to the client waits for that.
    Done {
        safe_at: Option<Position>,
    },
    /// `impersonator`: may publish with another user's name in `user_id`. `counted`: its channels are, [`Request::OpenPool`] asks
    /// for each.
    Authenticated {
        user: Box<str>,
        impersonator: bool,
        counted: bool,
    },
    Queue {
        facts: QueueFacts,
        safe_at: Option<Position>,
    },
    /// Messages deleted or purged.
    Removed {
        messages: u64,
        safe_at: Option<Position>,
    },
    ReplyAddress {
        name: Box<str>,
    },
    /// A transaction is done, and safe at `safe_at`. Records that reached no queue: (publish of the transaction, records).
    Committed {
        safe_at: Option<Position>,
        unroutable: Vec<(usize, std::ops::Range<u32>)>,
    },
    /// The message of a Get; `None`: the queue is empty. `left` counts the ready ones that remain.
    Got {
        delivery: Option<Delivery>,
        left: u64,
    },
    Failed(Error),
    /// The answer comes later as [`Event::Reply`]; read no further until then.
    Later,
    Skipped,
}

/// A run of messages on its way to one consumer: records `first`, `first + stride`, … of a batch.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub link: LinkId,
    /// Number of the first of them on this link.
    pub number: u64,
    pub batch: Arc<Batch>,
    pub first: u32,
    pub stride: u32,
    pub count: u32,
    pub redelivered: bool,
    /// How often it was delivered before, where the queue shows it (`x-delivery-count`).
    pub delivery_count: Option<u32>,
    /// Bytes of these records: what they weigh in the connection's outbox until [`crate::node::Node::handle_written`] says so.
    pub cost: u32,
}

impl Delivery {
    /// Indexes of its records.
    pub fn records(&self) -> impl Iterator<Item = u32> + use<> {
        let (first, stride) = (self.first, self.stride);
        (0..self.count).map(move |i| first + i * stride)
    }
}

/// What the broker says unasked.
#[derive(Debug)]
pub enum Event {
    Delivery(Delivery),
    /// The late answer to a [`Request::Get`].
    Reply(Reply),
    /// The queue is gone, or the right to read it: the link no longer exists.
    Cancelled {
        link: LinkId,
    },
    /// A delivery was held longer than the queue allows. It went back; the link no longer exists if the client can be told
    /// so, else the protocol closes the channel.
    TimedOut {
        link: LinkId,
        timeout_ms: u64,
    },
    /// Publishers are to stop; the reason is for people (`low on disk`).
    Blocked {
        reason: Box<str>,
    },
    Unblocked,
    /// An operator, or a stop of the node, ends this connection.
    Close {
        reason: Box<str>,
    },
}
