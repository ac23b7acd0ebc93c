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

const _: () = assert!(COMMIT_BYTES_MAX as u64 <= JOURNAL_FILE_BYTES / 2, "a commit never spans more than two files");
const _: () = assert!(JOURNAL_BYTES_MAX >= 8 * JOURNAL_FILE_BYTES, "an eighth of the journal is kept for settles");
