//! One of the bound targets, chosen by the number that the caller drew.

use super::{Found, by_name::ByName};

pub fn route(targets: &ByName, random: u64, found: &mut Found) {
    if let Some(target) = targets.nth(random) {
        found.add(target);
    }
}
