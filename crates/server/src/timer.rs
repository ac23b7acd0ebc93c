//! All deadlines in one task: those of connections and the node's next one.
//!
//! A connection's deadline mostly moves away (every read postpones a heartbeat). So the timer keeps the *earliest* one that
//! it was told; when that is over, the connection is looked after, and says its new one. The hot path compares two numbers.

use crate::conn::Conn;
use crate::hub::Hub;
use broker::ConnectionId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

pub struct Timer {
    /// By deadline, monotonic milliseconds.
    armed: Mutex<BTreeMap<(u64, ConnectionId), Weak<Conn>>>,
    /// When the node wants to be called; `u64::MAX` if never.
    node_at: AtomicU64,
    /// What the task sleeps until.
    sleeps_until: AtomicU64,
    sooner: Notify,
}

impl Default for Timer {
    fn default() -> Timer {
        Timer {
            armed: Mutex::default(),
            node_at: AtomicU64::new(u64::MAX),
            sleeps_until: AtomicU64::new(u64::MAX),
            sooner: Notify::new(),
        }
    }
}

impl Timer {
    pub(crate) fn arm(&self, at: u64, conn: &Arc<Conn>) {
        self.armed().insert((at, conn.id), Arc::downgrade(conn));
        self.wake_for(at);
    }

    /// The connection is gone; nothing of it shall wait for its deadline.
    pub(crate) fn disarm(&self, conn: &Conn) {
        self.armed().remove(&(conn.armed.load(Ordering::SeqCst), conn.id));
    }

    /// Called after every use of the node, while it is held.
    pub(crate) fn node_wants(&self, next: Option<u64>) {
        let next = next.unwrap_or(u64::MAX);
        if self.node_at.swap(next, Ordering::SeqCst) > next {
            self.wake_for(next);
        }
    }

    /// `Notify` remembers one wake-up that comes while the task is about to sleep.
    fn wake_for(&self, at: u64) {
        if at < self.sleeps_until.load(Ordering::SeqCst) {
            self.sooner.notify_one();
        }
    }

    fn take_due(&self, now_ms: u64, due: &mut Vec<Arc<Conn>>) {
        let mut armed = self.armed();
        while let Some(entry) = armed.first_entry().filter(|entry| entry.key().0 <= now_ms) {
            let at = entry.key().0;
            if let Some(conn) = entry.remove().upgrade() {
                // From now on an earlier deadline than none is told anew. A later entry of this connection may stand; it
                // costs one idle look.
                if conn.armed.load(Ordering::Relaxed) >= at {
                    conn.armed.store(u64::MAX, Ordering::SeqCst);
                }
                due.push(conn);
            }
        }
    }

    fn next(&self) -> u64 {
        let first = self.armed().first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        first.min(self.node_at.load(Ordering::SeqCst))
    }

    fn armed(&self) -> MutexGuard<'_, BTreeMap<(u64, ConnectionId), Weak<Conn>>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs for the life of the process.
pub async fn run(hub: Arc<Hub>) {
    let timer = &hub.timer;
    let mut due = Vec::new();
    loop {
        let now_ms = hub.clock.now().mono_ms;
        timer.take_due(now_ms, &mut due);
        for conn in due.drain(..) {
            hub.look_after(&conn);
        }
        if timer.node_at.load(Ordering::SeqCst) <= now_ms {
            hub.guard(|| {
                hub.with_node(|node, now, effects| {
                    if node.next_timeout().is_some_and(|at| at <= now.mono_ms) {
                        node.handle_timeout(now, effects);
                    }
                });
            });
        }
        // Tell first, then look: who arms something after the look sees what we sleep until, and wakes us.
        timer.sleeps_until.store(u64::MAX, Ordering::SeqCst);
        let next = timer.next();
        timer.sleeps_until.store(next, Ordering::SeqCst);
        let next = next.min(hub.clock.now().mono_ms + IDLE_LOOK_MS);
        tokio::select! {
            () = tokio::time::sleep_until(hub.clock.instant(next).into()) => {}
            () = timer.sooner.notified() => {}
        }
    }
}

/// The timer looks around this often even if nobody asked for it: a lost deadline would be late by this much.
const IDLE_LOOK_MS: u64 = 1_000;
