//! What exists, at rest: one metadata key a thing, changed in the same commits as the messages.
//!
//! ```text
//! key: kind u8 | vhost_length u16, vhost | rest                      value
//!   v  vhost                                                          empty
//!   q  queue name                                                     version u8 | flags u8 (1 auto-delete, 2 expiring) | levels u8, { priority u8, log u64 }
//!                                                                     | arguments (table.rs)
//!   x  exchange, b binding, P policy, O operator policy, p permission, t topic permission, l limits:
//!                                                                     their own rooms' records
//!   u  (no vhost) user name                                           access.rs
//!   e  (no vhost) what definitions files said that means nothing here, as JSON
//!   d  time u64, exchange name                                        log u64: a bucket of delayed messages
//! ```

use super::declare::NewQueue;
use super::delay::Delays;
use super::{Node, NodeSettings, Slab, Vhost, stats};
use crate::access::Access;
use crate::arguments::QueueArguments;
use crate::definitions::Definitions;
use crate::error::{Error, Reason};
use crate::policy::Policies;
use crate::queue::VhostKey;
use crate::queue::level::Level;
use crate::request::{Binding, Now};
use crate::table;
use crate::topology::{BindingRecord, ExchangeRecord, QueueKey, Topology};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use storage::{Commit, Level as CommitLevel, LogId, Op, Recovered, RecoveredLog, Store};

pub(super) const VHOST: u8 = b'v';
pub(super) const QUEUE: u8 = b'q';
pub(super) const EXCHANGE: u8 = b'x';
pub(super) const BINDING: u8 = b'b';
pub(super) const POLICY: u8 = b'P';
pub(super) const OPERATOR_POLICY: u8 = b'O';
pub(super) const USER: u8 = b'u';
pub(super) const PERMISSION: u8 = b'p';
pub(super) const TOPIC_PERMISSION: u8 = b't';
pub(super) const LIMITS: u8 = b'l';
pub(super) const BUCKET: u8 = b'd';
pub(super) const EXTRAS: u8 = b'e';

const QUEUE_VERSION: u8 = 1;
const AUTO_DELETE: u8 = 1;
/// Has held a message with an expiration of its own: after a start its log is looked through for such.
const EXPIRING: u8 = 2;

pub(super) type Keys = BTreeMap<Box<[u8]>, Box<[u8]>>;

impl Node {
    /// Builds the node from what the store recovered; an empty store gets its first vhost and user.
    pub fn open(store: Arc<Store>, recovered: Recovered, settings: NodeSettings, now: Now) -> Result<Node, Error> {
        let mut node = Node {
            store,
            properties: HashMap::new(),
            access: Access::new(),
            vhosts: Slab::default(),
            vhost_names: HashMap::new(),
            queues: Slab::default(),
            logs: HashMap::new(),
            connections: Slab::default(),
            reply_addresses: HashMap::new(),
            waiting_gets: HashMap::new(),
            unused: Vec::new(),
            direct_replies: Vec::new(),
            first_reads: Vec::new(),
            delays: Delays::default(),
            exchange_caches: HashMap::new(),
            histories: HashMap::new(),
            policy_sweeps: HashMap::new(),
            extras: Definitions::default(),
            timers: BTreeSet::new(),
            alarms: BTreeSet::new(),
            version: 0,
            commit: Commit::new(CommitLevel::Interval),
            commit_bytes: 0,
            last_commit: None,
            dirty: Vec::new(),
            dead_letters: VecDeque::new(),
            random: settings.seed | 1,
            counters: stats::Counters::default(),
            settings,
        };
        if recovered.keys.is_empty() {
            node.make_first_things()?;
        } else {
            node.recover(now, recovered)?;
        }
        node.flush();
        Ok(node)
    }

    fn make_first_things(&mut self) -> Result<(), Error> {
        let (user, password, vhost) =
            self.settings.default_user.clone().unwrap_or_else(|| ("guest".into(), "guest".into(), "/".into()));
        self.make_vhost(&vhost);
        self.make_first_user(&user, &password, &vhost)
    }

    pub(super) fn make_vhost(&mut self, name: &str) -> VhostKey {
        if let Some(&key) = self.vhost_names.get(name) {
            return key;
        }
        self.save(key_of(VHOST, name, b""), Vec::new());
        self.insert_vhost(name)
    }

    fn insert_vhost(&mut self, name: &str) -> VhostKey {
        let vhost = Vhost {
            name: name.into(),
            topology: Topology::new(name),
            queue_count: 0,
            policies: Policies::default(),
            operator_policies: Policies::default(),
        };
        let key = VhostKey(self.vhosts.insert(vhost).0);
        self.vhost_names.insert(name.into(), key);
        self.version += 1;
        key
    }

    /// In the order of what needs what: vhosts, policies, exchanges, queues, bindings.
    fn recover(&mut self, now: Now, recovered: Recovered) -> Result<(), Error> {
        let Recovered { keys, mut logs, clean, .. } = recovered;
        for (_, vhost, _) in of_kind(&keys, VHOST) {
            self.insert_vhost(vhost);
        }
        self.recover_access(&keys)?;
        self.recover_policies(&keys)?;
        for (_, vhost, value) in of_kind(&keys, EXCHANGE) {
            let record = ExchangeRecord::decode(value).ok_or_else(|| damaged("exchange"))?;
            let key = self.known_vhost(vhost)?;
            let name = record.name.clone();
            self.vhosts[key.0].topology.restore_exchange(record)?;
            self.apply_exchange_policy(key, &name);
        }
        for (name, vhost, value) in of_kind(&keys, QUEUE) {
            self.recover_queue(now, vhost, name, value, &mut logs, clean)?;
        }
        for (_, vhost, value) in of_kind(&keys, BINDING) {
            let record = BindingRecord::decode(value).ok_or_else(|| damaged("binding"))?;
            let key = self.known_vhost(vhost)?;
            self.vhosts[key.0].topology.bind(&record.into_request())?;
        }
        for (rest, vhost, value) in of_kind(&keys, BUCKET) {
            self.recover_delays(now, vhost, rest, value, &mut logs)?;
        }
        // What no key names any more was dropped by its owner; the store is told again.
        for log in logs.into_keys().filter(|log| !log.is_volatile()) {
            self.put(Op::Drop { log }, CommitLevel::Lazy);
        }
        Ok(())
    }

    fn recover_queue(
        &mut self,
        now: Now,
        vhost: &str,
        name: &[u8],
        value: &[u8],
        logs: &mut HashMap<LogId, RecoveredLog>,
        clean: bool,
    ) -> Result<(), Error> {
        let vhost_key = self.known_vhost(vhost)?;
        let name = std::str::from_utf8(name).map_err(|_| damaged("queue name"))?;
        let QueueRecord { flags, levels, declared } = decode_queue(value).ok_or_else(|| damaged("queue"))?;
        let auto_delete = flags & AUTO_DELETE != 0;
        let arguments = QueueArguments::parse(vhost, name, &declared)?;
        let levels: SmallVec<[Level; 1]> = levels
            .into_iter()
            .map(|(priority, log)| match logs.remove(&log) {
                Some(state) => Level::recovered(priority, log, state, clean),
                None => Level::new(priority, log),
            })
            .collect();
        let queue =
            NewQueue { vhost: vhost_key, name: name.into(), durable: true, owner: None, auto_delete, declared, arguments };
        let key = self.insert_queue(now, queue, levels);
        if flags & EXPIRING != 0 {
            self.look_for_deadlines(key);
        }
        Ok(())
    }

    fn recover_delays(
        &mut self,
        now: Now,
        vhost: &str,
        rest: &[u8],
        value: &[u8],
        logs: &mut HashMap<LogId, RecoveredLog>,
    ) -> Result<(), Error> {
        let vhost = self.known_vhost(vhost)?;
        let (time, exchange) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("bucket"))?;
        let exchange = std::str::from_utf8(exchange).map_err(|_| damaged("bucket"))?;
        let log = LogId(u64::from_be_bytes(value.try_into().map_err(|_| damaged("bucket"))?));
        if let Some(state) = logs.remove(&log) {
            self.recover_bucket(now, vhost, exchange.into(), u64::from_be_bytes(*time), log, state);
        }
        Ok(())
    }

    pub(super) fn known_vhost(&self, name: &str) -> Result<VhostKey, Error> {
        self.vhost_names.get(name).copied().ok_or_else(|| damaged("vhost of a key"))
    }

    pub(super) fn save(&mut self, key: Box<[u8]>, value: Vec<u8>) {
        self.commit_bytes += key.len() + value.len();
        self.put(Op::Put { key, value: Some(value.into()) }, CommitLevel::Sync);
    }

    pub(super) fn forget(&mut self, key: Box<[u8]>) {
        self.put(Op::Put { key, value: None }, CommitLevel::Sync);
    }

    pub(super) fn save_queue(&mut self, key: QueueKey) {
        let queue = &self.queues[key.0];
        let flags = if queue.auto_delete { AUTO_DELETE } else { 0 } | if queue.expiring { EXPIRING } else { 0 };
        let mut value = vec![QUEUE_VERSION, flags, queue.levels.len() as u8];
        for level in &queue.levels {
            value.push(level.priority);
            value.extend_from_slice(&level.log.0.to_be_bytes());
        }
        table::encode_table(&queue.declared, &mut value);
        let key = key_of(QUEUE, &self.vhosts[queue.vhost.0].name, queue.name.as_bytes());
        self.save(key, value);
    }

    pub(super) fn forget_queue(&mut self, vhost: VhostKey, name: &str) {
        self.forget(key_of(QUEUE, &self.vhosts[vhost.0].name, name.as_bytes()));
    }

    pub(super) fn save_exchange(&mut self, vhost: VhostKey, name: &str) {
        let vhost = &self.vhosts[vhost.0];
        if let Some(exchange) = vhost.topology.exchange_named(name) {
            let mut value = Vec::new();
            exchange.record.encode(&mut value);
            self.save(key_of(EXCHANGE, &vhost.name, exchange.record.key()), value);
        }
    }

    pub(super) fn forget_exchange(&mut self, vhost: VhostKey, name: &str) {
        self.forget(key_of(EXCHANGE, &self.vhosts[vhost.0].name, name.as_bytes()));
    }

    pub(super) fn save_binding(&mut self, vhost: VhostKey, binding: &Binding) {
        let record = BindingRecord::of(binding);
        let key = key_of(BINDING, &self.vhosts[vhost.0].name, &record.key());
        let mut value = Vec::new();
        record.encode(&mut value);
        self.save(key, value);
    }

    pub(super) fn forget_binding(&mut self, vhost: VhostKey, record: &BindingRecord) {
        self.forget(key_of(BINDING, &self.vhosts[vhost.0].name, &record.key()));
    }

    pub(super) fn save_bucket(&mut self, vhost: &str, exchange: &str, time: u64, log: LogId) {
        self.save(bucket_key(vhost, exchange, time), log.0.to_be_bytes().to_vec());
    }

    pub(super) fn forget_bucket(&mut self, vhost: &str, exchange: &str, time: u64) {
        self.forget(bucket_key(vhost, exchange, time));
    }
}

fn bucket_key(vhost: &str, exchange: &str, time: u64) -> Box<[u8]> {
    key_of(BUCKET, vhost, &[&time.to_be_bytes()[..], exchange.as_bytes()].concat())
}

pub(super) fn key_of(kind: u8, vhost: &str, rest: &[u8]) -> Box<[u8]> {
    let mut key = Vec::with_capacity(3 + vhost.len() + rest.len());
    key.push(kind);
    key.extend_from_slice(&(vhost.len() as u16).to_be_bytes());
    key.extend_from_slice(vhost.as_bytes());
    key.extend_from_slice(rest);
    key.into()
}

/// (rest of the key, vhost, value) of all keys of a kind, in order.
pub(super) fn of_kind(keys: &Keys, kind: u8) -> impl Iterator<Item = (&[u8], &str, &[u8])> {
    keys.range(Box::from([kind])..).take_while(move |(key, _)| key[0] == kind).filter_map(|(key, value)| {
        let (length, rest) = key[1..].split_first_chunk::<2>()?;
        let (vhost, rest) = rest.split_at_checked(u16::from_be_bytes(*length) as usize)?;
        Some((rest, std::str::from_utf8(vhost).ok()?, &**value))
    })
}

struct QueueRecord {
    flags: u8,
    levels: Vec<(u8, LogId)>,
    declared: crate::Table,
}

fn decode_queue(value: &[u8]) -> Option<QueueRecord> {
    let (&[version, flags, levels], mut rest) = value.split_first_chunk::<3>()?;
    if version != QUEUE_VERSION {
        return None;
    }
    let mut logs = Vec::new();
    for _ in 0..levels {
        let (entry, after) = rest.split_first_chunk::<9>()?;
        logs.push((entry[0], LogId(u64::from_be_bytes(entry[1..].try_into().ok()?))));
        rest = after;
    }
    Some(QueueRecord { flags, levels: logs, declared: table::decode_table(rest)? })
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(Reason::ResourceError, format!("the record of a {what} in the store can't be read"))
}
