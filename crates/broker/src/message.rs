//! A message at rest: one record of a marked batch. Its value is the body; its reserved header holds this block:
//!
//! ```text
//! all integers big endian
//! origin u8 | flags u8 | priority u8 | exchange_length u8, exchange | key_length u16, routing key
//!   | expires_ms u64, if flags has EXPIRES: how long the publisher lets it live, from the record's timestamp
//!   | annotations_length u32, annotations, if flags has ANNOTATED: what the broker adds (death history), a [`Table`] in `annotations.rs`'s form
//!   | the origin protocol's property block, verbatim, to the end
//! ```
//!
//! The property block is opaque here. Whoever needs to look into it (a headers exchange, another protocol) asks the origin's
//! [`Properties`]. All messages of one [`Publish`](crate::request::Publish) share one batch.

use crate::value::Table;

/// Which protocol wrote a property block. Numbers are at rest: never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Origin(pub u8);

pub const PERSISTENT: u8 = 1;
pub const EXPIRES: u8 = 2;
pub const ANNOTATED: u8 = 4;
/// The publisher set a priority (which may be 0).
pub const PRIORITY: u8 = 8;
/// The property block has application headers.
pub const HEADERS: u8 = 16;

/// What the broker reads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    pub origin: Origin,
    pub flags: u8,
    pub priority: u8,
    pub exchange: &'a str,
    pub routing_key: &'a str,
    pub expires_ms: Option<u64>,
    pub annotations: &'a [u8],
    pub properties: &'a [u8],
}

impl<'a> Facts<'a> {
    /// `None` where the block is not one of ours (damaged, or from a newer release).
    #[inline]
    pub fn parse(block: &'a [u8]) -> Option<Facts<'a>> {
        let (&[origin, flags, priority, exchange_len], rest) = block.split_first_chunk::<4>()?;
        let (exchange, rest) = rest.split_at_checked(exchange_len as usize)?;
        let (key_len, rest) = rest.split_first_chunk::<2>()?;
        let (key, mut rest) = rest.split_at_checked(u16::from_be_bytes(*key_len) as usize)?;
        let mut expires_ms = None;
        if flags & EXPIRES != 0 {
            let (ms, after) = rest.split_first_chunk::<8>()?;
            (expires_ms, rest) = (Some(u64::from_be_bytes(*ms)), after);
        }
        let mut annotations = &[][..];
        if flags & ANNOTATED != 0 {
            let (length, after) = rest.split_first_chunk::<4>()?;
            (annotations, rest) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        }
        Some(Facts {
            origin: Origin(origin),
            flags,
            priority,
            exchange: std::str::from_utf8(exchange).ok()?,
            routing_key: std::str::from_utf8(key).ok()?,
            expires_ms,
            annotations,
            properties: rest,
        })
    }

    /// Writes everything but the property block; append `properties` behind it. Names are cut by the caller to their limits.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        debug_assert!(self.exchange.len() <= 255 && self.routing_key.len() <= 65_535);
        let mut flags = self.flags & !(EXPIRES | ANNOTATED);
        flags |= if self.expires_ms.is_some() { EXPIRES } else { 0 };
        flags |= if self.annotations.is_empty() { 0 } else { ANNOTATED };
        out.extend_from_slice(&[self.origin.0, flags, self.priority, self.exchange.len() as u8]);
        out.extend_from_slice(self.exchange.as_bytes());
        out.extend_from_slice(&(self.routing_key.len() as u16).to_be_bytes());
        out.extend_from_slice(self.routing_key.as_bytes());
        if let Some(ms) = self.expires_ms {
            out.extend_from_slice(&ms.to_be_bytes());
        }
        if !self.annotations.is_empty() {
            out.extend_from_slice(&(self.annotations.len() as u32).to_be_bytes());
            out.extend_from_slice(self.annotations);
        }
    }
}

/// What a protocol can tell of a property block that it wrote. One implementation a protocol, registered at start.
pub trait Properties: Send + Sync {
    /// The application headers, in order, duplicates kept; empty when there are none or they can't be read.
    fn headers(&self, properties: &[u8]) -> Table;
    /// A named standard property as text: `message_id`, `correlation_id`, `timestamp`, `reply_to`.
    fn property(&self, properties: &[u8], name: &str) -> Option<String>;
    /// The same block without its expiration (dead-lettering removes it) and, when `without_cc`, without the CC header.
    fn for_dead_letter(&self, properties: &[u8], without_cc: bool) -> Vec<u8>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_back_and_every_cut_of_it_is_refused_or_shorter() {
        let facts = Facts {
            origin: Origin(1),
            flags: PERSISTENT | EXPIRES | ANNOTATED,
            priority: 7,
            exchange: "amq.topic",
            routing_key: "a.b",
            expires_ms: Some(60_000),
            annotations: b"deaths",
            properties: b"",
        };
        let mut block = Vec::new();
        facts.encode_head(&mut block);
        assert_eq!(Facts::parse(&block), Some(facts));
        for cut in 0..block.len() {
            assert_eq!(Facts::parse(&block[..cut]), None, "cut at {cut}");
        }
    }
}
