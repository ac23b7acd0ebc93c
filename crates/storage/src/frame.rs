//! A frame: one commit as it stands in the journal. Lib.rs has the drawing.
//!
//! A frame is encoded in two steps. Under the store's mutex the operations are appended to a [`Backlog`] (no batch is touched,
//! no CRC computed); the journal's writer then gives each frame its head and each batch its CRC, outside of any lock.

use crate::batch::Batch;
use crate::commit::{LogId, Offset, Op, Run};
use crate::fields::{Fields, put_bytes, put_number};
use crate::planted::{self, Bug};
use smallvec::SmallVec;
use std::sync::Arc;

pub(crate) const MAGIC: [u8; 4] = *b"BRJ1";
pub(crate) const HEAD_BYTES: usize = 48;
/// Frames begin at multiples of this, so that a search for one after damage looks at few places.
pub(crate) const ALIGN: usize = 8;
/// The part of a batch that the journal leaves out: it differs per log and is made anew.
const BATCH_HEAD: usize = 21;

const COMMIT: u8 = 1;
const CHECKPOINT: u8 = 2;
const START: u8 = 3;
const FIRST_OF_GROUP: u8 = 1;
const LAST_OF_GROUP: u8 = 2;

/// What is written before and after every frame's own content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHead {
    pub incarnation: u64,
    pub group: u64,
    pub position: u64,
    pub epoch: u32,
    pub first: bool,
    pub last: bool,
}

/// A checkpoint: everything up to `cut` stands in the snapshot log and the segments.
/// Written to the journal when all of that is synced, then to the root file; then what it replaces is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Checkpoint {
    pub number: u64,
    pub epoch: u32,
    pub incarnation: u64,
    /// The snapshot log, and how much of it counts.
    pub snapshot: u64,
    pub snapshot_bytes: u64,
    /// Commits up to here need no replay. (A log's own entry may say that it is further.)
    pub cut: u64,
    /// The record's own position: the journal was synced at least up to here.
    pub synced: u64,
    /// The first journal file that is needed, and the number of the first group in it.
    pub first_file: u64,
    pub first_group: u64,
    /// Numbers below were given to logs, or may have been.
    pub next_log: u64,
    /// The size of every journal file of this start.
    pub file_bytes: u64,
    pub clean: bool,
}

pub(crate) const CHECKPOINT_BYTES: usize = 10 * 8 + 4 + 1;

impl Checkpoint {
    pub fn encode(&self) -> [u8; CHECKPOINT_BYTES] {
        let mut bytes = [0; CHECKPOINT_BYTES];
        let numbers = [
            self.number,
            self.incarnation,
            self.snapshot,
            self.snapshot_bytes,
            self.cut,
            self.synced,
            self.first_file,
            self.first_group,
            self.next_log,
            self.file_bytes,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes[80..84].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[84] = self.clean as u8;
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let mut fields = Fields(bytes);
        let checkpoint = Checkpoint {
            number: fields.u64()?,
            incarnation: fields.u64()?,
            snapshot: fields.u64()?,
            snapshot_bytes: fields.u64()?,
            cut: fields.u64()?,
            synced: fields.u64()?,
            first_file: fields.u64()?,
            first_group: fields.u64()?,
            next_log: fields.u64()?,
            file_bytes: fields.u64()?,
            epoch: fields.u32()?,
            clean: fields.u8()? == 1,
        };
        fields.end()?;
        Some(checkpoint)
    }
}

/// A start that goes on from the journal of the lives before it, instead of writing a checkpoint first. It is the first frame
/// of a file, and says where the life before it ended: what stands there beyond that was torn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    pub incarnation: u64,
    pub group: u64,
    pub position: u64,
    /// As in [`Checkpoint`].
    pub next_log: u64,
}

const START_BYTES: usize = 4 * 8;

impl Start {
    fn encode(&self) -> [u8; START_BYTES] {
        let mut bytes = [0; START_BYTES];
        let numbers = [self.incarnation, self.group, self.position, self.next_log];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Start> {
        let mut fields = Fields(bytes);
        let start =
            Start { incarnation: fields.u64()?, group: fields.u64()?, position: fields.u64()?, next_log: fields.u64()? };
        fields.end()?;
        Some(start)
    }
}

/// Commits that wait for the journal, encoded but for heads and CRCs.
#[derive(Default)]
pub(crate) struct Backlog {
    meta: Vec<u8>,
    frames: Vec<Lined>,
    batches: Vec<Arc<Batch>>,
    /// Bytes of all frames.
    pub bytes: usize,
}

struct Lined {
    kind: u8,
    /// Where its part of `meta` and of `batches` ends.
    meta_end: usize,
    batches_end: usize,
    bytes: usize,
}

/// An append's target: (log, base offset, how many volatile offsets lie directly before it).
pub(crate) type Target = (LogId, Offset, u64);

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn frame_bytes(&self, frame: usize) -> usize {
        self.frames[frame].bytes
    }

    pub fn clear(&mut self) {
        self.meta.clear();
        self.frames.clear();
        self.batches.clear();
        self.bytes = 0;
    }

    /// Begins a commit that will carry these batches; their CRCs are filled in when the frame is written.
    pub fn begin(&mut self, batches: impl Iterator<Item = Arc<Batch>>) {
        let from = self.batches.len();
        self.batches.extend(batches);
        put_number(&mut self.meta, (self.batches.len() - from) as u64);
        for batch in &self.batches[from..] {
            self.meta.extend_from_slice(&(batch.size() as u32).to_be_bytes());
            self.meta.extend_from_slice(&[0; 4]);
        }
    }

    pub fn append(&mut self, to: &[Target]) {
        self.meta.push(1);
        put_number(&mut self.meta, to.len() as u64);
        for (log, base, gap) in to {
            put_number(&mut self.meta, log.0);
            put_number(&mut self.meta, *base);
            put_number(&mut self.meta, *gap);
        }
    }

    /// Every operation but an append.
    pub fn op(&mut self, op: &Op) {
        let meta = &mut self.meta;
        let mut numbers = |tag: u8, numbers: &[u64]| {
            meta.push(tag);
            numbers.iter().for_each(|n| put_number(meta, *n));
        };
        match op {
            Op::Append { .. } | Op::Spill { .. } | Op::Skip { .. } => unreachable!("appends have their own way in"),
            Op::Settle { log, run } => numbers(2, &[log.0, run.first, run.count as u64, run.stride as u64]),
            Op::Count { log, offset, deliveries } => numbers(3, &[log.0, *offset, *deliveries as u64]),
            Op::Trim { log, before } => numbers(4, &[log.0, *before]),
            Op::Create { log } => numbers(5, &[log.0]),
            Op::Drop { log } => numbers(6, &[log.0]),
            Op::Put { key, value: Some(value) } => {
                numbers(7, &[]);
                put_bytes(meta, key);
                put_bytes(meta, value);
            }
            Op::Put { key, value: None } => {
                numbers(8, &[]);
                put_bytes(meta, key);
            }
        }
    }

    pub fn end(&mut self) {
        self.close_frame(COMMIT);
    }

    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.meta.extend_from_slice(&checkpoint.encode());
        self.close_frame(CHECKPOINT);
    }

    pub fn start(&mut self, start: &Start) {
        self.meta.extend_from_slice(&start.encode());
        self.close_frame(START);
    }

    fn close_frame(&mut self, kind: u8) {
        let (meta_from, batches_from) = self.frames.last().map_or((0, 0), |f| (f.meta_end, f.batches_end));
        let bodies: usize = self.batches[batches_from..].iter().map(|b| b.size() - BATCH_HEAD).sum();
        let bytes = (HEAD_BYTES + self.meta.len() - meta_from + bodies).next_multiple_of(ALIGN);
        self.bytes += bytes;
        self.frames.push(Lined { kind, meta_end: self.meta.len(), batches_end: self.batches.len(), bytes });
    }

    /// Writes frame `index` as it stands on disk: small things into `small`, large bodies named for a vectored write.
    pub fn write(&self, index: usize, head: FrameHead, image: &mut GroupImage) {
        let frame = &self.frames[index];
        let (meta_from, batches_from) =
            index.checked_sub(1).map_or((0, 0), |i| (self.frames[i].meta_end, self.frames[i].batches_end));
        let meta = &self.meta[meta_from..frame.meta_end];
        let batches = &self.batches[batches_from..frame.batches_end];
        let small = &mut image.small;
        let at = small.len();
        small.extend_from_slice(&MAGIC);
        small.extend_from_slice(&[0; 4]);
        small.extend_from_slice(&(frame.bytes as u32).to_be_bytes());
        let flags = if head.first { FIRST_OF_GROUP } else { 0 } | if head.last { LAST_OF_GROUP } else { 0 };
        small.extend_from_slice(&[frame.kind, flags, 0, 0]);
        small.extend_from_slice(&head.incarnation.to_be_bytes());
        small.extend_from_slice(&head.group.to_be_bytes());
        small.extend_from_slice(&head.position.to_be_bytes());
        small.extend_from_slice(&head.epoch.to_be_bytes());
        small.extend_from_slice(&(meta.len() as u32).to_be_bytes());
        small.extend_from_slice(meta);
        if !batches.is_empty() {
            let mut place = at + HEAD_BYTES + number_len(batches.len() as u64) + 4;
            for batch in batches {
                small[place..place + 4].copy_from_slice(&batch.seal().to_be_bytes());
                place += 8;
            }
        }
        let crc = crc32c::crc32c(&small[at + 8..]);
        small[at + 4..at + 8].copy_from_slice(&crc.to_be_bytes());
        let mut written = HEAD_BYTES + meta.len();
        for batch in batches {
            written += batch.body().len();
            image.push_body(batch);
        }
        image.small.resize(image.small.len() + frame.bytes - written, 0);
    }
}

/// A group before it is written: small parts in one buffer, large bodies where they are.
#[derive(Default)]
pub(crate) struct GroupImage {
    small: Vec<u8>,
    /// (how much of `small` goes before it, the batch).
    large: Vec<(usize, Arc<Batch>)>,
}

/// Below this a copy is cheaper than a slice of its own.
const COPY_BELOW: usize = 4096;

impl GroupImage {
    pub fn clear(&mut self) {
        self.small.clear();
        self.large.clear();
    }

    fn push_body(&mut self, batch: &Arc<Batch>) {
        if batch.body().len() < COPY_BELOW {
            self.small.extend_from_slice(batch.body());
        } else {
            self.large.push((self.small.len(), batch.clone()));
        }
    }

    /// Fills up with zeros: the kernel never has to read a half-written page, and nothing old follows directly.
    pub fn pad(&mut self, bytes: usize) {
        self.small.resize(self.small.len() + bytes, 0);
    }

    pub fn slices(&self) -> Vec<std::io::IoSlice<'_>> {
        let mut slices = Vec::with_capacity(2 * self.large.len() + 1);
        let mut from = 0;
        for (to, batch) in &self.large {
            slices.push(std::io::IoSlice::new(&self.small[from..*to]));
            slices.push(std::io::IoSlice::new(batch.body()));
            from = *to;
        }
        slices.push(std::io::IoSlice::new(&self.small[from..]));
        slices
    }
}

fn number_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A frame read back and found whole.
#[derive(Debug)]
pub(crate) struct Frame {
    pub head: FrameHead,
    pub bytes: usize,
    pub content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Commit(Vec<FrameOp>),
    Checkpoint(Checkpoint),
    Start(Start),
}

#[derive(Debug)]
pub(crate) enum FrameOp {
    Append { batch: Arc<Batch>, to: SmallVec<[Target; 2]> },
    Other(Op),
}

/// The head that seems to stand at the start of `bytes`. Nothing is checked: it only tells what is worth checking.
pub(crate) fn peek(bytes: &[u8]) -> Option<FrameHead> {
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    let mut fields = Fields(bytes.get(12..HEAD_BYTES)?);
    let (_, flags) = (fields.u8()?, fields.u8()?);
    fields.take(2)?;
    Some(FrameHead {
        incarnation: fields.u64()?,
        group: fields.u64()?,
        position: fields.u64()?,
        epoch: fields.u32()?,
        first: flags & FIRST_OF_GROUP != 0,
        last: flags & LAST_OF_GROUP != 0,
    })
}

/// Whether a start seems to stand there.
pub(crate) fn is_start(bytes: &[u8]) -> bool {
    bytes.get(..4) == Some(&MAGIC) && bytes.get(12) == Some(&START)
}

/// The frame at the start of `bytes`, if there is a whole one: head, operations and every batch check out.
pub(crate) fn parse(bytes: &[u8]) -> Option<Frame> {
    let head = peek(bytes)?;
    let mut fields = Fields(&bytes[4..]);
    let (crc, length, kind) = (fields.u32()?, fields.u32()? as usize, fields.u8()?);
    let meta_bytes = Fields(&bytes[HEAD_BYTES - 4..]).u32()? as usize;
    if length % ALIGN != 0 || length > bytes.len() || meta_bytes > length.checked_sub(HEAD_BYTES)? {
        return None;
    }
    let meta_end = HEAD_BYTES + meta_bytes;
    if crc32c::crc32c(&bytes[8..meta_end]) != crc && !planted::has(Bug::SkipCrc) {
        return None;
    }
    let meta = &bytes[HEAD_BYTES..meta_end];
    let content = match kind {
        COMMIT => Content::Commit(parse_commit(meta, &bytes[meta_end..length])?),
        CHECKPOINT => Content::Checkpoint(Checkpoint::decode(meta)?),
        START => Content::Start(Start::decode(meta)?),
        _ => return None,
    };
    Some(Frame { head, bytes: length, content })
}

fn parse_commit(meta: &[u8], mut bodies: &[u8]) -> Option<Vec<FrameOp>> {
    let mut fields = Fields(meta);
    let mut batches = Vec::new();
    for _ in 0..fields.count()? {
        let (size, crc) = (fields.u32()? as usize, fields.u32()?);
        let (body, rest) = bodies.split_at_checked(size.checked_sub(BATCH_HEAD)?)?;
        let crc = if planted::has(Bug::SkipCrc) { crc32c::crc32c(body) } else { crc };
        batches.push(Arc::new(Batch::from_body(crc, body).ok()?));
        bodies = rest;
    }
    let mut batches = batches.into_iter();
    let mut ops = Vec::new();
    while !fields.0.is_empty() {
        ops.push(match fields.u8()? {
            1 => {
                let mut to = SmallVec::new();
                for _ in 0..fields.count()? {
                    to.push((LogId(fields.number()?), fields.number()?, fields.number()?));
                }
                FrameOp::Append { batch: batches.next()?, to }
            }
            tag => FrameOp::Other(parse_op(tag, &mut fields)?),
        });
    }
    Some(ops)
}

fn parse_op(tag: u8, fields: &mut Fields) -> Option<Op> {
    if tag == 7 || tag == 8 {
        let key = fields.bytes()?.into();
        let value = if tag == 7 { Some(fields.bytes()?.into()) } else { None };
        return Some(Op::Put { key, value });
    }
    let log = LogId(fields.number()?);
    Some(match tag {
        2 => {
            let first = fields.number()?;
            let (count, stride) = (u32::try_from(fields.number()?).ok()?, u32::try_from(fields.number()?).ok()?);
            // No run ends beyond what an offset can be.
            first.checked_add((count as u64).checked_mul(stride.max(1) as u64)?)?;
            Op::Settle { log, run: Run { first, count, stride } }
        }
        3 => Op::Count { log, offset: fields.number()?, deliveries: u32::try_from(fields.number()?).ok()? },
        4 => Op::Trim { log, before: fields.number()? },
        5 => Op::Create { log },
        6 => Op::Drop { log },
        _ => return None,
    })
}
