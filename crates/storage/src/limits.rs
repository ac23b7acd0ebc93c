//! Every bound of the storage, with its reason.

/// A commit that only settles waits at most this long for company.
pub const LAZY_MS: u64 = 20;
/// One commit, encoded. Larger transactions are refused whole.
pub const COMMIT_BYTES_MAX: usize = 32 << 20;
/// One journal file; zeroed ahead, so that a write never changes a file's size.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// All journal files together: what recovery may have to read.
pub const JOURNAL_BYTES_MAX: u64 = 2 << 30;
/// Batches that wait in memory to be written to segments; beyond that they are written, unsynced, and read from there.
pub const TAIL_BYTES_MAX: usize = 32 << 20;
/// A segment is sealed beyond this.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Read-ahead of a cold reader.
pub const READ_BYTES: usize = 256 << 10;
/// One write and sync of the journal: beyond it the first ones in a long queue would wait for the last.
pub const GROUP_BYTES_MAX: usize = 16 << 20;
/// Groups begin at multiples of this: a page that holds what was promised is never written again.
pub const GROUP_ALIGN: u64 = 4096;
/// Commits that wait for the journal; beyond it publishers are stopped.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// How far the tails may outgrow [`TAIL_BYTES_MAX`] while the disk is busy, before publishers are stopped.
pub const TAIL_EXCESS: usize = 4;
/// Segment files that are open at a time, whatever the number of logs.
pub const OPEN_SEGMENTS_MAX: usize = 64;
/// Batches of one log that one hold of the store's mutex hands to the checkpointer.
pub const SLICE_BATCHES: usize = 1024;
/// Journal files that are kept, zeroed or written before, for what comes: more than a checkpoint frees at a time, so that
/// none is removed and made again.
pub const JOURNAL_READY_MAX: usize = 12;
/// Log numbers that one checkpoint sets aside: those handed out are not handed out again after a crash.
pub const LOG_NUMBERS_AHEAD: u64 = 1 << 20;

const _: () = assert!(COMMIT_BYTES_MAX as u64 <= JOURNAL_FILE_BYTES / 2, "a commit never spans more than two files");
const _: () = assert!(JOURNAL_BYTES_MAX >= 8 * JOURNAL_FILE_BYTES, "an eighth of the journal is kept for settles");
