//! Where the threads meet: the owner behind its mutex, and the one procedure by which any of them serves a connection.
//!
//! Lock order: speech, then owner, then inbox. While an owner or an inbox is held, nothing is encoded, written or waited for;
//! another connection's speech is only ever *tried*.
//!
//! A turn, whoever runs it (a connection's own task, one that caused output for others, the journal thread, a reader, the
//! timer):
//!
//! 1. the machine's requests go to the node under the owner's lock; replies and events go into inboxes, in the node's order;
//! 2. what stands in the own inbox goes into the machine, which may ask again: until there is nothing left;
//! 3. what is durable is confirmed, else the connection is registered with the journal thread;
//! 4. the outbox is written to the socket; if it drained and the node waits for room, the node is told, and it goes on at 2;
//! 5. the speech is released; then everyone touched meanwhile is served in the same way, one after the other.

use crate::clock::Clock;
use crate::conn::{Conn, Failure, Said, Speech};
use crate::limits;
use crate::owner::{ALARMS, Journal, Owner, alarm_name};
use crate::reader::ReadQueue;
use crate::scratch::{Scratch, with_scratch};
use crate::timer::Timer;
use broker::{Alarm, Client, ConnectionId, Error, Event, Position, Reply, Request};
use protocol::Now;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

pub struct Hub {
    owned: Mutex<Owned>,
    pub journal: Arc<dyn Journal>,
    pub clock: Clock,
    pub timer: Timer,
    pub reads: ReadQueue,
    /// Who waits for a sync, and for which.
    waiters: Mutex<Vec<(Position, Arc<Conn>)>>,
    /// Publishers that pause because consumers are behind.
    slowed: Mutex<VecDeque<Weak<Conn>>>,
    anyone_slowed: AtomicBool,
    pub counts: Counts,
    /// Which alarms are on, by `Alarm as usize`.
    alarms: [AtomicBool; ALARMS.len()],
    /// Nobody new is let in.
    stopping: AtomicBool,
}

/// Plain counters of the server itself.
#[derive(Default)]
pub struct Counts {
    pub connections_opened: AtomicU64,
    pub connections_closed: AtomicU64,
    pub connections_refused: AtomicU64,
    pub panics: AtomicU64,
}

/// What the owner's mutex holds.
struct Owned {
    node: Box<dyn Owner>,
    /// By slot; the generation is checked.
    conns: Vec<Option<Arc<Conn>>>,
}

impl Hub {
    pub fn new(node: Box<dyn Owner>, journal: Arc<dyn Journal>, clock: Clock) -> Arc<Hub> {
        Arc::new(Hub {
            owned: Mutex::new(Owned { node, conns: Vec::new() }),
            journal,
            clock,
            timer: Timer::default(),
            reads: ReadQueue::default(),
            waiters: Mutex::default(),
            slowed: Mutex::default(),
            anyone_slowed: AtomicBool::new(false),
            counts: Counts::default(),
            alarms: Default::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Makes a connection known to the node. `speech` is made with the node's leave only.
    pub fn connect(&self, client: Client, socket: tokio::net::tcp::OwnedWriteHalf, speech: Speech) -> Result<Arc<Conn>, Error> {
        let mut owned = self.owned();
        // Looked at while the owner is held: who gets in before the stop is told of it.
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Error::new(broker::Reason::NotAllowed, "the node is stopping"));
        }
        let id = owned.node.connect(self.clock.now(), client)?;
        let conn = Arc::new(Conn::new(id, socket, speech));
        let slot = id.slot as usize;
        if owned.conns.len() <= slot {
            owned.conns.resize(slot + 1, None);
        }
        owned.conns[slot] = Some(conn.clone());
        self.counts.connections_opened.fetch_add(1, Ordering::Relaxed);
        Ok(conn)
    }

    /// Own task: it is over. Whoever still holds the connection finds nothing to do there.
    pub fn disconnect(&self, conn: &Conn) {
        conn.speech().failed = Some(Failure::Over);
        self.guard(|| {
            with_scratch(|scratch| {
                let now = self.clock.now();
                let mut owned = self.owned();
                owned.forget(conn.id);
                owned.node.disconnect(now, conn.id, &mut scratch.effects);
                self.release(owned, scratch);
                self.attend_touched(scratch);
            });
        });
        conn.inbox().clear();
        self.timer.disarm(conn);
        self.counts.connections_closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs what must not end its thread if it meets a bug.
    pub fn guard(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.counts.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Uses the node from a thread that serves no connection: a reader, the timer, an alarm, an operator.
    pub fn with_node<R>(&self, using: impl FnOnce(&mut dyn Owner, Now, &mut broker::Effects) -> R) -> R {
        with_scratch(|scratch| {
            let mut owned = self.owned();
            let result = using(&mut *owned.node, self.clock.now(), &mut scratch.effects);
            self.release(owned, scratch);
            self.attend_touched(scratch);
            result
        })
    }

    /// Says the same to every connection.
    pub fn tell_all(&self, event: impl Fn() -> Event) {
        with_scratch(|scratch| {
            let owned = self.owned();
            let ids: Vec<ConnectionId> = owned.conns.iter().flatten().map(|conn| conn.id).collect();
            scratch.effects.events.extend(ids.into_iter().map(|id| (id, event())));
            self.release(owned, scratch);
            self.attend_touched(scratch);
        });
    }

    /// Lets nobody new in and says goodbye to everyone.
    pub fn stop(&self, reason: &str) {
        self.stopping.store(true, Ordering::SeqCst);
        self.tell_all(|| Event::Close { reason: reason.into() });
    }

    pub fn set_alarm(&self, alarm: Alarm, on: bool) {
        if self.alarms[alarm as usize].swap(on, Ordering::SeqCst) != on {
            tracing::warn!(alarm = alarm_name(alarm), on, "alarm");
            self.with_node(|node, _, effects| node.set_alarm(alarm, on, effects));
        }
    }

    pub fn has_alarm(&self, alarm: Alarm) -> bool {
        self.alarms[alarm as usize].load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.owned().conns.iter().flatten().count()
    }

    /// Own task: the socket gave `input`.
    pub fn hear_input(&self, conn: &Arc<Conn>, input: &[u8]) -> Heard {
        with_scratch(|scratch| {
            let mut heard = Heard { bytes: 0, wants: Wants::default() };
            let mut speech = conn.speech();
            let turn = catch_unwind(AssertUnwindSafe(|| {
                let now = self.clock.now();
                heard.bytes = self.work_off(conn, &mut speech, input, now, scratch);
                self.converse(conn, &mut speech, now, scratch)
            }));
            let rest = self.note_panic(conn, &mut speech, turn, scratch);
            heard.wants = wants(&mut speech);
            drop(speech);
            fence(Ordering::SeqCst);
            // Debts that came in meanwhile; one that was left to ourselves has poked us.
            if rest == Rest::Done && conn.dirty.load(Ordering::SeqCst) {
                scratch.touched.push(conn.clone());
            }
            self.attend_touched(scratch);
            heard
        })
    }

    /// Own task: deciphers what the socket gave, to the end of `plain`.
    pub fn decipher(&self, conn: &Conn, input: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
        match &mut conn.speech().tls {
            Some(tls) => tls.read(input, plain),
            None => {
                plain.extend_from_slice(input);
                Ok(())
            }
        }
    }

    /// Own task: what it is to wait for. What changes later, pokes.
    pub fn wants(&self, conn: &Conn) -> Wants {
        wants(&mut conn.speech())
    }

    /// Own task, timer, journal thread: something may have happened.
    pub fn look_after(&self, conn: &Arc<Conn>) {
        with_scratch(|scratch| {
            touch(conn.clone(), scratch);
            self.attend_touched(scratch);
        });
    }

    /// Own task, when poked: as [`Hub::look_after`], but takes over a debt that stands (rule 4 of [`crate::conn`]).
    pub fn look_after_own(&self, conn: &Arc<Conn>) {
        with_scratch(|scratch| {
            conn.dirty.store(true, Ordering::SeqCst);
            scratch.touched.push(conn.clone());
            self.attend_touched(scratch);
        });
    }

    fn attend_touched(&self, scratch: &mut Scratch) {
        while let Some(conn) = scratch.touched.pop() {
            self.attend(&conn, scratch);
        }
    }

    /// Pays the debt of a `dirty` flag; see the proof at [`crate::conn`].
    fn attend(&self, conn: &Arc<Conn>, scratch: &mut Scratch) {
        for _ in 0..limits::ATTENDS_PER_TURN {
            fence(Ordering::SeqCst);
            let mut speech = match conn.speech.try_lock() {
                Ok(speech) => speech,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            conn.dirty.swap(false, Ordering::SeqCst);
            let turn = catch_unwind(AssertUnwindSafe(|| self.converse(conn, &mut speech, self.clock.now(), scratch)));
            let rest = self.note_panic(conn, &mut speech, turn, scratch);
            drop(speech);
            fence(Ordering::SeqCst);
            if rest == Rest::HandedOver || !conn.dirty.load(Ordering::SeqCst) {
                return;
            }
        }
        conn.poke();
    }

    /// A panic ends this connection only.
    fn note_panic(&self, conn: &Conn, speech: &mut Speech, turn: std::thread::Result<Rest>, scratch: &mut Scratch) -> Rest {
        turn.unwrap_or_else(|_| {
            scratch.requests.clear();
            scratch.replies.clear();
            self.counts.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(connection = conn.id.slot, "a bug: a connection's turn panicked; this connection ends");
            fail(conn, speech, Failure::Panic);
            Rest::Done
        })
    }

    /// Feeds the machine until it is done with the input, or wants no more of it.
    fn work_off(&self, conn: &Arc<Conn>, speech: &mut Speech, input: &[u8], now: Now, scratch: &mut Scratch) -> usize {
        self.lend_outbox(speech, scratch);
        let mut at = 0;
        while at < input.len() && speech.failed.is_none() {
            if !speech.machine.wants_input() {
                break;
            }
            let used = speech.machine.handle_input(now, &input[at..], &mut scratch.requests);
            at += used;
            if used == 0 && scratch.requests.is_empty() {
                break;
            }
            self.consult(conn, speech, now, scratch);
        }
        at
    }

    /// Steps 1 and 2: asks the node, hears the answers, until neither side has anything left.
    fn consult(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) {
        loop {
            if !scratch.requests.is_empty() {
                self.ask(conn, speech, now, scratch);
            }
            if !self.hear(conn, speech, now, scratch) && scratch.requests.is_empty() {
                return;
            }
        }
    }

    fn ask(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) {
        let drained = speech.cost > 0 && speech.machine.outbox().len() <= limits::OUTBOX_LOW_BYTES;
        let cost = if drained { std::mem::take(&mut speech.cost) } else { 0 };
        // A request that changes what deliveries mean is handed over by itself; see [`Owner`].
        let last = (scratch.requests.len() > 1).then(|| scratch.requests.pop_if(|last| !is_flow(last))).flatten();
        let mut owned = self.owned();
        if cost > 0 {
            conn.starved.store(false, Ordering::Relaxed);
            owned.node.handle_written(now, conn.id, cost, &mut scratch.effects);
            owned.distribute(Some(conn.id), scratch);
        }
        owned.ask(now, conn, scratch);
        if let Some(last) = last {
            scratch.requests.push(last);
            owned.ask(now, conn, scratch);
        }
        self.release(owned, scratch);
        if cost > 0 {
            self.resume_some();
        }
    }

    /// Drains the inbox once; false if it was empty.
    fn hear(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) -> bool {
        let mut said = std::mem::take(&mut *conn.inbox());
        let any = !said.is_empty();
        for one in said.drain(..) {
            match one {
                Said::Reply(reply) => {
                    match &reply {
                        Reply::Published(published) => speech.slow |= published.slow_down,
                        Reply::Authenticated { .. } => speech.authenticated = true,
                        _ => {}
                    }
                    speech.machine.handle_reply(now, reply, &mut scratch.requests);
                }
                Said::Event(event) => {
                    if let Event::Delivery(delivery) = &event {
                        speech.cost += u64::from(delivery.cost);
                    }
                    speech.machine.handle_event(now, event, &mut scratch.requests);
                }
            }
        }
        if any {
            scratch.keep_inbox(said);
        }
        any
    }

    /// Everything but input: hears, confirms, writes, reports room, until the connection is at rest.
    fn converse(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) -> Rest {
        if speech.failed.is_some() {
            conn.inbox().clear();
            return Rest::Done;
        }
        self.lend_outbox(speech, scratch);
        if speech.machine.poll_timeout().is_some_and(|at| at <= now.mono_ms) {
            speech.machine.handle_timeout(now, &mut scratch.requests);
        }
        let mut refills = 0;
        let rest = loop {
            self.consult(conn, speech, now, scratch);
            self.confirm(conn, speech);
            flush(conn, speech);
            let has_room = speech.cost > 0 && speech.machine.outbox().len() <= limits::OUTBOX_LOW_BYTES;
            if !has_room || speech.failed.is_some() || !conn.starved.load(Ordering::Acquire) {
                break Rest::Done;
            }
            if refills >= scratch.refills_max {
                conn.dirty.store(true, Ordering::SeqCst);
                conn.poke();
                break Rest::HandedOver;
            }
            refills += 1;
            self.report_room(conn, speech, now, scratch);
        };
        self.come_to_rest(conn, speech, now, scratch);
        rest
    }

    /// The node may give more.
    fn report_room(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) {
        let cost = std::mem::take(&mut speech.cost);
        let mut owned = self.owned();
        conn.starved.store(false, Ordering::Relaxed);
        owned.node.handle_written(now, conn.id, cost, &mut scratch.effects);
        owned.distribute(Some(conn.id), scratch);
        self.release(owned, scratch);
        self.resume_some();
    }

    /// Step 3. Registering and the journal's progress cross without loss: after registering we look at the position once
    /// more, and the journal thread looks at the list after it has moved the position.
    fn confirm(&self, conn: &Arc<Conn>, speech: &mut Speech) {
        let mut before = None;
        while let Some(position) = speech.machine.awaits().filter(|position| Some(*position) > before) {
            let mut durable = self.journal.durable();
            if position > durable {
                if !conn.waiting.swap(true, Ordering::SeqCst) {
                    self.waiters().push((position, conn.clone()));
                }
                fence(Ordering::SeqCst);
                durable = self.journal.durable();
            }
            if position > durable {
                return;
            }
            speech.machine.handle_durable(durable);
            before = Some(position);
        }
    }

    /// The journal thread: everything up to `durable` is safe.
    pub fn handle_durable(&self, durable: Position, due: &mut Vec<Arc<Conn>>) {
        fence(Ordering::SeqCst);
        {
            let mut waiters = self.waiters();
            waiters.retain_mut(|(position, conn)| {
                if *position <= durable {
                    due.push(conn.clone());
                }
                *position > durable
            });
        }
        for conn in due.drain(..) {
            // Before looking: who awaits something from now on registers anew.
            conn.waiting.store(false, Ordering::SeqCst);
            self.look_after(&conn);
        }
    }

    fn come_to_rest(&self, conn: &Arc<Conn>, speech: &mut Speech, now: Now, scratch: &mut Scratch) {
        if let Some(spare) = speech.machine.outbox().take_spare() {
            scratch.keep_outbox(spare);
        }
        if let Some(at) = speech.machine.poll_timeout() {
            // One that stays in the past is looked at again, but not in a circle.
            let at = at.max(now.mono_ms + 1);
            if at < conn.armed.load(Ordering::Relaxed) {
                conn.armed.store(at, Ordering::Relaxed);
                self.timer.arm(at, conn);
            }
        }
        let ends = speech.machine.is_finished() && !std::mem::replace(&mut speech.finished, true);
        let goes_on = speech.stopped && may_read(speech);
        if goes_on {
            speech.stopped = false;
        }
        if ends || goes_on {
            conn.poke();
        }
    }

    fn lend_outbox(&self, speech: &mut Speech, scratch: &mut Scratch) {
        let outbox = speech.machine.outbox();
        if outbox.buffer().capacity() == 0
            && let Some(spare) = scratch.outbox_spare()
        {
            outbox.lend(spare);
        }
    }

    /// Gives the owner back and carries out what it left to do, but for the attendances.
    fn release(&self, mut owned: MutexGuard<Owned>, scratch: &mut Scratch) {
        owned.distribute(None, scratch);
        self.timer.node_wants(owned.node.next_timeout());
        drop(owned);
        if !scratch.effects.reads.is_empty() {
            self.reads.push(&mut scratch.effects.reads);
        }
    }

    /// A publisher pauses until consumers have caught up, or its time is over.
    pub fn pause(&self, conn: &Arc<Conn>) {
        let mut slowed = self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
        slowed.push_back(Arc::downgrade(conn));
        self.anyone_slowed.store(true, Ordering::Release);
    }

    fn resume_some(&self) {
        if !self.anyone_slowed.load(Ordering::Acquire) {
            return;
        }
        let resumed: Vec<Weak<Conn>> = {
            let mut slowed = self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
            let count = slowed.len().min(limits::RESUMED_AT_ONCE);
            let resumed = slowed.drain(..count).collect();
            self.anyone_slowed.store(!slowed.is_empty(), Ordering::Release);
            resumed
        };
        resumed.iter().filter_map(Weak::upgrade).for_each(|conn| conn.poke());
    }

    fn owned(&self) -> MutexGuard<'_, Owned> {
        // A panic under the owner's lock was a connection's turn: that connection ends, the node goes on.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<(Position, Arc<Conn>)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owned {
    fn ask(&mut self, now: Now, conn: &Arc<Conn>, scratch: &mut Scratch) {
        let asked = scratch.requests.len();
        self.node.handle(now, conn.id, &mut scratch.requests, &mut scratch.replies, &mut scratch.effects);
        debug_assert!(scratch.requests.is_empty() && scratch.replies.len() == asked, "one reply each");
        let mut inbox = conn.inbox();
        if inbox.capacity() == 0 {
            *inbox = scratch.inbox_spare().unwrap_or_default();
        }
        inbox.extend(scratch.replies.drain(..).map(Said::Reply));
        drop(inbox);
        self.distribute(Some(conn.id), scratch);
    }

    /// Hands the events to the inboxes, in the node's order, while the owner is held. Who asks (`own`) holds its speech and
    /// hears its inbox next: that needs no touch.
    fn distribute(&mut self, own: Option<ConnectionId>, scratch: &mut Scratch) {
        let mut events = std::mem::take(&mut scratch.effects.events);
        let mut rest = events.drain(..).peekable();
        while let Some((id, event)) = rest.next() {
            let Some(conn) = self.conn(id).cloned() else {
                continue;
            };
            {
                let mut inbox = conn.inbox();
                if inbox.capacity() == 0 {
                    *inbox = scratch.inbox_spare().unwrap_or_default();
                }
                inbox.push(Said::Event(event));
                while let Some((_, event)) = rest.next_if(|(next, _)| *next == id) {
                    inbox.push(Said::Event(event));
                }
            }
            if own != Some(id) {
                touch(conn, scratch);
            }
        }
        drop(rest);
        scratch.effects.events = events;
        let mut starved = std::mem::take(&mut scratch.effects.starved);
        for id in starved.drain(..) {
            if let Some(conn) = self.conn(id).cloned() {
                conn.starved.store(true, Ordering::Release);
                if own != Some(id) {
                    touch(conn, scratch);
                }
            }
        }
        scratch.effects.starved = starved;
    }

    fn forget(&mut self, id: ConnectionId) {
        if let Some(slot) = self.conns.get_mut(id.slot as usize)
            && slot.as_ref().is_some_and(|conn| conn.id == id)
        {
            *slot = None;
        }
    }

    fn conn(&self, id: ConnectionId) -> Option<&Arc<Conn>> {
        self.conns.get(id.slot as usize)?.as_ref().filter(|conn| conn.id == id)
    }
}

fn touch(conn: Arc<Conn>, scratch: &mut Scratch) {
    if !conn.dirty.swap(true, Ordering::SeqCst) {
        scratch.touched.push(conn);
    }
}

/// Publishes and settles flow; everything else changes what links and pools mean. What carries a ticket stays with its list.
fn is_flow(request: &Request) -> bool {
    matches!(request, Request::Publish { .. } | Request::Settle { .. } | Request::Commit { .. } | Request::Rollback { .. })
}

/// Whether a turn left work to the connection's own task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Done,
    HandedOver,
}

pub struct Heard {
    /// How much of the input the machine is done with.
    pub bytes: usize,
    pub wants: Wants,
}

/// What a connection's own task waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    pub read: bool,
    pub write: bool,
    /// Consumers are behind: pause before the next read.
    pub pause: bool,
    /// The machine has said its last word; it may still have to leave.
    pub finished: bool,
    pub failed: bool,
    pub drained: bool,
    pub authenticated: bool,
}

fn wants(speech: &mut Speech) -> Wants {
    let read = may_read(speech);
    speech.stopped = !read;
    Wants {
        read,
        write: speech.blocked,
        pause: std::mem::take(&mut speech.slow),
        finished: speech.finished,
        failed: speech.failed.is_some(),
        drained: speech.is_drained(),
        authenticated: speech.authenticated,
    }
}

/// The machine wants input, and the client listens to what it is told.
fn may_read(speech: &mut Speech) -> bool {
    speech.machine.wants_input() && speech.machine.outbox().len() < limits::OUTBOX_STOPS_INPUT_BYTES
}

fn fail(conn: &Conn, speech: &mut Speech, failure: Failure) {
    speech.failed = Some(failure);
    conn.poke();
}

/// Writes what may be written, until the socket takes no more.
fn flush(conn: &Conn, speech: &mut Speech) {
    let result = match &mut speech.tls {
        None => flush_plain(conn, speech.machine.outbox()),
        Some(tls) => tls.flush(&conn.socket, speech.machine.outbox()),
    };
    match result {
        Ok(()) => speech.blocked = false,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            if !std::mem::replace(&mut speech.blocked, true) {
                conn.poke();
            }
        }
        Err(error) => fail(conn, speech, Failure::Socket(error.kind())),
    }
}

fn flush_plain(conn: &Conn, outbox: &mut protocol::Outbox) -> io::Result<()> {
    while !outbox.ready().is_empty() {
        let count = conn.socket.try_write(outbox.ready())?;
        outbox.advance(count);
    }
    Ok(())
}
