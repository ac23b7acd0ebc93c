//! Policies in force, applied to what lives.

use super::expiry::Timer;
use super::{Node, catalog};
use crate::arguments::QueueArguments;
use crate::error::Error;
use crate::limits;
use crate::policy::{self, Policy, Subject};
use crate::queue::VhostKey;
use crate::request::Now;
use crate::topology::QueueKey;

impl Node {
    /// Adds or replaces a policy, and has it applied; answers with the names of settings in it that have no effect here.
    pub(super) fn put_policy(
        &mut self,
        now: Now,
        vhost: VhostKey,
        policy: Policy,
        is_operators: bool,
    ) -> Result<Vec<Box<str>>, Error> {
        let (kind, name) = (policy_kind(is_operators), policy.name.clone());
        let value = serde_json::to_vec(&policy).unwrap_or_default();
        let state = &mut self.vhosts[vhost.0];
        let policies = if is_operators { &mut state.operator_policies } else { &mut state.policies };
        let ignored = policies.put(policy)?;
        self.save(catalog::key_of(kind, &self.vhosts[vhost.0].name, name.as_bytes()), value);
        self.apply_policies(now, vhost);
        Ok(ignored)
    }

    pub(super) fn delete_policy(&mut self, now: Now, vhost: VhostKey, name: &str, is_operators: bool) -> bool {
        let state = &mut self.vhosts[vhost.0];
        let policies = if is_operators { &mut state.operator_policies } else { &mut state.policies };
        let deleted = policies.delete(name).is_some();
        if deleted {
            self.forget(catalog::key_of(policy_kind(is_operators), &self.vhosts[vhost.0].name, name.as_bytes()));
            self.apply_policies(now, vhost);
        }
        deleted
    }

    pub(super) fn recover_policies(&mut self, keys: &catalog::Keys) -> Result<(), Error> {
        for (kind, is_operators) in [(catalog::POLICY, false), (catalog::OPERATOR_POLICY, true)] {
            for (_, vhost, value) in catalog::of_kind(keys, kind) {
                let policy: Policy = serde_json::from_slice(value).map_err(|_| catalog::damaged("policy"))?;
                let key = self.known_vhost(vhost)?;
                let state = &mut self.vhosts[key.0];
                let policies = if is_operators { &mut state.operator_policies } else { &mut state.policies };
                policies.put(policy)?;
            }
        }
        Ok(())
    }

    /// What a queue does under its policies.
    pub(super) fn effective_queue_arguments(&self, vhost: VhostKey, name: &str, declared: &QueueArguments) -> QueueArguments {
        let state = &self.vhosts[vhost.0];
        let subject = Subject::Queue(declared.queue_type);
        policy::effective(declared, state.policies.of(name, subject), state.operator_policies.of(name, subject))
    }

    pub(super) fn apply_exchange_policy(&mut self, vhost: VhostKey, name: &str) {
        let state = &mut self.vhosts[vhost.0];
        let policies = (state.policies.of(name, Subject::Exchange), state.operator_policies.of(name, Subject::Exchange));
        let alternate = policy::alternate_exchange(policies.0, policies.1);
        if let Some(key) = state.topology.exchange_key(name) {
            state.topology.set_policy_alternate(key, alternate);
        }
    }

    /// Has a vhost's policies applied to everything that lives there: exchanges at once, queues in slices.
    fn apply_policies(&mut self, now: Now, vhost: VhostKey) {
        let topology = &self.vhosts[vhost.0].topology;
        let exchanges: Vec<Box<str>> = topology.exchanges().map(|(_, exchange)| exchange.record.name.clone()).collect();
        exchanges.iter().for_each(|name| self.apply_exchange_policy(vhost, name));
        self.policy_sweeps.insert(vhost, 0);
        self.sweep_policies(now, vhost);
    }

    /// The next slice: the owner is not held for the time that 100,000 queues take.
    pub(super) fn sweep_policies(&mut self, now: Now, vhost: VhostKey) {
        let Some(from) = self.policy_sweeps.remove(&vhost).filter(|_| self.vhosts.at(vhost.0).is_some()) else { return };
        let to = from.saturating_add(limits::QUEUES_PER_SWEEP);
        for slot in from..to.min(self.queues.end()) {
            if self.queues.at(slot).is_some_and(|queue| queue.vhost == vhost) {
                self.apply_queue_policy(now, QueueKey(slot));
            }
        }
        if to < self.queues.end() {
            self.policy_sweeps.insert(vhost, to);
            self.schedule(now.mono_ms, Timer::Policies(vhost));
        }
    }

    fn apply_queue_policy(&mut self, now: Now, key: QueueKey) {
        let queue = &self.queues[key.0];
        let effective = self.effective_queue_arguments(queue.vhost, &queue.name, &queue.arguments);
        let queue = &mut self.queues[key.0];
        if *queue.effective == effective {
            return;
        }
        if queue.effective.max_length_bytes.is_none() && effective.max_length_bytes.is_some() {
            queue.ready_bytes = queue.levels.iter().map(|level| level.ready_body_bytes()).sum();
        }
        *queue.effective = effective;
        self.use_queue(now, key);
        self.touch(key);
    }
}

fn policy_kind(is_operators: bool) -> u8 {
    if is_operators { catalog::OPERATOR_POLICY } else { catalog::POLICY }
}
