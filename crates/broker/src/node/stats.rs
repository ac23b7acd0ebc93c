//! Plain counters of the machines; `/metrics` and `braid status` read them.

use super::Node;
use std::collections::BTreeMap;

/// Rises only.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub published: u64,
    pub delivered: u64,
    pub redelivered: u64,
    pub settled: u64,
    pub unroutable: u64,
    pub dropped: u64,
    pub dead_lettered: u64,
    pub connections_opened: u64,
    pub connections_closed: u64,
    pub logins_refused: u64,
    /// Consumers that are there now.
    pub consumers: u64,
}

/// A moment's picture.
#[derive(Clone, Debug)]
pub struct Stats {
    pub counters: Counters,
    pub ready: u64,
    pub unsettled: u64,
    pub delayed: u64,
    pub queues: usize,
    pub exchanges: usize,
    pub bindings: usize,
    pub vhosts: usize,
    /// By protocol.
    pub connections: BTreeMap<&'static str, u64>,
    pub alarms: Vec<&'static str>,
}

impl Node {
    pub fn stats(&self) -> Stats {
        let mut connections = BTreeMap::new();
        for (.., connection) in self.connections.iter() {
            *connections.entry(connection.client.protocol).or_default() += 1;
        }
        let (mut ready, mut unsettled) = (0, 0);
        for (.., queue) in self.queues.iter() {
            ready += queue.ready;
            unsettled += queue.unsettled + (queue.waiting.len() + queue.parked.letters.len()) as u64;
        }
        let topologies = || self.vhosts.iter().map(|(.., vhost)| &vhost.topology);
        Stats {
            counters: self.counters.clone(),
            ready,
            unsettled,
            delayed: self.delayed_messages(),
            queues: self.queues.len(),
            exchanges: topologies().map(|t| t.exchanges().count()).sum(),
            bindings: topologies().map(|t| t.bindings().count()).sum(),
            vhosts: self.vhosts.len(),
            connections,
            alarms: self.alarms.iter().map(|alarm| alarm.reason()).collect(),
        }
    }
}
