//! Every argument of a queue in one table: its name, what it is for, which types of queue take it, what it may say and what it
//! sets. A new argument is a new entry in [`ARGUMENTS`].

use super::{equivalent, term};
use crate::dedup::Deduplication;
use crate::error::{Error, Result};
use crate::limits::{DELAYED_RETRY_MS_DEFAULT, PRIORITY_MAX, QUORUM_DELIVERY_LIMIT_DEFAULT, TTL_MS_MAX};
use crate::value::{Table, Value};

/// What a queue was told to do, typed. A field is `None` where nothing was said: a policy may say it then.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct QueueArguments {
    pub queue_type: QueueType,
    /// 0: expired unless a consumer takes it at once.
    pub message_ttl_ms: Option<u64>,
    pub expires_ms: Option<u64>,
    pub max_length: Option<u64>,
    pub max_length_bytes: Option<u64>,
    pub overflow: Option<Overflow>,
    pub dead_letter_exchange: Option<Box<str>>,
    pub dead_letter_routing_key: Option<Box<str>>,
    pub dead_letter_strategy: Option<DeadLetterStrategy>,
    pub max_priority: Option<u8>,
    pub single_active_consumer: bool,
    /// How often a message may come back as failed; negative: any number of times. See
    /// [`delivery_limit`](QueueArguments::delivery_limit).
    pub delivery_limit: Option<i64>,
    /// How often a delivered message may come back at all.
    pub max_retries: Option<u32>,
    pub consumer_timeout_ms: Option<u64>,
    pub durability: Option<Durability>,
    pub deduplication: Option<Deduplication>,
    pub delayed_retry: Option<DelayedRetry>,
    pub delayed_retry_min_ms: Option<u64>,
    pub delayed_retry_max_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum QueueType {
    #[default]
    Classic,
    Quorum,
}

/// What happens to a message for which there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Overflow {
    /// The oldest ready message goes (and is dead-lettered).
    #[default]
    DropHead,
    RejectPublish,
    /// Refused, and dead-lettered too.
    RejectPublishDlx,
}

/// What a durable queue's confirm waits for. It changes when the answer goes, never what is written. The weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Durability {
    /// For nothing: the message is handed to the journal, which is in no hurry with it (100 ms).
    Os,
    /// For nothing either, but it is on disk after 20 ms.
    Interval,
    /// For the disk.
    #[default]
    Fsync,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum DeadLetterStrategy {
    #[default]
    AtMostOnce,
    AtLeastOnce,
}

/// Which returned messages wait before they are delivered again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DelayedRetry {
    Disabled,
    All,
    Failed,
    Returned,
}

/// One argument. `check` answers with the reason of a refusal as RabbitMQ prints it; `set` is called with what it let pass.
pub struct Argument {
    pub name: &'static str,
    pub doc: &'static str,
    takes: Takes,
    check: fn(&Value, &Table) -> std::result::Result<(), String>,
    set: fn(&mut QueueArguments, &Value),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Both,
    Classic,
    Quorum,
    /// Known, and refused: it belongs to a type that isn't there.
    Neither,
}

/// In the order in which they are checked. The type comes before all others, since it decides which of them count.
pub static ARGUMENTS: [Argument; 35] = [
    Argument {
        name: "x-expires",
        doc: "Milliseconds without use after which the queue deletes itself.",
        takes: Takes::Both,
        check: |value, _| match integer(value)? {
            0 => Err("{value_zero,0}".into()),
            ms => ttl(ms),
        },
        set: |queue, value| queue.expires_ms = unsigned(value),
    },
    Argument {
        name: "x-message-ttl",
        doc: "Milliseconds that a message may wait; its own expiration counts if it is shorter.",
        takes: Takes::Both,
        check: |value, _| ttl(integer(value)?),
        set: |queue, value| queue.message_ttl_ms = unsigned(value),
    },
    Argument {
        name: "x-dead-letter-exchange",
        doc: "The exchange to which rejected, expired and dropped messages go.",
        takes: Takes::Both,
        check: |value, _| text(value).map(|_| ()),
        set: |queue, value| queue.dead_letter_exchange = value.as_str().map(Into::into),
    },
    Argument {
        name: "x-dead-letter-routing-key",
        doc: "The key under which they go there, instead of their own.",
        takes: Takes::Both,
        check: |value, all| match (text(value)?, all.get("x-dead-letter-exchange")) {
            (_, None) => Err("routing_key_but_no_dlx_defined".into()),
            (_, Some(_)) => Ok(()),
        },
        set: |queue, value| queue.dead_letter_routing_key = value.as_str().map(Into::into),
    },
    Argument {
        name: "x-dead-letter-strategy",
        doc: "`at-least-once` (with `x-overflow` `reject-publish`): a dead letter that reaches no queue stays, and is tried again.",
        takes: Takes::Quorum,
        check: |value, _| one_of(value, &["at-most-once", "at-least-once"], "invalid_dlx_strategy"),
        set: |queue, value| {
            queue.dead_letter_strategy = match value.as_str() {
                Some("at-least-once") => Some(DeadLetterStrategy::AtLeastOnce),
                _ => Some(DeadLetterStrategy::AtMostOnce),
            }
        },
    },
    Argument {
        name: "x-max-length",
        doc: "Most ready messages.",
        takes: Takes::Both,
        check: |value, _| not_negative(value).map(|_| ()),
        set: |queue, value| queue.max_length = unsigned(value),
    },
    Argument {
        name: "x-max-length-bytes",
        doc: "Most bytes of bodies of ready messages.",
        takes: Takes::Both,
        check: |value, _| not_negative(value).map(|_| ()),
        set: |queue, value| queue.max_length_bytes = unsigned(value),
    },
    ignored("x-max-in-memory-length", Takes::Quorum, |value, _| not_negative(value).map(|_| ())),
    ignored("x-max-in-memory-bytes", Takes::Quorum, |value, _| not_negative(value).map(|_| ())),
    Argument {
        name: "x-max-priority",
        doc: "Highest priority; messages above it count as having it.",
        takes: Takes::Classic,
        check: |value, _| match not_negative(value)? {
            priority if priority > PRIORITY_MAX => Err(format!("{{max_value_exceeded,{priority}}}")),
            _ => Ok(()),
        },
        set: |queue, value| queue.max_priority = unsigned(value).map(|priority| priority as u8),
    },
    Argument {
        name: "x-overflow",
        doc: "What happens when there is no room: `drop-head`, `reject-publish`, `reject-publish-dlx`.",
        takes: Takes::Both,
        check: |value, _| one_of(value, &["drop-head", "reject-publish", "reject-publish-dlx"], "invalid_overflow"),
        set: |queue, value| {
            queue.overflow = match value.as_str() {
                Some("reject-publish") => Some(Overflow::RejectPublish),
                Some("reject-publish-dlx") => Some(Overflow::RejectPublishDlx),
                _ => Some(Overflow::DropHead),
            }
        },
    },
    ignored("x-queue-version", Takes::Classic, |value, _| match not_negative(value)? {
        1 | 2 => Ok(()),
        version => Err(format!("\"unsupported queue version '{version}'\"")),
    }),
    Argument {
        name: "x-single-active-consumer",
        doc: "One consumer at a time gets the messages, the next one when it goes.",
        takes: Takes::Both,
        check: |value, _| boolean(value),
        set: |queue, value| queue.single_active_consumer = value.as_bool() == Some(true),
    },
    Argument {
        name: "x-consumer-timeout",
        doc: "Milliseconds that a consumer may hold a message; 0: any time.",
        takes: Takes::Both,
        check: |value, _| not_negative(value).map(|_| ()),
        set: |queue, value| queue.consumer_timeout_ms = unsigned(value).filter(|ms| *ms > 0),
    },
    Argument {
        name: "x-durability",
        doc: "When a publisher hears that its message is safe: `fsync`, `interval` or `os`.",
        takes: Takes::Both,
        check: |value, _| one_of(value, &["fsync", "interval", "os"], "unknown_durability"),
        set: |queue, value| {
            queue.durability = match value.as_str() {
                Some("interval") => Some(Durability::Interval),
                Some("os") => Some(Durability::Os),
                _ => Some(Durability::Fsync),
            }
        },
    },
    ignored("x-consumer-disconnected-timeout", Takes::Quorum, |value, _| not_negative(value).map(|_| ())),
    ignored("x-queue-type", Takes::Both, |value, _| queue_type(value).map(|_| ())),
    ignored("x-quorum-initial-group-size", Takes::Quorum, |value, _| positive(value)),
    ignored("x-max-age", Takes::Neither, |_, _| Ok(())),
    ignored("x-stream-max-segment-size-bytes", Takes::Neither, |_, _| Ok(())),
    ignored("x-stream-filter-size-bytes", Takes::Neither, |_, _| Ok(())),
    ignored("x-initial-cluster-size", Takes::Neither, |_, _| Ok(())),
    ignored("x-queue-leader-locator", Takes::Both, |value, _| {
        let known = ["client-local", "balanced", "random", "least-leaders", "min-masters"];
        one_of(value, &known, "invalid_queue_locator_arg")
    }),
    ignored("x-member-placement-tag", Takes::Quorum, |value, _| match text(value)? {
        "" => Err("invalid_member_placement_tag_arg".into()),
        _ => Ok(()),
    }),
    Argument {
        name: "x-delivery-limit",
        doc: "How often a message may be returned as failed before it is dead-lettered; negative: any number of times.",
        takes: Takes::Both,
        check: |value, _| integer(value).map(|_| ()),
        set: |queue, value| queue.delivery_limit = value.as_integer(),
    },
    Argument {
        name: "x-max-retries",
        doc: "How often a delivered message may come back, in whatever way, before it is dead-lettered.",
        takes: Takes::Both,
        check: |value, _| not_negative(value).map(|_| ()),
        set: |queue, value| queue.max_retries = unsigned(value).map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
    },
    Argument {
        name: "x-delayed-retry-type",
        doc: "Which returned messages wait before the next delivery: `disabled`, `all`, `failed`, `returned`.",
        takes: Takes::Quorum,
        check: |value, _| one_of(value, &["disabled", "all", "failed", "returned"], "invalid_delayed_retry_type"),
        set: |queue, value| {
            queue.delayed_retry = match value.as_str() {
                Some("all") => Some(DelayedRetry::All),
                Some("failed") => Some(DelayedRetry::Failed),
                Some("returned") => Some(DelayedRetry::Returned),
                _ => Some(DelayedRetry::Disabled),
            }
        },
    },
    Argument {
        name: "x-delayed-retry-min",
        doc: "Milliseconds of the first wait; each further one is longer by as much.",
        takes: Takes::Quorum,
        check: |value, _| positive(value).and_then(|()| ttl(integer(value)?)),
        set: |queue, value| queue.delayed_retry_min_ms = unsigned(value),
    },
    Argument {
        name: "x-delayed-retry-max",
        doc: "Milliseconds of the longest wait.",
        takes: Takes::Quorum,
        check: |value, _| positive(value).and_then(|()| ttl(integer(value)?)),
        set: |queue, value| queue.delayed_retry_max_ms = unsigned(value),
    },
    ignored("x-queue-mode", Takes::Classic, |_, _| Ok(())),
    ignored("x-queue-master-locator", Takes::Classic, |_, _| Ok(())),
    Argument {
        name: "x-message-deduplication",
        doc: "Drop messages whose `x-deduplication-header` was seen lately; needs no plugin.",
        takes: Takes::Both,
        check: |_, all| Deduplication::of(all).map(|_| ()).map_err(|error| format!("{:?}", error.text)),
        set: |_, _| {},
    },
    ignored("x-cache-size", Takes::Both, |_, _| Ok(())),
    ignored("x-cache-ttl", Takes::Both, |_, _| Ok(())),
    ignored("x-deduplication-header", Takes::Both, |_, _| Ok(())),
];

const fn ignored(name: &'static str, takes: Takes, check: fn(&Value, &Table) -> std::result::Result<(), String>) -> Argument {
    Argument { name, doc: "Known and checked; changes nothing by itself.", takes, check, set: |_, _| {} }
}

impl QueueArguments {
    /// Checks what a client declares a new queue with.
    pub fn parse(vhost: &str, queue: &str, arguments: &Table) -> Result<QueueArguments> {
        let resource = format!("queue '{queue}' in vhost '{vhost}'");
        let invalid = |name: &str, why: String| Error::precondition(format!("invalid arg '{name}' for {resource}: {why}"));
        let queue_type = match arguments.get("x-queue-type") {
            None => QueueType::Classic,
            Some(value) => queue_type(value).map_err(|why| invalid("x-queue-type", why))?,
        };
        let mut parsed = QueueArguments { queue_type, ..QueueArguments::default() };
        for argument in ARGUMENTS.iter().filter(|a| a.takes.is_taken_by(queue_type)) {
            if let Some(value) = arguments.get(argument.name) {
                (argument.check)(value, arguments).map_err(|why| invalid(argument.name, why))?;
                (argument.set)(&mut parsed, value);
            }
        }
        let refused = |name: &str| ARGUMENTS.iter().any(|a| a.name == name && !a.takes.is_taken_by(queue_type));
        if let Some((name, _)) = arguments.0.iter().find(|(name, _)| refused(name)) {
            let text = format!("invalid arg '{name}' for {resource} of queue type {}", queue_type.module());
            return Err(Error::precondition(text));
        }
        parsed.deduplication = Deduplication::of(arguments)?;
        Ok(parsed)
    }

    /// Whether the queue that was declared with `existing` is the one that `received` describes. Only arguments that its type
    /// takes are compared.
    pub fn equivalent(vhost: &str, queue: &str, existing: &Table, received: &Table) -> Result<()> {
        let resource = format!("queue '{queue}' in vhost '{vhost}'");
        // A missing type is `classic`, said or not.
        let typed = |table: &Table| {
            let mut table = table.clone();
            if table.get("x-queue-type").and_then(Value::as_str).is_none_or(|name| name.is_empty()) {
                table.set("x-queue-type", Value::str("classic"));
            }
            table
        };
        let existing = typed(existing);
        let queue_type = existing.get("x-queue-type").and_then(|value| queue_type(value).ok()).unwrap_or_default();
        let names = ARGUMENTS.iter().filter(|a| a.takes.is_taken_by(queue_type)).map(|a| a.name);
        equivalent(&existing, &typed(received), &resource, names)
    }

    /// Sets what a policy's key says, the key being the argument's name without `x-`; `false` where it is nothing that a queue
    /// of this type takes.
    pub fn set_from_policy(&mut self, key: &str, value: &Value) -> bool {
        let is_named = |argument: &&Argument| argument.name.strip_prefix("x-") == Some(key);
        let Some(argument) = ARGUMENTS.iter().find(is_named) else { return false };
        if !argument.takes.is_taken_by(self.queue_type) {
            return false;
        }
        // Of what a check may want beside the value, only the dead letter exchange comes from elsewhere.
        let beside = [("x-dead-letter-exchange", Value::str(""))].into_iter().collect();
        if (argument.check)(value, &beside).is_ok() {
            (argument.set)(self, value);
        }
        true
    }

    pub fn overflow(&self) -> Overflow {
        match (self.overflow, self.queue_type) {
            // Accepted and not followed, as in RabbitMQ.
            (Some(Overflow::RejectPublishDlx), QueueType::Quorum) | (None, _) => Overflow::DropHead,
            (Some(overflow), _) => overflow,
        }
    }

    /// How long a message that comes back after so many deliveries has to wait before the next one, in milliseconds.
    pub fn retry_delay_ms(&self, failed: bool, deliveries: u32) -> u64 {
        let waits = match self.delayed_retry {
            None | Some(DelayedRetry::Disabled) => false,
            Some(DelayedRetry::All) => true,
            Some(DelayedRetry::Failed) => failed,
            Some(DelayedRetry::Returned) => !failed,
        };
        let min = self.delayed_retry_min_ms.unwrap_or(DELAYED_RETRY_MS_DEFAULT);
        let wait = min.saturating_mul(deliveries as u64).min(self.delayed_retry_max_ms.unwrap_or(u64::MAX));
        if waits { wait.min(TTL_MS_MAX as u64) } else { 0 }
    }

    /// Whether a dead letter stays until it has reached a queue. As in RabbitMQ only where a full queue refuses: what stays
    /// counts towards its length.
    pub fn dead_letters_at_least_once(&self) -> bool {
        self.dead_letter_strategy == Some(DeadLetterStrategy::AtLeastOnce)
            && self.overflow() == Overflow::RejectPublish
            && self.dead_letter_exchange.is_some()
    }

    /// How often a message may be returned as failed; `None`: any number of times.
    pub fn delivery_limit(&self) -> Option<u32> {
        let limit = match self.queue_type {
            QueueType::Quorum => self.delivery_limit.or(Some(QUORUM_DELIVERY_LIMIT_DEFAULT)),
            QueueType::Classic => self.delivery_limit,
        };
        limit.filter(|limit| *limit >= 0).map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }
}

impl QueueType {
    /// The name of `x-queue-type`.
    pub fn of(name: &str) -> Option<QueueType> {
        match name {
            "classic" => Some(QueueType::Classic),
            "quorum" => Some(QueueType::Quorum),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        }
    }

    /// RabbitMQ's module, which its texts name.
    pub fn module(self) -> &'static str {
        match self {
            QueueType::Classic => "rabbit_classic_queue",
            QueueType::Quorum => "rabbit_quorum_queue",
        }
    }

    /// Whether a new queue of this type may have these properties. `resource` is the queue as texts name it.
    pub fn check_properties(self, resource: &str, durable: bool, exclusive: bool, auto_delete: bool) -> Result<()> {
        let property = match self {
            QueueType::Classic => return Ok(()),
            QueueType::Quorum if auto_delete => "auto-delete",
            QueueType::Quorum if exclusive => "exclusive-owner",
            QueueType::Quorum if !durable => "non-durable",
            QueueType::Quorum => return Ok(()),
        };
        Err(Error::precondition(format!("invalid property '{property}' for {resource}")))
    }

    /// Whether the broker may choose the name.
    pub fn check_server_named(self) -> Result<()> {
        match self {
            QueueType::Classic => Ok(()),
            QueueType::Quorum => {
                Err(Error::precondition(format!("Cannot declare a server-named queue for type {}", self.module())))
            }
        }
    }

    /// The type of a queue whose declaration says none, in a vhost with this default: a default that doesn't fit the queue's
    /// properties gives way.
    pub fn default_for(self, durable: bool, exclusive: bool, auto_delete: bool) -> QueueType {
        match self.check_properties("", durable, exclusive, auto_delete) {
            Ok(()) => self,
            Err(_) => QueueType::Classic,
        }
    }
}

impl Takes {
    fn is_taken_by(self, queue_type: QueueType) -> bool {
        match self {
            Takes::Both => true,
            Takes::Classic => queue_type == QueueType::Classic,
            Takes::Quorum => queue_type == QueueType::Quorum,
            Takes::Neither => false,
        }
    }
}

pub(super) type Checked<T> = std::result::Result<T, String>;

pub(super) fn integer(value: &Value) -> Checked<i64> {
    value.as_integer().ok_or_else(|| format!("\"expected integer, got {}\"", value.type_name()))
}

pub(super) fn not_negative(value: &Value) -> Checked<i64> {
    match integer(value)? {
        number if number < 0 => Err(format!("{{value_negative,{number}}}")),
        number => Ok(number),
    }
}

fn positive(value: &Value) -> Checked<()> {
    match not_negative(value)? {
        0 => Err("{value_zero,0}".into()),
        _ => Ok(()),
    }
}

fn ttl(ms: i64) -> Checked<()> {
    match ms {
        ..0 => Err(format!("{{value_negative,{ms}}}")),
        0..=TTL_MS_MAX => Ok(()),
        _ => Err(format!("{{value_too_large,{ms}}}")),
    }
}

fn boolean(value: &Value) -> Checked<()> {
    value.as_bool().map(|_| ()).ok_or_else(|| unacceptable(value))
}

fn text(value: &Value) -> Checked<&str> {
    match value {
        Value::Str(_) => value.as_str().ok_or_else(|| format!("{{invalid_utf8,{}}}", term(value))),
        _ => Err(unacceptable(value)),
    }
}

fn one_of(value: &Value, known: &[&str], otherwise: &str) -> Checked<()> {
    match value {
        Value::Str(_) if value.as_str().is_some_and(|name| known.contains(&name)) => Ok(()),
        Value::Str(_) => Err(otherwise.into()),
        _ => Err(unacceptable(value)),
    }
}

fn queue_type(value: &Value) -> Checked<QueueType> {
    match text(value)? {
        // What some management tools send for «no type».
        "" | "undefined" => Ok(QueueType::Classic),
        name => QueueType::of(name).ok_or_else(|| format!("\"unsupported queue type '{name}'\"")),
    }
}

fn unacceptable(value: &Value) -> String {
    format!("{{unacceptable_type,{}}}", value.type_name())
}

fn unsigned(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|number| u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, Value)]) -> Table {
        entries.iter().cloned().collect()
    }

    fn parse(entries: &[(&str, Value)]) -> std::result::Result<QueueArguments, String> {
        QueueArguments::parse("/", "q", &table(entries)).map_err(|e| e.text)
    }

    fn refused(entries: &[(&str, Value)]) -> String {
        let text = parse(entries).expect_err("refused");
        text.strip_prefix("invalid arg '").expect("says which").replace("' for queue 'q' in vhost '/'", "")
    }

    const QUORUM: fn() -> (&'static str, Value) = || ("x-queue-type", Value::str("quorum"));

    #[test]
    fn refusals_have_rabbitmqs_words() {
        let whole = parse(&[("x-message-ttl", Value::I32(-10))]).expect_err("negative");
        assert_eq!(whole, "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-10}");
        for (name, value, why) in [
            ("x-message-ttl", Value::str("10"), "\"expected integer, got longstr\""),
            ("x-message-ttl", Value::I64(315_360_000_001), "{value_too_large,315360000001}"),
            ("x-expires", Value::I32(0), "{value_zero,0}"),
            ("x-expires", Value::I32(-1), "{value_negative,-1}"),
            ("x-expires", Value::F64(1.0), "\"expected integer, got double\""),
            ("x-max-length", Value::I8(-1), "{value_negative,-1}"),
            ("x-max-length-bytes", Value::Timestamp(1), "\"expected integer, got timestamp\""),
            ("x-max-priority", Value::I32(256), "{max_value_exceeded,256}"),
            ("x-overflow", Value::str("explode"), "invalid_overflow"),
            ("x-overflow", Value::I32(1), "{unacceptable_type,signedint}"),
            ("x-dead-letter-exchange", Value::I32(1), "{unacceptable_type,signedint}"),
            ("x-dead-letter-routing-key", Value::str("k"), "routing_key_but_no_dlx_defined"),
            ("x-single-active-consumer", Value::str("true"), "{unacceptable_type,longstr}"),
            ("x-queue-version", Value::I32(3), "\"unsupported queue version '3'\""),
            ("x-queue-type", Value::str("stream"), "\"unsupported queue type 'stream'\""),
            ("x-queue-type", Value::I32(1), "{unacceptable_type,signedint}"),
            ("x-queue-leader-locator", Value::str("here"), "invalid_queue_locator_arg"),
            ("x-max-retries", Value::I32(-1), "{value_negative,-1}"),
        ] {
            assert_eq!(refused(&[(name, value)]), format!("{name}: {why}"));
        }
        assert_eq!(
            refused(&[QUORUM(), ("x-dead-letter-strategy", Value::str("never"))]),
            "x-dead-letter-strategy: invalid_dlx_strategy"
        );
    }

    #[test]
    fn arguments_of_another_type_are_refused_and_unknown_ones_kept_quiet() {
        let text = parse(&[("x-max-age", Value::str("1D"))]).expect_err("a stream's");
        assert_eq!(text, "invalid arg 'x-max-age' for queue 'q' in vhost '/' of queue type rabbit_classic_queue");
        let text = parse(&[QUORUM(), ("x-max-priority", Value::I32(5))]).expect_err("a classic's");
        assert_eq!(text, "invalid arg 'x-max-priority' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue");
        assert!(parse(&[("x-mine", Value::Void), ("x-queue-mode", Value::str("lazy"))]).is_ok());
        assert!(parse(&[("x-queue-version", Value::I32(1)), ("x-queue-type", Value::str(""))]).is_ok());
    }

    #[test]
    fn each_argument_sets_its_field() {
        let classic = parse(&[
            ("x-message-ttl", Value::I64(0)),
            ("x-expires", Value::U32(1000)),
            ("x-max-length", Value::I8(5)),
            ("x-max-length-bytes", Value::I64(1 << 40)),
            ("x-overflow", Value::str("reject-publish-dlx")),
            ("x-dead-letter-exchange", Value::str("")),
            ("x-dead-letter-routing-key", Value::str("dead")),
            ("x-max-priority", Value::U8(255)),
            ("x-single-active-consumer", Value::Bool(true)),
            ("x-delivery-limit", Value::I32(3)),
            ("x-max-retries", Value::I64(i64::MAX)),
            ("x-consumer-timeout", Value::I32(60_000)),
            ("x-message-deduplication", Value::Bool(true)),
            ("x-cache-size", Value::I32(7)),
        ])
        .expect("all fine");
        assert_eq!((classic.message_ttl_ms, classic.expires_ms), (Some(0), Some(1000)));
        assert_eq!((classic.max_length, classic.max_length_bytes), (Some(5), Some(1 << 40)));
        assert_eq!((classic.overflow(), classic.max_priority), (Overflow::RejectPublishDlx, Some(255)));
        assert_eq!(classic.dead_letter_exchange.as_deref(), Some(""));
        assert_eq!(classic.dead_letter_routing_key.as_deref(), Some("dead"));
        assert!(classic.single_active_consumer);
        assert_eq!((classic.delivery_limit(), classic.max_retries), (Some(3), Some(u32::MAX)));
        assert_eq!(classic.consumer_timeout_ms, Some(60_000));
        assert_eq!(classic.deduplication.expect("asked for").cache_size, 7);

        let quorum = parse(&[QUORUM(), ("x-dead-letter-strategy", Value::str("at-least-once"))]).expect("fine");
        assert_eq!(quorum.dead_letter_strategy, Some(DeadLetterStrategy::AtLeastOnce));
        assert_eq!(quorum.delivery_limit(), Some(20));
        assert_eq!(parse(&[QUORUM(), ("x-delivery-limit", Value::I32(-1))]).expect("fine").delivery_limit(), None);
        assert_eq!(parse(&[]).expect("fine").delivery_limit(), None);
        assert_eq!(parse(&[("x-consumer-timeout", Value::I32(0))]).expect("fine").consumer_timeout_ms, None);
    }

    #[test]
    fn returned_messages_wait_longer_each_time() {
        let waits = |kind: &str, failed, deliveries| {
            let arguments = [
                QUORUM(),
                ("x-delayed-retry-type", Value::str(kind)),
                ("x-delayed-retry-min", Value::I32(100)),
                ("x-delayed-retry-max", Value::I32(250)),
            ];
            parse(&arguments).expect("fine").retry_delay_ms(failed, deliveries)
        };
        assert_eq!([1, 2, 3, u32::MAX].map(|n| waits("all", true, n)), [100, 200, 250, 250]);
        assert_eq!([true, false].map(|failed| waits("failed", failed, 1)), [100, 0]);
        assert_eq!([true, false].map(|failed| waits("returned", failed, 1)), [0, 100]);
        assert_eq!(waits("disabled", true, 1), 0);
        assert_eq!(parse(&[QUORUM(), ("x-delayed-retry-min", Value::I32(100))]).expect("fine").retry_delay_ms(true, 1), 0);
    }

    #[test]
    fn at_least_once_needs_a_queue_that_refuses() {
        let dead = ("x-dead-letter-exchange", Value::str("dlx"));
        let strategy = ("x-dead-letter-strategy", Value::str("at-least-once"));
        let refuses = ("x-overflow", Value::str("reject-publish"));
        let keeps = |entries: &[(&str, Value)]| parse(entries).expect("fine").dead_letters_at_least_once();
        assert!(keeps(&[QUORUM(), dead.clone(), strategy.clone(), refuses.clone()]));
        assert!(!keeps(&[QUORUM(), dead.clone(), strategy.clone()]));
        assert!(!keeps(&[QUORUM(), dead, refuses.clone()]));
        assert!(!keeps(&[QUORUM(), strategy, refuses]));
    }

    #[test]
    fn redeclaring_compares_what_the_type_knows() {
        let check = |existing: &[(&str, Value)], received: &[(&str, Value)]| {
            QueueArguments::equivalent("/", "q", &table(existing), &table(received)).map_err(|e| e.text)
        };
        let classic = ("x-queue-type", Value::str("classic"));
        assert_eq!(check(std::slice::from_ref(&classic), &[("x-mine", Value::I32(1))]), Ok(()));
        assert_eq!(check(&[], &[classic]), Ok(()));
        assert_eq!(
            check(&[QUORUM()], &[]).expect_err("differs"),
            "inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'classic' but current is 'quorum'"
        );
        assert_eq!(
            check(&[], &[("x-max-length", Value::I32(10))]).expect_err("differs"),
            "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
             received the value '10' of type 'signedint' but current is none"
        );
    }

    #[test]
    fn quorum_queues_are_durable_shared_and_named() {
        let check = |durable, exclusive, auto_delete| {
            let resource = "queue 'q' in vhost '/'";
            QueueType::Quorum.check_properties(resource, durable, exclusive, auto_delete).map_err(|e| e.text)
        };
        assert_eq!(check(true, false, false), Ok(()));
        let refused = |name: &str| Err(format!("invalid property '{name}' for queue 'q' in vhost '/'"));
        assert_eq!(check(true, false, true), refused("auto-delete"));
        assert_eq!(check(false, true, false), refused("exclusive-owner"));
        assert_eq!(check(false, false, false), refused("non-durable"));
        assert_eq!(
            QueueType::Quorum.check_server_named().expect_err("unnamed").text,
            "Cannot declare a server-named queue for type rabbit_quorum_queue"
        );
        assert_eq!(QueueType::Quorum.default_for(true, false, false), QueueType::Quorum);
        assert_eq!(QueueType::Quorum.default_for(true, true, false), QueueType::Classic);
    }

    #[test]
    fn every_argument_has_one_entry_and_a_doc() {
        for (n, argument) in ARGUMENTS.iter().enumerate() {
            assert!(argument.doc.ends_with('.'), "{}", argument.name);
            assert!(ARGUMENTS[n + 1..].iter().all(|other| other.name != argument.name), "{}", argument.name);
        }
    }
}
