//! Exchanges, queues and bindings come and go.

use super::publish::{Incoming, RecordView};
use super::{Effects, Node, THIS_COMMIT};
use crate::access::{Action, Resource};
use crate::arguments::{QueueArguments, QueueType, equivalent_property};
use crate::error::{Error, Reason};
use crate::exchange::recent_history::NO_STORE;
use crate::queue::level::Level;
use crate::queue::{Parked, Queue, VhostKey};
use crate::request::{
    Binding, ConnectionId, DeclareExchange, DeclareQueue, Destination, Event, Now, Published, QueueFacts, Reply,
};
use crate::topology::{ExchangeKey, MessageView, QueueKey, Removed};
use crate::value::Value;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use storage::{Level as CommitLevel, LogId, Op};

const DONE: Reply = Reply::Done { safe_at: Some(THIS_COMMIT) };

impl Node {
    pub(super) fn declare_exchange(&mut self, id: ConnectionId, declare: &mut DeclareExchange) -> Result<Reply, Error> {
        let (user, vhost_key) = self.who(id)?;
        declare.name = strip_line_ends(&declare.name);
        let name = declare.name.clone();
        let vhost = &self.vhosts[vhost_key.0];
        if declare.passive {
            self.access.authorise(&user, &vhost.name, Action::Any, Resource::Exchange(&name))?;
            self.vhosts[vhost_key.0].topology.declare_exchange(declare)?;
            return Ok(Reply::Done { safe_at: None });
        }
        self.access.authorise(&user, &vhost.name, Action::Configure, Resource::Exchange(&name))?;
        if let Some(alternate) = declare.arguments.get("alternate-exchange").and_then(|v| v.as_str()) {
            self.access.authorise(&user, &vhost.name, Action::Read, Resource::Exchange(&name))?;
            self.access.authorise(&user, &vhost.name, Action::Write, Resource::Exchange(alternate))?;
        }
        self.make_exchange(vhost_key, declare)?;
        Ok(DONE)
    }

    pub(super) fn make_exchange(&mut self, vhost: VhostKey, declare: &DeclareExchange) -> Result<(), Error> {
        if self.vhosts[vhost.0].topology.declare_exchange(declare)?.created {
            self.apply_exchange_policy(vhost, &declare.name);
            if declare.durable {
                self.save_exchange(vhost, &declare.name);
            }
        }
        Ok(())
    }

    pub(super) fn delete_exchange(&mut self, id: ConnectionId, name: &str, if_unused: bool) -> Result<Reply, Error> {
        let (user, vhost_key) = self.who(id)?;
        let vhost = &mut self.vhosts[vhost_key.0];
        self.access.authorise(&user, &vhost.name, Action::Configure, Resource::Exchange(name))?;
        let removed = vhost.topology.delete_exchange(name, if_unused)?;
        self.forget_removed(vhost_key, removed);
        Ok(DONE)
    }

    /// Exchanges and bindings that went with something else leave the disk too.
    pub(super) fn forget_removed(&mut self, vhost: VhostKey, removed: Removed) {
        for exchange in removed.exchanges.iter().filter(|exchange| exchange.durable) {
            self.forget_exchange(vhost, &exchange.name);
            self.exchange_caches.remove(&(vhost, exchange.name.clone()));
        }
        for binding in &removed.bindings {
            self.forget_binding(vhost, binding);
        }
        for key in removed.exchange_keys {
            self.histories.remove(&(vhost, key));
        }
    }

    pub(super) fn declare_queue(&mut self, now: Now, id: ConnectionId, mut declare: DeclareQueue) -> Result<Reply, Error> {
        let (user, vhost_key) = self.who(id)?;
        let name = strip_line_ends(&declare.name);
        // Client libraries declare the address that stands for all to see whether there are any.
        if &*name == crate::REPLY_ADDRESS || self.reply_addresses.contains_key(&*name) {
            let facts = QueueFacts { name, messages: 0, consumers: 1 };
            return Ok(Reply::Queue { facts, safe_at: None });
        }
        let vhost = &self.vhosts[vhost_key.0];
        let existing = vhost.topology.queue(&name);
        if declare.passive {
            self.access.authorise(&user, &vhost.name, Action::Any, Resource::Queue(&name))?;
            let vhost_name = vhost.name.clone();
            let key = existing.ok_or_else(|| Error::not_found(format!("no queue '{name}' in vhost '{vhost_name}'")))?;
            self.check_owner(id, key)?;
            return Ok(self.queue_facts(now, key, false));
        }
        self.access.authorise(&user, &vhost.name, Action::Configure, Resource::Queue(&name))?;
        self.say_default_type(vhost_key, existing, &mut declare);
        if let Some(key) = existing {
            self.check_equivalent(id, key, &declare)?;
            return Ok(self.queue_facts(now, key, false));
        }
        let arguments = self.check_new_queue(&user, vhost_key, &name, &declare)?;
        let key = self.make_queue(now, declare.exclusive.then_some(id), vhost_key, name, declare, arguments);
        Ok(self.queue_facts(now, key, true))
    }

    /// A declaration that says no type means the vhost's default, if that can be what is declared. A queue that was there
    /// before the default is of the type that was meant then.
    fn say_default_type(&self, vhost: VhostKey, existing: Option<QueueKey>, declare: &mut DeclareQueue) {
        let default = self.vhosts[vhost.0].description.default_queue_type.as_deref().and_then(QueueType::of);
        let Some(default) = default.filter(|_| declare.arguments.get("x-queue-type").is_none()) else { return };
        let default = default.default_for(declare.durable, declare.exclusive, declare.auto_delete);
        let is_meant = existing.is_none_or(|key| self.queues[key.0].arguments.queue_type == default);
        if is_meant && default != QueueType::Classic && !declare.server_named {
            declare.arguments.push("x-queue-type", Value::str(default.name()));
        }
    }

    fn queue_facts(&mut self, now: Now, key: QueueKey, created: bool) -> Reply {
        self.use_queue(now, key);
        let queue = &self.queues[key.0];
        let facts = QueueFacts { name: queue.name.clone(), messages: queue.ready, consumers: queue.consumers.len() as u32 };
        let safe_at = (created && queue.durable).then_some(THIS_COMMIT);
        Reply::Queue { facts, safe_at }
    }

    /// Redeclaring is asking whether it is the same (AMQP 0-9-1 queue.declare, rule "declare equivalence").
    fn check_equivalent(&self, id: ConnectionId, key: QueueKey, declare: &DeclareQueue) -> Result<(), Error> {
        let queue = &self.queues[key.0];
        let vhost = &self.vhosts[queue.vhost.0].name;
        self.check_owner(id, key)?;
        if declare.exclusive != queue.owner.is_some() {
            return Err(self.locked(queue));
        }
        // An exclusive queue is never durable, whatever was asked for.
        let durable = declare.durable && !declare.exclusive;
        let resource = format!("queue '{}' in vhost '{vhost}'", queue.name);
        equivalent_property(queue.durable, durable, &resource, "durable")?;
        equivalent_property(queue.auto_delete, declare.auto_delete, &resource, "auto_delete")?;
        QueueArguments::equivalent(vhost, &queue.name, &queue.declared, &declare.arguments)
    }

    fn check_new_queue(
        &self,
        user: &str,
        vhost_key: VhostKey,
        name: &str,
        declare: &DeclareQueue,
    ) -> Result<QueueArguments, Error> {
        let vhost = &self.vhosts[vhost_key.0];
        if name.starts_with("amq.") && !declare.server_named {
            return Err(Error::access_refused(format!("queue name '{name}' contains reserved prefix 'amq.*'")));
        }
        let arguments = QueueArguments::parse(&vhost.name, name, &declare.arguments)?;
        let resource = format!("queue '{name}' in vhost '{}'", vhost.name);
        arguments.queue_type.check_properties(&resource, declare.durable, declare.exclusive, declare.auto_delete)?;
        if declare.server_named {
            arguments.queue_type.check_server_named()?;
        }
        if let Some(exchange) = &arguments.dead_letter_exchange {
            self.access.authorise(user, &vhost.name, Action::Read, Resource::Queue(name))?;
            self.access.authorise(user, &vhost.name, Action::Write, Resource::Exchange(exchange))?;
        }
        self.access.check_queue_limit(&vhost.name, name, vhost.queue_count)?;
        Ok(arguments)
    }

    pub(super) fn make_queue(
        &mut self,
        now: Now,
        owner: Option<ConnectionId>,
        vhost: VhostKey,
        name: Box<str>,
        declare: DeclareQueue,
        arguments: QueueArguments,
    ) -> QueueKey {
        let durable = declare.durable && !declare.exclusive;
        let log = if durable { self.store.new_log() } else { self.store.new_volatile_log() };
        if durable {
            self.put(Op::Create { log }, CommitLevel::Sync);
        }
        let queue =
            NewQueue { vhost, name, durable, owner, auto_delete: declare.auto_delete, declared: declare.arguments, arguments };
        let key = self.insert_queue(now, queue, SmallVec::from_iter([Level::new(0, log)]));
        if let Some(id) = owner {
            self.connection_mut(id).exclusive_queues.push(key);
        }
        if durable {
            self.save_queue(key);
        }
        key
    }

    /// Puts a queue, new or recovered, where it can be found.
    pub(super) fn insert_queue(&mut self, now: Now, new: NewQueue, levels: SmallVec<[Level; 1]>) -> QueueKey {
        let key = QueueKey(self.queues.next_slot());
        let ready = levels.iter().map(Level::count_ready).sum();
        let effective = self.effective_queue_arguments(new.vhost, &new.name, &new.arguments);
        for level in &levels {
            self.logs.insert(level.log, key);
        }
        let vhost = &mut self.vhosts[new.vhost.0];
        vhost.topology.add_queue(&new.name, key);
        vhost.queue_count += 1;
        self.queues.insert(Queue {
            key,
            vhost: new.vhost,
            name: new.name,
            durable: new.durable,
            owner: new.owner,
            auto_delete: new.auto_delete,
            declared: new.declared,
            arguments: Box::new(new.arguments),
            effective: Box::new(effective),
            levels,
            consumers: Vec::new(),
            turn: 0,
            had_consumer: false,
            ready,
            ready_bytes: 0,
            unsettled: 0,
            deadlines: BinaryHeap::new(),
            expiring: false,
            expiry_at: None,
            overdue: BTreeSet::new(),
            used_ms: now.mono_ms,
            waiting: BTreeMap::new(),
            parked: Parked::default(),
            dirty: false,
            seen: None,
        });
        self.use_queue(now, key);
        key
    }

    /// A log of its own for a priority that is used for the first time.
    pub(super) fn add_level(&mut self, key: QueueKey, priority: u8, at: usize) {
        let durable = self.queues[key.0].durable;
        let log = if durable { self.store.new_log() } else { self.store.new_volatile_log() };
        self.queues[key.0].levels.insert(at, Level::new(priority, log));
        self.logs.insert(log, key);
        if durable {
            self.put(Op::Create { log }, CommitLevel::Lazy);
            self.save_queue(key);
        }
    }

    pub(super) fn delete_queue(
        &mut self,
        now: Now,
        id: ConnectionId,
        name: &str,
        if_unused: bool,
        if_empty: bool,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let (user, vhost_key) = self.who(id)?;
        let vhost = &self.vhosts[vhost_key.0];
        self.access.authorise(&user, &vhost.name, Action::Configure, Resource::Queue(name))?;
        let Some(key) = vhost.topology.queue(name) else {
            return Ok(Reply::Removed { messages: 0, safe_at: None });
        };
        self.check_owner(id, key)?;
        let (queue, vhost) = (&self.queues[key.0], &vhost.name);
        if queue.effective.queue_type == QueueType::Quorum && (if_unused || if_empty) {
            let flag = if if_unused { "if_unused" } else { "if_empty" };
            let text = format!(
                "cannot delete queue '{name}' in vhost '{vhost}'. queue.delete operations with {flag} flag set are not supported by quorum queues"
            );
            return Err(Error::new(Reason::NotImplemented, text));
        }
        if if_unused && !queue.consumers.is_empty() {
            return Err(Error::precondition(format!("queue '{name}' in vhost '{vhost}' in use")));
        }
        if if_empty && queue.ready > 0 {
            return Err(Error::precondition(format!("queue '{name}' in vhost '{vhost}' not empty")));
        }
        let messages = queue.ready;
        let durable = queue.durable;
        self.remove_queue(now, key, effects);
        Ok(Reply::Removed { messages, safe_at: durable.then_some(THIS_COMMIT) })
    }

    /// Takes a queue out of the world: its consumers are told, its bindings and logs go.
    pub(super) fn remove_queue(&mut self, _now: Now, key: QueueKey, effects: &mut Effects) {
        let Some(queue) = self.queues.take(key.0) else { return };
        for consumer in &queue.consumers {
            self.counters.consumers -= 1;
            let id = consumer.connection;
            let Some(connection) = self.connections.get_mut(id.slot, id.generation) else { continue };
            let Some(link) = connection.links.remove(&consumer.link) else { continue };
            if let Some(pool) = connection.pools.get_mut(&link.pool) {
                pool.outstanding = pool.outstanding.saturating_sub(link.outstanding);
            }
            effects.events.push((id, Event::Cancelled { link: consumer.link }));
        }
        for waiting in self.waiting_gets.remove(&key).into_iter().flatten() {
            effects.events.push((waiting.connection(), Event::Reply(Reply::Got { delivery: None, left: 0 })));
        }
        for level in &queue.levels {
            self.logs.remove(&level.log);
            self.drop_log(level.log);
        }
        let vhost = &mut self.vhosts[queue.vhost.0];
        vhost.queue_count -= 1;
        let removed = vhost.topology.remove_queue(key);
        if queue.durable {
            self.forget_queue(queue.vhost, &queue.name);
        }
        self.forget_removed(queue.vhost, removed);
    }

    fn drop_log(&mut self, log: LogId) {
        if log.is_volatile() {
            // Unknown to the store unless something was spilled to it; dropping what it doesn't know is nothing.
            let _ = self.store.commit(storage::Commit::new(CommitLevel::Volatile).op(Op::Drop { log }));
        } else {
            self.put(Op::Drop { log }, CommitLevel::Sync);
        }
    }

    pub(super) fn delete_exclusive_queues(&mut self, now: Now, id: ConnectionId, effects: &mut Effects) {
        let owned: Vec<QueueKey> = std::mem::take(&mut self.connection_mut(id).exclusive_queues);
        for key in owned {
            if self.queues.at(key.0).is_some_and(|queue| queue.owner == Some(id)) {
                self.remove_queue(now, key, effects);
            }
        }
        self.delete_unused(now, effects);
    }

    pub(super) fn purge(&mut self, id: ConnectionId, name: &str) -> Result<Reply, Error> {
        let (key, _) = self.usable_queue(id, name, Action::Read)?;
        let queue = &mut self.queues[key.0];
        let messages = queue.ready + queue.waiting.len() as u64;
        let mut settled: Vec<(LogId, storage::Run, bool)> = Vec::new();
        let waiting = std::mem::take(&mut queue.waiting);
        settled.extend(waiting.into_iter().map(|((_, log, offset), m)| (log, storage::Run::one(offset), m.durable)));
        let mut trims = Vec::new();
        for level in &mut queue.levels {
            // What links hold stays held: only what is ready goes, so the log can't simply be cut.
            settled.extend(level.returned_offsets().map(|(offset, durable)| (level.log, storage::Run::one(offset), durable)));
            // What the store never saw it need not settle.
            trims.push((level.log, level.cursor(), level.told()));
            level.clear();
        }
        queue.ready = 0;
        queue.ready_bytes = 0;
        for (log, run, durable) in settled {
            self.settled(log, run, durable);
        }
        for (log, from, to) in trims {
            self.settle_range(log, from, to);
        }
        Ok(Reply::Removed { messages, safe_at: Some(THIS_COMMIT) })
    }

    /// Settles everything between two offsets, transient records included.
    fn settle_range(&mut self, log: LogId, mut from: u64, to: u64) {
        while from < to {
            let count = (to - from).min(u32::MAX as u64) as u32;
            self.put(Op::Settle { log, run: storage::Run::dense(from, count) }, CommitLevel::Lazy);
            from += count as u64;
        }
    }

    pub(super) fn bind(&mut self, now: Now, id: ConnectionId, binding: &Binding) -> Result<Reply, Error> {
        let vhost = self.check_binding(id, binding)?;
        self.make_binding(now, vhost, binding)?;
        Ok(DONE)
    }

    pub(super) fn make_binding(&mut self, now: Now, vhost: VhostKey, binding: &Binding) -> Result<(), Error> {
        let added = self.vhosts[vhost.0].topology.bind(binding)?;
        if added.binding.is_some() && self.is_durable_binding(vhost, binding) {
            self.save_binding(vhost, binding);
        }
        if let Some(exchange) = added.replay {
            self.replay_history(now, vhost, exchange, binding);
        }
        Ok(())
    }

    pub(super) fn unbind(&mut self, id: ConnectionId, binding: &Binding) -> Result<Reply, Error> {
        let vhost = self.check_binding(id, binding)?;
        let removed = self.vhosts[vhost.0].topology.unbind(binding)?;
        self.forget_removed(vhost, removed);
        Ok(DONE)
    }

    /// Write on the destination, read on the source; both must be there.
    fn check_binding(&mut self, id: ConnectionId, binding: &Binding) -> Result<VhostKey, Error> {
        let (user, vhost_key) = self.who(id)?;
        let vhost = &self.vhosts[vhost_key.0];
        if binding.source.is_empty() || binding.to == Destination::Exchange && binding.destination.is_empty() {
            return Err(Error::access_refused("operation not permitted on the default exchange"));
        }
        let destination = match binding.to {
            Destination::Queue => Resource::Queue(&binding.destination),
            Destination::Exchange => Resource::Exchange(&binding.destination),
        };
        self.access.authorise(&user, &vhost.name, Action::Write, destination)?;
        self.access.authorise(&user, &vhost.name, Action::Read, Resource::Exchange(&binding.source))?;
        if binding.to == Destination::Queue {
            let Some(key) = vhost.topology.queue(&binding.destination) else {
                return Err(Error::not_found(format!("no queue '{}' in vhost '{}'", binding.destination, vhost.name)));
            };
            self.check_owner(id, key)?;
        }
        if vhost.topology.exchange_named(&binding.source).is_some_and(|exchange| exchange.is_topic()) {
            let topic = Resource::Topic { exchange: &binding.source, routing_key: &binding.routing_key, client_id: None };
            self.access.authorise(&user, &vhost.name, Action::Read, topic)?;
        }
        Ok(vhost_key)
    }

    /// Only a binding between durable things survives a restart.
    fn is_durable_binding(&self, vhost: VhostKey, binding: &Binding) -> bool {
        let topology = &self.vhosts[vhost.0].topology;
        let exchange = |name: &str| topology.exchange_named(name).is_some_and(|exchange| exchange.record.durable);
        exchange(&binding.source)
            && match binding.to {
                Destination::Queue => topology.queue(&binding.destination).is_some_and(|key| self.queues[key.0].durable),
                Destination::Exchange => exchange(&binding.destination),
            }
    }

    /// A recent-history exchange remembers a message.
    pub(super) fn remember(&mut self, vhost: VhostKey, exchange: ExchangeKey, incoming: &Incoming, index: u32) {
        let mut view = RecordView::new(&self.properties, incoming.batch, index);
        if view.headers().get(NO_STORE) == Some(&Value::Bool(true)) {
            return;
        }
        let topology = &self.vhosts[vhost.0].topology;
        let length = topology.exchange(exchange).map_or(0, |exchange| exchange.history_length()) as usize;
        let history = self.histories.entry((vhost, exchange)).or_default();
        history.push_back(incoming.single(index));
        history.drain(..history.len().saturating_sub(length));
    }

    /// A queue newly bound to a recent-history exchange gets what that remembers.
    fn replay_history(&mut self, now: Now, vhost: VhostKey, exchange: ExchangeKey, binding: &Binding) {
        let Some(key) = self.vhosts[vhost.0].topology.queue(&binding.destination) else { return };
        for batch in self.histories.get(&(vhost, exchange)).cloned().unwrap_or_default() {
            let persistent = super::consume::is_persistent(&batch);
            let incoming =
                Incoming { batch: &batch, persistent, priority: 0, any_expires: false, any_headers: false, confirm: false };
            self.enqueue(now, &[key], incoming, &mut Published::default());
        }
    }
}

/// What makes a queue, new or recovered.
pub(super) struct NewQueue {
    pub vhost: VhostKey,
    pub name: Box<str>,
    pub durable: bool,
    pub owner: Option<ConnectionId>,
    pub auto_delete: bool,
    pub declared: crate::Table,
    pub arguments: QueueArguments,
}

/// RabbitMQ strips line ends from names.
fn strip_line_ends(name: &str) -> Box<str> {
    if name.contains(['\r', '\n']) { name.replace(['\r', '\n'], "").into() } else { name.into() }
}
