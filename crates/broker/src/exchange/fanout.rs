//! A message goes to every binding, whatever its key (AMQP 0-9-1 §3.1.3.2).

use super::{Found, targets::Targets};
use crate::topology::Target;

#[derive(Default, Debug)]
pub struct Fanout {
    targets: Targets,
}

impl Fanout {
    pub fn bind(&mut self, target: Target) {
        self.targets.add(target);
    }

    pub fn unbind(&mut self, target: Target) {
        self.targets.remove(target);
    }

    pub fn route(&self, found: &mut Found) {
        found.add_all(&self.targets);
    }
}
