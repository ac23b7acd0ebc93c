//! The two threads that belong to the store: one that writes and syncs groups and confirms what is safe, one that
//! checkpoints.

use crate::hub::Hub;
use crate::limits;
use crate::scratch::with_scratch;
use broker::Alarm;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Tells both threads to end after what they are doing.
pub type Stop = Arc<AtomicBool>;

pub fn spawn_writer(hub: &Arc<Hub>, stop: Stop) -> std::io::Result<JoinHandle<()>> {
    let hub = hub.clone();
    spawn("journal", move || {
        // Confirms are this thread's only words: who wants more than that gets it from the connection's own task.
        with_scratch(|scratch| scratch.refills_max = 0);
        let mut due = Vec::new();
        while !stop.load(Ordering::Acquire) {
            if hub.journal.wait_for_group(Duration::from_millis(limits::JOURNAL_WAIT_MS)) {
                match hub.journal.write_group() {
                    Ok(durable) => hub.handle_durable(durable, &mut due),
                    Err(error) => die(&error),
                }
                // Only a group fills the journal, so this is soon enough; the checkpointer says when there is room again.
                hub.set_alarm(Alarm::Journal, hub.journal.is_pressed());
            }
        }
    })
}

pub fn spawn_checkpointer(hub: &Arc<Hub>, stop: Stop) -> std::io::Result<JoinHandle<()>> {
    let hub = hub.clone();
    spawn("checkpoint", move || {
        while !stop.load(Ordering::Acquire) {
            if hub.journal.wait_for_checkpoint(Duration::from_millis(limits::CHECKPOINT_WAIT_MS))
                && let Err(error) = hub.journal.checkpoint()
            {
                die(&error);
            }
            hub.set_alarm(Alarm::Journal, hub.journal.is_pressed());
        }
    })
}

/// Without either thread nobody would ever be confirmed again: a bug in one of them ends the process.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            die("a bug");
        }
    })
}

/// A failed sync is final: what was written may be gone although the next sync succeeds. Nobody is confirmed.
fn die(error: &str) -> ! {
    tracing::error!(%error, "the store failed; the process ends, nothing of the last group was confirmed");
    std::process::exit(1);
}
