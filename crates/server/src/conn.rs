//! One connection as many tasks see it.
//!
//! ```text
//!   the node speaks (owner held)            whoever attends (speech held)               the socket
//!   ───────────────────────────────►  inbox ──────────────────────────►  machine ─► outbox ─────────►
//!        sets `dirty`, owes an              drains in order,                        EAGAIN: `blocked`, and the
//!        attendance                         writes at once                          connection's own task is poked
//! ```
//!
//! **No lost wake-up.** The rule is: *while `dirty` is set, somebody is obliged to look*. It is set under the owner's lock,
//! after the inbox was filled. Who turns it from false to true owes an attendance ([`crate::hub::Hub::attend`]):
//!
//! 1. it tries the speech lock. If it gets it, it clears `dirty` *first* and drains the inbox then, so what was pushed before
//!    the clearing is seen (the swap that clears reads the value of the swap that set, in one atomic's order), and what is
//!    pushed after it sets `dirty` again, with a new debtor.
//! 2. If it does not get it, there is a holder. The debtor did: set dirty, fence, try_lock (failed). Each holder does: unlock,
//!    fence, read dirty. Of two sequentially consistent fences one is first. If the debtor's is first, the holder's read sees
//!    `dirty` and the holder takes over the debt. If the holder's is first, the debtor's try_lock comes after the unlock, so
//!    it can only have failed because of a later holder, to whom the same applies; there is a last one.
//! 3. Who finds `dirty` already set leaves the work to the debtor of that time, who has not cleared it yet, and will do so
//!    before draining.
//! 4. A debtor that has done enough for others sets `dirty`, and pokes the connection's own task, which then owes it.
//!
//! A *poke* is never lost either: `poked` is set before the waker is taken, and looked at after the waker is left.

use crate::session::Session;
use broker::{ConnectionId, Event, Reply};
use protocol::Connection;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::net::tcp::OwnedWriteHalf;

/// What the node says to one connection, in its order.
#[derive(Debug)]
pub enum Said {
    Reply(Reply),
    Event(Event),
}

pub struct Conn {
    pub id: ConnectionId,
    pub(crate) socket: OwnedWriteHalf,
    pub(crate) speech: Mutex<Speech>,
    /// Filled while the owner is held, drained while the speech is held.
    pub(crate) inbox: Mutex<Vec<Said>>,
    /// See above: while it is set, somebody is obliged to look.
    pub(crate) dirty: AtomicBool,
    /// The node waits for room in the outbox. Set under the owner's lock, cleared when room is reported.
    pub(crate) starved: AtomicBool,
    /// It stands in the list of those that wait for a sync. Cleared by the journal thread before it looks.
    pub(crate) waiting: AtomicBool,
    /// The earliest deadline that the timer knows of for this connection; `u64::MAX` if none.
    pub(crate) armed: AtomicU64,
    poked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// What only one task at a time may use.
pub struct Speech {
    pub machine: Box<dyn Connection>,
    pub tls: Option<Box<Session>>,
    /// What the deliveries encoded so far weigh, and the node has not been told.
    pub cost: u64,
    /// The socket took all it could: the own task waits for writability.
    pub blocked: bool,
    /// The own task does not read, because the machine did not want it: whoever changes that pokes.
    pub stopped: bool,
    /// The last batch ran ahead of the consumers.
    pub slow: bool,
    pub authenticated: bool,
    /// The machine has said its last word, and the own task has been poked for it.
    pub finished: bool,
    /// The socket or the machine is broken: nothing more is said or heard.
    pub failed: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer went away: `reset`, `broken pipe`, …
    Socket(std::io::ErrorKind),
    /// A bug of ours.
    Panic,
    /// The own task has left.
    Over,
}

impl Speech {
    pub fn new(machine: Box<dyn Connection>, tls: Option<Box<Session>>) -> Speech {
        Speech {
            machine,
            tls,
            cost: 0,
            blocked: false,
            stopped: false,
            slow: false,
            authenticated: false,
            finished: false,
            failed: None,
        }
    }

    /// Nothing waits to be written, neither ours nor what TLS still holds.
    pub fn is_drained(&mut self) -> bool {
        self.machine.outbox().is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
    }
}

impl Conn {
    pub fn new(id: ConnectionId, socket: OwnedWriteHalf, speech: Speech) -> Conn {
        Conn {
            id,
            socket,
            speech: Mutex::new(speech),
            inbox: Mutex::default(),
            dirty: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            armed: AtomicU64::new(u64::MAX),
            poked: AtomicBool::new(false),
            waker: Mutex::default(),
        }
    }

    /// Waits for whoever speaks now; that is never long, since nobody who speaks waits for anything but the owner.
    pub(crate) fn speech(&self) -> MutexGuard<'_, Speech> {
        // A panic while speaking has been caught and has marked the speech as failed.
        self.speech.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Vec<Said>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the own task look at the connection.
    pub(crate) fn poke(&self) {
        self.poked.store(true, SeqCst);
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Own task only: true if poked since the last time; else the waker is left for the next poke.
    pub(crate) fn take_poke(&self, waker: &Waker) -> bool {
        if self.poked.swap(false, SeqCst) {
            return true;
        }
        {
            let mut slot = self.waker();
            match &*slot {
                Some(old) if old.will_wake(waker) => {}
                _ => *slot = Some(waker.clone()),
            }
        }
        self.poked.swap(false, SeqCst)
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
