//! What whole-system tests share: the release binary, started on a fresh directory and free ports.

mod broker;
mod tier;

pub use broker::{release_binary, workspace, Braid};
pub use tier::Tier;
