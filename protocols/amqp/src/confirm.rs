//! Publisher confirms: numbers 1, 2, 3, … per channel, acked in as few basic.acks as possible.
//!
//! ```text
//! channel:   1 ................ acked ............ ready ................ published
//!              basic.ack is out        may be acked         waits for the disk
//! ```
//!
//! Runs are published in order and their positions rise, so each channel has one waiting range, not a set. What waits for
//! nothing is confirmed together with what was published before it. A refused record is nacked at once, so an ack with
//! `multiple` that covers it later says nothing new to the client.

use crate::method::{self, Method};
use broker::Position;
use std::collections::VecDeque;

/// A channel's count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confirmed {
    /// Number of the last message published.
    pub published: u64,
    /// Everything up to here may be acked.
    ready: u64,
    /// Everything up to here is.
    acked: u64,
    /// Entries of [`Confirms`] that name this channel.
    waiting: u32,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    position: Position,
    channel: u16,
    epoch: u32,
    last: u64,
}

/// What a connection's channels wait for, in the order of the journal.
#[derive(Debug, Default)]
pub struct Confirms {
    waiting: VecDeque<Waiting>,
}

impl Confirms {
    pub fn awaits(&self) -> Option<Position> {
        self.waiting.front().map(|first| first.position)
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The messages up to `last` of a channel are safe at `safe_at` (`None`: as soon as those before them). True: there is
    /// something to [`Confirmed::flush`] now.
    pub fn add(&mut self, confirmed: &mut Confirmed, channel: u16, epoch: u32, last: u64, safe_at: Option<Position>) -> bool {
        if safe_at.is_none() && confirmed.waiting == 0 {
            confirmed.ready = confirmed.ready.max(last);
            return true;
        }
        let newest = self.waiting.back().map_or(Position(0), |back| back.position);
        let position = match safe_at {
            // Positions rise; were one out of order, waiting longer is safe.
            Some(position) => position.max(newest),
            None => newest,
        };
        match self.waiting.back_mut() {
            Some(back) if back.channel == channel && back.epoch == epoch && back.position == position => back.last = last,
            _ => {
                self.waiting.push_back(Waiting { position, channel, epoch, last });
                confirmed.waiting += 1;
            }
        }
        false
    }

    /// The next channel with something to ack, as (channel, epoch, last).
    pub fn next(&mut self, durable: Position) -> Option<(u16, u32, u64)> {
        let first = self.waiting.front().filter(|first| first.position <= durable)?;
        let next = (first.channel, first.epoch, first.last);
        self.waiting.pop_front();
        Some(next)
    }
}

impl Confirmed {
    /// An entry of [`Confirms::next`] for this channel.
    pub fn durable(&mut self, last: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.ready = self.ready.max(last);
    }

    /// Acks what may be acked, in one frame.
    pub fn flush(&mut self, out: &mut Vec<u8>, channel: u16) {
        if self.ready > self.acked {
            let multiple = self.ready - self.acked > 1;
            method::put(out, channel, &Method::BasicAck { delivery_tag: self.ready, multiple });
            self.acked = self.ready;
        }
    }

    /// Nacks the records of a run that begins at number `first`, by their indexes (ascending), in as few frames as may be.
    pub fn nack(&mut self, out: &mut Vec<u8>, channel: u16, first: u64, refused: &[u32]) {
        self.flush(out, channel);
        for group in refused.chunk_by(|a, b| a + 1 == *b) {
            let (Some(&from), Some(&to)) = (group.first(), group.last()) else { continue };
            let (from, to) = (first + u64::from(from), first + u64::from(to));
            if self.waiting == 0 && from == self.acked + 1 && to > from {
                method::put(out, channel, &Method::BasicNack { delivery_tag: to, multiple: true, requeue: false });
            } else {
                for delivery_tag in from..=to {
                    method::put(out, channel, &Method::BasicNack { delivery_tag, multiple: false, requeue: false });
                }
            }
            if self.waiting == 0 && from == self.acked + 1 {
                (self.acked, self.ready) = (to, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, Scan};

    fn said(out: &mut Vec<u8>) -> Vec<String> {
        let mut said = Vec::new();
        while let Scan::Frame(frame) = frame::scan(out, 4096) {
            let (id, fields) = method::split(frame.payload).unwrap();
            said.push(match Method::decode(id, fields).unwrap() {
                Method::BasicAck { delivery_tag, multiple } => format!("ack {delivery_tag}{}", if multiple { "+" } else { "" }),
                Method::BasicNack { delivery_tag, multiple, .. } => {
                    format!("nack {delivery_tag}{}", if multiple { "+" } else { "" })
                }
                other => format!("{other:?}"),
            });
            let size = frame.size();
            out.drain(..size);
        }
        said
    }

    #[test]
    fn one_ack_covers_all_that_became_safe_together() {
        let (mut confirms, mut channel, mut out) = (Confirms::default(), Confirmed::default(), Vec::new());
        assert!(!confirms.add(&mut channel, 1, 0, 10, Some(Position(5))));
        assert!(!confirms.add(&mut channel, 1, 0, 11, None), "it waits with those before it");
        assert!(!confirms.add(&mut channel, 1, 0, 20, Some(Position(6))));
        assert_eq!((confirms.awaits(), confirms.next(Position(4))), (Some(Position(5)), None));
        while let Some((_, _, last)) = confirms.next(Position(6)) {
            channel.durable(last);
        }
        channel.flush(&mut out, 1);
        assert!(confirms.add(&mut channel, 1, 0, 21, None), "nothing to wait for");
        channel.flush(&mut out, 1);
        assert_eq!(said(&mut out), ["ack 20+", "ack 21"]);
        assert_eq!(confirms.awaits(), None);
    }

    #[test]
    fn a_nack_never_covers_what_still_waits() {
        let (mut confirms, mut channel, mut out) = (Confirms::default(), Confirmed::default(), Vec::new());
        channel.nack(&mut out, 1, 1, &[0, 1, 2]);
        assert_eq!(said(&mut out), ["nack 3+"]);
        confirms.add(&mut channel, 1, 0, 4, Some(Position(1)));
        channel.nack(&mut out, 1, 5, &[0, 1, 3]);
        assert_eq!(said(&mut out), ["nack 5", "nack 6", "nack 8"]);
        confirms.add(&mut channel, 1, 0, 7, None);
        while let Some((_, _, last)) = confirms.next(Position(1)) {
            channel.durable(last);
        }
        channel.flush(&mut out, 1);
        assert_eq!(said(&mut out), ["ack 7+"]);
    }
}
