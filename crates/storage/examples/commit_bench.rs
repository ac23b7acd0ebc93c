//! What a durable record costs: commits of 240 records of 1 KiB through a journal thread to fdatasync.
//!
//! `cargo run --release -p storage --example commit_bench -- [DIR] [million records] [settle|keep] [records a batch] [bytes]`
//!
//! `settle` (the default): every batch is settled soon after it is durable, as a log whose readers keep up.
//! `BENCH_KILL=1`: ends without closing, to see what recovery takes.
//! `keep`: nothing is settled; checkpoints write everything a second time, to segments.

use smallvec::smallvec;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use storage::{BatchBuilder, Commit, Level, Op, Pressure, RealDisk, Run, Settings, Store};

/// User and system time of this process and of each of its threads, in seconds.
fn cpu() -> (f64, Vec<(String, f64)>) {
    let ticks = |stat: &str| -> f64 {
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        fields[11..13].iter().map(|f| f.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / 100.0
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let total = ticks(&read("/proc/self/stat"));
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads = tasks.map(|t| {
        let path = t.path();
        let name = read(&path.join("comm").to_string_lossy()).trim().to_owned();
        (name, ticks(&read(&path.join("stat").to_string_lossy())))
    });
    (total, threads.collect())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize| arguments.get(i).map(String::as_str);
    let dir = argument(0).map_or_else(|| std::env::temp_dir().join("braid-commit-bench"), PathBuf::from);
    let millions: f64 = argument(1).and_then(|a| a.parse().ok()).unwrap_or(2.0);
    let settle = argument(2) != Some("keep");
    let records: u32 = argument(3).and_then(|a| a.parse().ok()).unwrap_or(240);
    let bytes: usize = argument(4).and_then(|a| a.parse().ok()).unwrap_or(1024);
    let _ = std::fs::remove_dir_all(&dir);
    let (store, _) = Store::open(Arc::new(RealDisk), Settings::new(&dir)).expect("opens");
    let stop = Arc::new(AtomicBool::new(false));
    let threads = start_threads(&store, &stop);
    // The first journal files are made ready: what is measured is the steady state.
    std::thread::sleep(Duration::from_millis(1500));

    let log = store.new_log();
    store.commit(Commit::new(Level::Sync).op(Op::Create { log })).expect("taken");
    let payload = vec![7u8; bytes];
    let total = (millions * 1e6) as u64 / records as u64;
    let (begun, cpu_before) = (Instant::now(), cpu());
    let (mut next, mut waiting, mut waits) = (0u64, VecDeque::new(), 0);
    let (mut appending, mut settling) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..total {
        let mut builder = BatchBuilder::marked(0);
        builder.reserve(records as usize * (bytes + 40));
        (0..records).for_each(|_| builder.push_marked(0, &[&payload], &[b"a block of properties"]));
        let batch = Arc::new(builder.finish());
        let op = Op::Append { batch, to: smallvec![(log, next)] };
        let called = Instant::now();
        let position = store.commit(Commit::new(Level::Sync).op(op)).expect("taken");
        appending += called.elapsed();
        waiting.push_back((position, next));
        next += records as u64;
        // At most 32 commits wait for their confirm, as publishers with a window would.
        while waiting.len() > 32 || waiting.front().is_some_and(|w| w.0 <= store.durable()) {
            let (position, base) = waiting[0];
            if store.durable() < position {
                waits += 1;
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            waiting.pop_front();
            if settle {
                let op = Op::Settle { log, run: Run::dense(base, records) };
                let called = Instant::now();
                store.commit(Commit::new(Level::Lazy).op(op)).expect("taken");
                settling += called.elapsed();
            }
        }
        while store.pressure() != Pressure::Normal {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    while store.durable() < waiting.back().expect("not empty").0 {
        std::thread::sleep(Duration::from_micros(50));
    }
    let (elapsed, cpu_after) = (begun.elapsed().as_secs_f64(), cpu());
    let million = (total * records as u64) as f64 / 1e6;
    let stats = store.stats();
    println!(
        "{million:.2} million records of {bytes} B in batches of {records}, {}: {elapsed:.2} s, {:.0} MB/s, {:.3} CPU-s per million",
        if settle { "settled" } else { "kept" },
        million * bytes as f64 / elapsed,
        (cpu_after.0 - cpu_before.0) / million,
    );
    for (name, after) in &cpu_after.1 {
        let before = cpu_before.1.iter().find(|b| b.0 == *name).map_or(0.0, |b| b.1);
        println!("  {name:<16} {:.3} CPU-s per million", (after - before) / million);
    }
    println!(
        "  {} groups of {:.0} KB, sync {:.2} ms on average; {} checkpoints, {:.0} MB to segments; {waits} waits",
        stats.groups,
        stats.group_bytes as f64 / stats.groups as f64 / 1e3,
        stats.sync_ns_total as f64 / stats.groups as f64 / 1e6,
        stats.checkpoints,
        stats.segment_bytes_written as f64 / 1e6,
    );
    println!(
        "  a call of commit: {:.2} us to append, {:.2} us to settle (with the batch's memory freed)",
        appending.as_secs_f64() * 1e6 / total as f64,
        settling.as_secs_f64() * 1e6 / total as f64,
    );
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().expect("no panic"));
    if std::env::var_os("BENCH_KILL").is_some() {
        let bytes = store.stats().journal_bytes as f64 / 1e6;
        drop(store);
        let begun = Instant::now();
        let (_, recovered) = Store::open(Arc::new(RealDisk), Settings::new(&dir)).expect("opens again");
        println!(
            "  open {:.0} ms with {bytes:.0} MB in the journal, damage: {:?}",
            begun.elapsed().as_secs_f64() * 1e3,
            recovered.damage
        );
        let _ = std::fs::remove_dir_all(&dir);
        return;
    }
    let begun = Instant::now();
    store.close().expect("closes");
    println!("  close {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    drop(store);
    let begun = Instant::now();
    let (_, recovered) = Store::open(Arc::new(RealDisk), Settings::new(&dir)).expect("opens again");
    println!("  open {:.0} ms, clean: {}", begun.elapsed().as_secs_f64() * 1e3, recovered.clean);
    let _ = std::fs::remove_dir_all(&dir);
}

fn start_threads(store: &Arc<Store>, stop: &Arc<AtomicBool>) -> [std::thread::JoinHandle<()>; 2] {
    let run = |name: &str, body: fn(&Store)| {
        let (store, stop) = (store.clone(), stop.clone());
        let body = move || {
            while !stop.load(Ordering::Relaxed) {
                body(&store);
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(body).expect("a thread")
    };
    let journal = run("journal", |store| {
        if store.wait_for_group(Duration::from_millis(50)) {
            store.write_group().expect("writes");
        }
    });
    let checkpointer = run("checkpointer", |store| {
        if store.wait_for_checkpoint(Duration::from_millis(50)) {
            store.checkpoint().expect("checkpoints");
        }
    });
    [journal, checkpointer]
}
