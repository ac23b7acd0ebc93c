//! What goes wrong between us and the disk, and what was found damaged.

use crate::commit::{LogId, Offset};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub enum Error {
    /// The disk said no. A failed write or sync of what must be durable poisons the store.
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The data directory has another format. Nothing was changed.
    Version {
        found: u32,
        known: u32,
    },
    /// Another process holds the data directory.
    Locked(PathBuf),
    /// The directory is not empty, and what is in it is not ours or cannot be understood. Nothing was changed.
    Foreign(PathBuf),
    /// These records stand in a file that does not read back as it was written. They are not gone: the file is kept.
    /// A reader that wants to go on begins at `to`.
    Damaged {
        log: LogId,
        from: Offset,
        to: Offset,
        file: PathBuf,
        at: u64,
    },
    UnknownLog(LogId),
    /// A write or sync failed before; the first error was reported then. Final.
    Poisoned,
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { doing, path: path.to_owned(), source }
    }

    /// The disk is full: wait and try again, nothing is broken.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Error::Io { source, doing, .. }
            if source.kind() == io::ErrorKind::StorageFull && *doing != SYNC && *doing != SYNC_DIR)
    }
}

/// What was being done when a sync failed: such an error is final whatever its number is.
pub(crate) const SYNC: &str = "sync";
pub(crate) const SYNC_DIR: &str = "sync the directory";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Io { doing, path, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
            Error::Version { found, known } => {
                write!(f, "the data directory has format version {found}, this program knows {known}")
            }
            Error::Locked(path) => write!(f, "{} is in use by another process", path.display()),
            Error::Foreign(path) => write!(f, "{} holds something else than a data directory", path.display()),
            Error::Damaged { log, from, to, file, at } => {
                write!(f, "log {}: records {from} to {to} are damaged ({} at {at})", log.0, file.display())
            }
            Error::UnknownLog(log) => write!(f, "there is no log {}", log.0),
            Error::Poisoned => write!(f, "a write or sync failed before; the store takes nothing more"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Something that recovery found and could not read. It is kept, counted and reported; the node starts all the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub file: PathBuf,
    pub at: u64,
    /// The log whose offsets jump because of it, where one is known.
    pub log: Option<LogId>,
    pub what: String,
}
