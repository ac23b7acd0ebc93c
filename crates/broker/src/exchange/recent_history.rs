//! A fanout that remembers its last messages and gives them to whoever is bound later. The memory itself is the node's: here only
//! how much of it there is.

use super::wrong_argument;
use crate::error::Result;
use crate::limits::{RECENT_HISTORY_DEFAULT, RECENT_HISTORY_MAX};
use crate::value::Table;

/// A message with this header set to true is routed and not remembered.
pub const NO_STORE: &str = "x-recent-history-no-store";

/// How many messages an exchange with these arguments remembers.
pub fn length(arguments: &Table) -> Result<u32> {
    let Some(value) = arguments.get("x-recent-history-length") else { return Ok(RECENT_HISTORY_DEFAULT) };
    match value.as_integer() {
        Some(length) if length > 0 => Ok(length.min(i64::from(RECENT_HISTORY_MAX)) as u32),
        _ => Err(wrong_argument("x-recent-history-length", value, "a positive integer")),
    }
}
