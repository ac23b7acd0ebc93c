//! What whole-system tests share: the release binary, started on a fresh directory and free ports.

mod broker;
mod tier;
pub mod wire;

pub use broker::{Braid, release_binary, target, workspace};
pub use tier::Tier;
