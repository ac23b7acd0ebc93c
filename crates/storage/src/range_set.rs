//! A set of offsets as sorted, disjoint, non-touching ranges.
//!
//! Leaves of at most [`LEAF`] ranges under one list: an insertion in the middle of a million ranges moves a few KiB.
//! What settles in order extends one range in place; a strided run is merged with its neighbourhood in one pass.

use crate::commit::{Offset, Run};

const LEAF: usize = 256;

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct RangeSet {
    /// None of them empty; ranges are `[from, to)`, ascending over all leaves.
    leaves: Vec<Vec<(Offset, Offset)>>,
}

impl RangeSet {
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// How many ranges.
    pub fn ranges(&self) -> usize {
        self.leaves.iter().map(Vec::len).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Offset, Offset)> + '_ {
        self.leaves.iter().flatten().copied()
    }

    pub fn contains(&self, offset: Offset) -> bool {
        self.covers(offset, offset + 1)
    }

    /// Whether all of `[from, to)` is in the set.
    pub fn covers(&self, from: Offset, to: Offset) -> bool {
        from >= to || self.at_or_before(from).is_some_and(|(_, end)| end >= to)
    }

    /// The first offset at or above `from` that is not in the set.
    pub fn next_absent(&self, from: Offset) -> Offset {
        self.at_or_before(from).map_or(from, |(_, end)| end.max(from))
    }

    /// How many offsets of `[from, to)` are in the set.
    pub fn count_in(&self, from: Offset, to: Offset) -> u64 {
        let leaf = self.leaf_of(from);
        let ranges = self.leaves[leaf..].iter().flatten();
        let inside = ranges.skip_while(|r| r.1 <= from).take_while(|r| r.0 < to);
        inside.map(|r| r.1.min(to) - r.0.max(from)).sum()
    }

    /// The ranges that overlap `[from, to)`, cut to it.
    pub fn window(&self, from: Offset, to: Offset) -> RangeSet {
        let leaf = self.leaf_of(from);
        let ranges = self.leaves[leaf..].iter().flatten();
        let inside = ranges.skip_while(|r| r.1 <= from).take_while(|r| r.0 < to);
        let mut set = RangeSet::new();
        inside.for_each(|r| set.push(r.0.max(from), r.1.min(to)));
        set
    }

    /// Adds a range at the end: `from` is at or above everything in the set.
    pub fn push(&mut self, from: Offset, to: Offset) {
        if from >= to {
            return;
        }
        match self.leaves.last_mut() {
            Some(leaf) => {
                let last = leaf.last_mut().expect("no leaf is empty");
                assert!(from >= last.1, "pushed {from} below {}", last.1);
                if last.1 == from {
                    last.1 = to;
                } else if leaf.len() < LEAF {
                    leaf.push((from, to));
                } else {
                    self.leaves.push(vec![(from, to)]);
                }
            }
            None => self.leaves.push(vec![(from, to)]),
        }
    }

    pub fn insert(&mut self, from: Offset, to: Offset) {
        if from >= to || self.insert_in_place(from, to) {
            return;
        }
        self.merge(from, to, std::iter::once((from, to)));
    }

    pub fn insert_run(&mut self, run: Run) {
        if run.count == 0 {
        } else if run.stride <= 1 {
            self.insert(run.first, run.first + run.count as u64);
        } else {
            let end = run.first + (run.count as u64 - 1) * run.stride as u64 + 1;
            self.merge(run.first, end, run.offsets().map(|o| (o, o + 1)));
        }
    }

    pub fn insert_all(&mut self, other: &RangeSet) {
        if let (Some(first), Some(last)) = (other.iter().next(), other.last()) {
            self.merge(first.0, last.1, other.iter());
        }
    }

    /// If the set begins at or below `first`: forgets that beginning and answers where it ends.
    pub fn cut_front(&mut self, mut first: Offset) -> Offset {
        while let Some(leaf) = self.leaves.first_mut() {
            let keep = leaf.partition_point(|r| r.1 <= first);
            if let Some(range) = leaf.get_mut(keep) {
                let done = if range.0 <= first {
                    first = range.1;
                    keep + 1
                } else {
                    keep
                };
                leaf.drain(..done);
                if !leaf.is_empty() {
                    break;
                }
            }
            self.leaves.remove(0);
        }
        first
    }

    /// Forgets everything below `first`.
    pub fn forget_below(&mut self, first: Offset) {
        let end = self.cut_front(first);
        if end > first {
            self.insert(first, end);
        }
    }

    fn last(&self) -> Option<(Offset, Offset)> {
        self.leaves.last().and_then(|leaf| leaf.last()).copied()
    }

    /// The leaf in which a range at `from` stands or would stand. An answer of 0 is given also for an empty set.
    fn leaf_of(&self, from: Offset) -> usize {
        self.leaves.partition_point(|leaf| leaf[0].0 <= from).saturating_sub(1)
    }

    fn at_or_before(&self, offset: Offset) -> Option<(Offset, Offset)> {
        let leaf = self.leaves.get(self.leaf_of(offset))?;
        let at = leaf.partition_point(|r| r.0 <= offset);
        at.checked_sub(1).map(|i| leaf[i])
    }

    /// The two cheap cases: the range lies within or extends one range, or stands free, inside one leaf.
    fn insert_in_place(&mut self, from: Offset, to: Offset) -> bool {
        let index = self.leaf_of(from);
        let is_last = index + 1 >= self.leaves.len();
        let Some(leaf) = self.leaves.get_mut(index) else {
            self.leaves.push(vec![(from, to)]);
            return true;
        };
        let at = leaf.partition_point(|r| r.0 <= from);
        let free_after = match leaf.get(at) {
            Some(next) => to < next.0,
            None => is_last,
        };
        if at > 0 && leaf[at - 1].1 >= from {
            if leaf[at - 1].1 >= to {
                return true;
            }
            if free_after {
                leaf[at - 1].1 = to;
            }
            return free_after;
        }
        // A range before this leaf cannot touch: then `leaf_of` had named that leaf, unless this is the first one.
        if free_after && leaf.len() < LEAF {
            leaf.insert(at, (from, to));
            return true;
        }
        false
    }

    /// Rebuilds the leaves around `[from, to)` with `added`, which is ascending and lies within.
    fn merge(&mut self, from: Offset, to: Offset, added: impl Iterator<Item = (Offset, Offset)>) {
        let first = self.leaf_of(from);
        let end = self.leaves.partition_point(|leaf| leaf[0].0 <= to).max(first);
        let mut merged: Vec<(Offset, Offset)> = Vec::new();
        let mut put = |range: (Offset, Offset)| match merged.last_mut() {
            Some(last) if last.1 >= range.0 => last.1 = last.1.max(range.1),
            _ => merged.push(range),
        };
        let mut old = self.leaves[first..end].iter().flatten().copied().peekable();
        for range in added {
            while let Some(before) = old.next_if(|r| r.0 <= range.0) {
                put(before);
            }
            put(range);
        }
        old.for_each(&mut put);
        let leaves = merged.chunks(LEAF / 2).map(<[_]>::to_vec);
        let leaves: Vec<_> = if merged.len() <= LEAF { vec![merged] } else { leaves.collect() };
        self.leaves.splice(first..end, leaves);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn check(set: &RangeSet, model: &BTreeSet<Offset>, limit: Offset) {
        assert!(set.leaves.iter().all(|l| !l.is_empty() && l.len() <= LEAF));
        let ranges: Vec<_> = set.iter().collect();
        assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0), "{ranges:?}");
        assert!(ranges.iter().flat_map(|r| r.0..r.1).eq(model.iter().copied()));
        for offset in (0..limit).step_by(7) {
            assert_eq!(set.contains(offset), model.contains(&offset), "{offset}");
            let absent = (offset..).find(|o| !model.contains(o)).expect("the model is finite");
            assert_eq!(set.next_absent(offset), absent);
            assert_eq!(set.covers(offset, offset + 5), (offset..offset + 5).all(|o| model.contains(&o)));
            assert_eq!(set.count_in(offset, offset + 40), model.range(offset..offset + 40).count() as u64);
        }
    }

    /// Random dense and strided runs beside a set of single offsets, large enough for several leaves.
    #[test]
    fn behaves_as_a_set_of_offsets() {
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for limit in [40, 400, 6_000] {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for step in 0..1_500 {
                let run = Run { first: random(limit), count: random(12) as u32, stride: 1 + random(4) as u32 };
                set.insert_run(run);
                model.extend(run.offsets());
                if step % 150 == 0 {
                    check(&set, &model, limit + 50);
                }
            }
            check(&set, &model, limit + 50);
            let copy = set.window(limit / 3, limit / 2);
            assert!(copy.iter().flat_map(|r| r.0..r.1).eq(model.range(limit / 3..limit / 2).copied()));
            let first = set.cut_front(limit / 2);
            assert_eq!(first, (limit / 2..).find(|o| !model.contains(o)).expect("finite"));
            let mut rest = model.split_off(&first);
            check(&set, &rest, limit + 50);
            let middle = set.iter().nth(set.ranges() / 2).map_or(first, |r| r.0 + 1);
            set.forget_below(middle);
            check(&set, &rest.split_off(&middle), limit + 50);
        }
    }

    #[test]
    fn two_workers_that_take_turns_leave_one_range() {
        let mut set = RangeSet::new();
        for batch in 0..100u64 {
            set.insert_run(Run { first: batch * 240, count: 120, stride: 2 });
            set.insert_run(Run { first: batch * 240 + 1, count: 120, stride: 2 });
            assert_eq!(set.ranges(), 1);
        }
        assert_eq!(set.cut_front(0), 24_000);
        assert!(set.is_empty());
    }
}
