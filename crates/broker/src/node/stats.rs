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
    pub traffic: BTreeMap<&'static str, Traffic>,
    pub alarms: Vec<&'static str>,
}

/// What one protocol's connections carry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Connections open now.
    pub connections: u64,
    pub published: u64,
    pub delivered: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, connection: &super::Connection) {
        self.published += connection.published;
        self.delivered += connection.delivered;
    }
}

impl Node {
    pub fn stats(&self) -> Stats {
        let mut traffic = self.past_traffic.clone();
        for (.., connection) in self.connections.iter() {
            let of_protocol = traffic.entry(connection.client.protocol).or_default();
            of_protocol.connections += 1;
            of_protocol.add(connection);
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
            traffic,
            alarms: self.alarms.iter().map(|alarm| alarm.reason()).collect(),
        }
    }
}
