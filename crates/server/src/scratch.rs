//! What a thread reuses from one turn to the next, so that connections own no buffers while they are idle.

use crate::conn::{Conn, Said};
use crate::limits;
use broker::{Effects, Reply, Request};
use std::cell::RefCell;
use std::sync::Arc;

pub struct Scratch {
    /// Of the connection that is being attended; empty between turns.
    pub requests: Vec<Request>,
    pub replies: Vec<Reply>,
    pub effects: Effects,
    /// Connections whose `dirty` flag this thread has set: it owes each of them an attendance.
    pub touched: Vec<Arc<Conn>>,
    /// How often this thread refills one draining connection before it leaves the rest to that connection's own task.
    pub refills_max: u32,
    outbox_spares: Vec<Vec<u8>>,
    inbox_spares: Vec<Vec<Said>>,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            requests: Vec::new(),
            replies: Vec::new(),
            effects: Effects::default(),
            touched: Vec::new(),
            refills_max: limits::REFILLS_PER_TURN,
            outbox_spares: Vec::new(),
            inbox_spares: Vec::new(),
        }
    }

    pub fn outbox_spare(&mut self) -> Option<Vec<u8>> {
        self.outbox_spares.pop()
    }

    pub fn keep_outbox(&mut self, buffer: Vec<u8>) {
        debug_assert!(buffer.is_empty());
        if self.outbox_spares.len() < limits::SPARES_PER_THREAD && buffer.capacity() <= limits::SPARE_BYTES_MAX {
            self.outbox_spares.push(buffer);
        }
    }

    pub fn inbox_spare(&mut self) -> Option<Vec<Said>> {
        self.inbox_spares.pop()
    }

    pub fn keep_inbox(&mut self, said: Vec<Said>) {
        debug_assert!(said.is_empty());
        let bytes = said.capacity() * size_of::<Said>();
        if self.inbox_spares.len() < limits::SPARES_PER_THREAD && bytes <= limits::SPARE_BYTES_MAX {
            self.inbox_spares.push(said);
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
    static INPUT: RefCell<Box<[u8]>> = RefCell::new(vec![0; limits::READ_BYTES].into());
}

/// Turns are never nested and never wait, so the borrow always succeeds.
pub fn with_scratch<R>(turn: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(turn)
}

/// The read buffer of this thread; not to be held across an await.
pub fn with_input<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    INPUT.with_borrow_mut(|buffer| read(buffer))
}
