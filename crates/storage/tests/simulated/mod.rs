//! A store on a disk that loses power, beside a model of what it must know.
//!
//! One seed is several lives of one data directory: random operations, a crash at a random call of the disk, a recovery
//! (in many seeds cut off by a second crash), a comparison, more operations. The model is a list of the commits in their
//! order and two pictures of the world made from it: as recovered at the start of this life, and as it is now.
//!
//! After every recovery, with R = the last commit that is there:
//! - R is at or above what was reported durable, and at or below what was taken;
//! - keys, logs, deliverable offsets, counts and bytes are exactly those of the commits up to R: nothing half, nothing
//!   lost, nothing back, nothing that was never sent;
//! - the next offset is above every offset that a commit up to R named, and at or below what was given out.
#![allow(dead_code)] // each test uses its part

use smallvec::{SmallVec, smallvec};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use storage::sim_disk::{Fault, Random, SimDisk};
use storage::{Batch, BatchBuilder, Commit, Error, Level, LogId, Offset, Op, Recovered, Refused, Run, Settings, Store};

/// What a failed seed says.
pub type Verdict = Result<(), String>;

macro_rules! require {
    ($ok:expr, $($message:tt)*) => {
        if !$ok {
            return Err(format!($($message)*));
        }
    };
}

#[derive(Clone, Default)]
struct World {
    logs: BTreeMap<LogId, WorldLog>,
    keys: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

#[derive(Clone, Default)]
struct WorldLog {
    next: Offset,
    /// Above every offset that a durable commit named.
    named: Offset,
    first: Offset,
    gone: BTreeSet<Offset>,
    batches: BTreeMap<Offset, Arc<Batch>>,
    counts: BTreeMap<Offset, u32>,
}

impl WorldLog {
    fn deliverable(&self) -> BTreeSet<Offset> {
        let all = self.batches.iter().flat_map(|(base, b)| *base..base + b.span() as u64);
        all.filter(|o| *o >= self.first && !self.gone.contains(o)).collect()
    }
}

impl World {
    fn apply(&mut self, op: &Op, journaled: bool) {
        match op {
            Op::Append { batch, to } => {
                for (log, base) in to.iter().filter(|t| !journaled || !t.0.is_volatile()) {
                    let log = self.logs.get_mut(log).expect("the store took it");
                    log.batches.insert(*base, batch.clone());
                    log.next = log.next.max(base + batch.span() as u64);
                    log.named = log.next;
                }
            }
            // A later life knows nothing of either; a durable append behind them says that there is a gap.
            Op::Spill { .. } | Op::Skip { .. } if journaled => {}
            Op::Spill { log, base, batch } => self.change(*log, base + batch.span() as u64, |l| {
                l.batches.insert(*base, batch.clone());
            }),
            Op::Skip { log, from, to } => self.change(*log, *to, |l| l.gone.extend(*from..*to)),
            Op::Settle { log, run } => self.change(*log, run.offsets().last().map_or(0, |o| o + 1), |l| {
                l.gone.extend(run.offsets());
                l.counts.retain(|o, _| !l.gone.contains(o));
            }),
            Op::Count { log, offset, deliveries } => self.change(*log, offset + 1, |l| {
                if *offset >= l.first && !l.gone.contains(offset) {
                    l.counts.insert(*offset, *deliveries);
                }
            }),
            Op::Trim { log, before } => self.change(*log, *before, |l| {
                l.first = l.first.max(*before);
                l.counts = l.counts.split_off(&l.first);
                let first = l.first;
                l.batches.retain(|base, b| base + b.span() as u64 > first);
                l.gone = l.gone.split_off(&first);
            }),
            Op::Create { log } => drop(self.logs.insert(*log, WorldLog::default())),
            Op::Drop { log } => drop(self.logs.remove(log)),
            Op::Put { key, value: Some(value) } => drop(self.keys.insert(key.clone(), value.clone())),
            Op::Put { key, value: None } => drop(self.keys.remove(key)),
        }
    }

    fn change(&mut self, log: LogId, end: Offset, change: impl FnOnce(&mut WorldLog)) {
        if let Some(log) = self.logs.get_mut(&log) {
            log.named = log.named.max(end);
            log.next = log.next.max(end);
            change(log);
        }
    }
}

/// What shall happen in a seed besides its operations.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub ops: u64,
    pub lives: u64,
    pub faults: bool,
    pub small_disk: bool,
    pub rot: bool,
    pub second_crash: bool,
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x5eed);
        let ops = match random.below(10) {
            0 => 2000,
            1..4 => 800,
            _ => 200 + random.below(300),
        };
        Plan {
            ops,
            lives: 2 + random.below(3),
            faults: random.one_in(5),
            small_disk: random.one_in(8),
            rot: random.one_in(6),
            second_crash: random.one_in(3),
        }
    }
}

#[derive(Default, Clone, Copy, Debug)]
pub struct Tally {
    pub seeds: u64,
    pub ops: u64,
    pub crashes: u64,
    pub second_crashes: u64,
    pub faulty: u64,
    pub rotten: u64,
    pub damage_reported: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.seeds += other.seeds;
        self.ops += other.ops;
        self.crashes += other.crashes;
        self.second_crashes += other.second_crashes;
        self.faulty += other.faulty;
        self.rotten += other.rotten;
        self.damage_reported += other.damage_reported;
    }
}

pub fn settings(random: &mut Random) -> Settings {
    let file = 4096 << (2 + random.below(2));
    Settings {
        journal_file_bytes: file,
        journal_bytes_max: file * 8,
        tail_bytes_max: 2048 << random.below(4),
        segment_bytes: 1024 << random.below(4),
        read_bytes: 512 << random.below(3),
        interval_ms: 1_000_000,
        disk_free_min: 0,
        reserve_bytes: if random.one_in(2) { 4096 } else { 0 },
        entropy: random.number(),
        ..Settings::new("/data")
    }
}

pub struct Life {
    random: Random,
    pub disk: SimDisk,
    pub store: Arc<Store>,
    base: World,
    live: World,
    /// Commits of this life that went to the journal.
    journal: Vec<(u64, Vec<Op>)>,
    /// The highest answer of `durable` in this life, or what the start found.
    durable: u64,
    /// What was durable before the last group. The last one, rotten, looks like one that was torn.
    durable_before: u64,
    handed: BTreeSet<LogId>,
    tag: u64,
    pub tally: Tally,
    /// The file in which bits were turned last.
    rotten: Option<PathBuf>,
    verdict: Verdict,
}

/// Opens a store on an empty disk.
pub fn begin(seed: u64) -> Result<(Life, Settings), String> {
    let mut random = Random(seed);
    let settings = settings(&mut random);
    let disk = SimDisk::new(random.number());
    let (store, recovered) = Store::open(Arc::new(disk.clone()), settings.clone()).map_err(|e| e.to_string())?;
    let life = Life {
        random,
        disk,
        store,
        base: World::default(),
        live: World::default(),
        journal: Vec::new(),
        durable: recovered.position.0,
        durable_before: recovered.position.0,
        handed: BTreeSet::new(),
        tag: 0,
        tally: Tally { seeds: 1, ..Tally::default() },
        rotten: None,
        verdict: Ok(()),
    };
    Ok((life, settings))
}

pub fn run(seed: u64) -> Result<Tally, String> {
    run_plan(seed, Plan::of(seed))
}

pub fn run_plan(seed: u64, plan: Plan) -> Result<Tally, String> {
    let (mut life, settings) = begin(seed)?;
    if plan.small_disk {
        let room = 60_000 + life.random.below(200_000);
        life.disk.set_capacity(life.disk.used() + room);
    }
    for number in 0..plan.lives {
        let ops = plan.ops / plan.lives;
        life.endanger(&plan, ops);
        let mut done = 0;
        while done < ops && !life.disk.has_crashed() {
            done += 1;
            life.step()?;
            std::mem::replace(&mut life.verdict, Ok(()))?;
        }
        life.tally.ops += done;
        let rot = plan.rot && number + 1 == plan.lives;
        life = life.crash(&settings, plan.second_crash, rot)?;
        if rot {
            break;
        }
        life.check_contents()?;
    }
    Ok(life.tally)
}

impl Life {
    fn endanger(&mut self, plan: &Plan, ops: u64) {
        let calls = self.disk.calls();
        let reach = ops * 3;
        self.disk.heal();
        self.disk.crash_at(calls + 1 + self.random.below(reach));
        if plan.faults {
            self.tally.faulty += 1;
            for _ in 0..1 + self.random.below(2) {
                let fault = if self.random.one_in(2) { Fault::Io } else { Fault::Full };
                self.disk.fail_at(calls + 1 + self.random.below(reach / 2), fault);
            }
        }
    }

    /// One random operation.
    pub fn step(&mut self) -> Verdict {
        match self.random.below(100) {
            0..52 => self.random_commit()?,
            52..72 => self.write_group()?,
            72..78 => self.checkpoint()?,
            78..82 => {
                self.store.wait_for_checkpoint(Duration::ZERO);
            }
            82..92 => self.read_some()?,
            92..95 => self.create()?,
            95..96 => self.drop_log()?,
            _ => self.put()?,
        }
        self.note_durable();
        Ok(())
    }

    fn note_durable(&mut self) {
        let durable = self.store.durable().0;
        if durable > self.durable {
            self.durable_before = self.durable;
            self.durable = durable;
        }
    }

    pub fn write_group(&mut self) -> Verdict {
        self.store.write_group().map(drop).or_else(|error| self.expect_failure(error))
    }

    fn expect_failure(&self, error: Error) -> Verdict {
        // An error of the world; that it was one is all that is known here. What was promised must hold all the same.
        require!(!matches!(error, Error::Damaged { .. } | Error::UnknownLog(_)), "{error}");
        Ok(())
    }

    /// A checkpoint, with other things happening wherever another thread could do them.
    fn checkpoint(&mut self) -> Verdict {
        let store = self.store.clone();
        let busy = self.random.one_in(2);
        let cell = RefCell::new(&mut *self);
        let done = store.checkpoint_with(false, &mut || {
            let mut life = cell.borrow_mut();
            if busy && life.verdict.is_ok() {
                let step = match life.random.below(10) {
                    0..3 => Ok(()),
                    3..7 => life.random_commit(),
                    7 => life.write_group(),
                    8 => life.read_some(),
                    _ => life.put().and_then(|()| life.drop_log()),
                };
                life.verdict = step;
            }
        });
        if let Err(error) = done {
            self.expect_failure(error)?;
        }
        Ok(())
    }

    pub fn batch(&mut self) -> Arc<Batch> {
        self.tag += 1;
        let mut builder = BatchBuilder::marked(1_000);
        let (records, size) = (1 + self.random.below(6), self.random.below(120));
        for i in 0..records {
            let value = vec![(self.tag * 7 + i) as u8; size as usize];
            builder.push_marked(1_000, &[&self.tag.to_be_bytes(), &value], &[&[i as u8]]);
        }
        Arc::new(builder.finish())
    }

    fn pick(&mut self) -> Option<LogId> {
        let count = self.live.logs.len() as u64;
        let index = self.random.below(count) as usize;
        self.live.logs.keys().nth(index).copied()
    }

    fn random_commit(&mut self) -> Verdict {
        let Some(log) = self.pick() else { return self.create() };
        match self.random.below(20) {
            0..6 => self.append(1, Level::Sync),
            6..8 => self.append(3, Level::Sync),
            8 => self.append(1, Level::Volatile),
            9 => self.mix(log),
            10 => self.append(2, Level::Interval),
            11..17 => self.settle(log),
            17 => {
                let log_now = &self.live.logs[&log];
                let Some(offset) = log_now.next.checked_sub(1 + self.random.below(20)) else { return Ok(()) };
                let deliveries = self.random.below(9) as u32;
                self.commit(Level::Lazy, smallvec![Op::Count { log, offset, deliveries }])
            }
            18 if self.random.one_in(3) => {
                let (first, next) = (self.live.logs[&log].first, self.live.logs[&log].next);
                let before = first + self.random.below(next - first + 1);
                self.commit(Level::Sync, smallvec![Op::Trim { log, before }])
            }
            _ => self.move_records(),
        }
    }

    fn targets(&mut self, count: u64, span: u64) -> SmallVec<[(LogId, Offset); 2]> {
        let mut to: SmallVec<[(LogId, Offset); 2]> = SmallVec::new();
        for _ in 0..count {
            if let Some(log) = self.pick() {
                let before = to.iter().filter(|t| t.0 == log).count() as u64 * span;
                to.push((log, self.live.logs[&log].next + before));
            }
        }
        to
    }

    fn append(&mut self, fan_out: u64, level: Level) -> Verdict {
        let batch = self.batch();
        let count = 1 + self.random.below(fan_out);
        let to = self.targets(count, batch.span() as u64);
        self.commit(level, smallvec![Op::Append { batch, to }])
    }

    fn some_run(&mut self, log: LogId) -> Option<Run> {
        let (first, next) = (self.live.logs[&log].first, self.live.logs[&log].next);
        let from = match self.random.below(3) {
            0 => first,
            1 => next.saturating_sub(self.random.below(12)).max(first),
            _ => first + self.random.below(next - first + 1),
        };
        if from >= next {
            return None;
        }
        let stride = if self.random.one_in(3) { 2 + self.random.below(3) } else { 1 };
        let count = 1 + self.random.below(((next - from - 1) / stride + 1).min(60));
        Some(Run { first: from, count: count as u32, stride: stride as u32 })
    }

    fn settle(&mut self, log: LogId) -> Verdict {
        let Some(run) = self.some_run(log) else { return Ok(()) };
        let level = if self.random.one_in(4) { Level::Sync } else { Level::Lazy };
        self.commit(level, smallvec![Op::Settle { log, run }])
    }

    /// What an owner with transient records of its own does: some that the store never sees, some that it is to keep, and a
    /// durable batch, one behind the other in one commit.
    fn mix(&mut self, log: LogId) -> Verdict {
        let mut ops: SmallVec<[Op; 2]> = SmallVec::new();
        let mut next = self.live.logs[&log].next;
        for _ in 0..1 + self.random.below(4) {
            match self.random.below(3) {
                0 => {
                    let to = next + 1 + self.random.below(9);
                    ops.push(Op::Skip { log, from: next, to });
                    next = to;
                }
                kind => {
                    let batch = self.batch();
                    let base = next;
                    next += batch.span() as u64;
                    ops.push(match kind {
                        1 => Op::Spill { log, base, batch },
                        _ => Op::Append { batch, to: smallvec![(log, base)] },
                    });
                }
            }
        }
        let level = if self.random.one_in(2) { Level::Sync } else { Level::Lazy };
        self.commit(level, ops)
    }

    /// Append there, settle here, and a key that says so: all or nothing.
    fn move_records(&mut self) -> Verdict {
        let Some(from) = self.pick() else { return Ok(()) };
        let Some(run) = self.some_run(from) else { return Ok(()) };
        let batch = self.batch();
        let to = self.targets(1, batch.span() as u64);
        let key = Op::Put { key: Box::new([9]), value: Some(self.tag.to_be_bytes().into()) };
        self.commit(Level::Sync, smallvec![Op::Append { batch, to }, Op::Settle { log: from, run }, key])
    }

    fn create(&mut self) -> Verdict {
        if self.live.logs.len() > 8 {
            return self.drop_log();
        }
        let log = if self.random.one_in(6) { self.store.new_volatile_log() } else { self.store.new_log() };
        if !log.is_volatile() {
            require!(self.handed.insert(log), "log number {} was handed out twice", log.0);
        }
        if log.is_volatile() {
            return self.commit(Level::Volatile, smallvec![Op::Create { log }]);
        }
        let mut ops: SmallVec<[Op; 2]> = smallvec![Op::Create { log }];
        let name = Box::new([100, log.0 as u8]);
        ops.push(Op::Put { key: name, value: Some(Box::new([1])) });
        if self.random.one_in(2) {
            let batch = self.batch();
            ops.push(Op::Append { batch, to: smallvec![(log, 0)] });
        }
        self.commit(Level::Sync, ops)
    }

    fn drop_log(&mut self) -> Verdict {
        let Some(log) = self.pick() else { return Ok(()) };
        if log.is_volatile() {
            return self.commit(Level::Volatile, smallvec![Op::Drop { log }]);
        }
        let name = Box::new([100, log.0 as u8]);
        self.commit(Level::Sync, smallvec![Op::Drop { log }, Op::Put { key: name, value: None }])
    }

    fn put(&mut self) -> Verdict {
        let key = Box::new([self.random.below(20) as u8]);
        let length = self.random.below(60) as usize;
        self.tag += 1;
        let value = (!self.random.one_in(4)).then(|| vec![self.tag as u8; length].into());
        self.commit(Level::Sync, smallvec![Op::Put { key, value }])
    }

    pub fn commit(&mut self, level: Level, ops: SmallVec<[Op; 2]>) -> Verdict {
        let before = self.store.durable();
        match self.store.commit(Commit { ops: ops.clone(), level }) {
            Ok(position) => {
                let journaled = level != Level::Volatile && position > before;
                ops.iter().for_each(|op| self.live.apply(op, false));
                if journaled {
                    self.journal.push((position.0, ops.to_vec()));
                }
            }
            Err(Refused::Full | Refused::Poisoned) => {}
            Err(refused) => return Err(format!("{refused:?} was not expected of {ops:?}")),
        }
        Ok(())
    }

    /// Reads a piece of a log and compares it with what is live.
    fn read_some(&mut self) -> Verdict {
        let Some(log) = self.pick() else { return Ok(()) };
        let world = &self.live.logs[&log];
        let from = world.first + self.random.below(world.next - world.first + 2);
        let bytes = 1 + self.random.below(3_000) as usize;
        match self.store.read(log, from, bytes) {
            Ok(found) => check_piece(world, log, from, &found),
            Err(_) if self.disk.has_crashed() => Ok(()),
            Err(error) => Err(format!("reading log {} from {from}: {error}", log.0)),
        }
    }

    /// Reads everything and compares it with what is live.
    pub fn check_contents(&self) -> Verdict {
        for (id, world) in &self.live.logs {
            let mut from = 0;
            let mut seen = BTreeSet::new();
            loop {
                let found = self.store.read(*id, from, 700).map_err(|e| format!("reading log {}: {e}", id.0))?;
                check_piece(world, *id, from, &found)?;
                let Some((base, last)) = found.last() else { break };
                from = base + last.span() as u64;
                seen.extend(found.iter().flat_map(|(base, b)| *base..base + b.span() as u64));
            }
            let missing: Vec<_> = world.deliverable().difference(&seen).copied().collect();
            require!(missing.is_empty(), "log {}: records {missing:?} are not read", id.0);
        }
        Ok(())
    }

    /// Another crash of the same workload.
    pub fn reseed(&mut self, seed: u64) {
        self.random = Random(seed);
    }

    /// One operation of a small workload.
    pub fn do_op(&mut self, op: char) -> Verdict {
        let log = self.live.logs.keys().next().copied();
        match op {
            'a' => self.append_to(log, None, Level::Sync).and_then(|()| self.write_group()),
            'f' => {
                let other = self.live.logs.keys().nth(1).copied();
                self.append_to(log, other, Level::Sync)
            }
            'v' => self.append_to(log, None, Level::Volatile),
            's' => {
                let Some(log) = log else { return Ok(()) };
                let (first, next) = (self.live.logs[&log].first, self.live.logs[&log].next);
                let run = Run::dense(first, (next - first) as u32);
                self.commit(Level::Lazy, smallvec![Op::Settle { log, run }])
            }
            'k' => self.put(),
            'n' => self.create_log(),
            'd' => self.drop_log(),
            'g' => self.write_group(),
            'c' => self.checkpoint(),
            op => Err(format!("no operation is called {op}")),
        }?;
        self.note_durable();
        Ok(())
    }

    fn append_to(&mut self, log: Option<LogId>, other: Option<LogId>, level: Level) -> Verdict {
        let batch = self.batch();
        let to = [log, other].into_iter().flatten().map(|log| (log, self.live.logs[&log].next)).collect();
        self.commit(level, smallvec![Op::Append { batch, to }])
    }

    fn create_log(&mut self) -> Verdict {
        let log = self.store.new_log();
        self.commit(Level::Sync, smallvec![Op::Create { log }])
    }

    /// Opens a damaged copy of the disk and looks at what is there; then this life goes on with its own.
    pub fn open_damaged(&mut self, settings: &Settings, seed: u64) -> Verdict {
        self.random = Random(seed);
        let disk = self.disk.after_crash(seed);
        self.rot(&disk);
        let entropy = self.random.number();
        let opened = Store::open(Arc::new(disk.clone()), Settings { entropy, ..settings.clone() });
        let (store, recovered) = opened.map_err(|e| format!("does not open: {e}"))?;
        let mine = std::mem::replace(&mut self.store, store);
        let verdict = self.check_rotten(&recovered);
        let healed = self.rotten.as_ref().is_some_and(|p| !p.starts_with("/data/journal") && !p.starts_with("/data/segments"));
        let verdict =
            verdict.and_then(|()| if healed { self.compare(&self.world_at(recovered.position.0), &recovered) } else { Ok(()) });
        // What was damaged is damaged still, and reported again, or it is out of the way; in any case it opens again.
        let again = std::mem::replace(&mut self.store, mine);
        drop(again);
        let again = Store::open(Arc::new(disk), settings.clone()).map_err(|e| format!("does not open again: {e}"));
        verdict.and(again.map(drop))
    }

    /// The power goes. Then a start, perhaps another crash in the middle of it, and the comparison.
    pub fn crash(mut self, settings: &Settings, second: bool, rot: bool) -> Result<Life, String> {
        self.note_durable();
        let mut disk = self.disk.after_crash(self.random.number());
        self.tally.crashes += 1;
        if rot {
            self.rot(&disk);
        }
        let mut tries = 0;
        let (store, recovered) = loop {
            let settings = Settings { entropy: self.random.number(), ..settings.clone() };
            if second && tries < 3 && !rot {
                disk.crash_at(1 + self.random.below(60));
            }
            match Store::open(Arc::new(disk.clone()), settings) {
                // It may open and not have noticed: what it does last need not succeed.
                Ok(opened) if !disk.has_crashed() => break opened,
                _ if disk.has_crashed() => {
                    self.tally.second_crashes += 1;
                    disk = disk.after_crash(self.random.number());
                }
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => {
                    // Somebody makes room.
                    disk.set_capacity(u64::MAX);
                }
                Err(error) => return Err(format!("does not open: {error}")),
                Ok(_) => unreachable!("with and without power both stand above"),
            }
            tries += 1;
            require!(tries < 20, "never opens");
        };
        disk.heal();
        self.disk = disk;
        self.store = store;
        if rot {
            self.check_rotten(&recovered)?;
        } else {
            self.check_recovered(&recovered, tries > 0)?;
        }
        Ok(self)
    }

    fn world_at(&self, position: u64) -> World {
        let mut world = self.base.clone();
        for (_, ops) in self.journal.iter().take_while(|(p, _)| *p <= position) {
            let mut dropped = Vec::new();
            for op in ops {
                match op {
                    Op::Settle { log, .. } | Op::Count { log, .. } | Op::Trim { log, .. } if log.is_volatile() => {}
                    op => world.apply(op, true),
                }
                if let Op::Drop { log } = op {
                    dropped.push(*log);
                }
            }
        }
        world
    }

    fn check_recovered(&mut self, recovered: &Recovered, interrupted: bool) -> Verdict {
        let position = recovered.position.0;
        require!(recovered.damage.is_empty(), "damage where there is none: {:?}", recovered.damage);
        require!(position >= self.durable, "commit {} was durable, {position} is the last", self.durable);
        let mut world = self.world_at(position);
        let mut same = self.compare(&world, recovered);
        // A start that was cut off may have taken positions for itself that lost commits had had before it.
        let mut at = position;
        while same.is_err() && interrupted && at > self.durable {
            at -= 1;
            world = self.world_at(at);
            same = self.compare(&world, recovered).map_err(|_| same.unwrap_err());
        }
        if let Err(error) = same {
            return self.explain(position, recovered, error);
        }
        for (id, log) in &mut world.logs {
            log.next = recovered.logs[id].next;
        }
        self.base = world.clone();
        self.live = world;
        self.journal.clear();
        self.durable = self.store.durable().0;
        self.durable_before = self.durable;
        Ok(())
    }

    /// What is needed to understand a failed seed, when one is replayed.
    fn explain(&self, position: u64, recovered: &Recovered, error: String) -> Verdict {
        if std::env::var("BRAID_SEED").is_ok() {
            eprintln!("the last commit is {position}, {} was durable", self.durable);
            for (position, ops) in &self.journal {
                let ops: Vec<String> = ops
                    .iter()
                    .map(|op| match op {
                        Op::Append { batch, to } => format!("Append {} records to {to:?}", batch.span()),
                        op => format!("{op:?}").chars().take(100).collect(),
                    })
                    .collect();
                eprintln!("{position}: {ops:?}");
            }
            recovered.logs.iter().for_each(|(id, log)| eprintln!("{id:?} {log:?}"));
        }
        Err(error)
    }

    fn compare(&self, world: &World, recovered: &Recovered) -> Verdict {
        require!(world.keys == recovered.keys, "keys: {:?}, expected {:?}", recovered.keys, world.keys);
        let ids: BTreeSet<LogId> = recovered.logs.keys().copied().collect();
        let expected: BTreeSet<LogId> = world.logs.keys().copied().collect();
        require!(ids == expected, "logs: {ids:?}, expected {expected:?}");
        for (id, world) in &world.logs {
            let (log, n) = (&recovered.logs[id], id.0);
            require!(log.next >= world.named, "log {n}: next is {}, {} was named", log.next, world.named);
            let given = self.live.logs.get(id).map_or(u64::MAX, |l| l.next);
            require!(log.next <= given, "log {n}: next is {}, only {given} were given out", log.next);
            let left: BTreeSet<Offset> = (log.first..log.next).filter(|o| !log.settled.contains(*o)).collect();
            let expected = world.deliverable();
            let lost: Vec<_> = expected.difference(&left).collect();
            let back: Vec<_> = left.difference(&expected).collect();
            require!(lost.is_empty() && back.is_empty(), "log {n}: lost {lost:?}, came back {back:?}");
            let counts: BTreeMap<_, _> = world.counts.iter().filter(|c| expected.contains(c.0)).collect();
            let found: BTreeMap<_, _> = log.counts.iter().filter(|c| expected.contains(c.0)).collect();
            require!(counts == found, "log {n}: counts {found:?}, expected {counts:?}");
        }
        Ok(())
    }

    /// Turns some bits of what is on the medium.
    fn rot(&mut self, disk: &SimDisk) {
        self.tally.rotten += 1;
        let files: Vec<_> = disk.files().into_iter().filter(|f| f.1 > 0 && !is_marginal(&f.0)).collect();
        // The journal more often than its share.
        let journal: Vec<_> = files.iter().filter(|f| f.0.starts_with("/data/journal")).cloned().collect();
        let files = if self.random.one_in(3) { files } else { journal };
        let Some((path, _)) = files.get(self.random.below(files.len() as u64) as usize) else { return };
        self.rotten = Some(path.clone());
        let random = &mut self.random;
        disk.change(path, |bytes| {
            let written: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
            let Some(at) = written.get(random.below(written.len() as u64) as usize).copied() else { return };
            match random.below(4) {
                3 => bytes.truncate(at),
                0 => bytes[at] ^= 1 << random.below(8),
                1 => {
                    let page = at / 4096 * 4096;
                    let end = (page + 4096).min(bytes.len());
                    bytes[page..end].fill(0);
                }
                _ => {
                    let end = (at + 40).min(bytes.len());
                    bytes[at..end].iter_mut().for_each(|b| *b = random.number() as u8);
                }
            }
        });
    }

    /// After damage: either everything is as it was, or something is reported; and never a wrong byte.
    fn check_rotten(&mut self, recovered: &Recovered) -> Verdict {
        let position = recovered.position.0;
        let mut reported = !recovered.damage.is_empty();
        let everything = {
            let mut world = self.base.clone();
            self.journal
                .iter()
                .flat_map(|(_, ops)| ops)
                .filter(|op| !matches!(op, Op::Drop { .. } | Op::Trim { .. }))
                .for_each(|op| {
                    if let Op::Append { .. } | Op::Create { .. } = op {
                        world.apply(op, true)
                    }
                });
            world
        };
        for (id, log) in &recovered.logs {
            let Some(world) = everything.logs.get(id) else { return Err(format!("log {} was never made", id.0)) };
            let mut from = log.first;
            while from < log.next {
                match self.store.read(*id, from, 700) {
                    Ok(found) => {
                        for (base, batch) in &found {
                            let sent = world.batches.get(base).is_some_and(|b| b.body() == batch.body());
                            require!(sent, "log {}: the batch at {base} was never sent", id.0);
                        }
                        let Some((base, last)) = found.last() else { break };
                        from = base + last.span() as u64;
                    }
                    Err(Error::Damaged { to, .. }) => {
                        reported = true;
                        require!(to > from, "damage ends before it begins");
                        from = to;
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        self.tally.damage_reported += reported as u64;
        if reported {
            return Ok(());
        }
        let floor = self.durable_before;
        require!(position >= floor, "commit {floor} was durable, {position} is the last, no damage is reported");
        self.compare(&self.world_at(position), recovered)
    }
}

/// Files of which nothing depends but the process itself.
fn is_marginal(path: &PathBuf) -> bool {
    [PathBuf::from("/data/format"), PathBuf::from("/data/lock"), PathBuf::from("/data/reserve")].contains(path)
}

fn check_piece(world: &WorldLog, id: LogId, from: Offset, found: &[(Offset, Arc<Batch>)]) -> Verdict {
    let id = id.0;
    let mut at = from;
    for (base, batch) in found {
        let Some(sent) = world.batches.get(base) else { return Err(format!("log {id}: nothing was appended at {base}")) };
        require!(sent.body() == batch.body(), "log {id}: wrong bytes at {base}");
        require!(base + batch.span() as u64 > at, "log {id}: {base} is out of order");
        let skipped = world.batches.range(at.min(*base)..*base).find(|(b, batch)| wanted(world, **b, batch));
        require!(skipped.is_none(), "log {id}: {:?} is skipped", skipped.map(|s| s.0));
        require!(wanted(world, *base, batch), "log {id}: {base} is settled");
        at = base + batch.span() as u64;
    }
    if found.is_empty() {
        let left = world.deliverable().range(from..).next().copied();
        require!(left.is_none(), "log {id}: nothing read from {from}, {left:?} is there");
    }
    Ok(())
}

fn wanted(world: &WorldLog, base: Offset, batch: &Batch) -> bool {
    (base..base + batch.span() as u64).any(|o| o >= world.first && !world.gone.contains(&o))
}
