//! A full disk stops publishers, lets a drain go on, loses nothing, and is over when there is room again.

use smallvec::smallvec;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use storage::sim_disk::{Fault, SimDisk};
use storage::{BatchBuilder, Commit, Level, Op, Pressure, Refused, Run, Settings, Store};

fn settings() -> Settings {
    Settings {
        journal_file_bytes: 32 << 10,
        journal_bytes_max: 512 << 10,
        tail_bytes_max: 16 << 10,
        segment_bytes: 16 << 10,
        read_bytes: 4 << 10,
        disk_free_min: 0,
        reserve_bytes: 32 << 10,
        ..Settings::new("/data")
    }
}

#[test]
fn twenty_times_full_and_drained_again() {
    let disk = SimDisk::new(3);
    let (store, _) = Store::open(Arc::new(disk.clone()), settings()).expect("opens");
    store.checkpoint().expect("sets space aside");
    disk.set_capacity(disk.used() + 300_000);
    let log = store.new_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    let mut builder = BatchBuilder::marked(0);
    (0..10).for_each(|i| builder.push_marked(0, &[&[i; 200]], &[b"b"]));
    let batch = Arc::new(builder.finish());
    let (mut next, mut first, mut full) = (0, 0, 0);
    for cycle in 0..20 {
        for _ in 0..2_000 {
            if store.pressure() != Pressure::Normal {
                full += 1;
                break;
            }
            let op = Op::Append { batch: batch.clone(), to: smallvec![(log, next)] };
            match store.commit(Commit::new(Level::Sync).op(op)) {
                Ok(_) => next += 10,
                Err(refused) => assert_eq!(refused, Refused::Full),
            }
            store.write_group().expect("a full disk is no error");
            if store.wait_for_checkpoint(Duration::ZERO) {
                store.checkpoint().expect("a full disk is no error");
            }
        }
        // The drain: everything is still there, in order, and can be settled.
        let mut from = first;
        let mut seen = BTreeSet::new();
        loop {
            let found = store.read(log, from, 20_000).expect("reads");
            let Some((base, last)) = found.last() else { break };
            from = base + last.span() as u64;
            seen.extend(found.iter().map(|b| b.0));
        }
        assert!(seen.into_iter().eq((first..next).step_by(10)), "cycle {cycle}");
        let run = Run::dense(first, (next - first) as u32);
        store.commit(Commit::new(Level::Sync).op(Op::Settle { log, run })).expect("a drain goes on");
        first = next;
        for _ in 0..3 {
            store.write_group().expect("a full disk is no error");
            store.checkpoint().expect("a full disk is no error");
        }
        assert_eq!(store.pressure(), Pressure::Normal, "cycle {cycle}");
    }
    assert_eq!(full, 20, "every cycle met the end of the disk");
    drop(store);
    let (_, recovered) = Store::open(Arc::new(disk.after_crash(1)), settings()).expect("opens");
    assert_eq!((recovered.logs[&log].first, recovered.logs[&log].next), (next, next));
}

/// EIO at every call of a working store: no commit that needed it is ever reported durable, and the store is closed for good.
#[test]
fn a_failed_call_poisons_and_nothing_in_doubt_is_confirmed() {
    let calls = life(None).expect("nothing fails");
    for call in 1..=calls {
        assert!(life(Some(call)).is_some(), "call {call}");
    }
    println!("EIO at each of {calls} calls");
}

/// Runs a fixed life with one failing call; answers how many calls it made.
fn life(failing: Option<u64>) -> Option<u64> {
    let disk = SimDisk::new(5);
    let (store, _) = Store::open(Arc::new(disk.clone()), settings()).expect("opens");
    let begun = disk.calls();
    if let Some(call) = failing {
        disk.fail_at(begun + call, Fault::Io);
    }
    let log = store.new_log();
    let mut builder = BatchBuilder::marked(0);
    builder.push_marked(0, &[&[1; 3000]], &[b"b"]);
    let batch = Arc::new(builder.finish());
    let (mut next, mut failed) = (0, false);
    if store.commit(Commit::new(Level::Sync).op(Op::Create { log })).is_err() {
        return None;
    }
    for step in 0..30 {
        let op = Op::Append { batch: batch.clone(), to: smallvec![(log, next)] };
        match store.commit(Commit::new(Level::Sync).op(op)) {
            Ok(_) => next += 1,
            Err(refused) => assert!(failed && refused == Refused::Poisoned),
        }
        let before = store.durable();
        let done = store.write_group();
        if failed {
            assert!(done.is_err() && store.durable() == before, "nothing is written after a failure");
        }
        failed |= done.is_err();
        if step % 10 == 9 {
            failed |= store.checkpoint().is_err();
        }
    }
    let durable = store.durable();
    let calls = disk.calls() - begun;
    drop(store);
    let (_, recovered) = Store::open(Arc::new(disk.after_crash(7)), settings()).expect("opens");
    assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
    assert!(recovered.position >= durable, "{:?} was durable, {:?} is there", durable, recovered.position);
    Some(calls)
}
