//! One of the bound targets, chosen by the routing keys: their hash modulo the number of targets. Adding a target moves most keys;
//! a consistent-hash exchange moves few.

use super::{Found, by_name::ByName, stable_hash};

pub fn route(targets: &ByName, keys: &[&str], found: &mut Found) {
    let hash = keys.iter().fold(0, |hash, key| stable_hash(hash, key.as_bytes()));
    if let Some(target) = targets.nth(hash) {
        found.add(target);
    }
}
