//! The history of a dead-lettered message: where it died, why and how often.
//!
//! It is kept in the message's annotations, in entries that have the names and form of the headers that consumers see, so that a
//! protocol can lay them over the publisher's headers as they are:
//!
//! ```text
//! x-death: array of tables, the latest first, one for each pair of queue and reason
//!     original-expiration: text, if the message had one | count: long | reason, queue: text | time: timestamp of the first
//!     | exchange: text | routing-keys: array of text
//! x-first-death-reason, x-first-death-queue, x-first-death-exchange: of the first death, never changed
//! x-last-death-reason, x-last-death-queue, x-last-death-exchange: of the latest
//! ```
//!
//! What a publisher itself writes under these names is never read as history.

use crate::limits::DEATHS_MAX;
use crate::value::{Table, Value};

/// Why a queue gave a message up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeathReason {
    Expired,
    Rejected,
    MaxLength,
    DeliveryLimit,
}

/// One death, of a message that came to `queue` through `exchange`.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    pub queue: &'a str,
    pub reason: DeathReason,
    pub exchange: &'a str,
    /// Those of CC included, those of BCC not.
    pub routing_keys: &'a [&'a str],
    pub time_s: u64,
    /// What the publisher wrote; dead-lettering takes it away.
    pub original_expiration: Option<&'a str>,
    /// How many deaths this is: 1.
    pub count: u64,
}

const DEATHS: &str = "x-death";

/// The annotations after a death: `previous` with it added. Entries that are not of the history stay.
pub fn record(previous: &Table, death: &Death) -> Table {
    let mut annotations = previous.clone();
    let mut deaths = match annotations.get(DEATHS) {
        Some(Value::Array(deaths)) => deaths.clone(),
        _ => Vec::new(),
    };
    let of_this = |entry: &Value| is_of(entry, "queue", death.queue) && is_of(entry, "reason", death.reason.name());
    let entry = match deaths.iter().position(of_this) {
        Some(at) => counted(deaths.remove(at), death.count),
        None => new_entry(death),
    };
    deaths.insert(0, entry);
    deaths.truncate(DEATHS_MAX);
    annotations.set(DEATHS, Value::Array(deaths));
    if annotations.get("x-first-death-reason").is_none() {
        annotations.set("x-first-death-reason", Value::str(death.reason.name()));
        annotations.set("x-first-death-queue", Value::str(death.queue));
        annotations.set("x-first-death-exchange", Value::str(death.exchange));
    }
    annotations.set("x-last-death-reason", Value::str(death.reason.name()));
    annotations.set("x-last-death-queue", Value::str(death.queue));
    annotations.set("x-last-death-exchange", Value::str(death.exchange));
    annotations
}

/// Whether a message with this history (the death at hand included) is to be dropped instead of going to the queue: it has been
/// there, and since then no client has rejected it, so nothing would ever end its way.
pub fn is_cycle(annotations: &Table, target_queue: &str) -> bool {
    let Some(Value::Array(deaths)) = annotations.get(DEATHS) else { return false };
    let was_there = deaths.iter().position(|death| is_of(death, "queue", target_queue));
    let since = match was_there {
        Some(at) => &deaths[..=at],
        None if deaths.len() >= DEATHS_MAX => &deaths[..],
        None => return false,
    };
    !since.iter().any(|death| is_of(death, "reason", DeathReason::Rejected.name()))
}

impl DeathReason {
    pub fn name(self) -> &'static str {
        match self {
            DeathReason::Expired => "expired",
            DeathReason::Rejected => "rejected",
            DeathReason::MaxLength => "maxlen",
            DeathReason::DeliveryLimit => "delivery_limit",
        }
    }
}

fn new_entry(death: &Death) -> Value {
    let mut entry = Table::default();
    if let Some(expiration) = death.original_expiration {
        entry.push("original-expiration", Value::str(expiration));
    }
    entry.push("count", Value::I64(i64::try_from(death.count).unwrap_or(i64::MAX)));
    entry.push("reason", Value::str(death.reason.name()));
    entry.push("queue", Value::str(death.queue));
    entry.push("time", Value::Timestamp(death.time_s));
    entry.push("exchange", Value::str(death.exchange));
    entry.push("routing-keys", Value::Array(death.routing_keys.iter().map(Value::str).collect()));
    Value::Table(entry)
}

/// All else stays as it was at the first death of this kind.
fn counted(entry: Value, more: u64) -> Value {
    let Value::Table(mut entry) = entry else { return entry };
    let count = entry.get("count").and_then(Value::as_integer).unwrap_or(0);
    entry.set("count", Value::I64(count.saturating_add_unsigned(more)));
    Value::Table(entry)
}

fn is_of(entry: &Value, field: &str, text: &str) -> bool {
    let Value::Table(entry) = entry else { return false };
    matches!(entry.get(field), Some(Value::Str(bytes)) if **bytes == *text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeathReason::{DeliveryLimit, Expired, MaxLength, Rejected};

    fn die(history: &Table, queue: &str, reason: DeathReason) -> Table {
        record(
            history,
            &Death { queue, reason, exchange: "x", routing_keys: &["k", "cc"], time_s: 7, original_expiration: None, count: 1 },
        )
    }

    fn history(deaths: &[(&str, DeathReason)]) -> Table {
        deaths.iter().fold(Table::default(), |history, (queue, reason)| die(&history, queue, *reason))
    }

    fn summary(history: &Table) -> Vec<(String, i64)> {
        let Some(Value::Array(deaths)) = history.get(DEATHS) else { return vec![] };
        let text = |t: &Table, name: &str| t.get(name).and_then(Value::as_str).unwrap_or("?").to_string();
        let line = |death: &Value| match death {
            Value::Table(t) => (
                format!("{} {}", text(t, "queue"), text(t, "reason")),
                t.get("count").and_then(Value::as_integer).unwrap_or(-1),
            ),
            _ => ("no table".into(), -1),
        };
        deaths.iter().map(line).collect()
    }

    #[test]
    fn the_first_death_writes_everything_in_rabbitmqs_order() {
        let death = Death {
            queue: "q",
            reason: Expired,
            exchange: "",
            routing_keys: &["q"],
            time_s: 1_700_000_000,
            original_expiration: Some("1000"),
            count: 1,
        };
        let annotations = record(&Table::default(), &death);
        let entry: Table = [
            ("original-expiration", Value::str("1000")),
            ("count", Value::I64(1)),
            ("reason", Value::str("expired")),
            ("queue", Value::str("q")),
            ("time", Value::Timestamp(1_700_000_000)),
            ("exchange", Value::str("")),
            ("routing-keys", Value::Array(vec![Value::str("q")])),
        ]
        .into_iter()
        .collect();
        assert_eq!(annotations.get("x-death"), Some(&Value::Array(vec![Value::Table(entry)])));
        for which in ["first", "last"] {
            assert_eq!(annotations.get(&format!("x-{which}-death-reason")), Some(&Value::str("expired")));
            assert_eq!(annotations.get(&format!("x-{which}-death-queue")), Some(&Value::str("q")));
            assert_eq!(annotations.get(&format!("x-{which}-death-exchange")), Some(&Value::str("")));
        }
    }

    #[test]
    fn deaths_of_one_queue_and_reason_are_counted_and_the_latest_comes_first() {
        let annotations =
            history(&[("work", Rejected), ("wait", Expired), ("work", Rejected), ("work", MaxLength), ("wait", Expired)]);
        assert_eq!(summary(&annotations), [("wait expired".into(), 2), ("work maxlen".into(), 1), ("work rejected".into(), 2)]);
        assert_eq!(annotations.get("x-first-death-queue"), Some(&Value::str("work")));
        assert_eq!(annotations.get("x-first-death-reason"), Some(&Value::str("rejected")));
        assert_eq!(annotations.get("x-last-death-queue"), Some(&Value::str("wait")));
    }

    #[test]
    fn what_the_first_death_saw_stays_when_it_is_counted_again() {
        let first = record(
            &Table::default(),
            &Death {
                queue: "q",
                reason: Expired,
                exchange: "a",
                routing_keys: &["k"],
                time_s: 1,
                original_expiration: Some("5"),
                count: 1,
            },
        );
        let again = record(
            &first,
            &Death {
                queue: "q",
                reason: Expired,
                exchange: "b",
                routing_keys: &["l"],
                time_s: 2,
                original_expiration: None,
                count: 1,
            },
        );
        let Some(Value::Array(deaths)) = again.get(DEATHS) else { panic!("no history") };
        let Value::Table(entry) = &deaths[0] else { panic!("no table") };
        assert_eq!(entry.get("time"), Some(&Value::Timestamp(1)));
        assert_eq!(entry.get("exchange"), Some(&Value::str("a")));
        assert_eq!(entry.get("original-expiration"), Some(&Value::str("5")));
        assert_eq!(entry.get("count"), Some(&Value::I64(2)));
        assert_eq!(again.get("x-last-death-exchange"), Some(&Value::str("b")));
    }

    #[test]
    fn a_circle_that_no_client_is_part_of_ends() {
        assert!(!is_cycle(&Table::default(), "q"));
        assert!(is_cycle(&history(&[("q", Expired)]), "q"), "back to itself");
        assert!(!is_cycle(&history(&[("q", Expired)]), "other"));
        assert!(is_cycle(&history(&[("a", Expired), ("b", MaxLength), ("c", DeliveryLimit)]), "a"));
        assert!(!is_cycle(&history(&[("work", Rejected), ("wait", Expired)]), "work"), "a retry ladder goes on for ever");
        assert!(!is_cycle(&history(&[("work", Rejected)]), "work"));
        assert!(!is_cycle(&history(&[("a", Expired), ("b", Rejected), ("c", Expired)]), "a"));
        assert!(is_cycle(&history(&[("b", Rejected), ("a", Expired), ("c", Expired)]), "a"), "rejected before, not since");
        // Of two deaths in one queue the later one decides.
        assert!(is_cycle(&history(&[("a", Rejected), ("a", Expired)]), "a"));
    }

    #[test]
    fn a_history_ends_somewhere() {
        let mut annotations = Table::default();
        for n in 0..DEATHS_MAX + 10 {
            let reason = if n < 20 { Rejected } else { Expired };
            annotations = die(&annotations, &format!("q{n}"), reason);
        }
        assert_eq!(summary(&annotations).len(), DEATHS_MAX);
        assert!(!is_cycle(&annotations, "new"), "a client was part of it");
        for n in 0..20 {
            annotations = die(&annotations, &format!("more{n}"), Expired);
        }
        assert!(is_cycle(&annotations, "new"));
    }

    #[test]
    fn foreign_annotations_stay_and_damaged_ones_do_no_harm() {
        let odd: Table = [("mine", Value::I8(1)), (DEATHS, Value::Array(vec![Value::Void]))].into_iter().collect();
        let annotations = die(&odd, "q", Expired);
        assert_eq!(annotations.get("mine"), Some(&Value::I8(1)));
        assert!(is_cycle(&annotations, "q"));
        assert!(!is_cycle(&[(DEATHS, Value::Bool(true))].into_iter().collect(), "q"));
    }
}
