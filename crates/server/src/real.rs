//! The real node over the real store, put together from the settings.

use crate::clock::Clock;
use crate::limits;
use crate::owner::{Answer, Change, Figure, Figures, Journal, Kind, Owner};
use crate::protocols::{self, PROTOCOLS, Protocol, Protocols};
use crate::run::Parts;
use crate::settings::Settings;
use broker::{
    Alarm, Client, ConnectionId, Effects, Error, Node, NodeSettings, Position, Read, ReadDone, Reply, Request, Traffic,
};
use protocol::Now;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;
use storage::{Batch, Offset, Pressure, RealDisk, Store};

/// Opens the data directory, or makes it, and recovers. Nothing listens yet.
pub fn open(settings: &Settings) -> Result<Parts, String> {
    let dir = &settings.data_dir;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let clock = Clock::start();
    let mut store_settings = storage::Settings::new(dir);
    store_settings.entropy = protocols::seed();
    store_settings.disk_free_min = limits::STORE_DISK_FREE_BYTES;
    let (store, recovered) = Store::open(Arc::new(RealDisk), store_settings).map_err(|error| error.to_string())?;
    for damage in &recovered.damage {
        tracing::error!(file = %damage.file.display(), at = damage.at, what = damage.what, "damage found; the file is kept");
    }
    tracing::info!(epoch = recovered.epoch, clean = recovered.clean, logs = recovered.logs.len(), "store opened");
    let first = settings.default_user.as_ref();
    let node_settings = NodeSettings {
        default_user: first.map(|first| (first.user.clone(), first.password.clone(), first.vhost.clone())),
        connections_max: settings.connections_max,
        seed: protocols::seed(),
    };
    let mut node = Node::open(store.clone(), recovered, node_settings, clock.now()).map_err(|error| error.text)?;
    node.register(amqp::ORIGIN, Arc::new(amqp::AmqpProperties));
    Ok(Parts { node: Box::new(node), journal: store, protocols: protocols_of(settings), clock })
}

/// One line a protocol.
fn protocols_of(settings: &Settings) -> Protocols {
    let amqp_settings = Arc::new(amqp_settings(settings));
    Protocols::new(move |protocol, peer, now, seed| match protocol {
        Protocol::Amqp => amqp::connection(amqp_settings.clone(), peer, now, seed),
    })
}

fn amqp_settings(settings: &Settings) -> amqp::Settings {
    let mut amqp = amqp::Settings::default();
    amqp.identity.cluster_name = settings.cluster_name.clone();
    if let Some(product) = &settings.product {
        amqp.identity.product = product.clone();
    }
    if let Some(version) = &settings.product_version {
        amqp.identity.version = version.clone();
    }
    amqp.message_bytes_max = settings.message_bytes_max as u64;
    amqp.anonymous_user = settings.anonymous_user.clone();
    amqp
}

impl Owner for Node {
    fn connect(&mut self, now: Now, client: Client) -> Result<ConnectionId, Error> {
        Node::connect(self, now, client)
    }

    fn disconnect(&mut self, now: Now, id: ConnectionId, effects: &mut Effects) {
        Node::disconnect(self, now, id, effects);
    }

    fn handle(
        &mut self,
        now: Now,
        id: ConnectionId,
        requests: &mut Vec<Request>,
        replies: &mut Vec<Reply>,
        effects: &mut Effects,
    ) {
        Node::handle(self, now, id, requests, replies, effects);
    }

    fn handle_written(&mut self, now: Now, id: ConnectionId, cost: u64, effects: &mut Effects) {
        Node::handle_written(self, now, id, cost, effects);
    }

    fn handle_read(&mut self, now: Now, done: ReadDone, effects: &mut Effects) {
        Node::handle_read(self, now, done, effects);
    }

    fn handle_timeout(&mut self, now: Now, effects: &mut Effects) {
        Node::handle_timeout(self, now, effects);
    }

    fn next_timeout(&self) -> Option<u64> {
        Node::next_timeout(self)
    }

    fn set_alarm(&mut self, alarm: Alarm, on: bool, effects: &mut Effects) {
        Node::set_alarm(self, alarm, on, effects);
    }

    fn figures(&self) -> Figures {
        let stats = self.stats();
        let counters = &stats.counters;
        let mut figures = vec![
            Figure::counter("messages_redelivered_total", "Messages delivered again.", counters.redelivered),
            Figure::counter("messages_settled_total", "Messages accepted or rejected by consumers.", counters.settled),
            Figure::counter("messages_unroutable_total", "Messages that reached no queue.", counters.unroutable),
            Figure::counter("messages_dropped_total", "Messages dropped by a limit or expiry.", counters.dropped),
            Figure::counter("messages_dead_lettered_total", "Messages sent to a dead letter exchange.", counters.dead_lettered),
            Figure::counter("logins_refused_total", "Logins refused.", counters.logins_refused),
            Figure::gauge("messages_ready", "Messages that wait for a consumer.", stats.ready),
            Figure::gauge("messages_unsettled", "Messages held by consumers.", stats.unsettled),
            Figure::gauge("messages_delayed", "Messages that wait for their time.", stats.delayed),
            Figure::gauge("consumers", "Consumers.", counters.consumers),
            Figure::gauge("queues", "Queues.", stats.queues as u64),
            Figure::gauge("exchanges", "Exchanges.", stats.exchanges as u64),
            Figure::gauge("bindings", "Bindings.", stats.bindings as u64),
            Figure::gauge("vhosts", "Virtual hosts.", stats.vhosts as u64),
        ];
        // Family by family, and each protocol from the start: a line that appears later looks like a jump.
        let traffic =
            PROTOCOLS.map(|protocol| (protocol.name(), stats.traffic.get(protocol.name()).copied().unwrap_or_default()));
        let families: [fn(&Traffic) -> Figure; 3] = [
            |traffic| Figure::counter("messages_in_total", "Messages published.", traffic.published),
            |traffic| Figure::counter("messages_out_total", "Messages delivered.", traffic.delivered),
            |traffic| Figure::gauge("protocol_connections", "Connections by protocol.", traffic.connections),
        ];
        for family in families {
            figures.extend(traffic.iter().map(|(name, traffic)| family(traffic).with("protocol", name)));
        }
        figures
    }

    fn administer(&mut self, now: Now, change: Change, effects: &mut Effects) -> Result<Answer, Error> {
        Node::administer(self, now, change, effects)
    }
}

impl Journal for Store {
    fn durable(&self) -> Position {
        Store::durable(self)
    }

    fn wait_for_group(&self, at_most: Duration) -> bool {
        Store::wait_for_group(self, at_most)
    }

    fn write_group(&self) -> Result<Position, String> {
        Store::write_group(self).map_err(|error| error.to_string())
    }

    fn wait_for_checkpoint(&self, at_most: Duration) -> bool {
        Store::wait_for_checkpoint(self, at_most)
    }

    fn checkpoint(&self) -> Result<(), String> {
        Store::checkpoint(self).map_err(|error| error.to_string())
    }

    fn read(&self, read: Read) -> Result<Vec<(Offset, Arc<Batch>)>, String> {
        Store::read(self, read.log, read.from, read.bytes_max).map_err(|error| error.to_string())
    }

    fn is_pressed(&self) -> bool {
        self.pressure() != Pressure::Normal
    }

    fn figures(&self) -> Figures {
        let stats = self.stats();
        let mut figures = vec![
            Figure::counter("commits_total", "Commits taken by the store.", stats.commits),
            Figure::counter("journal_groups_total", "Groups written to the journal.", stats.groups),
            Figure::counter("journal_written_bytes_total", "Bytes written to the journal.", stats.group_bytes),
            Figure::gauge("journal_bytes", "Journal in use.", stats.journal_bytes),
            Figure::gauge("tail_bytes", "Batches in memory that wait for their segment.", stats.tail_bytes),
            Figure::gauge("waiting_bytes", "Commits that wait for their group.", stats.waiting_bytes),
            Figure::counter("checkpoints_total", "Checkpoints.", stats.checkpoints),
            Figure::counter("segment_written_bytes_total", "Bytes written to segments.", stats.segment_bytes_written),
            Figure::gauge("logs", "Logs.", stats.logs),
            Figure::gauge("damage", "Places found damaged.", stats.damage),
        ];
        figures.extend(sync_histogram(&stats.sync_us, stats.sync_ns_total));
        figures
    }

    fn close(&self) -> Result<(), String> {
        Store::close(self).map_err(|error| error.to_string())
    }
}

/// Prometheus wants each bucket to hold all below it too.
fn sync_histogram(buckets: &[u64], total_ns: u64) -> Figures {
    const HELP: &str = "How long syncs of the journal took.";
    let histogram = |name, value| Figure { kind: Kind::Histogram, value, ..Figure::gauge(name, HELP, 0) };
    let mut count = 0;
    let mut figures = Vec::new();
    for (i, bucket) in buckets.iter().enumerate() {
        count += bucket;
        let seconds = (1u64 << i) as f64 / 1e6;
        figures.push(histogram("fsync_seconds_bucket", count as f64).with("le", seconds));
    }
    figures.push(histogram("fsync_seconds_bucket", count as f64).with("le", "+Inf"));
    figures.push(histogram("fsync_seconds_sum", total_ns as f64 / 1e9));
    figures.push(histogram("fsync_seconds_count", count as f64));
    figures
}
