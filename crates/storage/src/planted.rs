//! Twelve bugs, each a line that somebody could forget. With the feature `planted` one of them can be switched on at run
//! time, and the simulation must find it; without the feature every question here is a constant no.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    DropJournalSync = 1,
    AckBeforeSync,
    DropDirSyncOnRoll,
    RenameBeforeFileSync,
    SkipCrc,
    NoIncarnationOnReuse,
    TruncateAtFirstBad,
    RetryAfterFailedSync,
    DeleteBeforeCheckpoint,
    TrustSegmentSize,
    LostSettleOrder,
    MetadataOutsideJournal,
}

impl Bug {
    pub const ALL: [Bug; 12] = [
        Bug::DropJournalSync,
        Bug::AckBeforeSync,
        Bug::DropDirSyncOnRoll,
        Bug::RenameBeforeFileSync,
        Bug::SkipCrc,
        Bug::NoIncarnationOnReuse,
        Bug::TruncateAtFirstBad,
        Bug::RetryAfterFailedSync,
        Bug::DeleteBeforeCheckpoint,
        Bug::TrustSegmentSize,
        Bug::LostSettleOrder,
        Bug::MetadataOutsideJournal,
    ];
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants one bug in the whole process, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |b| b as u8), std::sync::atomic::Ordering::SeqCst);
}

#[cfg(feature = "planted")]
pub(crate) fn has(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn has(_: Bug) -> bool {
    false
}
