//! Bytes waiting to leave, and the answers among them that must wait for a sync.

use broker::Position;
use std::collections::VecDeque;

/// What a connection has to say, in order. Bytes behind a *gate* leave only once the gate's position is durable.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// How much of `bytes` has been written.
    written: usize,
    /// (position, where its bytes begin): everything from there on waits. Both rise.
    gates: VecDeque<(Position, usize)>,
}

impl Outbox {
    /// Where to encode: always behind everything said before.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What is said from here on waits until `position` is durable.
    pub fn gate(&mut self, position: Position) {
        match self.gates.back_mut() {
            Some((last, from)) if *from == self.bytes.len() => *last = (*last).max(position),
            Some((last, _)) if *last >= position => {}
            _ => self.gates.push_back((position, self.bytes.len())),
        }
    }

    /// Opens the gates up to `durable`.
    pub fn open(&mut self, durable: Position) {
        while self.gates.front().is_some_and(|(position, _)| *position <= durable) {
            self.gates.pop_front();
        }
    }

    /// The position that the first closed gate waits for.
    pub fn awaits(&self) -> Option<Position> {
        self.gates.front().map(|(position, _)| *position)
    }

    /// What may be written now.
    pub fn ready(&self) -> &[u8] {
        let end = self.gates.front().map_or(self.bytes.len(), |(_, from)| *from);
        &self.bytes[self.written..end]
    }

    /// The first `count` bytes of [`Outbox::ready`] are on their way.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
        debug_assert!(self.written <= self.bytes.len());
        if self.written == self.bytes.len() && self.gates.is_empty() {
            self.bytes.clear();
            self.written = 0;
            // An idle connection holds no buffer.
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        } else if self.written > COMPACT_BYTES {
            self.bytes.drain(..self.written);
            self.gates.iter_mut().for_each(|(_, from)| *from -= self.written);
            self.written = 0;
        }
    }

    /// Bytes not yet written, gated ones included.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the buffer away when it is empty: many idle connections share few buffers.
    pub fn take_spare(&mut self) -> Option<Vec<u8>> {
        (self.bytes.is_empty() && self.bytes.capacity() > 0).then(|| std::mem::take(&mut self.bytes))
    }

    /// Takes an empty buffer to write into.
    pub fn lend(&mut self, buffer: Vec<u8>) {
        if self.bytes.capacity() == 0 {
            debug_assert!(buffer.is_empty());
            self.bytes = buffer;
        }
    }
}

const KEPT_BYTES: usize = 512 << 10;
const COMPACT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_a_gate_wait_and_leave_in_order() {
        let mut outbox = Outbox::default();
        outbox.buffer().extend_from_slice(b"ab");
        outbox.gate(Position(5));
        outbox.buffer().extend_from_slice(b"cd");
        outbox.gate(Position(4)); // already covered by the first gate
        outbox.buffer().extend_from_slice(b"ef");
        assert_eq!((outbox.ready(), outbox.awaits()), (&b"ab"[..], Some(Position(5))));
        outbox.advance(2);
        outbox.open(Position(4));
        assert_eq!(outbox.ready(), b"");
        outbox.open(Position(5));
        assert_eq!((outbox.ready(), outbox.awaits()), (&b"cdef"[..], None));
        outbox.advance(4);
        assert!(outbox.is_empty());
    }
}
