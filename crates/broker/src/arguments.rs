//! What arguments may say, and when two declarations of the same thing agree.

pub mod consumer;
pub mod queue;
mod term;

pub use consumer::ConsumerArguments;
pub use queue::{DeadLetterStrategy, DelayedRetry, Durability, Overflow, QueueArguments, QueueType};
pub use term::term;

use crate::error::{Error, Result};
use crate::value::{Table, Value};

/// Checks that a declaration with the arguments `received` means the thing that exists with `existing`, as far as `names` go:
/// arguments that nobody reads may differ. `resource` is the thing as texts name it (`queue 'q' in vhost '/'`).
pub fn equivalent<'a>(
    existing: &Table,
    received: &Table,
    resource: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    for name in names {
        let (text_received, text_current) = match (received.get(name), existing.get(name)) {
            (None, None) => continue,
            (Some(received), Some(existing)) if same_argument(existing, received) => continue,
            (Some(received), Some(existing)) => (quoted(received), quoted(existing)),
            (Some(received), None) => (with_type(received), "none".into()),
            (None, Some(existing)) => ("none".into(), with_type(existing)),
        };
        return Err(inequivalent(name, resource, &text_received, &text_current));
    }
    Ok(())
}

/// The same for a property that every declaration states, such as `durable`.
pub fn equivalent_property<T: PartialEq + std::fmt::Display>(
    existing: T,
    received: T,
    resource: &str,
    name: &str,
) -> Result<()> {
    if existing == received {
        return Ok(());
    }
    Err(inequivalent(name, resource, &format!("'{received}'"), &format!("'{existing}'")))
}

fn inequivalent(name: &str, resource: &str, received: &str, current: &str) -> Error {
    Error::precondition(format!("inequivalent arg '{name}' for {resource}: received {received} but current is {current}"))
}

/// Integers by value whatever their width; anything else by type and content.
fn same_argument(a: &Value, b: &Value) -> bool {
    match (a.as_integer(), b.as_integer()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn quoted(value: &Value) -> String {
    format!("'{}'", plain(value))
}

fn with_type(value: &Value) -> String {
    format!("the value '{}' of type '{}'", plain(value), value.type_name())
}

/// Strings bare, all else as a term.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| term(value), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, Value)]) -> Table {
        entries.iter().cloned().collect()
    }

    #[test]
    fn declarations_agree_by_value_and_disagree_in_rabbitmqs_words() {
        let q = "queue 'q' in vhost '/'";
        let check = |existing: &[(&str, Value)], received: &[(&str, Value)]| {
            equivalent(&table(existing), &table(received), q, ["x-a"]).map_err(|e| e.text)
        };
        assert_eq!(check(&[("x-a", Value::I32(10))], &[("x-a", Value::I64(10))]), Ok(()));
        assert_eq!(check(&[("x-b", Value::I32(10))], &[("x-c", Value::I64(11))]), Ok(()));
        assert_eq!(
            check(&[], &[("x-a", Value::I32(10))]).unwrap_err(),
            "inequivalent arg 'x-a' for queue 'q' in vhost '/': received the value '10' of type 'signedint' but current is none"
        );
        assert_eq!(
            check(&[("x-a", Value::str("on"))], &[]).unwrap_err(),
            "inequivalent arg 'x-a' for queue 'q' in vhost '/': received none but current is the value 'on' of type 'longstr'"
        );
        assert_eq!(
            check(&[("x-a", Value::I32(10))], &[("x-a", Value::str("11"))]).unwrap_err(),
            "inequivalent arg 'x-a' for queue 'q' in vhost '/': received '11' but current is '10'"
        );
        assert_eq!(
            equivalent_property(false, true, q, "durable").unwrap_err().text,
            "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'"
        );
    }
}
