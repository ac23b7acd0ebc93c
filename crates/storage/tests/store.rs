//! The store over the real disk: one life after the other.

use smallvec::smallvec;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage::{
    Batch, BatchBuilder, Commit, Error, Level, LogId, Op, Pressure, RealDisk, Recovered, Refused, Run, Settings, Store,
};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("braid-storage-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn small(dir: &Path) -> Settings {
    Settings {
        journal_file_bytes: 1 << 20,
        journal_bytes_max: 16 << 20,
        tail_bytes_max: 64 << 10,
        segment_bytes: 64 << 10,
        read_bytes: 8 << 10,
        disk_free_min: 0,
        reserve_bytes: 0,
        entropy: 7,
        ..Settings::new(dir)
    }
}

fn open(dir: &Dir) -> (Arc<Store>, Recovered) {
    Store::open(Arc::new(RealDisk), small(&dir.0)).expect("opens")
}

fn batch(records: u32, bytes: usize, fill: u8) -> Arc<Batch> {
    let mut builder = BatchBuilder::marked(1_000);
    (0..records).for_each(|_| builder.push_marked(1_000, &[&vec![fill; bytes]], &[b"block"]));
    Arc::new(builder.finish())
}

fn append(store: &Store, level: Level, log: LogId, at: u64, batch: &Arc<Batch>) {
    let op = Op::Append { batch: batch.clone(), to: smallvec![(log, at)] };
    store.commit(Commit::new(level).op(op)).expect("taken");
}

fn fills(store: &Store, log: LogId, mut from: u64) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    loop {
        let batches = store.read(log, from, 20_000).expect("reads");
        let Some((base, last)) = batches.last() else { return found };
        from = base + last.span() as u64;
        found.extend(batches.iter().map(|(base, b)| (*base, b.record(0).value.expect("has a value")[0])));
    }
}

#[test]
fn what_was_committed_is_there_after_each_of_many_starts() {
    let dir = Dir::new("lives");
    let mut expected = Vec::new();
    let (store, recovered) = open(&dir);
    assert!(recovered.logs.is_empty() && recovered.epoch == 1);
    let log = store.new_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    let mut next = 0;
    let mut store = store;
    for life in 0..6u8 {
        for i in 0..40 {
            append(&store, Level::Sync, log, next, &batch(3, 700, i));
            expected.push((next, i));
            next += 3;
        }
        let key = Op::Put { key: [life].into(), value: Some(Box::new([life; 3])) };
        store.commit(Commit::new(Level::Sync).op(key)).expect("taken");
        assert_eq!(fills(&store, log, 0), expected);
        match life % 3 {
            0 => drop(store.write_group().expect("writes")),
            1 => store.checkpoint().expect("checkpoints"),
            _ => store.close().expect("closes"),
        }
        assert_eq!(fills(&store, log, 0), expected);
        drop(store);
        let (again, recovered) = open(&dir);
        store = again;
        assert_eq!((recovered.epoch, recovered.clean), (life as u32 + 2, life % 3 == 2), "{:?}", recovered.damage);
        assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
        assert_eq!((recovered.logs[&log].first, recovered.logs[&log].next), (0, next));
        assert_eq!(recovered.keys.len(), life as usize + 1);
        assert_eq!(fills(&store, log, 0), expected);
    }
}

#[test]
fn what_settles_leaves_memory_files_and_descriptors() {
    let dir = Dir::new("settles");
    let (store, _) = open(&dir);
    let log = store.new_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    for i in 0..200u64 {
        append(&store, Level::Sync, log, i * 2, &batch(2, 500, i as u8));
    }
    store.write_group().expect("writes");
    assert!(store.stats().tail_bytes > 200_000);
    store.checkpoint().expect("checkpoints");
    assert_eq!(store.stats().tail_bytes, 0);
    let files = || std::fs::read_dir(dir.0.join("segments")).expect("is there").count();
    assert!(files() > 2);
    // All but one record early on: its segment is written anew, the others go.
    let settle = |run| assert!(store.commit(Commit::new(Level::Lazy).op(Op::Settle { log, run })).is_ok());
    settle(Run::dense(0, 11));
    settle(Run::dense(12, 388));
    store.checkpoint().expect("checkpoints");
    assert_eq!(files(), 1);
    assert_eq!(fills(&store, log, 0), [(10, 5)]);
    settle(Run::one(11));
    store.checkpoint().expect("checkpoints");
    assert_eq!(files(), 0);
    assert!(store.read(log, 0, 1000).expect("reads").is_empty());
    drop(store);
    let (_, recovered) = open(&dir);
    assert_eq!((recovered.logs[&log].first, recovered.logs[&log].next), (400, 400));
}

#[test]
fn volatile_records_spill_are_read_in_order_and_are_gaps_after_a_restart() {
    let dir = Dir::new("volatile");
    let (store, _) = open(&dir);
    let log = store.new_log();
    let short = store.new_volatile_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    store.commit(Commit::new(Level::Volatile).op(Op::Create { log: short })).expect("taken");
    let mut expected = Vec::new();
    for i in 0..200u64 {
        let level = if i % 3 == 0 { Level::Sync } else { Level::Volatile };
        append(&store, level, log, i * 2, &batch(2, 500, i as u8));
        append(&store, Level::Volatile, short, i, &batch(1, 900, i as u8));
        expected.push((i * 2, i as u8));
        if i % 50 == 20 {
            store.wait_for_checkpoint(Duration::ZERO);
        }
        if i % 60 == 30 {
            store.checkpoint().expect("checkpoints");
        }
    }
    store.write_group().expect("writes");
    assert!(store.stats().tail_bytes < 150_000, "{}", store.stats().tail_bytes);
    assert_eq!(fills(&store, log, 0), expected);
    assert_eq!(fills(&store, short, 0).len(), 200);
    drop(store);
    let (store, recovered) = open(&dir);
    let log_now = &recovered.logs[&log];
    assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
    assert_eq!(recovered.logs.len(), 1);
    assert_eq!(log_now.next, 398, "the last durable record is number 397");
    expected.retain(|e| e.1 % 3 == 0);
    assert_eq!(fills(&store, log, 0), expected);
    assert_eq!(log_now.settled.iter().collect::<Vec<_>>()[0], (2, 6));
}

#[test]
fn a_refused_commit_leaves_no_trace() {
    let dir = Dir::new("refused");
    let (store, _) = open(&dir);
    let (log, other) = (store.new_log(), store.new_log());
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    let one = batch(2, 10, 1);
    let to = |targets: &[(LogId, u64)]| Op::Append { batch: one.clone(), to: targets.iter().copied().collect() };
    let refused = |commit: Commit| store.commit(commit).expect_err("refused");
    assert_eq!(refused(Commit::new(Level::Sync).op(to(&[(log, 0), (log, 1)]))), Refused::Stale { log, next: 2, given: 1 });
    assert_eq!(
        refused(Commit::new(Level::Sync).op(Op::Create { log: other }).op(to(&[(log, 0)])).op(to(&[(log, 5)]))),
        Refused::Stale { log, next: 2, given: 5 }
    );
    assert_eq!(refused(Commit::new(Level::Sync).op(Op::Drop { log }).op(to(&[(log, 0)]))), Refused::UnknownLog(log));
    assert_eq!(
        refused(Commit::new(Level::Sync).op(Op::Settle { log, run: Run::one(0) })),
        Refused::Stale { log, next: 0, given: 0 }
    );
    assert_eq!(refused(Commit::new(Level::Sync).op(Op::Create { log })), Refused::Exists(log));
    assert_eq!(refused(Commit::new(Level::Sync).op(to(&[(other, 0)]))), Refused::UnknownLog(other));
    let large = Op::Append { batch: batch(1, 600_000, 0), to: smallvec![(log, 0)] };
    assert!(matches!(refused(Commit::new(Level::Sync).op(large)), Refused::TooLarge { .. }));
    store.commit(Commit::new(Level::Sync).op(to(&[(log, 0)])).op(to(&[(log, 2)]))).expect("taken");
    assert_eq!(store.stats().commits, 2);
}

#[test]
fn a_full_journal_takes_only_what_drains_it_until_a_checkpoint() {
    let dir = Dir::new("full");
    let (store, _) = open(&dir);
    let log = store.new_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    let one = batch(1, 100_000, 1);
    let mut next = 0;
    loop {
        let op = Op::Append { batch: one.clone(), to: smallvec![(log, next)] };
        match store.commit(Commit::new(Level::Sync).op(op)) {
            Ok(_) => next += 1,
            Err(refused) => break assert_eq!(refused, Refused::Full),
        }
        store.write_group().expect("writes");
    }
    assert!(next > 100);
    assert!(store.pressure() >= Pressure::Publishers);
    store.commit(Commit::new(Level::Lazy).op(Op::Settle { log, run: Run::dense(0, 50) })).expect("drains");
    store.checkpoint().expect("checkpoints");
    assert_eq!(store.pressure(), Pressure::Normal);
    append(&store, Level::Sync, log, next, &one);
    store.close().expect("closes");
    drop(store);
    let (_, recovered) = open(&dir);
    assert_eq!((recovered.logs[&log].first, recovered.logs[&log].next), (50, next + 1));
}

#[test]
fn one_process_at_a_time_and_no_other_format() {
    let dir = Dir::new("lock");
    let (store, _) = open(&dir);
    assert!(matches!(Store::open(Arc::new(RealDisk), small(&dir.0)), Err(Error::Locked(_))));
    drop(store);
    let format = dir.0.join("format");
    let text = std::fs::read_to_string(&format).expect("is there").replace("format 1", "format 2");
    std::fs::write(&format, &text).expect("is writable");
    assert!(matches!(Store::open(Arc::new(RealDisk), small(&dir.0)), Err(Error::Version { found: 2, known: 1 })));
    assert_eq!(std::fs::read_to_string(&format).expect("is there"), text);
}

#[test]
fn with_threads_of_its_own_a_sync_commit_is_durable_soon_and_a_lazy_one_a_little_later() {
    let dir = Dir::new("threads");
    let (store, _) = open(&dir);
    let log = store.new_log();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if store.wait_for_group(Duration::from_millis(50)) {
                    store.write_group().expect("writes");
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if store.wait_for_checkpoint(Duration::from_millis(10)) {
                    store.checkpoint().expect("checkpoints");
                }
            }
        });
        let wait = |position| {
            while store.durable() < position {
                std::thread::yield_now();
            }
        };
        wait(store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken"));
        for i in 0..300u64 {
            append(&store, Level::Sync, log, i * 10, &batch(10, 1000, i as u8));
            let settle = Op::Settle { log, run: Run::dense(i * 10, 9) };
            let position = store.commit(Commit::new(Level::Lazy).op(settle)).expect("taken");
            if i % 30 == 0 {
                wait(position);
            }
            if i % 7 == 0 {
                assert_eq!(fills(&store, log, 0).len() as u64, i + 1);
            }
        }
        wait(store.commit(Commit::new(Level::Lazy).op(Op::Settle { log, run: Run::one(9) })).expect("taken"));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(store.stats().checkpoints > 0);
    assert_eq!(fills(&store, log, 0).len(), 299);
    drop(store);
    let (store, recovered) = open(&dir);
    assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
    assert_eq!(fills(&store, log, 0).len(), 299);
}
