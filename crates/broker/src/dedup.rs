//! Message deduplication: an exchange or queue that asks for it drops a message whose key it has seen lately.

use crate::error::{Error, Result};
use crate::exchange::wrong_argument;
use crate::limits::{DEDUPLICATION_DEFAULT, DEDUPLICATION_MAX};
use crate::table::encode_comparable;
use crate::value::{Table, Value};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, VecDeque};

/// What `x-message-deduplication` and its companions ask for, on an exchange or a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deduplication {
    /// The header that holds a message's key; a message without it is never a duplicate.
    pub header: Box<str>,
    pub cache_size: u32,
    /// How long a key is remembered; `None`: until newer ones push it out.
    pub cache_ttl_ms: Option<u64>,
}

impl Deduplication {
    /// `None` where the arguments don't ask for it.
    pub fn of(arguments: &Table) -> Result<Option<Deduplication>> {
        match arguments.get("x-message-deduplication") {
            None | Some(Value::Bool(false)) => return Ok(None),
            Some(Value::Bool(true)) => {}
            Some(other) => return Err(wrong_argument("x-message-deduplication", other, "a boolean")),
        }
        let positive = |name: &str| match arguments.get(name) {
            None => Ok(None),
            Some(value) => match value.as_integer() {
                Some(number) if number > 0 => Ok(Some(number as u64)),
                _ => Err(wrong_argument(name, value, "a positive integer")),
            },
        };
        let header = match arguments.get("x-deduplication-header") {
            None => "x-deduplication-header",
            Some(value) => match value.as_str() {
                Some(name) => name,
                None => return Err(wrong_argument("x-deduplication-header", value, "a string")),
            },
        };
        let cache_size = positive("x-cache-size")?.unwrap_or(DEDUPLICATION_DEFAULT.into());
        if cache_size > u64::from(DEDUPLICATION_MAX) {
            return Err(Error::precondition(format!("'x-cache-size' must not exceed {DEDUPLICATION_MAX}")));
        }
        Ok(Some(Deduplication { header: header.into(), cache_size: cache_size as u32, cache_ttl_ms: positive("x-cache-ttl")? }))
    }

    /// The key of a message with these headers.
    pub fn key(&self, headers: &Table) -> Option<Key> {
        let value = headers.get(&self.header)?;
        let mut bytes = Vec::new();
        encode_comparable(value, &mut bytes);
        let digest = Sha256::digest(&bytes);
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Some(Key(key))
    }
}

/// A digest, so that an entry takes the same room however long the header is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key([u8; 16]);

/// The keys seen lately.
#[derive(Default, Debug)]
pub struct Cache {
    /// When each key is forgotten (`u64::MAX`: never by time), and which insertion it stems from.
    keys: BTreeMap<Key, (u64, u64)>,
    /// Oldest first. A key that was renewed meanwhile stands here twice; the insertion tells which place is its own.
    order: VecDeque<(Key, u64)>,
    insertions: u64,
}

impl Cache {
    /// Whether the key is new, and remembers it if so. A duplicate doesn't make it live longer. `now_ms` is of any clock that
    /// rises.
    pub fn insert(&mut self, key: Key, settings: &Deduplication, now_ms: u64) -> bool {
        if self.keys.get(&key).is_some_and(|(until_ms, _)| now_ms < *until_ms) {
            return false;
        }
        self.insertions += 1;
        let until_ms = settings.cache_ttl_ms.map_or(u64::MAX, |ttl| now_ms.saturating_add(ttl));
        self.keys.insert(key, (until_ms, self.insertions));
        self.order.push_back((key, self.insertions));
        self.trim(settings.cache_size as usize, now_ms);
        true
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Forgets the oldest while they are out of date or too many.
    fn trim(&mut self, size_max: usize, now_ms: u64) {
        while let Some((key, insertion)) = self.order.front() {
            match self.keys.get(key) {
                Some((until_ms, newest)) if newest == insertion => {
                    if now_ms < *until_ms && self.keys.len() <= size_max {
                        return;
                    }
                    self.keys.remove(key);
                }
                _ => {}
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cache_size: u32, cache_ttl_ms: Option<u64>) -> Deduplication {
        Deduplication { header: "id".into(), cache_size, cache_ttl_ms }
    }

    fn key(settings: &Deduplication, value: Value) -> Key {
        settings.key(&[("id", value)].into_iter().collect()).expect("has the header")
    }

    #[test]
    fn a_key_is_new_once_until_its_time_is_over() {
        let settings = settings(10, Some(100));
        let a = key(&settings, Value::str("a"));
        let mut cache = Cache::default();
        assert!(cache.insert(a, &settings, 0));
        assert!(!cache.insert(a, &settings, 99));
        assert!(cache.insert(a, &settings, 100));
        assert!(!cache.insert(a, &settings, 199));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn newer_keys_push_out_the_oldest_and_nothing_grows() {
        let settings = settings(3, None);
        let mut cache = Cache::default();
        for n in 0..1000 {
            assert!(cache.insert(key(&settings, Value::I32(n)), &settings, 0));
            assert!(cache.len() <= 3 && cache.order.len() <= 4);
        }
        assert!(!cache.insert(key(&settings, Value::I32(997)), &settings, 0));
        assert!(cache.insert(key(&settings, Value::I32(996)), &settings, 0));
    }

    #[test]
    fn keys_compare_by_value_and_messages_without_one_have_none() {
        let settings = settings(3, None);
        assert_eq!(key(&settings, Value::I32(7)), key(&settings, Value::I64(7)));
        assert_ne!(key(&settings, Value::I32(7)), key(&settings, Value::str("7")));
        assert_eq!(settings.key(&Table::default()), None);
    }

    #[test]
    fn arguments_are_checked() {
        let of = |entries: &[(&str, Value)]| Deduplication::of(&entries.iter().cloned().collect());
        assert_eq!(of(&[("x-cache-size", Value::I32(1))]), Ok(None));
        let on = ("x-message-deduplication", Value::Bool(true));
        let asked = of(&[on.clone(), ("x-cache-size", Value::I32(5)), ("x-cache-ttl", Value::I64(9))]);
        let header = "x-deduplication-header".into();
        assert_eq!(asked, Ok(Some(Deduplication { header, cache_size: 5, cache_ttl_ms: Some(9) })));
        assert!(of(&[on.clone(), ("x-cache-size", Value::I32(0))]).is_err());
        assert!(of(&[on, ("x-cache-size", Value::I64(i64::MAX))]).is_err());
        assert!(of(&[("x-message-deduplication", Value::str("yes"))]).is_err());
    }
}
