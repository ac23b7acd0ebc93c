//! Policies: settings for all queues and exchanges whose names match a pattern, changed while they live.
//!
//! Each queue or exchange has at most one policy and one operator policy in force: of those that match, the one of the highest
//! priority. Where both set something, the operator's bounds it; where a queue's own arguments set it too, the lower of two numbers
//! holds, and for anything else the argument (for a quorum queue's overflow the policy), as in RabbitMQ.

use crate::arguments::{QueueArguments, QueueType, term};
use crate::error::{Error, Result};
use crate::limits::{NAME_BYTES_MAX, POLICIES_MAX};
use crate::pattern::Pattern;
use crate::value::Table;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A policy at rest, and in definitions files.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policy {
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub vhost: Box<str>,
    pub name: Box<str>,
    pub pattern: Box<str>,
    #[serde(default)]
    pub apply_to: ApplyTo,
    pub definition: Table,
    #[serde(default)]
    pub priority: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyTo {
    #[default]
    All,
    Queues,
    ClassicQueues,
    QuorumQueues,
    Streams,
    Exchanges,
}

/// What a policy may be in force for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    Queue(QueueType),
    Exchange,
}

/// The policies of one vhost of one kind: those of its users, or those of its operators.
#[derive(Default, Debug)]
pub struct Policies {
    policies: BTreeMap<Box<str>, (Policy, Pattern)>,
}

/// Keys of other types of queue. A policy with one of them is not in force for a queue of this type, unless it is said to be for
/// this type and no other: that is how RabbitMQ's policies for all queues leave classic ones alone.
const FOREIGN_TO_CLASSIC: [&str; 5] =
    ["delivery-limit", "dead-letter-strategy", "max-in-memory-length", "max-in-memory-bytes", "target-group-size"];
const FOREIGN_TO_QUORUM: [&str; 3] = ["max-priority", "queue-mode", "queue-master-locator"];
const FOREIGN_TO_BOTH: [&str; 3] = ["max-age", "stream-max-segment-size-bytes", "initial-cluster-size"];

impl Policies {
    /// Adds or replaces a policy; answers with the names of settings in it that have no effect here.
    pub fn put(&mut self, policy: Policy) -> Result<Vec<Box<str>>> {
        if policy.name.is_empty() || policy.name.len() > NAME_BYTES_MAX {
            return Err(Error::precondition(format!("a policy needs a name of at most {NAME_BYTES_MAX} bytes")));
        }
        if self.policies.len() >= POLICIES_MAX && !self.policies.contains_key(&policy.name) {
            return Err(Error::precondition(format!("policy limit ({POLICIES_MAX}) is reached")));
        }
        let pattern = Pattern::new(&policy.pattern)?;
        let ignored = validate(&policy.definition)?;
        self.policies.insert(policy.name.clone(), (policy, pattern));
        Ok(ignored)
    }

    pub fn delete(&mut self, name: &str) -> Option<Policy> {
        self.policies.remove(name).map(|(policy, _)| policy)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|(policy, _)| policy)
    }

    /// The policy in force; among equal priorities the first by name.
    pub fn of(&self, name: &str, subject: Subject) -> Option<&Policy> {
        let candidates = self.policies.values().filter(|(policy, _)| policy.is_for(subject));
        let mut best: Option<&Policy> = None;
        for (policy, pattern) in candidates {
            if best.is_none_or(|best| policy.priority > best.priority) && pattern.matches(name) {
                best = Some(policy);
            }
        }
        best
    }
}

impl Policy {
    fn is_for(&self, subject: Subject) -> bool {
        let queue_type = match (self.apply_to, subject) {
            (ApplyTo::All | ApplyTo::Exchanges, Subject::Exchange) => return true,
            (ApplyTo::All | ApplyTo::Queues, Subject::Queue(queue_type)) => queue_type,
            (ApplyTo::ClassicQueues, Subject::Queue(QueueType::Classic)) => return !self.has_any(&FOREIGN_TO_BOTH),
            (ApplyTo::QuorumQueues, Subject::Queue(QueueType::Quorum)) => return !self.has_any(&FOREIGN_TO_BOTH),
            _ => return false,
        };
        let foreign: &[&str] = match queue_type {
            QueueType::Classic => &FOREIGN_TO_CLASSIC,
            QueueType::Quorum => &FOREIGN_TO_QUORUM,
        };
        !self.has_any(&FOREIGN_TO_BOTH) && !self.has_any(foreign)
    }

    fn has_any(&self, keys: &[&str]) -> bool {
        self.definition.0.iter().any(|(key, _)| keys.contains(&&**key))
    }
}

/// What a queue that was declared with `declared` does under its policy and operator policy.
pub fn effective(declared: &QueueArguments, policy: Option<&Policy>, operator: Option<&Policy>) -> QueueArguments {
    let overlay = |policy: Option<&Policy>| {
        let mut overlay = QueueArguments { queue_type: declared.queue_type, ..QueueArguments::default() };
        for (key, value) in policy.iter().flat_map(|policy| &policy.definition.0) {
            overlay.set_from_policy(key, value);
        }
        overlay
    };
    let (users, operators) = (overlay(policy), overlay(operator));
    // Where only one of them says something it holds; the operators' overflow goes before the users'.
    let policy = merge(&users, &operators, Prefer::Second);
    let modes = match declared.queue_type {
        QueueType::Classic => Prefer::Second,
        QueueType::Quorum => Prefer::First,
    };
    let mut effective = merge(&policy, declared, modes);
    // No policy says these.
    effective.max_priority = declared.max_priority;
    effective.single_active_consumer = declared.single_active_consumer;
    effective.deduplication = declared.deduplication.clone();
    effective
}

/// The alternate exchange that policies give an exchange; its own argument goes before.
pub fn alternate_exchange<'a>(policy: Option<&'a Policy>, operator: Option<&'a Policy>) -> Option<&'a str> {
    let of = |policy: Option<&'a Policy>| policy?.definition.get("alternate-exchange")?.as_str();
    of(operator).or(of(policy))
}

/// Whose say it is where both set what neither is lower than the other in.
#[derive(Clone, Copy, PartialEq)]
enum Prefer {
    First,
    Second,
}

fn merge(first: &QueueArguments, second: &QueueArguments, modes: Prefer) -> QueueArguments {
    fn lower<T: Ord + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
    fn mode<T: Clone>(first: &Option<T>, second: &Option<T>, prefer: Prefer) -> Option<T> {
        match prefer {
            Prefer::First => first.clone().or(second.clone()),
            Prefer::Second => second.clone().or(first.clone()),
        }
    }
    QueueArguments {
        queue_type: second.queue_type,
        message_ttl_ms: lower(first.message_ttl_ms, second.message_ttl_ms),
        expires_ms: lower(first.expires_ms, second.expires_ms),
        max_length: lower(first.max_length, second.max_length),
        max_length_bytes: lower(first.max_length_bytes, second.max_length_bytes),
        overflow: mode(&first.overflow, &second.overflow, modes),
        dead_letter_exchange: mode(&first.dead_letter_exchange, &second.dead_letter_exchange, Prefer::Second),
        dead_letter_routing_key: mode(&first.dead_letter_routing_key, &second.dead_letter_routing_key, Prefer::Second),
        dead_letter_strategy: mode(&first.dead_letter_strategy, &second.dead_letter_strategy, Prefer::Second),
        delivery_limit: lower_limit(first.delivery_limit, second.delivery_limit),
        max_retries: lower(first.max_retries, second.max_retries),
        consumer_timeout_ms: lower(first.consumer_timeout_ms, second.consumer_timeout_ms),
        durability: mode(&first.durability, &second.durability, modes),
        delayed_retry: mode(&first.delayed_retry, &second.delayed_retry, modes),
        delayed_retry_min_ms: lower(first.delayed_retry_min_ms, second.delayed_retry_min_ms),
        delayed_retry_max_ms: lower(first.delayed_retry_max_ms, second.delayed_retry_max_ms),
        max_priority: None,
        single_active_consumer: false,
        deduplication: None,
    }
}

/// A negative one is no limit, so any other is lower.
fn lower_limit(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) if a < 0 || b < 0 => Some(a.max(b)),
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Checks a definition; answers with the names of settings that have no effect here.
pub fn validate(definition: &Table) -> Result<Vec<Box<str>>> {
    if definition.is_empty() {
        return Err(Error::precondition("no policy provided"));
    }
    let mut ignored = Vec::new();
    for (at, (key, value)) in definition.0.iter().enumerate() {
        if definition.0[..at].iter().any(|(other, _)| other == key) {
            return Err(Error::precondition(format!("duplicate key '{key}' not allowed")));
        }
        let is_valid = match (&**key, value) {
            ("alternate-exchange" | "dead-letter-exchange" | "dead-letter-routing-key", value) => value.as_str().is_some(),
            ("dead-letter-strategy", value) => matches!(value.as_str(), Some("at-most-once" | "at-least-once")),
            ("overflow", value) => matches!(value.as_str(), Some("drop-head" | "reject-publish" | "reject-publish-dlx")),
            ("delayed-retry-type", value) => matches!(value.as_str(), Some("disabled" | "all" | "failed" | "returned")),
            ("message-ttl" | "max-length" | "max-length-bytes" | "max-retries" | "consumer-timeout", value) => {
                value.as_integer().is_some_and(|number| number >= 0)
            }
            ("expires" | "delayed-retry-min" | "delayed-retry-max", value) => {
                value.as_integer().is_some_and(|number| number >= 1)
            }
            ("delivery-limit", value) => value.as_integer().is_some(),
            ("durability", value) => matches!(value.as_str(), Some("fsync" | "interval" | "os")),
            (key, _) => {
                ignored.push(key.into());
                true
            }
        };
        if !is_valid {
            return Err(Error::precondition(format!("{} is not a valid value of policy setting '{key}'", term(value))));
        }
    }
    Ok(ignored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Overflow;
    use crate::value::Value;

    fn policy(name: &str, pattern: &str, priority: i64, definition: &[(&str, Value)]) -> Policy {
        Policy {
            vhost: "/".into(),
            name: name.into(),
            pattern: pattern.into(),
            apply_to: ApplyTo::All,
            definition: definition.iter().cloned().collect(),
            priority,
        }
    }

    fn declared(entries: &[(&str, Value)]) -> QueueArguments {
        QueueArguments::parse("/", "q", &entries.iter().cloned().collect()).expect("valid")
    }

    #[test]
    fn the_highest_priority_that_matches_is_in_force_alone() {
        let mut policies = Policies::default();
        let ttl = |ms| [("message-ttl", Value::I64(ms))];
        policies.put(policy("low", ".*", 0, &ttl(1))).expect("valid");
        policies.put(policy("high", "^a", 5, &ttl(2))).expect("valid");
        policies
            .put(Policy { apply_to: ApplyTo::Exchanges, ..policy("x", ".*", 9, &[("alternate-exchange", Value::str("ae"))]) })
            .expect("valid");
        let of = |policies: &Policies, name: &str, subject| policies.of(name, subject).map(|p| p.name.to_string());
        let queue = Subject::Queue(QueueType::Classic);
        assert_eq!(of(&policies, "abc", queue).as_deref(), Some("high"));
        assert_eq!(of(&policies, "cba", queue).as_deref(), Some("low"));
        assert_eq!(of(&policies, "abc", Subject::Exchange).as_deref(), Some("x"));
        assert_eq!(alternate_exchange(policies.of("abc", Subject::Exchange), None), Some("ae"));
        assert!(policies.delete("low").is_some() && policies.delete("low").is_none());
        assert_eq!(of(&policies, "cba", queue), None);
    }

    #[test]
    fn policies_with_keys_of_another_type_leave_a_queue_alone() {
        let limit = policy("p", ".*", 0, &[("delivery-limit", Value::I64(3)), ("dead-letter-exchange", Value::str("d"))]);
        assert!(!limit.is_for(Subject::Queue(QueueType::Classic)) && limit.is_for(Subject::Queue(QueueType::Quorum)));
        let on_purpose = Policy { apply_to: ApplyTo::ClassicQueues, ..limit };
        assert!(on_purpose.is_for(Subject::Queue(QueueType::Classic)) && !on_purpose.is_for(Subject::Queue(QueueType::Quorum)));
        let stream = Policy { apply_to: ApplyTo::Streams, ..policy("s", ".*", 0, &[("max-age", Value::str("1D"))]) };
        assert!(!stream.is_for(Subject::Queue(QueueType::Classic)) && !stream.is_for(Subject::Exchange));
    }

    #[test]
    fn numbers_take_the_lower_and_all_else_the_argument() {
        let users = policy(
            "u",
            ".*",
            0,
            &[
                ("message-ttl", Value::I64(500)),
                ("max-length", Value::I64(10)),
                ("overflow", Value::str("reject-publish")),
                ("dead-letter-exchange", Value::str("policy")),
                ("expires", Value::I64(1000)),
            ],
        );
        let queue = declared(&[
            ("x-message-ttl", Value::I64(100)),
            ("x-max-length", Value::I64(20)),
            ("x-overflow", Value::str("drop-head")),
            ("x-dead-letter-exchange", Value::str("argument")),
            ("x-max-priority", Value::I64(5)),
            ("x-single-active-consumer", Value::Bool(true)),
        ]);
        let now = effective(&queue, Some(&users), None);
        assert_eq!((now.message_ttl_ms, now.max_length, now.expires_ms), (Some(100), Some(10), Some(1000)));
        assert_eq!((now.overflow(), now.dead_letter_exchange.as_deref()), (Overflow::DropHead, Some("argument")));
        assert_eq!((now.max_priority, now.single_active_consumer), (Some(5), true));
        assert_eq!(effective(&queue, None, None), queue);

        let operators = policy("o", ".*", 0, &[("max-length", Value::I64(5)), ("overflow", Value::str("drop-head"))]);
        let now = effective(&declared(&[]), Some(&users), Some(&operators));
        assert_eq!((now.max_length, now.overflow()), (Some(5), Overflow::DropHead));
    }

    #[test]
    fn quorum_queues_obey_a_policys_overflow_and_any_limit_beats_none() {
        let queue = declared(&[
            ("x-queue-type", Value::str("quorum")),
            ("x-overflow", Value::str("drop-head")),
            ("x-delivery-limit", Value::I64(-1)),
        ]);
        let users = policy("u", ".*", 0, &[("overflow", Value::str("reject-publish")), ("delivery-limit", Value::I64(7))]);
        let now = effective(&queue, Some(&users), None);
        assert_eq!((now.overflow(), now.delivery_limit()), (Overflow::RejectPublish, Some(7)));
        let less = policy("o", ".*", 0, &[("delivery-limit", Value::I64(3))]);
        assert_eq!(effective(&queue, Some(&users), Some(&less)).delivery_limit(), Some(3));
        assert_eq!(effective(&queue, None, None).delivery_limit(), None);
    }

    #[test]
    fn definitions_are_checked_and_unknown_keys_named() {
        let check = |entries: &[(&str, Value)]| validate(&entries.iter().cloned().collect()).map_err(|e| e.text);
        assert_eq!(check(&[]), Err("no policy provided".into()));
        assert_eq!(check(&[("ha-mode", Value::str("all")), ("max-length", Value::I64(0))]), Ok(vec!["ha-mode".into()]));
        for (key, value) in [
            ("message-ttl", Value::I64(-1)),
            ("expires", Value::I64(0)),
            ("overflow", Value::str("explode")),
            ("max-length", Value::str("5")),
            ("dead-letter-exchange", Value::Bool(true)),
        ] {
            assert!(check(&[(key, value)]).is_err(), "{key}");
        }
        assert!(check(&[("expires", Value::I64(1)), ("expires", Value::I64(2))]).is_err());
        let mut policies = Policies::default();
        assert!(policies.put(policy("p", "(", 0, &[("expires", Value::I64(1))])).is_err());
    }

    #[test]
    fn a_policy_reads_as_rabbitmq_writes_it() {
        let json =
            r#"{"vhost":"/","name":"p","pattern":"^a","apply-to":"classic_queues","definition":{"max-length":5},"priority":1}"#;
        let policy: Policy = serde_json::from_str(json).expect("valid");
        assert_eq!((policy.apply_to, policy.priority), (ApplyTo::ClassicQueues, 1));
        assert_eq!(serde_json::to_string(&policy).expect("written"), json);
    }
}
