//! A data directory written by the first version of the format opens for ever.
//!
//! `BRAID_WRITE_FIXTURE=1 cargo test -p storage --test fixture` writes it anew: only ever for a new version, beside the old.

use smallvec::smallvec;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use storage::{Batch, BatchBuilder, Commit, Error, Level, LogId, Op, RealDisk, Run, Settings, Store};

fn settings(dir: &Path) -> Settings {
    Settings {
        journal_file_bytes: 16 << 10,
        journal_bytes_max: 128 << 10,
        segment_bytes: 2 << 10,
        read_bytes: 1 << 10,
        disk_free_min: 0,
        reserve_bytes: 0,
        entropy: 1,
        ..Settings::new(dir)
    }
}

fn batch(value: &str) -> Arc<Batch> {
    let mut builder = BatchBuilder::marked(1_700_000_000_000);
    builder.push_marked(1_700_000_000_000, &[value.as_bytes()], &[b"first"]);
    builder.push_marked(1_700_000_000_001, &[value.as_bytes(), b", again"], &[b"second"]);
    Arc::new(builder.finish())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("is writable");
    for entry in std::fs::read_dir(from).expect("the fixture is there") {
        let path = entry.expect("is readable").path();
        let to = to.join(path.file_name().expect("has a name"));
        if path.is_dir() { copy(&path, &to) } else { assert!(std::fs::copy(&path, &to).is_ok()) }
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture-v1")
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("braid-fixture-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// One life that ends with a checkpoint behind it and commits before it, as after a power loss.
fn write(dir: &Path) {
    let (store, _) = Store::open(Arc::new(RealDisk), settings(dir)).expect("opens");
    let (one, two) = (store.new_log(), store.new_log());
    let commit = |level, ops: Vec<Op>| store.commit(Commit { ops: ops.into(), level }).expect("taken");
    commit(Level::Sync, vec![Op::Create { log: one }, Op::Create { log: two }]);
    let append = |base: u64, to: &[LogId]| Op::Append {
        batch: batch(&format!("record {base}")),
        to: to.iter().map(|log| (*log, base)).collect(),
    };
    for base in (0..40).step_by(2) {
        commit(Level::Sync, vec![append(base, &[one])]);
    }
    commit(Level::Sync, vec![Op::Put { key: Box::new(*b"kept"), value: Some(Box::new(*b"1")) }]);
    commit(Level::Lazy, vec![Op::Settle { log: one, run: Run { first: 1, count: 3, stride: 2 } }]);
    commit(Level::Lazy, vec![Op::Count { log: one, offset: 0, deliveries: 3 }]);
    store.checkpoint().expect("checkpoints");
    commit(Level::Volatile, vec![append(40, &[one])]);
    commit(Level::Sync, vec![append(0, &[two]), append(42, &[one])]);
    commit(Level::Sync, vec![Op::Put { key: Box::new(*b"late"), value: Some(Box::new(*b"2")) }]);
    store.write_group().expect("writes");
    drop(store);
    let ready = std::fs::read_dir(dir.join("journal")).expect("is there").count();
    assert!(ready < 5, "a fixture is small");
}

#[test]
fn a_directory_of_format_1_opens() {
    if std::env::var_os("BRAID_WRITE_FIXTURE").is_some() {
        let _ = std::fs::remove_dir_all(fixture());
        write(&fixture());
    }
    let dir = scratch("opens");
    copy(&fixture(), &dir);
    let (store, recovered) = Store::open(Arc::new(RealDisk), settings(&dir)).expect("opens");
    assert!(recovered.damage.is_empty() && !recovered.clean, "{:?}", recovered.damage);
    assert_eq!(recovered.epoch, 2);
    assert_eq!(recovered.keys.len(), 2);
    let one = &recovered.logs[&LogId(1)];
    assert_eq!((one.first, one.next, one.counts[&0]), (0, 44, 3));
    assert_eq!(one.settled.iter().collect::<Vec<_>>(), [(1, 2), (3, 4), (5, 6), (40, 42)]);
    assert_eq!(one.epochs, [(1, 0)]);
    let read = store.read(LogId(1), 0, 1 << 20).expect("reads");
    let mut all = read.clone();
    while let Some((base, last)) = all.last().cloned() {
        let more = store.read(LogId(1), base + last.span() as u64, 1 << 20).expect("reads");
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    let bases: Vec<u64> = all.iter().map(|b| b.0).collect();
    assert_eq!(bases, (0..40).step_by(2).chain([42]).collect::<Vec<_>>());
    assert!(all.iter().all(|(base, b)| b.body() == batch(&format!("record {base}")).body()));
    assert_eq!(store.read(LogId(2), 0, 100).expect("reads").len(), 1);
    let op = Op::Append { batch: batch("new"), to: smallvec![(LogId(2), 2)] };
    store.commit(Commit::new(Level::Sync).op(op)).expect("taken");
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn another_version_is_refused_and_not_a_byte_changes() {
    for (name, version) in [("older", 0), ("newer", 2)] {
        let dir = scratch(name);
        copy(&fixture(), &dir);
        let text = std::fs::read_to_string(dir.join("format")).expect("is there");
        std::fs::write(dir.join("format"), text.replace("format 1", &format!("format {version}"))).expect("is writable");
        let _ = std::fs::remove_file(dir.join("lock"));
        let before = listing(&dir);
        let refused = Store::open(Arc::new(RealDisk), settings(&dir)).map(drop).expect_err("is refused");
        assert!(matches!(refused, Error::Version { found, known: 1 } if found == version), "{refused}");
        assert_eq!(listing(&dir), before);
        let _ = std::fs::remove_dir_all(&dir);
    }
}

fn listing(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("is there") {
        let path = entry.expect("is readable").path();
        if path.is_dir() { all.extend(listing(&path)) } else { all.push((path.clone(), std::fs::read(path).expect("reads"))) }
    }
    all.sort();
    all
}
