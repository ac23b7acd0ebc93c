//! Threads that read old messages from the store, so that neither the owner nor a socket's thread ever waits for the disk.

use crate::hub::Hub;
use broker::{Read, ReadDone};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What is to be read. Bounded by the node, which asks for one read at a time for each log; what a read brings is
/// held by a reader thread only, so at most [`crate::limits::READER_THREADS`] results exist at once.
#[derive(Default)]
pub struct ReadQueue {
    waiting: Mutex<Waiting>,
    pushed: Condvar,
}

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Read>,
    closed: bool,
}

impl ReadQueue {
    pub fn push(&self, reads: &mut Vec<Read>) {
        let count = reads.len();
        self.waiting().reads.extend(reads.drain(..));
        if count == 1 { self.pushed.notify_one() } else { self.pushed.notify_all() }
    }

    /// Lets the reader threads end; what waits is not read any more.
    pub fn close(&self) {
        self.waiting().closed = true;
        self.pushed.notify_all();
    }

    fn take(&self) -> Option<Read> {
        let waiting = self.waiting();
        let mut waiting = self
            .pushed
            .wait_while(waiting, |waiting| waiting.reads.is_empty() && !waiting.closed)
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.closed { None } else { waiting.reads.pop_front() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn spawn(hub: &Arc<Hub>, number: usize) -> std::io::Result<JoinHandle<()>> {
    let hub = hub.clone();
    std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || {
        while let Some(read) = hub.reads.take() {
            let batches = hub.journal.read(read);
            if let Err(error) = &batches {
                tracing::error!(log = read.log.0, from = read.from, %error, "the store could not read");
            }
            hub.guard(|| hub.with_node(|node, now, effects| node.handle_read(now, ReadDone { read, batches }, effects)));
        }
    })
}
