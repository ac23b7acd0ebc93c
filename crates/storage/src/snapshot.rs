//! What a checkpoint keeps outside of segments: the snapshot log (one entry per log and key that changed) and the root file
//! (which snapshot counts, how much of it, and where the journal must be read from).
//!
//! Both stand twice: two copies of the snapshot log written alike, two slots in the root file written in turn. A rotten
//! sector in what names everything else must not cost anything.

use crate::commit::{LogId, Offset};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, SYNC, SYNC_DIR};
use crate::fields::{Fields, put_bytes, put_number};
use crate::frame::{CHECKPOINT_BYTES, Checkpoint};
use crate::log::Log;
use crate::planted::{self, Bug};
use crate::range_set::RangeSet;
use crate::segment::{Block, Segment, SegmentId};
use crate::state::Keys;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"BRSN\0\0\0\x01";
const ENTRY_HEAD: usize = 9;
const COPIES: [char; 2] = ['a', 'b'];

/// Appends an entry; `body` writes what it says.
fn put_entry(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.push(kind);
    body(out);
    let bytes = (out.len() - at) as u32;
    out[at + 4..at + 8].copy_from_slice(&bytes.to_be_bytes());
    let crc = crc32c::crc32c(&out[at + 4..]);
    out[at..at + 4].copy_from_slice(&crc.to_be_bytes());
}

/// The state of a log; its segments follow once they are written ([`put_log`]).
pub(crate) fn encode_state(id: LogId, log: &Log, as_of: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [id.0, as_of, log.next, log.first, log.durable_end] {
        put_number(&mut out, number);
    }
    let volatile = log.busy.as_ref().is_some_and(|b| !b.volatile.is_empty());
    let merged;
    let settled = if volatile {
        merged = log.settled_at_restart();
        &merged
    } else {
        &log.settled
    };
    put_number(&mut out, settled.ranges() as u64);
    let mut end = log.first;
    for (from, to) in settled.iter() {
        put_number(&mut out, from - end);
        put_number(&mut out, to - from);
        end = to;
    }
    let counts = log.busy.as_ref().map(|b| &b.counts);
    put_number(&mut out, counts.map_or(0, |c| c.len() as u64));
    for (offset, deliveries) in counts.into_iter().flatten() {
        put_number(&mut out, *offset);
        put_number(&mut out, *deliveries as u64);
    }
    put_number(&mut out, log.epochs.len() as u64);
    for (epoch, first) in &log.epochs {
        put_number(&mut out, *epoch as u64);
        put_number(&mut out, *first);
    }
    out
}

pub(crate) fn put_log(out: &mut Vec<u8>, state: &[u8], segments: &[Segment]) {
    put_entry(out, 1, |out| {
        out.extend_from_slice(state);
        put_number(out, segments.len() as u64);
        for segment in segments {
            put_number(out, segment.id.base);
            put_number(out, segment.id.generation as u64);
            put_number(out, segment.end - segment.id.base);
            put_number(out, segment.bytes);
            out.extend_from_slice(&segment.heads_crc.to_be_bytes());
            put_number(out, segment.blocks.len() as u64);
            let (mut base, mut at) = (segment.id.base, 0);
            for block in &segment.blocks {
                put_number(out, block.base - base);
                put_number(out, block.at - at);
                out.extend_from_slice(&block.heads_crc.to_be_bytes());
                (base, at) = (block.base, block.at);
            }
        }
    });
}

pub(crate) fn put_dropped(out: &mut Vec<u8>, log: LogId, as_of: u64) {
    put_entry(out, 2, |out| {
        put_number(out, log.0);
        put_number(out, as_of);
    });
}

pub(crate) fn put_keys(out: &mut Vec<u8>, keys: &Keys) {
    for (key, value) in keys {
        put_entry(out, if value.is_some() { 3 } else { 4 }, |out| {
            put_bytes(out, key);
            put_bytes(out, value.as_deref().unwrap_or_default());
        });
    }
}

pub(crate) enum Entry {
    Log { id: LogId, as_of: u64, log: Log },
    Dropped { id: LogId, as_of: u64 },
    Key { key: Box<[u8]>, value: Option<Box<[u8]>> },
}

/// The entry at the start of `bytes` and its size.
fn whole_entry(bytes: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(bytes);
    let (crc, length) = (fields.u32()?, fields.u32()? as usize);
    let entry = bytes.get(..length).filter(|e| e.len() >= ENTRY_HEAD)?;
    (crc32c::crc32c(&entry[4..]) == crc || planted::has(Bug::SkipCrc)).then_some(entry)
}

fn parse_entry(entry: &[u8]) -> Option<Entry> {
    let mut fields = Fields(&entry[ENTRY_HEAD..]);
    let parsed = match entry[ENTRY_HEAD - 1] {
        1 => parse_log(&mut fields)?,
        2 => Entry::Dropped { id: LogId(fields.number()?), as_of: fields.number()? },
        kind @ (3 | 4) => {
            let key = fields.bytes()?.into();
            let value = fields.bytes()?.into();
            Entry::Key { key, value: (kind == 3).then_some(value) }
        }
        _ => return None,
    };
    fields.end()?;
    Some(parsed)
}

fn parse_log(fields: &mut Fields) -> Option<Entry> {
    let (id, as_of) = (LogId(fields.number()?), fields.number()?);
    let mut log = Log::new();
    (log.next, log.first, log.durable_end) = (fields.number()?, fields.number()?, fields.number()?);
    let mut settled = RangeSet::new();
    let mut end = log.first;
    for _ in 0..fields.count()? {
        let from = end.checked_add(fields.number()?)?;
        end = from.checked_add(fields.number()?)?;
        settled.push(from, end);
    }
    log.settled = settled;
    for _ in 0..fields.count()? {
        let (offset, deliveries) = (fields.number()?, u32::try_from(fields.number()?).ok()?);
        log.busy().counts.insert(offset, deliveries);
    }
    for _ in 0..fields.count()? {
        log.epochs.push((u32::try_from(fields.number()?).ok()?, fields.number()?));
    }
    for _ in 0..fields.count()? {
        log.busy().segments.push(parse_segment(id, fields)?);
    }
    Some(Entry::Log { id, as_of, log })
}

fn parse_segment(log: LogId, fields: &mut Fields) -> Option<Segment> {
    let (base, generation) = (fields.number()?, u32::try_from(fields.number()?).ok()?);
    let mut segment = Segment::new(SegmentId { log, base, generation, volatile: false });
    segment.end = base.checked_add(fields.number()?)?;
    (segment.bytes, segment.heads_crc) = (fields.number()?, fields.u32()?);
    let (mut base, mut at) = (base, 0u64);
    for _ in 0..fields.count()? {
        (base, at) = (base.checked_add(fields.number()?)?, at.checked_add(fields.number()?)?);
        segment.blocks.push(Block { base, at, heads_crc: fields.u32()? });
    }
    (at <= segment.bytes).then_some(segment)
}

/// The snapshot log: entries of which the last one for a log or key holds.
pub(crate) struct Snapshot {
    pub number: u64,
    /// Up to here it counts; what stands beyond is from a checkpoint that was never finished.
    pub bytes: u64,
    /// Its size when everything in it was still the last word.
    compacted_bytes: u64,
    copies: [Arc<dyn DiskFile>; 2],
}

/// A snapshot log with less garbage than this is left alone.
const GARBAGE_MIN: u64 = 1 << 20;

fn path(dir: &Path, number: u64, copy: char) -> PathBuf {
    dir.join(format!("snapshot-{number:016x}-{copy}"))
}

/// The number in the name of a snapshot file.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let name = name.strip_prefix("snapshot-")?;
    let number = COPIES.iter().find_map(|c| name.strip_suffix(&format!("-{c}")))?;
    u64::from_str_radix(number, 16).ok()
}

impl Snapshot {
    pub fn open(disk: &dyn Disk, dir: &Path, number: u64, bytes: u64) -> Result<Snapshot, Error> {
        let open = |copy| {
            let path = path(dir, number, copy);
            // A copy that is gone is made anew by what is appended; the other one is read.
            disk.open(&path).or_else(|_| disk.create(&path)).map_err(|e| Error::io("open", &path, e))
        };
        Ok(Snapshot { number, bytes, compacted_bytes: bytes, copies: [open('a')?, open('b')?] })
    }

    /// Writes a new one under a name that nothing refers to yet.
    pub fn create(disk: &dyn Disk, dir: &Path, number: u64, entries: &[u8]) -> Result<Snapshot, Error> {
        let mut copies = Vec::new();
        for copy in COPIES {
            let (path, new) = (path(dir, number, copy), dir.join(format!("snapshot-{copy}.new")));
            let file = disk.create(&new).map_err(|e| Error::io("create", &new, e))?;
            let slices = [IoSlice::new(&MAGIC), IoSlice::new(entries)];
            file.write_at(&slices, 0).map_err(|e| Error::io("write", &new, e))?;
            if !planted::has(Bug::RenameBeforeFileSync) {
                file.sync_data().map_err(|e| Error::io(SYNC, &new, e))?;
            }
            disk.rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
            copies.push(file);
        }
        disk.sync_dir(dir).map_err(|e| Error::io(SYNC_DIR, dir, e))?;
        let bytes = (MAGIC.len() + entries.len()) as u64;
        let copies = copies.try_into().unwrap_or_else(|_| unreachable!("two copies"));
        Ok(Snapshot { number, bytes, compacted_bytes: bytes, copies })
    }

    /// Whether it is better written anew than appended to.
    pub fn is_mostly_garbage(&self, added: usize, garbage_min: u64) -> bool {
        self.bytes + added as u64 > 2 * self.compacted_bytes + garbage_min.min(GARBAGE_MIN)
    }

    /// Writes entries behind what counts, synced. They count once a checkpoint says so.
    pub fn append(&self, dir: &Path, entries: &[u8]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        for (file, copy) in self.copies.iter().zip(COPIES) {
            let path = path(dir, self.number, copy);
            file.write_at(&[IoSlice::new(entries)], self.bytes).map_err(|e| Error::io("write", &path, e))?;
            file.sync_data().map_err(|e| Error::io(SYNC, &path, e))?;
        }
        Ok(())
    }

    /// Reads both copies as far as they go, and the entries from whichever is whole at each place.
    /// `Err`: where neither is.
    pub fn entries(&self, mut each: impl FnMut(&[u8])) -> Result<(), u64> {
        let copies = self.copies.each_ref().map(|file| {
            let length = file.len().unwrap_or(0).min(self.bytes) as usize;
            let mut bytes = vec![0; length];
            // A copy that cannot be read is a copy that holds nothing.
            if file.read_at(&mut bytes, 0).is_ok() { bytes } else { Vec::new() }
        });
        if copies.iter().all(|c| !c.starts_with(&MAGIC)) {
            return Err(0);
        }
        let mut at = MAGIC.len();
        while (at as u64) < self.bytes {
            let whole = copies.iter().find_map(|c| whole_entry(c.get(at..)?)).ok_or(at as u64)?;
            each(whole);
            at += whole.len();
        }
        Ok(())
    }

    /// Every entry parsed.
    pub fn load(&self, mut each: impl FnMut(Entry)) -> Result<(), u64> {
        let mut unreadable = None;
        let mut at = MAGIC.len() as u64;
        self.entries(|entry| {
            match parse_entry(entry) {
                Some(entry) => each(entry),
                None => unreadable = unreadable.or(Some(at)),
            }
            at += entry.len() as u64;
        })?;
        unreadable.map_or(Ok(()), Err)
    }

    /// The last entry of everything, with `added` behind: what a new snapshot log begins with.
    /// A log's end needs no entry once no replay begins before it.
    pub fn compact(&self, added: &[u8], cut: u64) -> Result<Vec<u8>, u64> {
        let mut last: BTreeMap<(bool, Box<[u8]>), Vec<u8>> = BTreeMap::new();
        let mut keep = |entry: &[u8]| match parse_entry(entry) {
            Some(Entry::Log { id, .. }) => drop(last.insert((false, id.0.to_be_bytes().into()), entry.to_vec())),
            Some(Entry::Dropped { id, as_of }) => {
                let id = (false, id.0.to_be_bytes().into());
                if as_of > cut { drop(last.insert(id, entry.to_vec())) } else { drop(last.remove(&id)) }
            }
            Some(Entry::Key { key, value: Some(_) }) => drop(last.insert((true, key), entry.to_vec())),
            Some(Entry::Key { key, value: None }) => drop(last.remove(&(true, key))),
            None => {}
        };
        self.entries(&mut keep)?;
        let mut rest = added;
        while let Some(entry) = whole_entry(rest) {
            keep(entry);
            rest = &rest[entry.len()..];
        }
        Ok(last.into_values().flatten().collect())
    }

    pub fn appended(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

pub(crate) fn remove(disk: &dyn Disk, dir: &Path, number: u64) {
    // Should it fail, the next start removes what no checkpoint names.
    COPIES.iter().for_each(|copy| drop(disk.remove(&path(dir, number, *copy))));
}

/// Two slots, written in turn: a torn write spares the other.
pub(crate) struct Root {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

const SLOT_BYTES: u64 = 4096;
const ROOT_MAGIC: [u8; 4] = *b"BRR1";
const ROOT_BYTES: usize = 8 + CHECKPOINT_BYTES;

impl Root {
    pub fn create(disk: &dyn Disk, dir: &Path) -> Result<Root, Error> {
        let path = dir.join("root");
        let file = disk.create(&path).map_err(|e| Error::io("create", &path, e))?;
        let zeros = [0; 2 * SLOT_BYTES as usize];
        file.write_at(&[IoSlice::new(&zeros)], 0).map_err(|e| Error::io("write", &path, e))?;
        file.sync_data().map_err(|e| Error::io(SYNC, &path, e))?;
        Ok(Root { file, path })
    }

    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<Root, Error> {
        let path = dir.join("root");
        let file = disk.open(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Root { file, path })
    }

    /// The checkpoints in both slots; `None` where a slot does not read back.
    pub fn read(&self) -> [Option<Checkpoint>; 2] {
        [0, SLOT_BYTES].map(|at| {
            let mut bytes = [0; ROOT_BYTES];
            self.file.read_at(&mut bytes, at).ok()?;
            let (head, body) = bytes.split_at(8);
            let whole = head.starts_with(&ROOT_MAGIC) && head[4..] == crc32c::crc32c(body).to_be_bytes();
            if whole { Checkpoint::decode(body) } else { None }
        })
    }

    pub fn write(&self, checkpoint: &Checkpoint, slot: u64) -> Result<(), Error> {
        let body = checkpoint.encode();
        let crc = crc32c::crc32c(&body).to_be_bytes();
        let slices = [IoSlice::new(&ROOT_MAGIC), IoSlice::new(&crc), IoSlice::new(&body)];
        self.file.write_at(&slices, slot % 2 * SLOT_BYTES).map_err(|e| Error::io("write", &self.path, e))?;
        self.file.sync_data().map_err(|e| Error::io(SYNC, &self.path, e))
    }
}

/// Offsets that no log reaches: a number from a rotten entry is not used to size anything, but must not overflow either.
pub(crate) const OFFSET_MAX: Offset = 1 << 62;
