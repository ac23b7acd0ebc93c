//! The exchanges of one vhost, what is bound to them, and where a message goes.
//!
//! **Routing** follows the exchange named, the exchanges bound to it (each at most once, so cycles end) and, where one of them finds
//! nothing, its alternate exchange. What was found holds as long as [`Topology::is_current`] says so, unless the message itself
//! had a say in it.
//!
//! **Life.** A binding lives until its queue or one of its exchanges goes; an auto-delete exchange goes with the last binding of
//! which it is the source. Both go on by themselves, so every removal answers with the list of all that went.

use crate::arguments::{equivalent, equivalent_property};
use crate::dedup::Deduplication;
use crate::error::{Error, Result};
use crate::exchange::{self, Bound, Found, Kind, Routes, recent_history};
use crate::limits::{ARGUMENTS_BYTES_MAX, BINDINGS_MAX, EXCHANGES_MAX, NAME_BYTES_MAX, NESTING_MAX};
use crate::request::{Binding, DeclareExchange, Destination};
use crate::table::{Reader, encode_table, put_string};
use crate::value::{Table, Value};
use sha2::{Digest as _, Sha256};
use slab::Slab;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A queue of the node, as its owner numbers them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueKey(pub u32);

/// An exchange of this vhost; the number is free again once the exchange is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExchangeKey(u32);

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    Queue(QueueKey),
    Exchange(ExchangeKey),
}

/// What a route may ask of a message. Only asked where an exchange needs it: parsing headers is slow.
pub trait MessageView {
    /// The application headers; the same table on every call.
    fn headers(&mut self) -> &Table;
    /// A named standard property as text (`message_id`, `correlation_id`, `timestamp`).
    fn property(&mut self, name: &str) -> Option<String>;
}

/// A message without headers and properties.
#[derive(Default, Debug)]
pub struct NoMessage {
    headers: Table,
}

/// How a message comes to its first exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Publish,
    /// From a queue; internal exchanges are open to it.
    DeadLetter,
    /// From a delayed exchange that has held it back; it is not held again there.
    AfterDelay,
}

/// What became of a route, besides the queues found.
#[derive(Clone, Default, Debug)]
pub struct Routed {
    /// The message itself had a say (headers, properties, chance, a memory to fill): another one may go elsewhere.
    pub per_message: bool,
    /// These delayed exchanges hold the message back for `delay_ms`; then it is to be routed from there
    /// ([`Entry::AfterDelay`]). What was found beside them gets it at once.
    pub delays: SmallVec<[ExchangeKey; 1]>,
    pub delay_ms: u64,
    /// These recent-history exchanges remember the message.
    pub remember: SmallVec<[ExchangeKey; 1]>,
    /// Exchanges that were asked, with their versions then: the first is the one published to.
    passed: SmallVec<[(ExchangeKey, u64); 2]>,
    /// Version of the set of exchanges and their settings.
    catalog: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declared {
    pub created: bool,
}

/// What [`Topology::bind`] did.
#[derive(Clone, Debug, Default)]
pub struct Added {
    /// `None`: it was there before.
    pub binding: Option<BindingRecord>,
    /// The source is a recent-history exchange: what it remembers goes to the new target.
    pub replay: Option<ExchangeKey>,
}

/// All that went by one request, for the journal and for whoever watches.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    pub exchanges: Vec<ExchangeRecord>,
    pub bindings: Vec<BindingRecord>,
    /// Keys that the exchanges had; what is kept by them elsewhere (histories, caches) goes too.
    pub exchange_keys: Vec<ExchangeKey>,
}

/// An exchange as clients know it.
#[derive(Debug)]
pub struct Exchange {
    pub record: ExchangeRecord,
    /// Its own argument, else its policy's.
    pub alternate: Option<Box<str>>,
    pub deduplication: Option<Deduplication>,
    kind: Kind,
    /// The kind whose rules bindings follow; differs from `kind` for a delayed exchange.
    routes_as: Kind,
    routes: Routes,
    as_source: BTreeSet<usize>,
    as_destination: BTreeSet<usize>,
    version: u64,
}

#[derive(Debug)]
struct BoundQueue {
    name: Arc<str>,
    bindings: BTreeSet<usize>,
}

#[derive(Debug)]
struct StoredBinding {
    source: ExchangeKey,
    target: Target,
    target_name: Arc<str>,
    key: Arc<str>,
    /// In the order of their names: two bindings are the same whatever order a client sends.
    arguments: Table,
}

#[derive(Debug)]
pub struct Topology {
    vhost: Box<str>,
    exchanges: Slab<Exchange>,
    exchange_names: BTreeMap<Box<str>, ExchangeKey>,
    bindings: Slab<StoredBinding>,
    binding_keys: BTreeMap<[u8; 16], usize>,
    queues: BTreeMap<QueueKey, BoundQueue>,
    queue_names: BTreeMap<Arc<str>, QueueKey>,
    /// Rises with every change; the source of all versions.
    clock: u64,
    catalog: u64,
}

const DEFAULT: ExchangeKey = ExchangeKey(0);

/// What every vhost has from its beginning (AMQP 0-9-1 §3.1.3, and RabbitMQ's two more).
const PREDECLARED: [(&str, &str, bool); 7] = [
    ("", "direct", false),
    ("amq.direct", "direct", false),
    ("amq.fanout", "fanout", false),
    ("amq.topic", "topic", false),
    ("amq.headers", "headers", false),
    ("amq.match", "headers", false),
    ("amq.rabbitmq.trace", "topic", true),
];

impl Topology {
    pub fn new(vhost: &str) -> Topology {
        let mut topology = Topology {
            vhost: vhost.into(),
            exchanges: Slab::new(),
            exchange_names: BTreeMap::new(),
            bindings: Slab::new(),
            binding_keys: BTreeMap::new(),
            queues: BTreeMap::new(),
            queue_names: BTreeMap::new(),
            clock: 0,
            catalog: 0,
        };
        for (name, kind, internal) in PREDECLARED {
            let record = ExchangeRecord {
                name: name.into(),
                kind: kind.into(),
                durable: true,
                auto_delete: false,
                internal,
                arguments: Table::default(),
            };
            let made = topology.create(record);
            debug_assert!(made.is_ok());
        }
        topology
    }

    /// Whether the exchange is there from the beginning: it is not journalled and can't be deleted.
    pub fn is_predeclared(name: &str) -> bool {
        PREDECLARED.iter().any(|(n, _, _)| *n == name)
    }

    pub fn queue(&self, name: &str) -> Option<QueueKey> {
        self.queue_names.get(name).copied()
    }

    pub fn queue_name(&self, key: QueueKey) -> Option<&Arc<str>> {
        self.queues.get(&key).map(|queue| &queue.name)
    }

    pub fn exchange_key(&self, name: &str) -> Option<ExchangeKey> {
        self.exchange_names.get(name).copied()
    }

    pub fn exchange(&self, key: ExchangeKey) -> Option<&Exchange> {
        self.exchanges.get(key.0 as usize)
    }

    pub fn exchange_named(&self, name: &str) -> Option<&Exchange> {
        self.exchange(self.exchange_key(name)?)
    }

    /// In the order of their names.
    pub fn exchanges(&self) -> impl Iterator<Item = (ExchangeKey, &Exchange)> {
        self.exchange_names.values().map(|key| (*key, self.at(*key)))
    }

    /// All bindings, in no particular order; those to the default exchange are not among them.
    pub fn bindings(&self) -> impl Iterator<Item = BindingRecord> + '_ {
        self.bindings.iter().map(|(_, binding)| self.record(binding))
    }

    pub fn bindings_of_queue(&self, queue: QueueKey) -> impl Iterator<Item = BindingRecord> + '_ {
        let ids = self.queues.get(&queue).map(|queue| &queue.bindings);
        ids.into_iter().flatten().map(|id| self.record(&self.bindings[*id]))
    }

    pub fn bindings_from(&self, source: ExchangeKey) -> impl Iterator<Item = BindingRecord> + '_ {
        let ids = self.exchange(source).map(|exchange| &exchange.as_source);
        ids.into_iter().flatten().map(|id| self.record(&self.bindings[*id]))
    }

    /// The name must be new. From here on the default exchange routes to the queue.
    pub fn add_queue(&mut self, name: &str, key: QueueKey) {
        let name: Arc<str> = name.into();
        let old = self.queue_names.insert(name.clone(), key);
        assert!(old.is_none(), "queue {name} is there twice");
        self.queues.insert(key, BoundQueue { name, bindings: BTreeSet::new() });
        self.touch(DEFAULT);
    }

    /// Costs by the queue's own bindings.
    pub fn remove_queue(&mut self, key: QueueKey) -> Removed {
        let mut removed = Removed::default();
        let Some(queue) = self.queues.get(&key) else { return removed };
        let name = queue.name.clone();
        let bindings: Vec<usize> = queue.bindings.iter().copied().collect();
        let mut orphans = Vec::new();
        for id in bindings {
            orphans.extend(self.drop_binding(id, &mut removed));
        }
        self.queues.remove(&key);
        self.queue_names.remove(&name);
        self.touch(DEFAULT);
        self.auto_delete(orphans, &mut removed);
        removed
    }

    /// Declares an exchange, or checks that the one that exists is the same.
    pub fn declare_exchange(&mut self, declare: &DeclareExchange) -> Result<Declared> {
        let name = &*declare.name;
        if declare.passive {
            not_default(name)?;
            self.existing(name)?;
            return Ok(Declared { created: false });
        }
        Kind::of(&declare.kind)?;
        not_default(name)?;
        if let Some(existing) = self.exchange_named(name) {
            existing.equivalent(declare, &self.resource("exchange", name))?;
            return Ok(Declared { created: false });
        }
        if name.starts_with("amq.") {
            let text = format!("exchange name '{name}' contains reserved prefix 'amq.*'");
            return Err(Error::access_refused(text));
        }
        let resource = self.resource("exchange", name);
        if let Some(value) = declare.arguments.get("alternate-exchange")
            && !matches!(value, Value::Str(_))
        {
            let kind = value.type_name();
            let text = format!("invalid type '{kind}' for arg 'alternate-exchange' in {resource}");
            return Err(Error::precondition(text));
        }
        if self.exchanges.len() >= EXCHANGES_MAX {
            let text = format!("cannot declare {resource}: exchange limit of {EXCHANGES_MAX} is reached");
            return Err(Error::precondition(text));
        }
        check_size(name, &declare.arguments)?;
        self.create(ExchangeRecord::of(declare))?;
        Ok(Declared { created: true })
    }

    /// As [`declare_exchange`](Topology::declare_exchange) for one read back from the journal: no limit stands in its way.
    pub fn restore_exchange(&mut self, record: ExchangeRecord) -> Result<()> {
        if self.exchange_key(&record.name).is_none() {
            self.create(record)?;
        }
        Ok(())
    }

    /// Deleting what isn't there is no error. An exchange that is the source of a binding is in use.
    pub fn delete_exchange(&mut self, name: &str, if_unused: bool) -> Result<Removed> {
        not_default(name)?;
        if name.starts_with("amq.") {
            let resource = self.resource("exchange", name);
            return Err(Error::access_refused(format!("deletion of system {resource} not allowed")));
        }
        let mut removed = Removed::default();
        let Some(key) = self.exchange_key(name) else { return Ok(removed) };
        if if_unused && !self.at(key).as_source.is_empty() {
            return Err(Error::precondition(format!("{} in use", self.resource("exchange", name))));
        }
        let orphans = self.drop_exchange(key, &mut removed);
        self.auto_delete(orphans, &mut removed);
        Ok(removed)
    }

    /// What a policy adds to an exchange; its own argument goes before. `None` takes the policy away.
    pub fn set_policy_alternate(&mut self, key: ExchangeKey, alternate: Option<&str>) {
        let Some(exchange) = self.exchanges.get_mut(key.0 as usize) else { return };
        let own = exchange.record.arguments.get("alternate-exchange").and_then(Value::as_str);
        let effective: Option<Box<str>> = own.or(alternate).map(Into::into);
        if effective != exchange.alternate {
            exchange.alternate = effective;
            self.catalog = self.tick();
        }
    }

    /// Adds a binding; one that is there already stays as it is.
    pub fn bind(&mut self, binding: &Binding) -> Result<Added> {
        not_default(&binding.source)?;
        if binding.to == Destination::Exchange {
            not_default(&binding.destination)?;
        }
        let source = self.existing(&binding.source)?;
        let (target, target_name) = self.destination(binding.to, &binding.destination)?;
        let exchange = self.at(source);
        exchange::validate_binding(exchange.routes_as, target, &binding.routing_key, &binding.arguments)?;
        let record = BindingRecord::of(binding);
        let identity = record.key();
        if self.binding_keys.contains_key(&identity) {
            return Ok(Added::default());
        }
        check_size(&binding.routing_key, &binding.arguments)?;
        if self.bindings.len() >= BINDINGS_MAX {
            let text = format!("cannot bind: binding limit in vhost '{}' ({BINDINGS_MAX}) is reached", self.vhost);
            return Err(Error::precondition(text));
        }
        let stored = StoredBinding {
            source,
            target,
            target_name,
            key: (*record.routing_key).into(),
            arguments: record.arguments.clone(),
        };
        self.insert_binding(identity, stored);
        let replay = (self.at(source).routes_as == Kind::RecentHistory).then_some(source);
        Ok(Added { binding: Some(record), replay })
    }

    /// Taking away what isn't there is no error.
    pub fn unbind(&mut self, binding: &Binding) -> Result<Removed> {
        not_default(&binding.source)?;
        if binding.to == Destination::Exchange {
            not_default(&binding.destination)?;
        }
        let mut removed = Removed::default();
        let identity = BindingRecord::of(binding).key();
        if let Some(&id) = self.binding_keys.get(&identity) {
            let orphan = self.drop_binding(id, &mut removed);
            self.auto_delete(orphan.into_iter().collect(), &mut removed);
        }
        Ok(removed)
    }

    /// Adds the queues that a message goes to behind what `out` holds, each once. `random` decides where chance does.
    pub fn route(
        &self,
        exchange: &str,
        entry: Entry,
        routing_keys: &[&str],
        message: &mut dyn MessageView,
        random: u64,
        out: &mut Vec<QueueKey>,
    ) -> Result<Routed> {
        let first = self.existing(exchange)?;
        if entry == Entry::Publish && self.at(first).record.internal {
            let resource = self.resource("exchange", exchange);
            return Err(Error::access_refused(format!("cannot publish to internal {resource}")));
        }
        Ok(self.route_from(first, entry, routing_keys, message, random, out))
    }

    /// The same from an exchange that is known to exist, as after a delay.
    pub fn route_from(
        &self,
        first: ExchangeKey,
        entry: Entry,
        routing_keys: &[&str],
        message: &mut dyn MessageView,
        random: u64,
        out: &mut Vec<QueueKey>,
    ) -> Routed {
        let mut routed = Routed { catalog: self.catalog, ..Routed::default() };
        let mut found = Found::new(out);
        let mut seen = Seen::default();
        seen.insert(first);
        found.exchanges.push(first);
        while let Some(key) = found.exchanges.pop() {
            let exchange = self.at(key);
            routed.passed.push((key, exchange.version));
            if self.holds_back(exchange, key, entry == Entry::AfterDelay && key == first, message, &mut routed) {
                continue;
            }
            if exchange.routes_as == Kind::RecentHistory {
                routed.per_message = true;
                routed.remember.push(key);
            }
            routed.per_message |= exchange.routes.looks_into_messages();
            let (before, to_follow) = (found.mark(), found.exchanges.len());
            if key == DEFAULT {
                for queue in routing_keys.iter().filter_map(|key| self.queue(key)) {
                    found.add(Target::Queue(queue));
                }
            } else {
                exchange.routes.route(routing_keys, message, random, &mut found);
            }
            if found.mark() == before
                && let Some(alternate) = exchange.alternate.as_ref().and_then(|name| self.exchange_key(name))
            {
                found.exchanges.push(alternate);
            }
            let mut at = to_follow;
            while at < found.exchanges.len() {
                if seen.insert(found.exchanges[at]) {
                    at += 1;
                } else {
                    found.exchanges.swap_remove(at);
                }
            }
        }
        found.finish();
        routed
    }

    /// Whether a route found earlier would be found again.
    pub fn is_current(&self, routed: &Routed) -> bool {
        routed.catalog == self.catalog
            && routed.passed.iter().all(|(key, version)| self.exchange(*key).is_some_and(|x| x.version == *version))
    }

    fn holds_back(
        &self,
        exchange: &Exchange,
        key: ExchangeKey,
        was_held: bool,
        message: &mut dyn MessageView,
        routed: &mut Routed,
    ) -> bool {
        if exchange.kind != Kind::Delayed {
            return false;
        }
        routed.per_message = true;
        if was_held {
            return false;
        }
        let Some(delay_ms) = exchange::delay_ms(message.headers()) else { return false };
        routed.delays.push(key);
        routed.delay_ms = delay_ms;
        true
    }

    fn create(&mut self, record: ExchangeRecord) -> Result<ExchangeKey> {
        let kind = Kind::of(&record.kind)?;
        let routes_as = kind.routes_as(&record.arguments)?;
        let exchange = Exchange {
            alternate: record.arguments.get("alternate-exchange").and_then(Value::as_str).map(Into::into),
            deduplication: Deduplication::of(&record.arguments)?,
            kind,
            routes_as,
            routes: Routes::new(routes_as, &record.arguments)?,
            as_source: BTreeSet::new(),
            as_destination: BTreeSet::new(),
            version: self.tick(),
            record,
        };
        let name = exchange.record.name.clone();
        let key = ExchangeKey(self.exchanges.insert(exchange) as u32);
        self.exchange_names.insert(name, key);
        self.catalog = self.tick();
        Ok(key)
    }

    /// Takes an exchange and all its bindings away; answers with auto-delete exchanges that lost a binding.
    fn drop_exchange(&mut self, key: ExchangeKey, removed: &mut Removed) -> Vec<ExchangeKey> {
        let exchange = self.at(key);
        let bindings: BTreeSet<usize> = exchange.as_source.union(&exchange.as_destination).copied().collect();
        let mut orphans = Vec::new();
        for id in bindings {
            orphans.extend(self.drop_binding(id, removed).filter(|orphan| *orphan != key));
        }
        let exchange = self.exchanges.remove(key.0 as usize);
        self.exchange_names.remove(&exchange.record.name);
        self.catalog = self.tick();
        removed.exchanges.push(exchange.record);
        removed.exchange_keys.push(key);
        orphans
    }

    /// Deletes those exchanges that have no binding left, and goes on with what that leaves without.
    fn auto_delete(&mut self, mut orphans: Vec<ExchangeKey>, removed: &mut Removed) {
        while let Some(key) = orphans.pop() {
            if self.exchange(key).is_some_and(|x| x.record.auto_delete && x.as_source.is_empty()) {
                orphans.extend(self.drop_exchange(key, removed));
            }
        }
    }

    fn insert_binding(&mut self, identity: [u8; 16], binding: StoredBinding) {
        let (source, target) = (binding.source, binding.target);
        let id = self.bindings.insert(binding);
        self.binding_keys.insert(identity, id);
        let version = self.tick();
        let exchange = &mut self.exchanges[source.0 as usize];
        exchange.version = version;
        exchange.as_source.insert(id);
        exchange.routes.bind(self.bindings[id].bound(id));
        match target {
            Target::Exchange(key) => {
                self.exchanges[key.0 as usize].as_destination.insert(id);
            }
            Target::Queue(key) => {
                if let Some(queue) = self.queues.get_mut(&key) {
                    queue.bindings.insert(id);
                }
            }
        }
    }

    /// Answers with the source if that was the last binding of an auto-delete exchange.
    fn drop_binding(&mut self, id: usize, removed: &mut Removed) -> Option<ExchangeKey> {
        let record = self.record(&self.bindings[id]);
        self.binding_keys.remove(&record.key());
        removed.bindings.push(record);
        let binding = self.bindings.remove(id);
        match binding.target {
            Target::Exchange(key) => {
                self.exchanges[key.0 as usize].as_destination.remove(&id);
            }
            Target::Queue(key) => {
                if let Some(queue) = self.queues.get_mut(&key) {
                    queue.bindings.remove(&id);
                }
            }
        }
        let version = self.tick();
        let exchange = &mut self.exchanges[binding.source.0 as usize];
        exchange.version = version;
        exchange.as_source.remove(&id);
        exchange.routes.unbind(binding.bound(id));
        (exchange.record.auto_delete && exchange.as_source.is_empty()).then_some(binding.source)
    }

    fn existing(&self, exchange: &str) -> Result<ExchangeKey> {
        self.exchange_key(exchange).ok_or_else(|| Error::not_found(format!("no {}", self.resource("exchange", exchange))))
    }

    fn destination(&self, to: Destination, name: &str) -> Result<(Target, Arc<str>)> {
        match to {
            Destination::Exchange => Ok((Target::Exchange(self.existing(name)?), name.into())),
            Destination::Queue => match self.queue_names.get_key_value(name) {
                Some((name, key)) => Ok((Target::Queue(*key), name.clone())),
                None => Err(Error::not_found(format!("no {}", self.resource("queue", name)))),
            },
        }
    }

    /// Keys kept inside are of exchanges that exist: every removal takes the bindings along.
    fn at(&self, key: ExchangeKey) -> &Exchange {
        &self.exchanges[key.0 as usize]
    }

    fn record(&self, binding: &StoredBinding) -> BindingRecord {
        BindingRecord {
            source: self.at(binding.source).record.name.clone(),
            destination: (*binding.target_name).into(),
            to: match binding.target {
                Target::Queue(_) => Destination::Queue,
                Target::Exchange(_) => Destination::Exchange,
            },
            routing_key: (*binding.key).into(),
            arguments: binding.arguments.clone(),
        }
    }

    fn resource(&self, kind: &str, name: &str) -> String {
        format!("{kind} '{name}' in vhost '{}'", self.vhost)
    }

    fn touch(&mut self, key: ExchangeKey) {
        self.exchanges[key.0 as usize].version = self.tick();
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Exchange {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Publishing to it and binding it ask for topic permissions.
    pub fn is_topic(&self) -> bool {
        self.kind == Kind::Topic
    }

    /// How many messages a recent-history exchange remembers; 0 for any other.
    pub fn history_length(&self) -> u32 {
        match self.routes_as {
            Kind::RecentHistory => recent_history::length(&self.record.arguments).unwrap_or(0),
            _ => 0,
        }
    }

    fn equivalent(&self, declare: &DeclareExchange, resource: &str) -> Result<()> {
        let record = &self.record;
        equivalent_property(&*record.kind, &*declare.kind, resource, "type")?;
        equivalent_property(record.durable, declare.durable, resource, "durable")?;
        equivalent_property(record.auto_delete, declare.auto_delete, resource, "auto_delete")?;
        equivalent_property(record.internal, declare.internal, resource, "internal")?;
        equivalent(&record.arguments, &declare.arguments, resource, ["alternate-exchange"])
    }
}

impl Routed {
    /// The exchange that the message was published to.
    pub fn entry(&self) -> Option<ExchangeKey> {
        self.passed.first().map(|(key, _)| *key)
    }
}

impl StoredBinding {
    fn bound(&self, id: usize) -> Bound<'_> {
        let StoredBinding { target, target_name, key, arguments, .. } = self;
        Bound { id, target: *target, target_name, key, arguments }
    }
}

impl MessageView for NoMessage {
    fn headers(&mut self) -> &Table {
        &self.headers
    }

    fn property(&mut self, _name: &str) -> Option<String> {
        None
    }
}

/// Exchanges already on the way; a list while they are few.
#[derive(Default)]
struct Seen {
    few: SmallVec<[ExchangeKey; 8]>,
    more: BTreeSet<ExchangeKey>,
}

impl Seen {
    /// Whether it is new.
    fn insert(&mut self, key: ExchangeKey) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < self.few.inline_size() {
            self.few.push(key);
            return true;
        }
        self.more.insert(key)
    }
}

fn not_default(exchange: &str) -> Result<()> {
    match exchange {
        "" => Err(Error::access_refused("operation not permitted on the default exchange")),
        _ => Ok(()),
    }
}

fn check_size(text: &str, arguments: &Table) -> Result<()> {
    let mut bytes = Vec::new();
    encode_table(arguments, &mut bytes);
    if text.len() > NAME_BYTES_MAX || bytes.len() > ARGUMENTS_BYTES_MAX {
        let text = format!("name or key longer than {NAME_BYTES_MAX} bytes, or arguments than {ARGUMENTS_BYTES_MAX}");
        return Err(Error::precondition(text));
    }
    Ok(())
}

/// An exchange at rest:
///
/// ```text
/// version u8 = 1 | flags u8: 1 durable, 2 auto-delete, 4 internal | name string | kind string | arguments table
/// ```
///
/// with strings and tables in the form of [`crate::table`].
#[derive(Clone, PartialEq, Debug)]
pub struct ExchangeRecord {
    pub name: Box<str>,
    pub kind: Box<str>,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    pub arguments: Table,
}

/// A binding at rest:
///
/// ```text
/// version u8 = 1 | to u8: 0 a queue, 1 an exchange | source string | destination string | routing key string | arguments table
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct BindingRecord {
    pub source: Box<str>,
    pub destination: Box<str>,
    pub to: Destination,
    pub routing_key: Box<str>,
    /// Sorted by name.
    pub arguments: Table,
}

const RECORD_VERSION: u8 = 1;

impl ExchangeRecord {
    pub fn of(declare: &DeclareExchange) -> ExchangeRecord {
        ExchangeRecord {
            name: declare.name.clone(),
            kind: declare.kind.clone(),
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            arguments: declare.arguments.clone(),
        }
    }

    /// Tells it apart from all others of its vhost, in every release.
    pub fn key(&self) -> &[u8] {
        self.name.as_bytes()
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.durable) | u8::from(self.auto_delete) << 1 | u8::from(self.internal) << 2;
        out.extend_from_slice(&[RECORD_VERSION, flags]);
        put_string(self.name.as_bytes(), out);
        put_string(self.kind.as_bytes(), out);
        encode_table(&self.arguments, out);
    }

    /// `None` where the bytes are damaged or from a newer release.
    pub fn decode(bytes: &[u8]) -> Option<ExchangeRecord> {
        let mut reader = Reader { rest: bytes };
        let [RECORD_VERSION, flags @ 0..=7] = reader.fixed()? else { return None };
        let record = ExchangeRecord {
            name: reader.text()?.into(),
            kind: reader.text()?.into(),
            durable: flags & 1 != 0,
            auto_delete: flags & 2 != 0,
            internal: flags & 4 != 0,
            arguments: reader.table(NESTING_MAX)?,
        };
        reader.rest.is_empty().then_some(record)
    }
}

impl BindingRecord {
    pub fn of(binding: &Binding) -> BindingRecord {
        let mut arguments = binding.arguments.clone();
        arguments.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        BindingRecord {
            source: binding.source.clone(),
            destination: binding.destination.clone(),
            to: binding.to,
            routing_key: binding.routing_key.clone(),
            arguments,
        }
    }

    /// As a request, to be bound again after a start.
    pub fn into_request(self) -> Binding {
        let BindingRecord { source, destination, to, routing_key, arguments } = self;
        Binding { source, destination, to, routing_key, arguments }
    }

    /// Tells it apart from all others of its vhost, in every release: a digest, as arguments may be long.
    pub fn key(&self) -> [u8; 16] {
        let mut bytes = Vec::with_capacity(128);
        self.encode(&mut bytes);
        let mut key = [0; 16];
        // Without the version: a later form of the record must not make it another binding.
        key.copy_from_slice(&Sha256::digest(&bytes[1..])[..16]);
        key
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[RECORD_VERSION, u8::from(self.to == Destination::Exchange)]);
        put_string(self.source.as_bytes(), out);
        put_string(self.destination.as_bytes(), out);
        put_string(self.routing_key.as_bytes(), out);
        encode_table(&self.arguments, out);
    }

    /// `None` where the bytes are damaged or from a newer release.
    pub fn decode(bytes: &[u8]) -> Option<BindingRecord> {
        let mut reader = Reader { rest: bytes };
        let [RECORD_VERSION, to @ 0..=1] = reader.fixed()? else { return None };
        let record = BindingRecord {
            source: reader.text()?.into(),
            destination: reader.text()?.into(),
            to: if to == 1 { Destination::Exchange } else { Destination::Queue },
            routing_key: reader.text()?.into(),
            arguments: reader.table(NESTING_MAX)?,
        };
        reader.rest.is_empty().then_some(record)
    }
}

#[cfg(test)]
mod tests;
