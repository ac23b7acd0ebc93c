//! Every bound of an AMQP connection, with its reason.

/// Tables and arrays inside each other. Real headers nest three deep; a recursive reader must stop long before its stack ends.
pub const NESTING_MAX: usize = 64;
/// Frames before tune-ok: big enough for any client's properties, small enough to multiply by all half-open connections.
pub const UNTUNED_FRAME_BYTES: u32 = 8192;
/// What a client has from its first byte to connection.open.
pub const HANDSHAKE_MS: u64 = 10_000;
/// After our connection.close: how long the client may take to answer.
pub const CLOSE_OK_MS: u64 = 3_000;
/// A refused login of a client that can't be told: the pause that makes guessing slow.
pub const REFUSED_LOGIN_MS: u64 = 1_000;
/// One run of messages to one place becomes one batch; the batch ends here, so that the owner is never held for long.
pub const RUN_BYTES_MAX: usize = 1 << 20;
pub const RUN_RECORDS_MAX: usize = 4096;
/// No content header may announce more, whatever the setting (RabbitMQ's own ceiling).
pub const BODY_BYTES_CEILING: u64 = 512 << 20;
/// How far ahead of what has arrived the memory for an announced body may go.
pub const BODY_AHEAD_BYTES: usize = 64 << 10;
/// Half-received messages of all channels together, in multiples of the largest message.
pub const COLLECTED_MESSAGES_MAX: u64 = 4;
/// Mandatory messages that a transaction keeps until its commit, to return those that reach no queue.
pub const TX_MANDATORY_BYTES_MAX: usize = 32 << 20;
/// Routes that a channel remembers beside its current one.
pub const ROUTES_MAX: usize = 8;
/// Prefix that a client may ask for in front of a server-made queue name.
pub const NAME_PREFIX_BYTES_MAX: usize = 64;
/// Of a message that lives longer nobody would see the end: ten years.
pub const EXPIRATION_MS_MAX: u64 = 315_360_000_000;
/// Bytes in front of a payload (type, channel, size) and the end mark behind it.
pub const FRAME_OVERHEAD: u32 = 8;

const _: () = assert!(RUN_BYTES_MAX < u32::MAX as usize / 4, "record positions are 32 bits");
