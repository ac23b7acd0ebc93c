//! A link: one consumer of a connection (or the getter of a channel), and the deliveries it holds.

use crate::request::PoolId;
use crate::topology::QueueKey;
use std::collections::VecDeque;
use std::sync::Arc;
use storage::{Batch, LogId, Offset, Run};

/// A run of deliveries that wait to be settled.
#[derive(Clone, Debug)]
pub struct Held {
    /// Number of the first on its link.
    pub number: u64,
    pub count: u32,
    pub queue: QueueKey,
    /// The level's log: says which level, and whether `queue` still is the queue it was.
    pub log: LogId,
    pub offset: Offset,
    pub batch: Arc<Batch>,
    /// Index of the first record; the next is `stride` further, in the batch and in the log.
    pub first: u32,
    pub stride: u32,
    pub durable: bool,
    pub deliveries: u32,
    pub failures: u32,
    /// Monotonic ms of the delivery.
    pub since_ms: u64,
}

impl Held {
    pub fn run(&self) -> Run {
        Run { first: self.offset, count: self.count, stride: self.stride }
    }

    /// Cuts off the first `count`.
    fn split_front(&mut self, count: u32) -> Held {
        let front = Held { count, ..self.clone() };
        self.number += count as u64;
        self.count -= count;
        self.first += count * self.stride;
        self.offset += count as u64 * self.stride as u64;
        front
    }
}

#[derive(Debug)]
pub struct Link {
    pub pool: PoolId,
    /// The queue it consumes; `None` for a getter, and after a cancel.
    pub queue: Option<QueueKey>,
    pub tag: Box<str>,
    pub auto_settle: bool,
    pub exclusive: bool,
    pub priority: i64,
    /// 0 is no limit.
    pub window: u32,
    pub outstanding: u32,
    pub next_number: u64,
    /// Ordered by number, which rises with every delivery.
    pub held: VecDeque<Held>,
    pub timeout_ms: Option<u64>,
}

impl Link {
    /// How many more it may hold.
    pub fn credit(&self) -> u32 {
        if self.window == 0 { u32::MAX } else { self.window.saturating_sub(self.outstanding) }
    }

    /// Notes a run as held and numbers it.
    pub fn hold(&mut self, mut held: Held) {
        held.number = self.next_number;
        self.next_number += held.count as u64;
        self.outstanding += held.count;
        self.held.push_back(held);
    }

    /// Takes what it holds of the numbers `first..first + count`, in order.
    pub fn release(&mut self, first: u64, count: u64, mut each: impl FnMut(Held)) {
        let end = first.saturating_add(count);
        self.split_at(first);
        self.split_at(end);
        let from = self.held.partition_point(|held| held.number < first);
        let to = self.held.partition_point(|held| held.number < end);
        for held in self.held.drain(from..to) {
            self.outstanding -= held.count;
            each(held);
        }
    }

    /// Makes `number` the first of a run, if it is held.
    fn split_at(&mut self, number: u64) {
        let at = self.held.partition_point(|held| held.number + held.count as u64 <= number);
        if let Some(held) = self.held.get_mut(at).filter(|held| held.number < number) {
            let front = held.split_front((number - held.number) as u32);
            self.held.insert(at, front);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::BatchBuilder;

    fn link(runs: &[(u32, u32)]) -> Link {
        let mut builder = BatchBuilder::marked(0);
        (0..100).for_each(|_| builder.push_marked(0, &[], &[]));
        let batch = Arc::new(builder.finish());
        let mut link = Link {
            pool: 0,
            queue: None,
            tag: "".into(),
            auto_settle: false,
            exclusive: false,
            priority: 0,
            window: 0,
            outstanding: 0,
            next_number: 0,
            held: VecDeque::new(),
            timeout_ms: None,
        };
        let mut offset = 0;
        for &(count, stride) in runs {
            link.hold(Held {
                number: 0,
                count,
                queue: QueueKey(0),
                log: LogId(1),
                offset,
                batch: batch.clone(),
                first: offset as u32,
                stride,
                durable: true,
                deliveries: 0,
                failures: 0,
                since_ms: 0,
            });
            offset += (count * stride) as u64;
        }
        link
    }

    fn released(link: &mut Link, first: u64, count: u64) -> Vec<u64> {
        let mut offsets = Vec::new();
        link.release(first, count, |held| offsets.extend(held.run().offsets()));
        offsets
    }

    #[test]
    fn any_split_of_what_is_held_gives_each_offset_once() {
        for first in 0..12 {
            for count in 0..12 {
                let mut link = link(&[(3, 1), (4, 2), (1, 1), (4, 1)]);
                let all = [0, 1, 2, 3, 5, 7, 9, 11, 12, 13, 14, 15];
                let expected: Vec<u64> = all.iter().copied().skip(first).take(count).collect();
                assert_eq!(released(&mut link, first as u64, count as u64), expected, "{first}+{count}");
                assert_eq!(link.outstanding as usize, 12 - expected.len());
                assert_eq!(released(&mut link, 0, 100).len(), 12 - expected.len());
                assert!(link.held.is_empty());
            }
        }
    }
}
