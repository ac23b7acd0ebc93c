//! A segment: batches of one log, back to back, exactly as Kafka keeps them. No head, no index: the file is nothing else.
//!
//! What says how much of it counts, and that nobody changed a batch's offset, length or epoch (which a batch's own CRC does
//! not cover), is the manifest in the snapshot log: (base, generation, bytes, end, blocks). A segment is known in
//! blocks of about [`crate::limits::READ_BYTES`]; every read takes whole blocks and checks them, heads and batches.

use crate::batch::{Batch, HEADER_BYTES};
use crate::commit::{LogId, Offset};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, SYNC};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct SegmentId {
    pub log: LogId,
    /// The first offset that may be in it.
    pub base: Offset,
    /// +1 for every time that what was left of it was written anew.
    pub generation: u32,
    /// Forgotten at the next start; stands in a directory of its own.
    pub volatile: bool,
}

impl SegmentId {
    pub fn name(&self) -> String {
        format!("{:016x}-{:020}-{}.log", self.log.0, self.base, self.generation)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub id: SegmentId,
    /// After the last record in it.
    pub end: Offset,
    pub bytes: u64,
    /// CRC-32C over (offset, length, epoch, crc) of every batch.
    pub heads_crc: u32,
    pub blocks: Vec<Block>,
    /// How many of its offsets were settled when writing it anew was last found not to pay.
    pub rewrite_tried_at: u64,
    /// Something in it could not be read. It is kept whatever happens.
    pub damaged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub base: Offset,
    pub at: u64,
    /// The heads' CRC where the block begins.
    pub heads_crc: u32,
}

/// A stretch of a segment to be read and checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub id: SegmentId,
    pub at: u64,
    pub bytes: usize,
    pub crc_before: u32,
    pub crc_after: u32,
}

impl Segment {
    pub fn new(id: SegmentId) -> Segment {
        Segment { id, end: id.base, bytes: 0, heads_crc: 0, blocks: Vec::new(), rewrite_tried_at: 0, damaged: false }
    }

    /// Notes a batch that was written at the end.
    pub fn push(&mut self, base: Offset, span: u64, head: &[u8; 21], size: usize, block_bytes: usize) {
        assert!(base >= self.end || self.bytes == 0, "{base} is written after {}", self.end);
        if self.blocks.last().is_none_or(|b| self.bytes - b.at >= block_bytes as u64) {
            self.blocks.push(Block { base, at: self.bytes, heads_crc: self.heads_crc });
        }
        self.heads_crc = head_crc(self.heads_crc, head);
        self.bytes += size as u64;
        self.end = base + span;
    }

    /// The block in which `from` would stand, and more up to `bytes_max`; and the first offset that it says nothing about.
    pub fn stretch(&self, from: Offset, bytes_max: usize) -> Option<(Stretch, Option<Offset>)> {
        let index = self.blocks.partition_point(|b| b.base <= from).saturating_sub(1);
        let first = self.blocks.get(index)?;
        let more = self.blocks[index + 1..].iter().take_while(|b| b.at - first.at <= bytes_max as u64).count();
        let after = self.blocks.get(index + 1 + more);
        let to = after.map_or(self.bytes, |b| b.at);
        let crc_after = after.map_or(self.heads_crc, |b| b.heads_crc);
        let bytes = (to - first.at) as usize;
        let stretch = Stretch { id: self.id, at: first.at, bytes, crc_before: first.heads_crc, crc_after };
        Some((stretch, after.map(|b| b.base)))
    }
}

/// What the manifest's CRC takes of a batch: offset, length, epoch and the batch's own CRC.
pub(crate) fn head_crc(crc: u32, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, &head[..21])
}

/// A batch in a stretch that was read: the first 21 bytes checked by the stretch's CRC, the rest by the batch's.
pub(crate) struct Found {
    pub base: Offset,
    pub span: u64,
    pub from: usize,
    pub to: usize,
}

/// Finds the batches of a stretch and checks their heads. `None`: the bytes are not what was written.
pub(crate) fn walk(bytes: &[u8], stretch: &Stretch) -> Option<Vec<Found>> {
    let mut found = Vec::new();
    let (mut at, mut crc) = (0, stretch.crc_before);
    while at < bytes.len() {
        let head: &[u8; HEADER_BYTES] = bytes[at..].first_chunk()?;
        let base = u64::from_be_bytes(head[..8].try_into().ok()?);
        let length = u32::from_be_bytes(head[8..12].try_into().ok()?) as usize;
        let span = u32::from_be_bytes(head[23..27].try_into().ok()?) as u64 + 1;
        let to = at.checked_add(12 + length)?;
        if to > bytes.len() || length + 12 < HEADER_BYTES {
            return None;
        }
        crc = head_crc(crc, head);
        found.push(Found { base, span, from: at, to });
        at = to;
    }
    (crc == stretch.crc_after).then_some(found)
}

/// Writes batches one after the other at `at`, gathered into few calls.
pub(crate) fn write_batches(file: &dyn DiskFile, at: u64, batches: &[([u8; 21], Arc<Batch>)]) -> io::Result<()> {
    let mut slices = Vec::with_capacity(2 * batches.len());
    for (head, batch) in batches {
        slices.push(IoSlice::new(head));
        slices.push(IoSlice::new(batch.body()));
    }
    file.write_at(&slices, at)
}

/// The open segment files: few, the least recently used goes first. One that has unsynced bytes is synced before it is
/// closed: an error of the kernel's write-back might otherwise be told to nobody.
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    segments: PathBuf,
    spill: PathBuf,
    open: Mutex<Vec<OpenFile>>,
}

struct OpenFile {
    id: SegmentId,
    file: Arc<dyn DiskFile>,
    unsynced: bool,
}

impl Files {
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> Files {
        Files { disk, segments: dir.join("segments"), spill: dir.join("spill"), open: Mutex::new(Vec::new()) }
    }

    pub fn dir(&self, volatile: bool) -> &Path {
        if volatile { &self.spill } else { &self.segments }
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.dir(id.volatile).join(id.name())
    }

    pub fn open(&self, id: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        if let Some(at) = open.iter().position(|f| f.id == id) {
            let file = open.remove(at);
            open.push(file);
            return Ok(open[open.len() - 1].file.clone());
        }
        let file = self.disk.open(&self.path(id))?;
        Self::keep(&mut open, OpenFile { id, file, unsynced: false })
    }

    pub fn create(&self, id: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        open.retain(|f| f.id != id);
        let file = self.disk.create(&self.path(id))?;
        Self::keep(&mut open, OpenFile { id, file, unsynced: true })
    }

    fn keep(open: &mut Vec<OpenFile>, file: OpenFile) -> io::Result<Arc<dyn DiskFile>> {
        if open.len() >= crate::limits::OPEN_SEGMENTS_MAX {
            let oldest = open.remove(open.iter().position(|f| !f.unsynced).unwrap_or(0));
            if oldest.unsynced && !oldest.id.volatile {
                // Not told as what it was: a failed sync is final even if it says that the disk is full.
                oldest.file.sync_data().map_err(io::Error::other)?;
            }
        }
        open.push(file);
        Ok(open[open.len() - 1].file.clone())
    }

    pub fn mark_unsynced(&self, id: SegmentId) {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        open.iter_mut().filter(|f| f.id == id).for_each(|f| f.unsynced = true);
    }

    pub fn sync(&self, id: SegmentId) -> Result<(), Error> {
        let file = self.open(id).map_err(|e| Error::io("open", &self.path(id), e))?;
        file.sync_data().map_err(|e| Error::io(SYNC, &self.path(id), e))?;
        let mut open = self.open.lock().expect("nothing panics under this lock");
        open.iter_mut().filter(|f| f.id == id).for_each(|f| f.unsynced = false);
        Ok(())
    }

    /// Removes a segment's file; one that held damage is kept under another name.
    pub fn remove(&self, id: SegmentId, damaged: bool) -> io::Result<()> {
        self.open.lock().expect("nothing panics under this lock").retain(|f| f.id != id);
        let path = self.path(id);
        let done = if damaged { self.disk.rename(&path, &path.with_extension("damaged")) } else { self.disk.remove(&path) };
        match done {
            // Removed before a crash, and the checkpoint that no longer lists it is being repeated.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    pub fn read(&self, stretch: &Stretch) -> io::Result<Vec<u8>> {
        let file = self.open(stretch.id)?;
        let mut bytes = vec![0; stretch.bytes];
        file.read_at(&mut bytes, stretch.at)?;
        Ok(bytes)
    }
}
