//! Every bound of the server, with its reason.

/// One read of a socket: large reads make large batches, and all work is per batch. Shared by the connections of a thread.
pub const READ_BYTES: usize = 256 << 10;
/// What a connection may leave unconsumed. A protocol refuses frames far below it; beyond it the connection is cut.
pub const KEPT_BYTES_MAX: usize = 32 << 20;
/// Below this an outbox counts as drained: the node may give it more.
pub const OUTBOX_LOW_BYTES: usize = 64 << 10;
/// A client that asks and never listens is read no further while this much waits for it.
pub const OUTBOX_STOPS_INPUT_BYTES: usize = 1 << 20;
/// Spare buffers that a thread keeps for its connections' outboxes and inboxes.
pub const SPARES_PER_THREAD: usize = 8;
/// A larger buffer is given back to the allocator instead of being kept as a spare.
pub const SPARE_BYTES_MAX: usize = 1 << 20;
/// How often a task refills one draining connection before it leaves the rest to that connection's own task.
pub const REFILLS_PER_TURN: u32 = 4;
/// How often a task serves a connection that others keep touching before it leaves it to the connection's own task.
pub const ATTENDS_PER_TURN: u32 = 8;
/// Reads of one socket before its task lets others run.
pub const READS_PER_TURN: u32 = 8;
/// A publisher that runs ahead of the consumers pauses at most this long.
pub const SLOW_DOWN_MS: u64 = 5;
/// How many paused publishers one drained consumer lets go on.
pub const RESUMED_AT_ONCE: usize = 4;

/// Threads that read segments for cold consumers.
pub const READER_THREADS: usize = 2;
/// A group waits at most this long for its first commit before the journal thread looks whether it shall stop.
pub const JOURNAL_WAIT_MS: u64 = 100;
pub const CHECKPOINT_WAIT_MS: u64 = 250;

/// The store's own watermark lies below the one that operators set: it keeps room for the checkpoint that makes room.
pub const STORE_DISK_FREE_BYTES: u64 = 128 << 20;

pub const CONNECTIONS_MAX: usize = 10_000;
/// Descriptors that connections leave: 64 for the store's files, the health checks', and some for listeners and operators.
pub const DESCRIPTORS_KEPT: usize = 64 + HTTP_CONNECTIONS_MAX + 32;
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 500;
/// Connections that have not authenticated yet, all together: their memory is bounded by this times one small frame.
pub const HALF_OPEN_MAX: usize = 1_024;
pub const TLS_HANDSHAKE_MS: u64 = 5_000;
/// When the process has no descriptors left, accepting pauses this long.
pub const ACCEPT_PAUSE_MS: u64 = 100;
/// After the last byte was written, the peer has this long to close, so that no reset overtakes our goodbye.
pub const LINGER_MS: u64 = 1_000;
/// What is left to say after a protocol has finished must leave within this time.
pub const FAREWELL_MS: u64 = 5_000;
/// At a stop, outboxes drain this long.
pub const DRAIN_MS: u64 = 8_000;

pub const HTTP_HEADER_BYTES_MAX: usize = 16 << 10;
/// More let the oldest go.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// `braid ready` waits this long for each step: less than a health check usually has.
pub const HTTP_ASK_MS: u64 = 2_000;
pub const HTTP_TIMEOUT_MS: u64 = 10_000;
/// One line over the control socket: a whole definitions file.
pub const CONTROL_LINE_BYTES_MAX: u64 = 64 << 20;
/// Strings made by clients are cut at this length in the log.
pub const LOGGED_CHARS_MAX: usize = 256;

const _: () = assert!(OUTBOX_LOW_BYTES < OUTBOX_STOPS_INPUT_BYTES, "a drained outbox never stops input");
const _: () = assert!(KEPT_BYTES_MAX > 2 * READ_BYTES);
