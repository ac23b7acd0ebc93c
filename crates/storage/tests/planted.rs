//! Proves that the simulation has teeth: twelve bugs, planted one at a time, and each must be found.
//!
//! `cargo test -p storage --features planted --test planted`

#![cfg(feature = "planted")]

mod simulated;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use storage::planted::{Bug, plant};

const SEEDS_MAX: u64 = 2_000;

/// The first seed that fails, run on two threads.
fn found_at() -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(1), std::sync::Mutex::new(None::<(u64, String)>));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS_MAX || found.lock().expect("nothing panics under this lock").is_some() {
                        break;
                    }
                    let verdict = catch_unwind(AssertUnwindSafe(|| simulated::run(seed)));
                    let error = match verdict {
                        Ok(Ok(_)) => continue,
                        Ok(Err(error)) => error,
                        Err(_) => "panicked".into(),
                    };
                    let mut found = found.lock().expect("nothing panics under this lock");
                    if found.as_ref().is_none_or(|f| f.0 > seed) {
                        *found = Some((seed, error));
                    }
                }
            });
        }
    });
    found.into_inner().expect("nothing panics under this lock")
}

#[test]
fn each_of_twelve_planted_bugs_is_found() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        plant(Some(bug));
        match found_at() {
            Some((seed, error)) => println!("{bug:?}: seed {seed}: {}", error.chars().take(110).collect::<String>()),
            None => missed.push(bug),
        }
    }
    plant(None);
    let _ = std::panic::take_hook();
    println!("{} of {} found", Bug::ALL.len() - missed.len(), Bug::ALL.len());
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
}
