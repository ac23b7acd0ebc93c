//! The journal's writer: one group at a time, one write and one sync each.

use crate::commit::Position;
use crate::disk::DiskFile;
use crate::error::{Error, SYNC, SYNC_DIR};
use crate::frame::{Backlog, FrameHead, GroupImage};
use crate::limits;
use crate::planted::{self, Bug};
use crate::state::JournalFile;
use crate::store::Store;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Owned by whoever writes a group. Never locked while the state is.
#[derive(Default)]
pub(crate) struct Writer {
    /// None only while recovery reads what the last start wrote.
    file: Option<Arc<dyn DiskFile>>,
    path: PathBuf,
    at: u64,
    incarnation: u64,
    /// The number of the next group, and the position of the last frame written.
    group: u64,
    position: u64,
    backlog: Backlog,
    /// Frames of `backlog` that are durable.
    done: usize,
    image: GroupImage,
}

impl Writer {
    pub fn new(file: Arc<dyn DiskFile>, path: PathBuf, incarnation: u64, group: u64, position: u64) -> Writer {
        Writer { file: Some(file), path, incarnation, group, position, ..Writer::default() }
    }

    /// How many frames from `done` on fit in `room` bytes, and their bytes. A group is bounded too, but for a single frame.
    fn frames_in(&self, room: u64) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for frame in self.done..self.backlog.len() {
            let more = bytes + self.backlog.frame_bytes(frame);
            if more as u64 > room || (count > 0 && more > limits::GROUP_BYTES_MAX) {
                break;
            }
            (count, bytes) = (count + 1, more);
        }
        (count, bytes)
    }
}

impl Store {
    /// Journal thread: writes and syncs what waits. Answers what is durable now.
    ///
    /// A full disk is not an error: what waits goes on waiting, and [`Store::pressure`] says so.
    pub fn write_group(&self) -> Result<Position, Error> {
        let mut writer = self.writer.lock().expect("a panic while writing the journal is final");
        if writer.done == writer.backlog.len() && !self.take_backlog(&mut writer)? {
            return Ok(self.durable());
        }
        while writer.done < writer.backlog.len() {
            match self.write_one(&mut writer) {
                Ok(()) => {}
                Err(error) if error.is_full() => {
                    if self.release_reserve() {
                        continue;
                    }
                    self.lock().disk_full = true;
                    break;
                }
                Err(error) => {
                    self.poison();
                    return Err(error);
                }
            }
        }
        Ok(self.durable())
    }

    /// Swaps the backlog with the writer's empty one: neither ever allocates anew.
    fn take_backlog(&self, writer: &mut Writer) -> Result<bool, Error> {
        writer.backlog.clear();
        writer.done = 0;
        let mut state = self.lock();
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        if state.backlog.is_empty() {
            return Ok(false);
        }
        std::mem::swap(&mut state.backlog, &mut writer.backlog);
        state.in_flight = writer.backlog.bytes;
        state.sync_waits = false;
        state.deadline = None;
        Ok(true)
    }

    fn write_one(&self, writer: &mut Writer) -> Result<(), Error> {
        if self.lock().poisoned {
            return Err(Error::Poisoned);
        }
        let (mut count, mut bytes) = writer.frames_in(self.settings.journal_file_bytes - writer.at);
        if count == 0 {
            self.next_file(writer)?;
            (count, bytes) = writer.frames_in(self.settings.journal_file_bytes);
            assert!(count > 0, "a commit fits in a journal file");
        }
        let position = writer.position + count as u64;
        self.build(writer, count);
        let end = (writer.at + bytes as u64).next_multiple_of(limits::GROUP_ALIGN);
        let end = end.min(self.settings.journal_file_bytes);
        writer.image.pad((end - writer.at) as usize - bytes);
        if planted::has(Bug::AckBeforeSync) {
            self.durable.store(position, Ordering::Release);
        }
        let failed = |doing, error| Error::io(doing, &writer.path, error);
        let file = writer.file.as_ref().expect("recovery gave it one before anybody could commit");
        file.write_at(&writer.image.slices(), writer.at).map_err(|e| failed("write", e))?;
        let begun = Instant::now();
        let mut synced = match planted::has(Bug::DropJournalSync) {
            true => Ok(()),
            false => file.sync_data(),
        };
        if planted::has(Bug::RetryAfterFailedSync) && synced.is_err() {
            synced = file.sync_data();
        }
        synced.map_err(|e| failed(SYNC, e))?;
        self.wrote(writer, position, end, bytes, begun);
        writer.done += count;
        Ok(())
    }

    fn build(&self, writer: &mut Writer, count: usize) {
        writer.image.clear();
        let epoch = self.epoch;
        for i in 0..count {
            let head = FrameHead {
                incarnation: writer.incarnation,
                group: writer.group,
                position: writer.position + 1 + i as u64,
                epoch,
                first: i == 0,
                last: i + 1 == count,
            };
            writer.backlog.write(writer.done + i, head, &mut writer.image);
        }
    }

    /// The group is durable: says so to everybody.
    fn wrote(&self, writer: &mut Writer, position: u64, end: u64, bytes: usize, begun: Instant) {
        let mut state = self.lock();
        let file = state.files.back_mut().expect("there is always a current file");
        file.last_position = position;
        state.journal_at = end;
        state.in_flight -= bytes;
        state.durable = position;
        state.disk_full = false;
        let sync = begun.elapsed();
        let stats = &mut state.stats;
        stats.groups += 1;
        stats.group_bytes += bytes as u64;
        stats.sync_ns_total += sync.as_nanos() as u64;
        let bucket = (64 - (sync.as_micros() as u64).leading_zeros() as usize).min(stats.sync_us.len() - 1);
        stats.sync_us[bucket] += 1;
        self.durable.store(position, Ordering::Release);
        let wake = state.wants_checkpoint(&self.settings);
        drop(state);
        if wake {
            self.checkpoint_wake.notify_one();
        }
        writer.position = position;
        writer.group += 1;
        writer.at = end;
    }

    /// Goes on in the next file: one that was made ready, or a new one.
    fn next_file(&self, writer: &mut Writer) -> Result<(), Error> {
        let (ready, number) = {
            let mut state = self.lock();
            let ready = state.ready.pop_front();
            let number = ready.unwrap_or(state.next_file);
            state.next_file = state.next_file.max(number + 1);
            (ready.is_some(), number)
        };
        let path = self.journal_path(number);
        let file = if ready {
            self.disk.open(&path).map_err(|e| Error::io("open", &path, e))?
        } else {
            self.new_journal_file(number, false)?
        };
        let mut state = self.lock();
        state.files.push_back(JournalFile { number, first_group: writer.group, last_position: 0 });
        state.journal_at = 0;
        drop(state);
        self.checkpoint_wake.notify_one();
        writer.file = Some(file);
        writer.path = path;
        writer.at = 0;
        Ok(())
    }

    pub(crate) fn journal_path(&self, number: u64) -> PathBuf {
        self.journal_dir.join(format!("{number:016x}"))
    }

    /// A file of full size. It gets its name when its size is durable: a numbered file that is shorter was cut.
    pub(crate) fn new_journal_file(&self, number: u64, zeroed: bool) -> Result<Arc<dyn DiskFile>, Error> {
        let bytes = self.settings.journal_file_bytes;
        let (new, path) = (self.journal_dir.join(format!("{number:016x}.new")), self.journal_path(number));
        let file = self.disk.create(&new).map_err(|e| Error::io("create", &new, e))?;
        let sized = if zeroed { write_zeros(&*file, bytes) } else { file.set_len(bytes) };
        if let Err(error) = sized {
            let error = Error::io("size", &new, error);
            if error.is_full() {
                self.disk.remove(&new).map_err(|e| Error::io("remove", &new, e))?;
            }
            return Err(error);
        }
        file.sync_data().map_err(|e| Error::io(SYNC, &new, e))?;
        self.disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
        self.sync_journal_dir()?;
        Ok(file)
    }

    pub(crate) fn sync_journal_dir(&self) -> Result<(), Error> {
        if planted::has(Bug::DropDirSyncOnRoll) {
            return Ok(());
        }
        self.disk.sync_dir(&self.journal_dir).map_err(|e| Error::io(SYNC_DIR, &self.journal_dir, e))
    }
}

pub(crate) fn write_zeros(file: &dyn DiskFile, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; (1 << 20).min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let slice = &zeros[..zeros.len().min((bytes - at) as usize)];
        file.write_at(&[IoSlice::new(slice)], at)?;
        at += slice.len() as u64;
    }
    Ok(())
}
