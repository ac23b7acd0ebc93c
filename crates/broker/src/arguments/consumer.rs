//! What a consumer may say of itself.

use super::queue::{QueueType, integer, not_negative};
use crate::error::{Error, Result};
use crate::value::Table;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ConsumerArguments {
    /// Higher ones first, as long as they have credit; consumers that say nothing have 0.
    pub priority: i64,
    /// Milliseconds that it may hold a message, instead of the queue's; `Some(0)`: any time.
    pub timeout_ms: Option<u64>,
}

/// Of streams; refused on queues.
const STREAM_ONLY: [&str; 3] = ["x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered"];

impl ConsumerArguments {
    pub fn parse(vhost: &str, queue: &str, queue_type: QueueType, arguments: &Table) -> Result<ConsumerArguments> {
        let resource = format!("queue '{queue}' in vhost '{vhost}'");
        let invalid = |name: &str, why: String| Error::precondition(format!("invalid arg '{name}' for {resource}: {why}"));
        let mut parsed = ConsumerArguments::default();
        if let Some(value) = arguments.get("x-priority") {
            parsed.priority = integer(value).map_err(|why| invalid("x-priority", why))?;
        }
        if let Some(value) = arguments.get("x-consumer-timeout") {
            let ms = not_negative(value).map_err(|why| invalid("x-consumer-timeout", why))?;
            parsed.timeout_ms = Some(ms as u64);
        }
        match arguments.0.iter().find(|(name, _)| STREAM_ONLY.contains(&&**name)) {
            Some((name, _)) => {
                let module = queue_type.module();
                Err(Error::precondition(format!("invalid arg '{name}' for {resource} of queue type {module}")))
            }
            None => Ok(parsed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    #[test]
    fn priorities_of_any_width_and_rabbitmqs_refusals() {
        let parse = |name: &str, value: Value| {
            ConsumerArguments::parse("/", "q", QueueType::Classic, &[(name, value)].into_iter().collect()).map_err(|e| e.text)
        };
        assert_eq!(parse("x-priority", Value::I8(-5)).expect("fine").priority, -5);
        assert_eq!(parse("x-consumer-timeout", Value::I64(5)).expect("fine").timeout_ms, Some(5));
        assert!(parse("x-cancel-on-ha-failover", Value::Bool(true)).is_ok());
        assert_eq!(
            parse("x-priority", Value::str("high")).expect_err("no number"),
            "invalid arg 'x-priority' for queue 'q' in vhost '/': \"expected integer, got longstr\""
        );
        assert_eq!(
            parse("x-stream-offset", Value::str("first")).expect_err("no stream"),
            "invalid arg 'x-stream-offset' for queue 'q' in vhost '/' of queue type rabbit_classic_queue"
        );
    }
}
