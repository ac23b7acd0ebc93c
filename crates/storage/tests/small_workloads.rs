//! Most crash bugs of storage engines need at most three operations on a fresh disk (OSDI 2018). So: all of them.
//!
//! Every workload of up to three operations, times every call of the disk in it, times what can happen there: the power
//! goes, the call fails, the disk is full. In the ci tier up to three operations, otherwise up to two.

mod simulated;

use simulated::{Life, Verdict, begin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use storage::Settings;
use storage::sim_disk::Fault;

const OPERATIONS: &str = "afvskndgc";

fn workloads(longest: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..longest {
        last = last.iter().flat_map(|w| OPERATIONS.chars().map(|c| format!("{w}{c}")).collect::<Vec<_>>()).collect();
        all.extend(last.iter().cloned());
    }
    all
}

fn prepared() -> (Life, Settings) {
    let (mut life, settings) = begin(11).expect("an empty disk opens");
    "nnafg".chars().for_each(|op| life.do_op(op).expect("nothing fails yet"));
    (life, settings)
}

#[derive(Clone, Copy, Debug)]
enum Event {
    PowerLoss,
    Fails(Fault),
}

fn run(workload: &str, call: u64, event: Event, images: u64) -> Verdict {
    for image in 0..images {
        let (mut life, settings) = prepared();
        let at = life.disk.calls() + call;
        match event {
            Event::PowerLoss => life.disk.crash_at(at),
            Event::Fails(fault) => life.disk.fail_at(at, fault),
        }
        for op in workload.chars() {
            life.do_op(op)?;
        }
        life.reseed(image * 7919 + call);
        life.crash(&settings, false, false)?.check_contents()?;
    }
    Ok(())
}

fn calls_of(workload: &str) -> u64 {
    let (mut life, _) = prepared();
    let before = life.disk.calls();
    workload.chars().for_each(|op| life.do_op(op).expect("nothing fails"));
    life.disk.calls() - before
}

#[test]
fn every_small_workload_survives_every_crash_point() {
    let longest = if std::env::var("BRAID_TIER").is_ok_and(|tier| tier != "quick") { 3 } else { 2 };
    let workloads = workloads(longest);
    let (next, images, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for call in 1..=calls_of(workload) + 1 {
                        for (event, count) in
                            [(Event::PowerLoss, 3), (Event::Fails(Fault::Io), 1), (Event::Fails(Fault::Full), 1)]
                        {
                            images.fetch_add(count as usize, Ordering::Relaxed);
                            if let Err(error) = run(workload, call, event, count) {
                                let mut failed = failed.lock().expect("nothing panics under this lock");
                                failed.push(format!("{workload} at call {call}, {event:?}: {error}"));
                            }
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nothing panics under this lock");
    println!("{} workloads, {} images", workloads.len(), images.into_inner());
    failed.iter().take(10).for_each(|f| println!("{f}"));
    assert!(failed.is_empty(), "{} failed", failed.len());
}
