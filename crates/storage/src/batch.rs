//! The batch: Kafka's RecordBatch v2, the form of every record in memory, in the journal and in segments.
//!
//! ```text
//! all integers big endian; varints are zigzag (protobuf); times are Unix milliseconds
//!
//!  0 base_offset   i64 ┐ outside the CRC: filled in when the batch is written to a log,
//!  8 length        i32 │ so one batch serves any number of logs
//! 12 leader_epoch  i32 │
//! 16 magic = 2     i8  │
//! 17 crc           u32 ┘ CRC-32C of everything from 21 on
//! 21 attributes    i16   bits 0-2 codec, 3 time type, 4 transactional, 5 control, 6 delete horizon,
//!                        15 = MARKED: records carry the reserved header (bit 15 is ours; a Kafka client may not set it)
//! 23 last_offset_delta i32
//! 27 base_timestamp i64
//! 35 max_timestamp i64
//! 43 producer_id i64 (-1) · 51 producer_epoch i16 (-1) · 53 base_sequence i32 (-1)
//! 57 record_count  i32
//! 61 records: length varint | attributes i8 | timestamp_delta varint | offset_delta varint
//!             | key_length varint (-1 null), key | value_length varint (-1 null), value
//!             | header_count varint, { name_length varint, name, value_length varint (-1 null), value }
//! ```
//!
//! A record of a marked batch has no key and exactly one header, [`RESERVED`]: an opaque block that the caller owns.

use std::sync::OnceLock;

pub const HEADER_BYTES: usize = 61;
/// Where the part that is the same in every log begins.
const CRC_FROM: usize = 21;
/// Attribute bit 15.
pub const MARKED: i16 = i16::MIN;
/// Name of the one header of a record in a marked batch.
pub const RESERVED: &[u8] = b"\x01";

/// An immutable batch. Its base offset and epoch are given when it is written ([`Batch::head`]).
#[derive(Debug)]
pub struct Batch {
    /// The whole batch; the bytes before [`CRC_FROM`] hold zeros for offset, epoch and CRC.
    bytes: Box<[u8]>,
    /// Where each record begins in `bytes`, and where the last one ends.
    starts: Box<[u32]>,
    /// Computed once, when the batch is first written: a transient message that goes straight through needs none.
    crc: OnceLock<u32>,
}

/// One record, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// `header_count` and the headers, encoded.
    headers: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    Truncated,
    Magic(i8),
    Crc,
    Length,
    Count,
    Record(u32),
}

impl Batch {
    /// Checks and takes over a batch as it stood in a file: length, magic, CRC and the frame of every record.
    /// A compressed batch (codec bits not 0) has no record positions; `len` is still its record count.
    pub fn parse(bytes: &[u8]) -> Result<Batch, Malformed> {
        Batch::take(bytes.to_vec())
    }

    fn take(mut bytes: Vec<u8>) -> Result<Batch, Malformed> {
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        if head[16] as i8 != 2 {
            return Err(Malformed::Magic(head[16] as i8));
        }
        let length = i32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        if length < (HEADER_BYTES - 12) as i32 || bytes.len() != length as usize + 12 {
            return Err(Malformed::Length);
        }
        let crc = u32::from_be_bytes([head[17], head[18], head[19], head[20]]);
        if crc32c::crc32c(&bytes[CRC_FROM..]) != crc {
            return Err(Malformed::Crc);
        }
        let count = i32::from_be_bytes([head[57], head[58], head[59], head[60]]);
        let last_delta = i32::from_be_bytes([head[23], head[24], head[25], head[26]]);
        if count < 1 || last_delta < count - 1 {
            return Err(Malformed::Count);
        }
        let codec = head[22] & 7;
        let starts = if codec == 0 { record_starts(&bytes, count)? } else { Box::new([]) };
        bytes[..8].fill(0);
        bytes[12..16].fill(0);
        bytes[17..21].fill(0);
        Ok(Batch { bytes: bytes.into_boxed_slice(), starts, crc: OnceLock::from(crc) })
    }

    /// As [`Batch::parse`], of [`Batch::body`] and the CRC alone: what the journal keeps of a batch.
    pub fn from_body(crc: u32, body: &[u8]) -> Result<Batch, Malformed> {
        let mut bytes = Vec::with_capacity(CRC_FROM + body.len());
        let length = i32::try_from(CRC_FROM + body.len()).map_err(|_| Malformed::Length)? - 12;
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 2]);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.extend_from_slice(body);
        Batch::take(bytes)
    }

    /// How many records.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> u32 {
        u32::from_be_bytes([self.bytes[57], self.bytes[58], self.bytes[59], self.bytes[60]])
    }

    /// How many offsets it takes: its last offset delta + 1.
    pub fn span(&self) -> u32 {
        u32::from_be_bytes([self.bytes[23], self.bytes[24], self.bytes[25], self.bytes[26]]) + 1
    }

    /// Size in bytes, in memory, journal and segment alike.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub fn attributes(&self) -> i16 {
        i16::from_be_bytes([self.bytes[21], self.bytes[22]])
    }

    pub fn is_marked(&self) -> bool {
        self.attributes() & MARKED != 0
    }

    pub fn base_timestamp(&self) -> i64 {
        i64::from_be_bytes(self.bytes[27..35].try_into().expect("8 bytes"))
    }

    pub fn max_timestamp(&self) -> i64 {
        i64::from_be_bytes(self.bytes[35..43].try_into().expect("8 bytes"))
    }

    /// The CRC-32C of the part from the attributes on. The first call computes it: do that before taking a lock.
    pub fn seal(&self) -> u32 {
        *self.crc.get_or_init(|| crc32c::crc32c(&self.bytes[CRC_FROM..]))
    }

    /// The first 21 bytes as they stand in one log; [`Batch::body`] follows.
    pub fn head(&self, base: u64, epoch: u32) -> [u8; CRC_FROM] {
        let mut head = [0; CRC_FROM];
        head.copy_from_slice(&self.bytes[..CRC_FROM]);
        head[..8].copy_from_slice(&base.to_be_bytes());
        head[12..16].copy_from_slice(&epoch.to_be_bytes());
        head[17..21].copy_from_slice(&self.seal().to_be_bytes());
        head
    }

    /// Everything after the head: the same in every log.
    pub fn body(&self) -> &[u8] {
        &self.bytes[CRC_FROM..]
    }

    /// The record with index `i` (not offset). Panics unless `i < len()`: the caller counts, no client does.
    #[inline]
    pub fn record(&self, i: u32) -> Record<'_> {
        let (from, to) = (self.starts[i as usize] as usize, self.starts[i as usize + 1] as usize);
        decode_record(&self.bytes[from..to], self.base_timestamp()).expect("checked when the batch was made")
    }

    /// The records of an index range as a batch of their own.
    pub fn subset(&self, range: std::ops::Range<u32>) -> Batch {
        let mut builder = BatchBuilder::new(self.base_timestamp(), self.attributes());
        for i in range {
            let record = self.record(i);
            let headers: Vec<_> = record.headers().collect();
            builder.push(record.timestamp, record.key, record.value, &headers);
        }
        builder.finish()
    }

    /// Bytes of the records of an index range.
    pub fn records_size(&self, range: std::ops::Range<u32>) -> usize {
        (self.starts[range.end as usize] - self.starts[range.start as usize]) as usize
    }

    /// Bytes of the record with index `i`, framing included: what it weighs in memory.
    pub fn record_size(&self, i: u32) -> usize {
        (self.starts[i as usize + 1] - self.starts[i as usize]) as usize
    }
}

impl<'a> Record<'a> {
    /// The block of the reserved header; `None` where the record has another shape.
    #[inline]
    pub fn block(&self) -> Option<&'a [u8]> {
        // count = 1 (zigzag 2), name length = 1 (zigzag 2), the name
        let rest = self.headers.strip_prefix(&[2, 2, RESERVED[0]])?;
        let (length, at) = varint(rest, 0)?;
        rest.get(at..at + usize::try_from(length).ok()?)
    }

    /// All headers in order, duplicates kept.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let bytes = self.headers;
        let (mut left, mut at) = varint(bytes, 0).unwrap_or((0, 0));
        std::iter::from_fn(move || {
            if left <= 0 {
                return None;
            }
            left -= 1;
            let name = nullable(bytes, &mut at)??;
            Some((name, nullable(bytes, &mut at)?))
        })
    }
}

/// Builds a batch record by record.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    base_timestamp: i64,
    max_timestamp: i64,
    attributes: i16,
}

impl BatchBuilder {
    /// A batch whose records all carry the reserved header.
    pub fn marked(timestamp: i64) -> BatchBuilder {
        BatchBuilder::new(timestamp, MARKED)
    }

    /// A batch as a Kafka client would send it.
    pub fn plain(timestamp: i64) -> BatchBuilder {
        BatchBuilder::new(timestamp, 0)
    }

    fn new(timestamp: i64, attributes: i16) -> BatchBuilder {
        BatchBuilder {
            bytes: vec![0; HEADER_BYTES],
            starts: Vec::new(),
            base_timestamp: timestamp,
            max_timestamp: timestamp,
            attributes,
        }
    }

    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a record of a marked batch: `value` and `block` are the concatenation of their parts.
    #[inline]
    pub fn push_marked(&mut self, timestamp: i64, value: &[&[u8]], block: &[&[u8]]) {
        let value_len: usize = value.iter().map(|p| p.len()).sum();
        let block_len: usize = block.iter().map(|p| p.len()).sum();
        let delta = self.next_record(timestamp);
        let index = (self.starts.len() - 1) as i64;
        let length = 1
            + varint_len(delta)
            + varint_len(index)
            + 1
            + varint_len(value_len as i64)
            + value_len
            + 3
            + varint_len(block_len as i64)
            + block_len;
        self.bytes.reserve(length + 10);
        put_varint(&mut self.bytes, length as i64);
        self.bytes.push(0);
        put_varint(&mut self.bytes, delta);
        put_varint(&mut self.bytes, index);
        self.bytes.push(1); // key: null
        put_varint(&mut self.bytes, value_len as i64);
        value.iter().for_each(|p| self.bytes.extend_from_slice(p));
        self.bytes.extend_from_slice(&[2, 2, RESERVED[0]]);
        put_varint(&mut self.bytes, block_len as i64);
        block.iter().for_each(|p| self.bytes.extend_from_slice(p));
    }

    /// Adds a record with any key, value and headers.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&[u8], Option<&[u8]>)]) {
        let delta = self.next_record(timestamp);
        let mut record = vec![0];
        put_varint(&mut record, delta);
        put_varint(&mut record, (self.starts.len() - 1) as i64);
        put_nullable(&mut record, key);
        put_nullable(&mut record, value);
        put_varint(&mut record, headers.len() as i64);
        for (name, value) in headers {
            put_nullable(&mut record, Some(name));
            put_nullable(&mut record, *value);
        }
        put_varint(&mut self.bytes, record.len() as i64);
        self.bytes.extend_from_slice(&record);
    }

    fn next_record(&mut self, timestamp: i64) -> i64 {
        self.starts.push(self.bytes.len() as u32);
        self.max_timestamp = self.max_timestamp.max(timestamp);
        timestamp - self.base_timestamp
    }

    /// Panics when empty: a batch has at least one record.
    pub fn finish(mut self) -> Batch {
        assert!(!self.starts.is_empty(), "a batch has at least one record");
        let count = self.starts.len() as i32;
        let length = (self.bytes.len() - 12) as i32;
        self.starts.push(self.bytes.len() as u32);
        let mut at = |from: usize, field: &[u8]| self.bytes[from..from + field.len()].copy_from_slice(field);
        at(8, &length.to_be_bytes());
        at(16, &[2]);
        at(21, &self.attributes.to_be_bytes());
        at(23, &(count - 1).to_be_bytes());
        at(27, &self.base_timestamp.to_be_bytes());
        at(35, &self.max_timestamp.to_be_bytes());
        at(43, &(-1i64).to_be_bytes());
        at(51, &(-1i16).to_be_bytes());
        at(53, &(-1i32).to_be_bytes());
        at(57, &count.to_be_bytes());
        Batch { bytes: self.bytes.into_boxed_slice(), starts: self.starts.into_boxed_slice(), crc: OnceLock::new() }
    }
}

fn record_starts(bytes: &[u8], count: i32) -> Result<Box<[u32]>, Malformed> {
    // A record is at least 7 bytes: a count from the wire never sizes more than the bytes that are there.
    if count as usize > (bytes.len() - HEADER_BYTES) / 7 {
        return Err(Malformed::Count);
    }
    let mut starts = Vec::with_capacity(count as usize + 1);
    let mut at = HEADER_BYTES;
    for i in 0..count as u32 {
        starts.push(at as u32);
        let (length, body) = varint(bytes, at).ok_or(Malformed::Record(i))?;
        let end = usize::try_from(length).ok().and_then(|l| body.checked_add(l)).ok_or(Malformed::Record(i))?;
        let record = bytes.get(at..end).ok_or(Malformed::Record(i))?;
        decode_record(record, 0).ok_or(Malformed::Record(i))?;
        at = end;
    }
    starts.push(at as u32);
    if at == bytes.len() { Ok(starts.into()) } else { Err(Malformed::Length) }
}

/// `bytes` is one record with its length in front.
#[inline]
fn decode_record(bytes: &[u8], base_timestamp: i64) -> Option<Record<'_>> {
    let (_, mut at) = varint(bytes, 0)?;
    at += 1; // attributes: unused
    let (delta, next) = varint(bytes, at)?;
    let (_, next) = varint(bytes, next)?;
    at = next;
    let key = nullable(bytes, &mut at)?;
    let value = nullable(bytes, &mut at)?;
    Some(Record { timestamp: base_timestamp.wrapping_add(delta), key, value, headers: bytes.get(at..)? })
}

#[inline]
fn nullable<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Option<&'a [u8]>> {
    let (length, from) = varint(bytes, *at)?;
    if length < 0 {
        *at = from;
        return (length == -1).then_some(None);
    }
    let end = from.checked_add(length as usize)?;
    *at = end;
    bytes.get(from..end).map(Some)
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |b| b.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// Reads a zigzag varint at `at`; the value and where the next field begins.
#[inline]
pub fn varint(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let first = *bytes.get(at)?;
    if first < 0x80 {
        return Some((((first >> 1) as i64) ^ -((first & 1) as i64), at + 1));
    }
    let mut value = (first & 0x7f) as u64;
    for i in 1..10 {
        let byte = *bytes.get(at + i)?;
        value |= ((byte & 0x7f) as u64) << (7 * i);
        if byte < 0x80 {
            return Some((((value >> 1) as i64) ^ -((value & 1) as i64), at + i + 1));
        }
    }
    None
}

#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn varint_len(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    (64 - (zigzag | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(batch: &Batch, base: u64) -> Vec<u8> {
        let mut bytes = batch.head(base, 7).to_vec();
        bytes.extend_from_slice(batch.body());
        bytes
    }

    #[test]
    fn a_marked_batch_reads_back_record_by_record() {
        let mut builder = BatchBuilder::marked(1_000);
        for i in 0..300u32 {
            let body = vec![i as u8; i as usize];
            builder.push_marked(1_000 + i as i64, &[&body[..i as usize / 2], &body[i as usize / 2..]], &[b"bl", b"ock"]);
        }
        let batch = Batch::parse(&written(&builder.finish(), 42)).expect("our own batch");
        assert_eq!((batch.len(), batch.span(), batch.is_marked()), (300, 300, true));
        assert_eq!(batch.max_timestamp(), 1_299);
        for i in 0..300u32 {
            let record = batch.record(i);
            assert_eq!(record.value, Some(&vec![i as u8; i as usize][..]));
            assert_eq!(record.block(), Some(&b"block"[..]));
            assert_eq!(record.timestamp, 1_000 + i as i64);
        }
    }

    #[test]
    fn null_is_not_empty_and_headers_keep_order_and_duplicates() {
        let mut builder = BatchBuilder::plain(5);
        let headers: &[(&[u8], Option<&[u8]>)] = &[(b"a", None), (b"a", Some(b"")), (b"", Some(b"x"))];
        builder.push(4, None, Some(b""), headers);
        builder.push(6, Some(b""), None, &[]);
        let batch = builder.finish();
        let (first, second) = (batch.record(0), batch.record(1));
        assert_eq!((first.timestamp, first.key, first.value), (4, None, Some(&b""[..])));
        assert_eq!(first.headers().collect::<Vec<_>>(), headers);
        assert_eq!((second.key, second.value, second.headers().count()), (Some(&b""[..]), None, 0));
        assert_eq!(first.block(), None);
    }

    #[test]
    fn a_subset_is_the_same_records_in_a_smaller_batch() {
        let mut builder = BatchBuilder::marked(50);
        (0..5u8).for_each(|i| builder.push_marked(50 + i as i64, &[&[i]], &[&[i, i]]));
        let batch = builder.finish();
        let part = Batch::parse(&written(&batch.subset(1..4), 0)).expect("our own batch");
        assert_eq!((part.len(), part.is_marked()), (3, true));
        (0..3).for_each(|i| assert_eq!(part.record(i), batch.record(i + 1)));
    }

    #[test]
    fn every_flipped_bit_after_the_head_is_found() {
        let mut builder = BatchBuilder::marked(9);
        builder.push_marked(9, &[b"value"], &[b"block"]);
        let bytes = written(&builder.finish(), 1);
        for bit in 16 * 8..bytes.len() * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::parse(&hurt).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn varints_round_trip_at_their_edges() {
        for value in [0, -1, 1, 63, -64, 64, -65, 8191, 8192, i32::MAX as i64, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(varint(&bytes, 0), Some((value, bytes.len())), "{value}");
            assert_eq!(varint_len(value), bytes.len(), "{value}");
        }
    }
}
