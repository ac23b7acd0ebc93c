//! What an exchange is: its kind, and for each kind how a message finds its targets among the bindings. A new kind is a file in
//! `exchange/` and an arm in [`Routes`].

pub mod by_name;
pub mod consistent_hash;
pub mod direct;
pub mod fanout;
pub mod headers;
pub mod modulus_hash;
pub mod random;
pub mod recent_history;
pub mod targets;
pub mod topic;

use crate::arguments::term;
use crate::error::{Error, Result};
use crate::limits::DELAY_MS_MAX;
use crate::topology::{ExchangeKey, MessageView, QueueKey, Target};
use crate::value::Table;
use consistent_hash::HashOn;
use smallvec::SmallVec;
use std::sync::Arc;
use targets::Targets;

/// The name under which an exchange was declared to route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Direct,
    Fanout,
    Topic,
    Headers,
    ConsistentHash,
    ModulusHash,
    Random,
    /// RabbitMQ's random choice among the queues of the node, which here are all.
    LocalRandom,
    RecentHistory,
    /// Holds a message back as long as its `x-delay` says, then routes as the kind in its argument `x-delayed-type`.
    Delayed,
}

const KINDS: [(&str, Kind); 10] = [
    ("direct", Kind::Direct),
    ("fanout", Kind::Fanout),
    ("topic", Kind::Topic),
    ("headers", Kind::Headers),
    ("x-consistent-hash", Kind::ConsistentHash),
    ("x-modulus-hash", Kind::ModulusHash),
    ("x-random", Kind::Random),
    ("x-local-random", Kind::LocalRandom),
    ("x-recent-history", Kind::RecentHistory),
    ("x-delayed-message", Kind::Delayed),
];

impl Kind {
    pub fn of(name: &str) -> Result<Kind> {
        KINDS
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| Error::precondition(format!("unknown exchange type '{name}'")))
    }

    /// What it routes as: itself, save for a delayed exchange.
    pub fn routes_as(self, arguments: &Table) -> Result<Kind> {
        if self != Kind::Delayed {
            return Ok(self);
        }
        let refused = |why| Err(Error::precondition(format!("Invalid argument, 'x-delayed-type' {why}")));
        let Some(name) = arguments.get("x-delayed-type").and_then(|value| value.as_str()) else {
            return refused("must be an existing exchange type");
        };
        match Kind::of(name)? {
            Kind::Delayed => refused("can't be used for 'x-delayed-message'"),
            kind => Ok(kind),
        }
    }
}

/// Takes what routes find: queues go out at once, exchanges are for the router to follow.
#[derive(Debug)]
pub struct Found<'a> {
    queues: &'a mut Vec<QueueKey>,
    first: usize,
    pub exchanges: SmallVec<[ExchangeKey; 4]>,
    /// Whole sets and single targets taken; more than one may overlap.
    taken: u32,
}

impl<'a> Found<'a> {
    /// Adds behind what `queues` already holds.
    pub fn new(queues: &'a mut Vec<QueueKey>) -> Found<'a> {
        Found { first: queues.len(), queues, exchanges: SmallVec::new(), taken: 0 }
    }

    /// Changes whenever something was found.
    pub fn mark(&self) -> u32 {
        self.taken
    }

    pub fn add(&mut self, target: Target) {
        self.taken += 1;
        self.put(target);
    }

    pub fn add_all(&mut self, targets: &Targets) {
        if !targets.is_empty() {
            self.taken += 1;
            targets.for_each(|target| self.put(target));
        }
    }

    fn put(&mut self, target: Target) {
        match target {
            Target::Queue(queue) => self.queues.push(queue),
            Target::Exchange(exchange) => self.exchanges.push(exchange),
        }
    }

    /// A queue gets a message once, however many bindings match.
    pub fn finish(self) {
        if self.taken > 1 && self.queues.len() > self.first + 1 {
            self.queues[self.first..].sort_unstable();
            let mut kept = self.first;
            for at in self.first + 1..self.queues.len() {
                if self.queues[at] != self.queues[kept] {
                    kept += 1;
                    self.queues[kept] = self.queues[at];
                }
            }
            self.queues.truncate(kept + 1);
        }
    }
}

/// A binding as its exchange sees it.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// Tells bindings apart that differ by their arguments only.
    pub id: usize,
    pub target: Target,
    pub target_name: &'a Arc<str>,
    pub key: &'a Arc<str>,
    pub arguments: &'a Table,
}

/// The bindings of one exchange, in the form its kind routes by.
#[derive(Debug)]
pub enum Routes {
    Direct(direct::Direct),
    Fanout(fanout::Fanout),
    Topic(topic::Topic),
    Headers(headers::Headers),
    ConsistentHash(consistent_hash::ConsistentHash),
    ModulusHash(by_name::ByName),
    Random(by_name::ByName),
}

impl Routes {
    /// For a kind that [`Kind::routes_as`] gave; checks the arguments that belong to the kind.
    pub fn new(kind: Kind, arguments: &Table) -> Result<Routes> {
        Ok(match kind {
            Kind::Direct | Kind::Delayed => Routes::Direct(direct::Direct::default()),
            Kind::Fanout => Routes::Fanout(fanout::Fanout::default()),
            Kind::Topic => Routes::Topic(topic::Topic::default()),
            Kind::Headers => Routes::Headers(headers::Headers::default()),
            Kind::ConsistentHash => {
                let mut exchange = consistent_hash::ConsistentHash::default();
                exchange.hash_on = HashOn::of(arguments)?;
                Routes::ConsistentHash(exchange)
            }
            Kind::ModulusHash => Routes::ModulusHash(by_name::ByName::default()),
            Kind::Random | Kind::LocalRandom => Routes::Random(by_name::ByName::default()),
            Kind::RecentHistory => {
                recent_history::length(arguments)?;
                Routes::Fanout(fanout::Fanout::default())
            }
        })
    }

    pub fn bind(&mut self, binding: Bound) {
        let Bound { id, target, target_name, key, arguments } = binding;
        match self {
            Routes::Direct(direct) => direct.bind(key, target),
            Routes::Fanout(fanout) => fanout.bind(target),
            Routes::Topic(topic) => topic.bind(key, target),
            Routes::Headers(headers) => headers.bind(id, arguments, target),
            Routes::ConsistentHash(hash) => hash.bind(target, target_name, key),
            Routes::ModulusHash(targets) | Routes::Random(targets) => targets.bind(target, target_name),
        }
    }

    pub fn unbind(&mut self, binding: Bound) {
        let Bound { id, target, target_name, key, .. } = binding;
        match self {
            Routes::Direct(direct) => direct.unbind(key, target),
            Routes::Fanout(fanout) => fanout.unbind(target),
            Routes::Topic(topic) => topic.unbind(key, target),
            Routes::Headers(headers) => headers.unbind(id),
            Routes::ConsistentHash(hash) => hash.unbind(target, key),
            Routes::ModulusHash(targets) | Routes::Random(targets) => targets.unbind(target, target_name),
        }
    }

    pub fn route(&self, keys: &[&str], message: &mut dyn MessageView, random: u64, found: &mut Found) {
        match self {
            Routes::Direct(direct) => keys.iter().for_each(|key| direct.route(key, found)),
            Routes::Fanout(fanout) => fanout.route(found),
            Routes::Topic(topic) => keys.iter().for_each(|key| topic.route(key, found)),
            Routes::Headers(headers) => headers.route(message.headers(), found),
            // Of several keys the first one decides.
            Routes::ConsistentHash(hash) => hash.route(keys.first().unwrap_or(&""), message, found),
            Routes::ModulusHash(targets) => modulus_hash::route(targets, keys, found),
            Routes::Random(targets) => random::route(targets, random, found),
        }
    }

    /// Two messages with the same keys may go different ways.
    pub fn looks_into_messages(&self) -> bool {
        match self {
            Routes::Headers(_) | Routes::Random(_) => true,
            Routes::ConsistentHash(hash) => hash.hash_on != HashOn::RoutingKey,
            Routes::Direct(_) | Routes::Fanout(_) | Routes::Topic(_) | Routes::ModulusHash(_) => false,
        }
    }
}

/// Whether an exchange of this kind takes such a binding.
pub fn validate_binding(kind: Kind, target: Target, key: &str, arguments: &Table) -> Result<()> {
    match kind {
        Kind::Headers => headers::validate_binding(arguments),
        Kind::ConsistentHash => consistent_hash::weight(key).map(|_| ()),
        Kind::LocalRandom if !key.is_empty() => {
            Err(Error::precondition(format!("Non empty binding '{key}' key not permitted")))
        }
        Kind::LocalRandom if matches!(target, Target::Exchange(_)) => Err(Error::precondition("Destination not found")),
        _ => Ok(()),
    }
}

/// How long a delayed exchange holds a message with these headers back; `None`: not at all.
pub fn delay_ms(headers: &Table) -> Option<u64> {
    let delay = headers.get("x-delay")?.as_integer()?;
    (1..=DELAY_MS_MAX).contains(&delay).then_some(delay as u64)
}

/// A hash that stays the same over restarts and releases: FNV-1a, and a final mix so that every bit counts. Not for tables that
/// a client could flood.
pub fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The refusal of an argument whose value has the wrong type.
pub fn wrong_argument(name: &str, value: &crate::value::Value, wanted: &str) -> Error {
    Error::precondition(format!("Invalid argument {}, '{name}' must be {wanted}", term(value)))
}
