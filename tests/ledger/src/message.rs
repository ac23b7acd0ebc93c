//! A message of the ledger: everything in it follows from who sent it and its number.
//!
//! ```text
//! crc32c u32, of all that follows | run u16 | producer u16 | sequence u64 | filling, derived from the three
//! ```
//!
//! Its size and the queue it goes to are derived too, so nothing about a message needs to be kept to know whether what came
//! back is what was sent.

pub const HEAD_BYTES: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Id {
    pub run: u16,
    pub producer: u16,
    pub sequence: u64,
}

/// SplitMix64.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In `from..to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    /// Each power of two between the two as likely as any other.
    fn magnitude(&mut self, from: u64, to: u64) -> u64 {
        let doublings = (to / from).ilog2() as u64;
        let low = from << self.between(0, doublings);
        self.between(low, 2 * low)
    }
}

impl Id {
    fn random(&self) -> Random {
        let mut random = Random(self.sequence ^ (self.producer as u64) << 40 ^ (self.run as u64) << 56);
        random.next();
        random
    }

    pub fn queue(&self, queues: usize) -> usize {
        (self.random().next() % queues as u64) as usize
    }

    /// Four of five up to 1 KiB, nearly all others up to 64 KiB, three in a thousand larger than one frame.
    fn size(&self) -> usize {
        let mut random = self.random();
        random.next();
        let size = match random.between(0, 1000) {
            0..800 => random.magnitude(16, 1 << 10),
            800..997 => random.magnitude(1 << 10, 64 << 10),
            _ => random.magnitude(128 << 10, 512 << 10),
        };
        size as usize
    }

    pub fn body(&self) -> Vec<u8> {
        let size = self.size();
        let mut body = Vec::with_capacity(size + 8);
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&self.run.to_be_bytes());
        body.extend_from_slice(&self.producer.to_be_bytes());
        body.extend_from_slice(&self.sequence.to_be_bytes());
        let mut random = self.random();
        while body.len() < size {
            body.extend_from_slice(&random.next().to_le_bytes());
        }
        body.truncate(size);
        let crc = crc32c::crc32c(&body[4..]);
        body[..4].copy_from_slice(&crc.to_be_bytes());
        body
    }

    /// Who this message says it is, if it is whole: its checksum holds and it has the size that it must have.
    pub fn of(body: &[u8]) -> Option<Id> {
        let head = body.first_chunk::<HEAD_BYTES>()?;
        let (crc, rest) = head.split_first_chunk::<4>()?;
        if u32::from_be_bytes(*crc) != crc32c::crc32c(&body[4..]) {
            return None;
        }
        let id = Id {
            run: u16::from_be_bytes([rest[0], rest[1]]),
            producer: u16::from_be_bytes([rest[2], rest[3]]),
            sequence: u64::from_be_bytes(*rest.last_chunk()?),
        };
        (id.size() == body.len()).then_some(id)
    }
}
