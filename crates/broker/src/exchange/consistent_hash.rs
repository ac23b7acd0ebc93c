//! Each message to one target, the same for the same key; a target's share is in proportion to its weight, the binding key.
//!
//! Weighted rendezvous: every target draws a number for the key, and the best draw wins. So the result depends on nothing but
//! the names and weights of the targets (not on the order of bindings, nor on restarts), shares are exact in the mean, and
//! adding or removing a target moves only the keys that it wins or loses. A route costs one draw a target.

use super::{Found, stable_hash, wrong_argument};
use crate::arguments::term;
use crate::error::{Error, Result};
use crate::limits::HASH_WEIGHT_MAX;
use crate::table::encode_comparable;
use crate::topology::{MessageView, Target};
use crate::value::{Table, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default, Debug)]
pub struct ConsistentHash {
    pub hash_on: HashOn,
    targets: BTreeMap<Target, Share>,
}

/// What of a message is its key.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum HashOn {
    #[default]
    RoutingKey,
    Header(Box<str>),
    Property(Box<str>),
}

#[derive(Debug)]
struct Share {
    seed: u64,
    /// Weights of its bindings with their counts; the largest is in force.
    weights: BTreeMap<u32, u32>,
}

impl HashOn {
    pub fn of(arguments: &Table) -> Result<HashOn> {
        let text = |name: &str| match arguments.get(name) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => Err(wrong_argument(name, value, "a string")),
            },
        };
        match (text("hash-header")?, text("hash-property")?) {
            (None, None) => Ok(HashOn::RoutingKey),
            (Some(header), None) => Ok(HashOn::Header(header.into())),
            (None, Some(property @ ("correlation_id" | "message_id" | "timestamp"))) => Ok(HashOn::Property(property.into())),
            (None, Some(other)) => Err(Error::precondition(format!("Unsupported property: {other}"))),
            (Some(_), Some(_)) => Err(Error::precondition("hash-header and hash-property are mutually exclusive")),
        }
    }

    /// Messages without the header or property share one key, and so one target.
    fn key(&self, routing_key: &str, message: &mut dyn MessageView) -> u64 {
        match self {
            HashOn::RoutingKey => stable_hash(0, routing_key.as_bytes()),
            HashOn::Header(name) => {
                let mut bytes = Vec::new();
                if let Some(value) = message.headers().get(name) {
                    encode_comparable(value, &mut bytes);
                }
                stable_hash(1, &bytes)
            }
            HashOn::Property(name) => stable_hash(2, message.property(name).unwrap_or_default().as_bytes()),
        }
    }
}

impl ConsistentHash {
    pub fn bind(&mut self, target: Target, name: &Arc<str>, key: &str) {
        let Ok(weight) = weight(key) else { return };
        let kind = u64::from(matches!(target, Target::Exchange(_)));
        let share = self
            .targets
            .entry(target)
            .or_insert_with(|| Share { seed: stable_hash(kind, name.as_bytes()), weights: BTreeMap::new() });
        *share.weights.entry(weight).or_default() += 1;
    }

    pub fn unbind(&mut self, target: Target, key: &str) {
        let Ok(weight) = weight(key) else { return };
        let Some(share) = self.targets.get_mut(&target) else { return };
        let Some(count) = share.weights.get_mut(&weight) else { return };
        *count -= 1;
        if *count == 0 {
            share.weights.remove(&weight);
        }
        if share.weights.is_empty() {
            self.targets.remove(&target);
        }
    }

    pub fn route(&self, routing_key: &str, message: &mut dyn MessageView, found: &mut Found) {
        let key = self.hash_on.key(routing_key, message);
        let mut best: Option<(f64, u64, Target)> = None;
        for (target, share) in &self.targets {
            let Some((&weight, _)) = share.weights.last_key_value() else { continue };
            let draw = stable_hash(share.seed, &key.to_be_bytes());
            // The best of `weight` equal draws is distributed like this one number.
            let score = ((draw >> 11) as f64 + 0.5).log2() - 53.0;
            let score = score / f64::from(weight);
            // The seed decides a tie, since keys of targets change with a restart.
            if best.is_none_or(|(s, seed, _)| (score, share.seed) > (s, seed)) {
                best = Some((score, share.seed, *target));
            }
        }
        if let Some((_, _, target)) = best {
            found.add(target);
        }
    }
}

/// The weight that a binding key says.
pub fn weight(key: &str) -> Result<u32> {
    let text = match key.parse::<i128>() {
        Ok(weight) if weight < 1 => "The binding key must be greater than 0".to_string(),
        Ok(weight) if weight > i128::from(HASH_WEIGHT_MAX) => {
            format!("The binding key must not exceed {HASH_WEIGHT_MAX}")
        }
        Ok(weight) => return Ok(weight as u32),
        Err(_) => format!("The binding key must be an integer: {}", term(&Value::str(key))),
    };
    Err(Error::precondition(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{NoMessage, QueueKey};

    fn route(exchange: &ConsistentHash, key: &str) -> u32 {
        let mut out = Vec::new();
        let mut found = Found::new(&mut out);
        exchange.route(key, &mut NoMessage::default(), &mut found);
        out[0].0
    }

    fn exchange(order: &[(u32, &str, &str)]) -> ConsistentHash {
        let mut exchange = ConsistentHash::default();
        for (n, name, weight) in order {
            exchange.bind(Target::Queue(QueueKey(*n)), &Arc::from(*name), weight);
        }
        exchange
    }

    #[test]
    fn shares_follow_weights() {
        let exchange = exchange(&[(0, "a", "1"), (1, "b", "2"), (2, "c", "5")]);
        let mut counts = [0u32; 3];
        for n in 0..80_000 {
            counts[route(&exchange, &format!("key-{n}")) as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([10_000, 20_000, 50_000]) {
            assert!(count.abs_diff(expected) < expected / 20, "{counts:?}");
        }
    }

    #[test]
    fn neither_order_nor_slab_indexes_matter_and_few_keys_move() {
        let before = exchange(&[(0, "a", "1"), (1, "b", "1"), (2, "c", "1")]);
        let renumbered = exchange(&[(2, "c", "1"), (9, "a", "1"), (4, "b", "1")]);
        let name = |n: u32| [(0, "a"), (1, "b"), (2, "c"), (9, "a"), (4, "b")].iter().find(|(m, _)| *m == n).expect("known").1;
        let grown = exchange(&[(0, "a", "1"), (1, "b", "1"), (2, "c", "1"), (3, "d", "1")]);
        let mut moved = 0;
        for n in 0..10_000 {
            let key = format!("key-{n}");
            let was = route(&before, &key);
            assert_eq!(name(was), name(route(&renumbered, &key)));
            let is = route(&grown, &key);
            assert!(is == was || is == 3, "a key may only move to the new target");
            moved += u32::from(is == 3);
        }
        assert!((2_200..2_800).contains(&moved), "{moved}");
    }

    #[test]
    fn the_hash_at_rest_in_users_minds_does_not_change() {
        // Which queue holds an entity's messages must survive an upgrade: these are fixtures, not facts to adjust.
        let exchange = exchange(&[(0, "a", "1"), (1, "b", "1"), (2, "c", "3")]);
        let routes: Vec<u32> = (0..12).map(|n| route(&exchange, &format!("key-{n}"))).collect();
        assert_eq!(routes, FIXTURE);
    }

    const FIXTURE: [u32; 12] = [2, 1, 1, 2, 2, 1, 2, 2, 0, 1, 0, 2];

    #[test]
    fn weights_are_checked_in_rabbitmqs_words() {
        let refused = |key: &str| weight(key).expect_err("wrong").text;
        assert_eq!(weight("10000"), Ok(10_000));
        assert_eq!(refused("0"), "The binding key must be greater than 0");
        assert_eq!(refused("10001"), "The binding key must not exceed 10000");
        assert_eq!(refused("x"), "The binding key must be an integer: <<\"x\">>");
        assert_eq!(refused(""), "The binding key must be an integer: <<>>");
    }
}
