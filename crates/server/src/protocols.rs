//! The table of protocols: a new one is a line in [`Protocol`], and one in [`crate::real`] that makes its machine.

use protocol::{Connection, Now, Peer};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Amqp,
}

pub const PROTOCOLS: [Protocol; 1] = [Protocol::Amqp];

impl Protocol {
    /// As it stands in counters and in `listeners.json`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Amqp => "amqp",
        }
    }
}

/// Makes a machine; the last argument seeds what shall not be guessed.
type Start = dyn Fn(Protocol, Peer, Now, u64) -> Box<dyn Connection> + Send + Sync;

/// Makes a machine for each connection.
pub struct Protocols {
    start: Box<Start>,
    seeds: RandomState,
}

impl Protocols {
    pub fn new(start: impl Fn(Protocol, Peer, Now, u64) -> Box<dyn Connection> + Send + Sync + 'static) -> Protocols {
        Protocols { start: Box::new(start), seeds: RandomState::new() }
    }

    pub fn start(&self, protocol: Protocol, peer: Peer, now: Now) -> Box<dyn Connection> {
        let mut hasher = self.seeds.build_hasher();
        hasher.write(peer.address.as_bytes());
        hasher.write_u64(now.unix_ms);
        (self.start)(protocol, peer, now, hasher.finish())
    }
}

/// Unpredictable: the system's randomness, by way of the standard library.
pub fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
