//! The contract that a wire protocol signs: one client's conversation without its socket.
//!
//! A [`Connection`] is a plain state machine. The server calls it in this order, on every wake-up:
//!
//! 1. `handle_input` with what the socket gave, again and again until it consumes nothing more. Each call may fill `requests`.
//! 2. The requests go to the owner of the node; each answer comes back through `handle_reply`, in order.
//! 3. `handle_event`, for what the broker says unasked (deliveries, mostly), and `handle_durable` when a sync has returned.
//! 4. `handle_timeout` when `poll_timeout` has passed.
//! 5. What is in the [`Outbox`] goes to the socket; when `is_finished` and the outbox is empty, the socket is closed.
//!
//! No call may panic on bytes from outside; none blocks; none reads a clock.

mod outbox;

pub use broker::Now;
use broker::{Event, Position, Reply, Request};
pub use outbox::Outbox;

/// What the transport knows of the peer before its first byte.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// `address:port`, for people.
    pub address: String,
    pub is_loopback: bool,
    pub tls: bool,
    /// Common name of a verified client certificate.
    pub certificate_name: Option<String>,
}

/// What a protocol is told at start, from the settings.
#[derive(Clone, Debug)]
pub struct Identity {
    pub product: String,
    pub version: String,
    pub cluster_name: String,
    pub platform: String,
    pub information: String,
}

/// One client's conversation.
pub trait Connection: Send {
    /// Takes bytes and returns how many it is done with; the rest comes again, with more behind it.
    ///
    /// It stops early after a request whose answer decides how to read on (a *barrier*): the server then works off `requests`,
    /// hands in the replies and calls again with the rest.
    fn handle_input(&mut self, now: Now, input: &[u8], requests: &mut Vec<Request>) -> usize;

    /// The answer to the oldest unanswered request.
    fn handle_reply(&mut self, now: Now, reply: Reply, requests: &mut Vec<Request>);

    fn handle_event(&mut self, now: Now, event: Event, requests: &mut Vec<Request>);

    /// Everything up to `durable` is safe: confirms and held answers go out.
    fn handle_durable(&mut self, durable: Position);

    fn handle_timeout(&mut self, now: Now, requests: &mut Vec<Request>);

    /// Monotonic milliseconds at which `handle_timeout` wants to be called.
    fn poll_timeout(&self) -> Option<u64>;

    /// The position that `handle_durable` is waited for, if any.
    fn awaits(&self) -> Option<Position>;

    /// False while an answer is outstanding (or publishers are blocked) and input must wait.
    fn wants_input(&self) -> bool;

    fn outbox(&mut self) -> &mut Outbox;

    /// Nothing more will be said once the outbox is empty.
    fn is_finished(&self) -> bool;
}
