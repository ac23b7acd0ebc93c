//! What was sent, confirmed, delivered and settled, and what of it breaks a promise.
//!
//! The process that keeps the books is never killed, so they stand in memory. A *life* is the time between a start of the
//! broker and the kill that ends it; a *sitting* is one consumer's channel.

use crate::message::Id;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// What was settled this long before a kill must not come back.
const SETTLED_FOR_GOOD_MS: u64 = 1_000;
/// So many violations are told in full.
const TOLD_MAX: usize = 20;

#[derive(Clone, Copy, Default)]
struct Entry {
    confirmed: bool,
    deliveries: u16,
    /// The life in which it was delivered last.
    delivered_in: u32,
    /// The consumer's settle went out in this life, at this time.
    settled: Option<(u32, u64)>,
}

/// How a promise can be broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Violation {
    /// Confirmed and never delivered.
    Lost,
    /// Delivered and never sent, or not what was sent, or to another queue.
    Ghost,
    /// Delivered again without being marked, or without a cause.
    Duplicate,
    /// Behind a later message of the same producer and queue, without a cause.
    Reordered,
    /// Settled long before the kill, and delivered again.
    Resurrected,
    /// The broker ended by itself.
    Crashed,
}

pub const VIOLATIONS: [(Violation, &str); 6] = [
    (Violation::Lost, "lost"),
    (Violation::Ghost, "ghosts"),
    (Violation::Duplicate, "duplicates"),
    (Violation::Reordered, "reordered"),
    (Violation::Resurrected, "resurrected"),
    (Violation::Crashed, "crashed"),
];

pub struct Books {
    pub run: u16,
    queues: usize,
    began: Instant,
    producers: Vec<Mutex<Vec<Entry>>>,
    pub confirmed: AtomicU64,
    pub delivered: AtomicU64,
    pub redelivered: AtomicU64,
    pub refused: AtomicU64,
    lives: Mutex<Vec<Life>>,
    life: AtomicU32,
    violations: Mutex<BTreeMap<Violation, u64>>,
}

#[derive(Clone, Copy, Default)]
struct Life {
    started_ms: u64,
    killed_ms: Option<u64>,
    first_confirm_ms: Option<u64>,
    /// Sittings that ended though nobody was killed: what they held comes again.
    interrupted: bool,
}

/// One consumer's channel: within it the messages of a producer come in their order.
pub struct Sitting {
    pub life: u32,
    queue: usize,
    last: HashMap<u16, u64>,
}

impl Sitting {
    pub fn new(life: u32, queue: usize) -> Sitting {
        Sitting { life, queue, last: HashMap::new() }
    }
}

impl Books {
    pub fn new(run: u16, producers: usize, queues: usize) -> Books {
        Books {
            run,
            queues,
            began: Instant::now(),
            producers: (0..producers).map(|_| Mutex::default()).collect(),
            confirmed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lives: Mutex::default(),
            life: AtomicU32::new(0),
            violations: Mutex::default(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn of(&self, producer: u16) -> MutexGuard<'_, Vec<Entry>> {
        self.producers[producer as usize].lock().expect("no panic under this lock")
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().expect("no panic under this lock")
    }

    /// Counted from 1.
    pub fn life(&self) -> u32 {
        self.life.load(SeqCst)
    }

    /// The broker is about to be started.
    pub fn begin_life(&self) {
        let mut lives = self.lives();
        lives.push(Life { started_ms: self.now_ms(), ..Life::default() });
        self.life.store(lives.len() as u32, SeqCst);
    }

    /// The broker is about to be killed.
    pub fn end_life(&self) {
        if let Some(life) = self.lives().last_mut() {
            life.killed_ms = Some(self.now_ms());
        }
    }

    fn at(&self, life: u32) -> Life {
        self.lives()[life as usize - 1]
    }

    /// Answers with the next message of a producer. It stands in the books before it is sent.
    pub fn send(&self, producer: u16) -> Id {
        let mut entries = self.of(producer);
        entries.push(Entry::default());
        Id { run: self.run, producer, sequence: entries.len() as u64 - 1 }
    }

    pub fn confirm(&self, id: Id, life: u32) {
        self.of(id.producer)[id.sequence as usize].confirmed = true;
        self.confirmed.fetch_add(1, SeqCst);
        let (now, lives) = (self.now_ms(), &mut *self.lives());
        lives[life as usize - 1].first_confirm_ms.get_or_insert(now);
    }

    /// What a consumer got. Answers with what it is, unless it is nothing that we know.
    pub fn deliver(&self, sitting: &mut Sitting, body: &[u8], redelivered: bool) -> Option<Id> {
        self.delivered.fetch_add(1, SeqCst);
        self.redelivered.fetch_add(redelivered as u64, SeqCst);
        let Some(id) = Id::of(body).filter(|id| id.run == self.run && (id.producer as usize) < self.producers.len()) else {
            self.tell(Violation::Ghost, format!("{} bytes that are no message of this run", body.len()));
            return None;
        };
        let mut entries = self.of(id.producer);
        let Some(entry) = entries.get_mut(id.sequence as usize) else {
            self.tell(Violation::Ghost, format!("{id:?} was never sent"));
            return None;
        };
        if id.queue(self.queues) != sitting.queue {
            self.tell(Violation::Ghost, format!("{id:?} in queue {}", sitting.queue));
        }
        let before = *entry;
        entry.deliveries = entry.deliveries.saturating_add(1);
        entry.delivered_in = sitting.life;
        drop(entries);
        let life = self.at(sitting.life);
        if before.deliveries > 0 {
            self.check_again(id, before, sitting.life, redelivered, life);
        }
        let last = sitting.last.entry(id.producer).or_insert(id.sequence);
        if id.sequence < *last && !(redelivered && life.interrupted) {
            let last = *last;
            self.tell(Violation::Reordered, format!("{id:?} behind {last}, redelivered {redelivered}, life {}", sitting.life));
        }
        *last = id.sequence.max(*last);
        Some(id)
    }

    /// A message that was delivered before.
    fn check_again(&self, id: Id, before: Entry, now_in: u32, redelivered: bool, life: Life) {
        let again = format!("{id:?}, delivered in life {}, again in {now_in}", before.delivered_in);
        if !redelivered {
            self.tell(Violation::Duplicate, format!("{again}, not marked as redelivered"));
        } else if before.delivered_in == now_in && !life.interrupted {
            self.tell(Violation::Duplicate, format!("{again}, without a cause"));
        }
        let Some((settled_in, settled_ms)) = before.settled else { return };
        let for_good = match self.at(settled_in).killed_ms {
            Some(killed_ms) => killed_ms > settled_ms + SETTLED_FOR_GOOD_MS,
            None => true,
        };
        if for_good {
            self.tell(Violation::Resurrected, format!("{again}, settled in {settled_in} at {settled_ms} ms"));
        }
    }

    /// The settles of these went out.
    pub fn settle(&self, ids: impl Iterator<Item = Id>, life: u32) {
        let now = self.now_ms();
        for id in ids {
            self.of(id.producer)[id.sequence as usize].settled = Some((life, now));
        }
    }

    /// A sitting ended. If nobody killed the broker, what it held comes again to others.
    pub fn end_sitting(&self, life: u32) {
        let mut lives = self.lives();
        let life = &mut lives[life as usize - 1];
        life.interrupted |= life.killed_ms.is_none();
    }

    pub fn tell(&self, violation: Violation, what: String) {
        let mut violations = self.violations.lock().expect("no panic under this lock");
        let told: u64 = violations.values().sum();
        *violations.entry(violation).or_default() += 1;
        if told < TOLD_MAX as u64 {
            eprintln!("{violation:?}: {what}");
        }
    }

    /// Everything was drained: what was confirmed and never came is lost.
    pub fn close(&self) -> Sums {
        let mut sums = Sums::default();
        for producer in 0..self.producers.len() as u16 {
            let entries = self.of(producer).clone();
            for (sequence, entry) in entries.iter().enumerate() {
                sums.sent += 1;
                sums.in_doubt += !entry.confirmed as u64;
                sums.in_doubt_delivered += (!entry.confirmed && entry.deliveries > 0) as u64;
                if entry.confirmed && entry.deliveries == 0 {
                    let id = Id { run: self.run, producer, sequence: sequence as u64 };
                    self.tell(Violation::Lost, format!("{id:?} of queue {}", id.queue(self.queues)));
                }
            }
        }
        sums
    }

    pub fn count(&self, violation: Violation) -> u64 {
        self.violations.lock().expect("no panic under this lock").get(&violation).copied().unwrap_or(0)
    }

    /// From the start of each life but the first to its first confirm.
    pub fn restarts_ms(&self) -> Vec<u64> {
        let lives = self.lives();
        lives.iter().skip(1).filter_map(|life| Some(life.first_confirm_ms? - life.started_ms)).collect()
    }
}

#[derive(Default)]
pub struct Sums {
    pub sent: u64,
    pub in_doubt: u64,
    pub in_doubt_delivered: u64,
}
