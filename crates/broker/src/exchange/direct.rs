//! A message goes where its routing key is the binding's (AMQP 0-9-1 §3.1.3.1).

use super::{Found, targets::Targets};
use crate::topology::Target;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default, Debug)]
pub struct Direct {
    keys: BTreeMap<Arc<str>, Targets>,
}

impl Direct {
    pub fn bind(&mut self, key: &Arc<str>, target: Target) {
        self.keys.entry(key.clone()).or_default().add(target);
    }

    pub fn unbind(&mut self, key: &str, target: Target) {
        let Some(targets) = self.keys.get_mut(key) else { return };
        targets.remove(target);
        if targets.is_empty() {
            self.keys.remove(key);
        }
    }

    pub fn route(&self, key: &str, found: &mut Found) {
        if let Some(targets) = self.keys.get(key) {
            found.add_all(targets);
        }
    }
}
