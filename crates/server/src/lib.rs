//! Sockets, threads, clock, settings, HTTP, `main`: the only place that touches the world.
//!
//! What is decided is decided elsewhere: protocols turn bytes into requests, the node works them off. Here bytes are carried.
//! Read [`hub`] first (who serves a connection, and when), then [`conn`] (why no wake-up is lost), then [`talk`].

pub mod alarms;
pub mod cli;
pub mod clock;
pub mod conn;
pub mod control;
pub mod http;
pub mod hub;
pub mod journal;
pub mod limits;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod owner;
pub mod protocols;
pub mod reader;
pub mod real;
pub mod run;
pub mod scratch;
pub mod session;
pub mod settings;
pub mod talk;
pub mod timer;
pub mod tls;
