//! A message goes where its headers fit the binding's arguments (AMQP 0-9-1 §3.1.3.4, with RabbitMQ's four forms of `x-match`).

use super::Found;
use crate::arguments::term;
use crate::error::{Error, Result};
use crate::topology::Target;
use crate::value::{Table, Value};
use std::collections::BTreeMap;

#[derive(Default, Debug)]
pub struct Headers {
    /// By binding: two bindings of one queue differ by their arguments only.
    bindings: BTreeMap<usize, (Target, Match)>,
}

/// What a binding asks of a message.
#[derive(Debug)]
struct Match {
    any: bool,
    /// `None`: the header has to be there, whatever its value.
    wanted: Vec<(Box<str>, Option<Value>)>,
}

impl Headers {
    pub fn bind(&mut self, id: usize, arguments: &Table, target: Target) {
        self.bindings.insert(id, (target, Match::of(arguments)));
    }

    pub fn unbind(&mut self, id: usize) {
        self.bindings.remove(&id);
    }

    pub fn route(&self, headers: &Table, found: &mut Found) {
        for (target, wanted) in self.bindings.values() {
            if wanted.fits(headers) {
                found.add(*target);
            }
        }
    }
}

/// Checks what a client writes into `x-match`.
pub fn validate_binding(arguments: &Table) -> Result<()> {
    let text = match arguments.get("x-match") {
        None => return Ok(()),
        Some(Value::Str(form)) if matches!(&**form, b"all" | b"any" | b"all-with-x" | b"any-with-x") => return Ok(()),
        Some(other @ Value::Str(_)) => {
            format!("Invalid x-match field value {}; expected all, any, all-with-x, or any-with-x", term(other))
        }
        Some(other) => {
            format!("Invalid x-match field type {} (value {}); expected longstr", other.type_name(), term(other))
        }
    };
    Err(Error::precondition(text))
}

impl Match {
    fn of(arguments: &Table) -> Match {
        let form = arguments.get("x-match").and_then(Value::as_str).unwrap_or("all");
        let with_x = form.ends_with("-with-x");
        let wanted = arguments
            .0
            .iter()
            .filter(|(name, _)| if with_x { &**name != "x-match" } else { !name.starts_with("x-") })
            .map(|(name, value)| (name.clone(), (*value != Value::Void).then(|| value.clone())))
            .collect();
        Match { any: form.starts_with("any"), wanted }
    }

    fn fits(&self, headers: &Table) -> bool {
        let fits = |(name, wanted): &(Box<str>, Option<Value>)| {
            // Of a header that comes twice the last one counts.
            let header = headers.0.iter().rev().find(|(n, _)| n == name);
            header.is_some_and(|(_, value)| wanted.as_ref().is_none_or(|wanted| same(value, wanted)))
        };
        if self.any { self.wanted.iter().any(fits) } else { self.wanted.iter().all(fits) }
    }
}

/// Same value, whatever the width of the number or the kind of string: the types of a header are chosen by client libraries,
/// and two of them choose differently for the same program.
pub fn same(a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (a.as_integer(), b.as_integer()) {
        return a == b;
    }
    match (a, b) {
        (Value::Str(a) | Value::Bytes(a), Value::Str(b) | Value::Bytes(b)) => a == b,
        (Value::F32(a), Value::F64(b)) | (Value::F64(b), Value::F32(a)) => f64::from(*a) == *b,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Table(a), Value::Table(b)) => {
            a.0.len() == b.0.len() && a.0.iter().zip(&b.0).all(|((an, av), (bn, bv))| an == bn && same(av, bv))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, Value)]) -> Table {
        entries.iter().cloned().collect()
    }

    fn fits(form: Option<&str>, wanted: &[(&str, Value)], headers: &[(&str, Value)]) -> bool {
        let mut arguments = table(wanted);
        if let Some(form) = form {
            arguments.push("x-match", Value::str(form));
        }
        assert_eq!(validate_binding(&arguments), Ok(()));
        Match::of(&arguments).fits(&table(headers))
    }

    #[test]
    fn all_and_any_with_and_without_x() {
        let (a, b, x) = (("a", Value::I32(1)), ("b", Value::str("two")), ("x-c", Value::Bool(true)));
        let both = [a.clone(), b.clone()];
        assert!(fits(None, &both, &both));
        assert!(!fits(Some("all"), &both, std::slice::from_ref(&a)));
        assert!(fits(Some("any"), &both, std::slice::from_ref(&b)));
        assert!(!fits(Some("any"), &both, &[("b", Value::str("three"))]));
        let with_x = [a.clone(), x.clone()];
        assert!(fits(Some("all"), &with_x, std::slice::from_ref(&a)), "keys of x- don't count");
        assert!(!fits(Some("all-with-x"), &with_x, std::slice::from_ref(&a)));
        assert!(fits(Some("all-with-x"), &with_x, &with_x));
        assert!(!fits(Some("any"), &with_x, std::slice::from_ref(&x)));
        assert!(fits(Some("any-with-x"), &with_x, std::slice::from_ref(&x)));
    }

    #[test]
    fn nothing_asked_matches_all_and_never_any() {
        assert!(fits(None, &[], &[]));
        assert!(fits(Some("all"), &[], &[("a", Value::Void)]));
        assert!(!fits(Some("any"), &[], &[("a", Value::Void)]));
    }

    #[test]
    fn void_asks_for_presence_and_widths_do_not_matter() {
        assert!(fits(None, &[("a", Value::Void)], &[("a", Value::Table(Table::default()))]));
        assert!(!fits(None, &[("a", Value::Void)], &[("b", Value::Void)]));
        assert!(fits(None, &[("a", Value::I64(7))], &[("a", Value::U8(7))]));
        assert!(!fits(None, &[("a", Value::I64(7))], &[("a", Value::str("7"))]));
        assert!(!fits(None, &[("a", Value::I64(7))], &[("a", Value::F64(7.0))]));
        assert!(fits(None, &[("a", Value::I64(2))], &[("a", Value::I64(1)), ("a", Value::I64(2))]), "the last one counts");
    }

    #[test]
    fn a_wrong_x_match_is_refused_in_rabbitmqs_words() {
        let refused = |value: Value| validate_binding(&table(&[("x-match", value)])).expect_err("wrong").text;
        assert_eq!(
            refused(Value::str("foo")),
            "Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x"
        );
        assert_eq!(refused(Value::I32(1)), "Invalid x-match field type signedint (value 1); expected longstr");
    }
}
