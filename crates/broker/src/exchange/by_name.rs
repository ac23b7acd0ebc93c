//! The distinct targets of an exchange in the order of their names: an order that a restart keeps, which slab indexes do not.

use crate::topology::Target;
use std::sync::Arc;

#[derive(Default, Debug)]
pub struct ByName {
    /// Sorted by name, exchanges after queues; the count is of bindings. Adding moves the tail by one: a few microseconds at 10,000.
    targets: Vec<(Target, Arc<str>, u32)>,
}

impl ByName {
    fn place(&self, target: Target, name: &str) -> Result<usize, usize> {
        let is_exchange = |t: Target| matches!(t, Target::Exchange(_));
        self.targets.binary_search_by(|(t, n, _)| (is_exchange(*t), &**n).cmp(&(is_exchange(target), name)))
    }

    pub fn bind(&mut self, target: Target, name: &Arc<str>) {
        match self.place(target, name) {
            Ok(at) => self.targets[at].2 += 1,
            Err(at) => self.targets.insert(at, (target, name.clone(), 1)),
        }
    }

    pub fn unbind(&mut self, target: Target, name: &str) {
        let Ok(at) = self.place(target, name) else { return };
        self.targets[at].2 -= 1;
        if self.targets[at].2 == 0 {
            self.targets.remove(at);
        }
    }

    /// The one at `number` modulo their count.
    pub fn nth(&self, number: u64) -> Option<Target> {
        let count = self.targets.len() as u64;
        let at = number.checked_rem(count)?;
        Some(self.targets[at as usize].0)
    }
}
