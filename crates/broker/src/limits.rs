//! Every bound of the broker's own tables, with its reason. What a client can make grow is counted against one of these.

/// How deep arrays and tables may nest, at rest and in JSON. Every wire protocol refuses deeper ones at its door, so this only
/// keeps a damaged or hand-written value from eating the stack.
pub const NESTING_MAX: usize = 64;

/// Names are short strings on the wire (AMQP 0-9-1 §4.2.5.3); definitions files keep to the same length.
pub const NAME_BYTES_MAX: usize = 255;

/// Exchanges of one vhost: each costs about 1 KiB with its first binding, so the table stays below 100 MiB.
pub const EXCHANGES_MAX: usize = 100_000;

/// Bindings of one vhost: each costs about 300 bytes with both of its indexes.
pub const BINDINGS_MAX: usize = 4_000_000;

/// Encoded arguments of one exchange or binding: they are kept in memory, and compared on every declaration.
pub const ARGUMENTS_BYTES_MAX: usize = 64 * 1024;

/// Weight of a binding to a consistent-hash exchange; RabbitMQ's bound.
pub const HASH_WEIGHT_MAX: u32 = 10_000;

/// Messages that a recent-history exchange remembers when it isn't told, as RabbitMQ's does.
pub const RECENT_HISTORY_DEFAULT: u32 = 20;
/// And at most: they are replayed inside one request of the owner.
pub const RECENT_HISTORY_MAX: u32 = 10_000;

/// The longest delay of an `x-delay` header that delays at all (49 days), as in RabbitMQ's plugin; longer ones are sent at once.
pub const DELAY_MS_MAX: i64 = 4_294_967_295;

/// Up to this many targets a set is a sorted list; from there on a tree, so that the 100,000th binding costs no more to add.
pub const TARGETS_LISTED_MAX: usize = 16;
const _: () = assert!(TARGETS_LISTED_MAX < BINDINGS_MAX);

/// Entries of a deduplication cache that isn't told its size, and the most it may ask for: an entry takes about 60 bytes.
pub const DEDUPLICATION_DEFAULT: u32 = 10_000;
pub const DEDUPLICATION_MAX: u32 = 1_000_000;

/// Deliveries that may wait to be written to one connection's socket. Beyond that its consumers get no more until it has read.
pub const OUTBOX_BYTES_MAX: u64 = 256 << 10;
/// A connection that was full gets more once less than this waits.
pub const OUTBOX_BYTES_LOW: u64 = 64 << 10;
const _: () = assert!(OUTBOX_BYTES_LOW < OUTBOX_BYTES_MAX);
/// Replies that may wait for a direct reply consumer: they have no queue to wait in.
pub const REPLY_BYTES_MAX: u64 = 16 << 20;
/// A queue with more than this in memory asks its publishers to let its consumers catch up.
pub const SLOW_DOWN_BYTES: usize = 1 << 20;
/// What one read from the store brings.
pub const READ_BYTES: usize = 512 << 10;
/// Expired messages, and timers, worked off in one turn: the owner is not held for longer than some milliseconds.
pub const EXPIRED_PER_TURN: u32 = 1_000;
pub const TIMERS_PER_TURN: u32 = 1_000;
/// Deadlines of messages that are gone may pile up to this and four times the ready messages before they are swept out.
pub const DEADLINES_SLACK: u64 = 10_000;
/// A commit is sent on its way when it has grown to this.
pub const COMMIT_BYTES_SOFT: usize = 8 << 20;
/// One transaction; it is one commit.
pub const TRANSACTION_BYTES_MAX: usize = 30 << 20;
const _: () = assert!(TRANSACTION_BYTES_MAX + (1 << 20) < storage::limits::COMMIT_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_SOFT + (17 << 20) < storage::limits::COMMIT_BYTES_MAX, "one more message fits");
/// Ten years: RabbitMQ's bound of every time to live, so that deadlines stay within 64 bits of milliseconds by far.
pub const TTL_MS_MAX: i64 = 315_360_000_000;

/// Highest priority that a queue can be declared with.
pub const PRIORITY_MAX: i64 = 255;

/// What a quorum queue that sets no delivery limit has, as in RabbitMQ since 4.0.
pub const QUORUM_DELIVERY_LIMIT_DEFAULT: i64 = 20;

/// What one delivery adds to the wait of `x-delayed-retry-type` where no `x-delayed-retry-min` says it.
pub const DELAYED_RETRY_MS_DEFAULT: u64 = 1_000;

/// Dead letters that found no way (`at-least-once`) are tried again so often, and so many of them that fail before a pause.
pub const PARKED_RETRY_MS: u64 = 1_000;
pub const PARKED_FAILURES_PER_TURN: u32 = 100;

/// Patterns of permissions and policies: their text, what they compile to, and the steps that one match may take before it counts
/// as none. They are run against names of at most 255 bytes, under the owner's lock.
pub const PATTERN_BYTES_MAX: usize = 4096;
pub const PATTERN_COMPILED_BYTES_MAX: usize = 1 << 20;
pub const PATTERN_STEPS_MAX: usize = 100_000;

/// Users of a node, and permissions of each kind: administrators make them, but definitions files come from anywhere.
pub const USERS_MAX: usize = 1_000_000;
pub const PERMISSIONS_MAX: usize = 1_000_000;

/// Different deaths (queue and reason) that a message remembers. One that has died in more places than this goes round in a circle
/// that nobody drew, and is dropped like one in a cycle.
pub const DEATHS_MAX: usize = 256;

/// Policies of one kind in one vhost: each is matched against the name of every new queue and exchange.
pub const POLICIES_MAX: usize = 1_000;

/// A definitions file: a million queues with their bindings fit.
pub const DEFINITIONS_BYTES_MAX: usize = 512 << 20;

/// Queues that get a new policy in one turn.
pub const QUEUES_PER_SWEEP: u32 = 2_000;
