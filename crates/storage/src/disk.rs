//! The one door to the disk: five verbs on a file, eight on names.
//!
//! Behind it stand [`crate::RealDisk`] and [`crate::SimDisk`]. Nothing else in this crate touches the world.

use std::any::Any;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub trait Disk: Send + Sync {
    /// An existing file, to read and write.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// A new file; one that is already there is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable: a file's own sync does not.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive lock for as long as the answer lives. `WouldBlock` if another holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// Bytes that can still be written.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;
}

pub trait DiskFile: Send + Sync {
    /// Fills the whole buffer or fails (`UnexpectedEof` beyond the end).
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all slices, one after the other, beginning at `at`.
    fn write_at(&self, slices: &[IoSlice], at: u64) -> io::Result<()>;
    /// fdatasync: the bytes and the size, not the name.
    fn sync_data(&self) -> io::Result<()>;
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}
