//! The targets of one routing key: a set in which each target counts how many bindings put it there, since the same queue may be
//! bound by the same key with different arguments and must stay until the last of them is gone.

use crate::limits::TARGETS_LISTED_MAX;
use crate::topology::Target;
use smallvec::SmallVec;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub enum Targets {
    /// Sorted; one of them costs no allocation.
    Listed(SmallVec<[(Target, u32); 1]>),
    Tree(BTreeMap<Target, u32>),
}

impl Default for Targets {
    fn default() -> Targets {
        Targets::Listed(SmallVec::new())
    }
}

impl Targets {
    pub fn add(&mut self, target: Target) {
        match self {
            Targets::Tree(tree) => *tree.entry(target).or_default() += 1,
            Targets::Listed(list) => match list.binary_search_by_key(&target, |(t, _)| *t) {
                Ok(at) => list[at].1 += 1,
                Err(at) if list.len() < TARGETS_LISTED_MAX => list.insert(at, (target, 1)),
                Err(_) => {
                    let mut tree: BTreeMap<_, _> = list.drain(..).collect();
                    tree.insert(target, 1);
                    *self = Targets::Tree(tree);
                }
            },
        }
    }

    pub fn remove(&mut self, target: Target) {
        match self {
            Targets::Listed(list) => {
                let Ok(at) = list.binary_search_by_key(&target, |(t, _)| *t) else { return };
                list[at].1 -= 1;
                if list[at].1 == 0 {
                    list.remove(at);
                }
            }
            Targets::Tree(tree) => {
                let Some(count) = tree.get_mut(&target) else { return };
                *count -= 1;
                if *count == 0 {
                    tree.remove(&target);
                }
                // Half way down, so that a set on the border doesn't change its form with every binding.
                if tree.len() <= TARGETS_LISTED_MAX / 2 {
                    *self = Targets::Listed(std::mem::take(tree).into_iter().collect());
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Targets::Listed(list) => list.is_empty(),
            Targets::Tree(tree) => tree.is_empty(),
        }
    }

    /// In ascending order.
    pub fn for_each(&self, mut f: impl FnMut(Target)) {
        match self {
            Targets::Listed(list) => list.iter().for_each(|(t, _)| f(*t)),
            Targets::Tree(tree) => tree.keys().for_each(|t| f(*t)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::QueueKey;

    #[test]
    fn a_target_stays_until_its_last_binding_goes_in_either_form() {
        for size in [1, TARGETS_LISTED_MAX as u32, TARGETS_LISTED_MAX as u32 + 1, 100] {
            let mut targets = Targets::default();
            for n in (0..size).rev() {
                targets.add(Target::Queue(QueueKey(n)));
                targets.add(Target::Queue(QueueKey(n)));
            }
            for n in 0..size {
                targets.remove(Target::Queue(QueueKey(n)));
            }
            let mut seen = Vec::new();
            targets.for_each(|t| seen.push(t));
            assert_eq!(seen, (0..size).map(|n| Target::Queue(QueueKey(n))).collect::<Vec<_>>());
            for n in 0..size {
                assert!(!targets.is_empty());
                targets.remove(Target::Queue(QueueKey(n)));
            }
            assert!(targets.is_empty());
            targets.remove(Target::Queue(QueueKey(0)));
        }
    }
}
