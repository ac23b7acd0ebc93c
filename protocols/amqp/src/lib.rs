//! AMQP 0-9-1 as RabbitMQ speaks it: one client's conversation without its socket.
//!
//! ```text
//! bytes -> frame -> method | publish -> Request      (the way in:  connection, channel, declare, publish)
//! bytes <- frame <- method | deliver <- Reply, Event (the way out: connection, channel, confirm, deliver)
//! ```
//!
//! It knows frames, methods, tags and texts; what a queue is, the broker knows. It has no clock, no socket and no thread: time
//! comes in as an argument, randomness as a seed, and the same calls give the same bytes. Bytes from outside never panic.
//!
//! Reading order: [`frame`], [`method`], [`field_table`], [`properties`] (bytes), [`connection`] and [`channel`] (the
//! conversation), [`publish`], [`confirm`], [`deliver`], [`declare`] (its parts), [`error`] (its ends), [`limits`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod channel;
mod channels;
mod confirm;
pub mod connection;
mod declare;
mod deliver;
pub mod error;
pub mod field_table;
pub mod frame;
pub mod limits;
pub mod method;
pub mod properties;
mod publish;
pub mod reader;
mod sasl;

use broker::message::Origin;
pub use connection::Connection;
pub use properties::AmqpProperties;
use protocol::{Identity, Now, Peer};
use std::sync::Arc;

/// Marks property blocks that this protocol wrote.
pub const ORIGIN: Origin = Origin(1);

/// What all connections share, from the settings.
#[derive(Clone, Debug)]
pub struct Settings {
    pub identity: Identity,
    /// The largest frame offered, and the smallest that a client may ask for.
    pub frame_max: u32,
    pub frame_min: u32,
    /// How many channels a connection may have open at once.
    pub channel_max: u16,
    /// The interval offered; the client decides.
    pub heartbeat_s: u16,
    /// The largest body of one message.
    pub message_bytes_max: u64,
    pub plain: bool,
    pub amqplain: bool,
    /// Offered to clients whose certificate the transport has checked.
    pub external: bool,
    /// Who a client is that shows no credentials; `None`: there is no ANONYMOUS.
    pub anonymous_user: Option<String>,
}

impl Default for Settings {
    /// RabbitMQ's own values. Clients read product and version and behave accordingly (some suites skip what they don't know).
    fn default() -> Settings {
        Settings {
            identity: Identity {
                product: "RabbitMQ".into(),
                version: "4.3.0".into(),
                cluster_name: "braid".into(),
                platform: "Braid".into(),
                information: "Braid, a message broker that speaks AMQP 0-9-1".into(),
            },
            frame_max: 131_072,
            // RabbitMQ 4.1 and later refuse less than 8192; older releases of amqplib ask for 4096.
            frame_min: 4096,
            channel_max: 2047,
            heartbeat_s: 60,
            message_bytes_max: 16 << 20,
            plain: true,
            amqplain: true,
            external: true,
            anonymous_user: None,
        }
    }
}

/// A conversation that begins now.
pub fn connection(settings: Arc<Settings>, peer: Peer, now: Now, seed: u64) -> Box<dyn protocol::Connection> {
    Box::new(Connection::new(settings, peer, now, seed))
}
